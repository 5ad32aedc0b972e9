"""Who may import what: the reading order of the steps, and where the heavy libraries live."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "datagen"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
STEPS = ("sources", "decode", "perceive", "describe", "assemble", "write")
# What every step may use: contracts and pure functions, none of which knows a step.
SHARED = (
    "at_once",
    "errors",
    "events",
    "faults",
    "frame_names",
    "flags",
    "guard",
    "ids",
    "job",
    "ledger",
    "life",
    "machine",
    "masks",
    "metrics",
    "pam",
    "paths",
    "patience",
    "processes",
    "ranges",
    "portions",
    "records",
    "refusals",
    "stated",
    "spans",
    "redaction",
    "remote",
    "s3",
    "s3_options",
    "share",
    "parquet_pages",
    "tables",
    "watchdog",
    "tar",
)
# A step that reads what another one defines, each with its reason.
ALLOWED = {
    ("decode", "sources.uris"),  # both turn a URI into a local path, in the same way
    # Masks that are pictures beside somebody's videos: only the decoding child may open them.
    ("sources", "decode.copies"),
    ("sources", "decode.object_masks"),
}


def imports_of(file):
    """Dotted names of the modules a file imports, wherever in it, those under `if TYPE_CHECKING` included."""
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_importing(*libraries):
    return {file for file in FILES if any(name.split(".")[0] in libraries for name in imports_of(file))}


def test_only_the_graph_the_ledger_its_metrics_the_overseer_and_the_job_client_know_ray():
    # What submits a job talks to a job server; it runs nothing itself.
    assert files_importing("ray") == {"graph.py", "ledger.py", "metrics.py", "workers.py", "cluster/jobs.py"}


def test_one_file_knows_vllm():
    assert len(files_importing("vllm")) == 1


def test_companions_of_torch_that_we_do_not_install_are_never_imported():
    assert files_importing("torchvision", "torchaudio", "torchcodec") == set()


def test_parts_of_sam2_that_need_torchvision_are_never_imported():
    banned = ("sam2.sam2_image_predictor", "sam2.automatic_mask_generator")
    assert not [file for file in FILES if any(name.startswith(banned) for name in imports_of(file))]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_knows_no_other_step(step):
    for file in FILES:
        if not file.startswith(f"{step}/"):
            continue
        for name in imports_of(file):
            package, _, module = name.partition(".")
            if package != "datagen" or not module or module.split(".")[0] in (step, *SHARED):
                continue
            allowed = any(module == known or module.startswith(f"{known}.") for who, known in ALLOWED if who == step)
            assert allowed or module == "__version__", f"datagen/{file} imports {name}"


def test_what_all_steps_share_knows_no_step():
    # Crash counts are kept in the dataset's store: the only way from shared code into a step.
    for file in FILES:
        if file.split("/")[0].removesuffix(".py") in SHARED and file not in ("guard.py", "ledger.py"):
            steps = [
                name
                for name in imports_of(file)
                if name.split(".")[:1] == ["datagen"] and name.split(".")[1:2] and name.split(".")[1] in STEPS
            ]
            assert not steps, f"datagen/{file} imports {steps}"


@pytest.mark.parametrize(
    "module", ["datagen", "datagen.cli", "datagen.job", "datagen.records", "datagen.check", "datagen.stats", "datagen.write"]
)
def test_light_modules_load_nothing_heavy(module):
    code = (
        f"import sys, {module}; print(sorted({{'torch', 'ray', 'vllm', 'transformers', 'sam2', 'datasets', 'pandas'}} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_no_file_is_too_long_to_hold_in_the_head():
    lengths = {file: len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {file: length for file, length in lengths.items() if length > 400} == {}
