"""Stages, resuming, and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest
import torch
import yaml
from damage import rewrite, with_column
from distill_student import STUDENT, metrics_of, pocket

from datagen.distill.config import load_config, parse_config
from datagen.distill.optimizer import MatrixOptimizer, make_optimizers
from datagen.distill.student import image_size_of, new_student
from datagen.distill.tasks import Data, make_task
from datagen.distill.train import distill, learning_share
from datagen.errors import DatagenError, JobError, ModelLoadError, OutputBusyError, SourceError, WriteError
from datagen.records import LANGUAGES, TASKS
from datagen.scenes import write_scenes
from datagen.write import open_store

ROOT = Path(__file__).resolve().parents[2]
ENCODE = {"kind": "encode", "steps": 6, "batch_size": 2, "warmup_steps": 2, "muon_learning_rate": 0.02}
SEGMENT = {"kind": "segment", "steps": 6, "batch_size": 2, "warmup_steps": 2}
TRACK = {"kind": "track", "steps": 4, "objects": 2, "frames": 3, "warmup_steps": 2}
DESCRIBE = {"kind": "describe", "steps": 6, "batch_size": 4, "clip_share": 0.5, "warmup_steps": 2}
STAGES = (ENCODE, SEGMENT, TRACK, DESCRIBE)


@pytest.fixture(scope="module")
def whole(scenes, tmp_path_factory):
    """A training of three short stages, never interrupted."""
    output = tmp_path_factory.mktemp("whole") / "student"
    distill(pocket(*STAGES, keep_stages=True), scenes, output)
    return output


def kept(output, stage):
    return Path(f"{output}.work/after-{stage}")


def weights(output):
    from safetensors.torch import load_file

    return {**load_file(output / "model.safetensors"), **load_file(output / "sam2/model.safetensors")}


def test_every_stage_reports_what_it_learns(whole):
    kinds = {line["kind"]: line for line in metrics_of(whole)}
    assert {"covered", "words", "words_right"} <= kinds["encode"].keys()
    assert {"iou", "iou_of_three", "iou_error", "mask", "score", "words"} <= kinds["segment"].keys()
    assert {"j", "presence_right"} <= kinds["track"].keys()
    described = {name for line in metrics_of(whole) if line["kind"] == "describe" for name in line}
    assert {"tokens_right", "loss", "guide", "words_right", "near_words_right"} <= described
    assert any(name.startswith("exact_event_") for name in described)
    assert all(line["loss"] > 0 for line in kinds.values())


def test_a_stage_leaves_the_parts_of_others_alone(whole):
    before, after = weights(kept(whole, "2-segment")), weights(kept(whole, "3-track"))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert {"memory_attention", "memory_encoder", "obj_ptr_proj"} <= changed
    assert not changed & {"image_encoder", "sam_mask_decoder", "sam_prompt_encoder", "model"}


def test_an_interrupted_training_goes_on_to_the_same_loss_curve(scenes, whole, tmp_path):
    class Stop(Exception):
        pass

    def stop_at(count):
        seen = []

        def progress(line):
            seen.append(line)
            if len(seen) == count:
                raise Stop

        return progress

    output = tmp_path / "student"
    config = pocket(*STAGES, save_every_s=1e-6)
    for count in (1, 3):
        with pytest.raises(Stop):
            distill(config, scenes, output, stop_at(count))
    distill(config, scenes, output)
    assert metrics_of(output) == metrics_of(whole)
    found, expected = weights(output), weights(whole)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_loss_curve(scenes, whole, tmp_path):
    config, output = tmp_path / "config.yaml", tmp_path / "student"
    wanted = pocket(*STAGES, save_every_s=1e-6)
    config.write_text(yaml.safe_dump(json.loads(wanted.model_dump_json())))
    command = [sys.executable, "-m", "datagen", "distill", str(config), "--data", scenes, "--output", str(output)]
    # Sums over another number of threads are rounded otherwise, and Muon makes that visible.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert json.loads(process.stdout.readline())["step"] == 3
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    distill(load_config(config), scenes, output)
    assert metrics_of(output) == metrics_of(whole)


def test_only_one_training_works_in_a_folder(scenes, tmp_path):
    config = pocket(SEGMENT)

    def second(_line):
        with pytest.raises(OutputBusyError, match="another training"):
            distill(config, scenes, tmp_path / "student")

    distill(config, scenes, tmp_path / "student", second)


def test_another_training_is_not_continued(scenes, whole, tmp_path):
    shutil.copytree(f"{whole}.work", tmp_path / "student.work")
    with pytest.raises(JobError, match="other config"):
        distill(pocket(SEGMENT), scenes, tmp_path / "student")


def test_muon_is_that_of_torch_in_float32():
    torch.manual_seed(0)
    theirs = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in (("wide", (8, 24)), ("tall", (40, 16)))}
    ours = {name: torch.nn.Parameter(weight.detach().clone()) for name, weight in theirs.items()}
    optimizers = (
        torch.optim.Muon(theirs.values(), lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="original"),
        MatrixOptimizer(ours.values(), lr=0.02, weight_decay=0.1),
    )
    for _ in range(3):
        for name, weight in theirs.items():
            weight.grad = torch.randn_like(weight)
            ours[name].grad = weight.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for name, weight in theirs.items():
        assert torch.allclose(ours[name], weight, atol=2e-3), name  # theirs is rounded to bfloat16 within


def test_muon_has_the_matrices_and_adam_the_rest():
    stage = parse_config({"stages": [{"kind": "describe", "steps": 1, "muon_learning_rate": 0.02}]}).stages[0]
    student = torch.nn.ModuleDict({"words": torch.nn.Embedding(5, 4), "layer": torch.nn.Linear(4, 4), "head": torch.nn.Linear(4, 5)})
    student["head"].weight = student["words"].weight
    head = torch.nn.Linear(4, 2)
    adam, muon = make_optimizers(stage, [student], [*student.parameters(), *head.parameters()], {})
    assert [id(weight) for weight in muon.param_groups[0]["params"]] == [id(student["layer"].weight)]
    others = {id(weight) for weight in (student["words"].weight, student["layer"].bias, student["head"].bias, *head.parameters())}
    assert {id(weight) for weight in adam.param_groups[0]["params"]} == others


def test_a_part_may_learn_at_a_share_of_the_rates():
    stage = parse_config({"stages": [{"kind": "encode", "steps": 1, "learning_rate": 0.5, "muon_learning_rate": 0.2}]}).stages[0]
    slow, fast = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    optimizers = make_optimizers(stage, [slow, fast], [*slow.parameters(), *fast.parameters()], {slow: 0.1})
    rates = {id(weight): group["peak"] for part in optimizers for group in part.param_groups for weight in group["params"]}
    assert rates == {
        id(slow.weight): pytest.approx(0.02),
        id(slow.bias): pytest.approx(0.05),
        id(fast.weight): 0.2,
        id(fast.bias): 0.5,
    }


def test_the_learning_rate_rises_and_falls():
    stage = pocket({"kind": "segment", "steps": 110, "learning_rate": 1.0, "warmup_steps": 10}).stages[0]
    rates = [learning_share(stage, step) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == max(rates) == 1
    assert rates[60] == pytest.approx(0.525)
    assert 0.05 < rates[-1] < 0.06


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": [{"kind": "segmentation", "steps": 1}]}, "`stages.0`: .*segment"),
        ({"stages": []}, "`stages`"),
        ({"stages": [{"kind": "segment", "steps": 1, "stepz": 2}]}, "`stages.0.segment.stepz`"),
        ({"student": {"init": "tiny", "llm": {"hidden_size": 64}}}, "leave out llm and tokenizer"),
    ],
)
def test_a_wrong_configuration_is_named(change, message):
    with pytest.raises(JobError, match=message):
        parse_config({"stages": [SEGMENT], "student": STUDENT, **change})


@pytest.mark.parametrize("name", ["distill.yaml", "larger.yaml", "smaller.yaml"])
def test_the_students_of_the_examples_can_see(name, tmp_path):
    options = load_config(ROOT / "examples/tiny-shapes" / name).student
    options = options.model_copy(update={"tokenizer": None, "init": options.init and "tiny-shapes"})
    front_end = new_student(options, tmp_path, ["red circle"], seed=0).front_end()
    size = image_size_of(options)
    features = front_end.encode(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    decoded = front_end.decode(features, torch.tensor([0]), torch.tensor([[[8.0, 8.0]]]), torch.tensor([[1]], dtype=torch.int32))
    assert decoded.logits.shape == (1, 4, size // 4, size // 4)


def test_a_checkpoint_learns_on_with_larger_pictures(scenes, whole, tmp_path):
    student = {"init": str(kept(whole, "2-segment")), "segmenter": {"image_size": 128}}
    output = distill(pocket({**SEGMENT, "steps": 1}, student=student), scenes, tmp_path / "student")
    assert image_size_of(parse_config({"stages": [SEGMENT], "student": {"init": str(output)}}).student) == 128
    before, after = weights(kept(whole, "2-segment")), weights(output)
    moved = [float((after[name].float() - before[name].float()).abs().max()) for name in before]
    assert 0 < max(moved) < 0.01  # one step away, at a learning rate of 0.001


def test_a_config_that_the_weights_do_not_fit_is_named(scenes, whole, tmp_path):
    student = {"init": str(whole), "segmenter": {"image_encoder.trunk.stages": [1, 1, 1, 1]}}
    with pytest.raises(ModelLoadError, match=r"image_encoder\.trunk\.blocks"):
        distill(pocket(SEGMENT, student=student), scenes, tmp_path / "student")


def test_two_stages_of_a_kind_draw_other_batches(scenes, tmp_path):
    student = new_student(pocket(SEGMENT).student, tmp_path / "tokenizer", ["red circle"], 0)
    data = Data(scenes, tmp_path / "cache", 64)
    first, again, second = (
        make_task(pocket(SEGMENT).stages[0], student, data, (0, number), tmp_path / "cache").batch(0).points for number in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert first.shape != second.shape or not torch.equal(first, second)


def test_the_mask_decoder_learns_with_the_memory_when_asked(scenes, whole, tmp_path):
    student = {"init": str(kept(whole, "2-segment"))}
    output = distill(pocket({**TRACK, "decoder_rate": 0.1}, student=student), scenes, tmp_path / "student")
    before, after = weights(kept(whole, "2-segment")), weights(output)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert "sam_mask_decoder" in changed
    assert not changed & {"image_encoder", "sam_prompt_encoder", "model"}


def test_queries_of_the_perceiver_learn_at_their_own_rate(scenes, whole, tmp_path):
    stage = {"kind": "describe", "steps": 2, "warmup_steps": 1, "batch_size": 2, "learning_rate": 0.01, "muon_learning_rate": 0.1}
    student = {"init": str(kept(whole, "3-track"))}
    before = weights(kept(whole, "3-track"))
    for rate in (0.0, 1.0):
        after = weights(distill(pocket({**stage, "query_rate": rate}, student=student), scenes, tmp_path / f"at-{rate}"))
        perceiver = [name for name in before if "vision_resampler" in name and name.endswith("proj.weight") and "attn" in name]
        changed = {name for name in perceiver if not torch.equal(before[name], after[name])}
        queries = {name for name in perceiver if name.split(".")[-2] in ("q_proj", "k_proj")}
        assert changed == set(perceiver) - (queries if rate == 0 else set())


def test_an_unknown_entry_of_the_segmenter_is_named(scenes, tmp_path):
    student = {**STUDENT, "segmenter": {**STUDENT["segmenter"], "image_decoder.depth": 3}}
    with pytest.raises(JobError, match=r"no image_decoder\.depth"):
        distill(parse_config({"stages": [SEGMENT], "student": student}), scenes, tmp_path / "student")


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no datagen dataset"):
        distill(pocket(SEGMENT), str(tmp_path / "empty"), tmp_path / "student")


@pytest.fixture
def copy(scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "data")
    return tmp_path / "data"


def test_missing_media_is_named(copy, tmp_path):
    shutil.rmtree(copy / "media")
    for stage in (SEGMENT, TRACK):
        with pytest.raises(SourceError, match=r"media/.*not at hand"):
            distill(pocket(stage), str(copy), tmp_path / f"student-{stage['kind']}")


def test_a_dataset_without_regions_is_refused(tmp_path):
    write_scenes(tmp_path / "data", num_images=0, num_clips=1)
    with pytest.raises(SourceError, match="no region of an image"):
        distill(pocket(SEGMENT), str(tmp_path / "data"), tmp_path / "student")


def test_a_dataset_without_tracks_is_refused(tmp_path):
    write_scenes(tmp_path / "data", num_images=1)
    with pytest.raises(SourceError, match="no track of a clip"):
        distill(pocket(TRACK), str(tmp_path / "data"), tmp_path / "student")


def emptied(copy, table, *columns):
    """Make these text columns null, as if the job had not asked for them."""
    for path in (copy / table).glob("*.parquet"):
        rewrite(path, lambda found: reduce(lambda one, column: with_column(one, column, [None] * len(one)), columns, found))


def test_a_text_that_the_dataset_lacks_is_named_before_anything_is_trained(copy, tmp_path):
    emptied(copy, "regions", "caption_zh")
    stage = {**DESCRIBE, "clip_share": 0.0}
    with pytest.raises(SourceError, match="no caption_zh to learn from"):
        distill(pocket(SEGMENT, stage), str(copy), tmp_path / "student")
    assert not (tmp_path / "student.work/metrics.jsonl").exists()
    distill(pocket({**stage, "steps": 1, "languages": ["en"]}), str(copy), tmp_path / "english")


def test_masks_are_learned_without_semantics_but_words_are_not(copy, tmp_path):
    emptied(copy, "regions", *(f"{task}_{language}" for task in TASKS for language in LANGUAGES))
    emptied(copy, "tracks", "caption_en", "caption_zh")
    for path in (copy / "tracks").glob("*.parquet"):
        rewrite(path, lambda table: with_column(table, "events", [[] for _ in range(len(table))]))
    distill(pocket({**SEGMENT, "steps": 1}), str(copy), tmp_path / "masks")
    with pytest.raises(SourceError, match="no label_en to learn from"):
        distill(pocket({**DESCRIBE, "clip_share": 0.0}), str(copy), tmp_path / "words")
    with pytest.raises(SourceError, match="no caption_en and no event with a text_en to learn from in `tracks`"):
        distill(pocket({**DESCRIBE, "clip_share": 1.0}), str(copy), tmp_path / "events")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda table: table.replace_schema_metadata({"datagen.schema": "regions.v9"}),
            r"schema regions\.v9; this version reads regions\.v1 and regions\.v2",
        ),
        (lambda table: table.drop_columns(["mask"]), r"schema regions\.v\d without mask"),
    ],
)
def test_a_part_with_other_columns_is_refused(copy, tmp_path, change, said):
    rewrite(next((copy / "regions").glob("*.parquet")), change)
    with pytest.raises(SourceError, match=said):
        distill(pocket(SEGMENT), str(copy), tmp_path / "student")


def test_media_in_a_bucket_are_fetched_and_a_missing_one_is_named(copy, tmp_path, options, bucket, s3_address, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_address)
    root = f"s3://{bucket}/scenes"
    store = open_store(root, options)
    for path in (copy / "media").iterdir():
        store.write(f"media/{path.name}", path.read_bytes())
    for table in ("assets", "clips"):
        for path in (copy / table).glob("*.parquet"):
            rewrite(path, lambda found: with_column(found, "uri", [f"{root}/{uri}" for uri in found["uri"].to_pylist()]))
    shutil.rmtree(copy / "media")
    for stage, lost in ((SEGMENT, "image-000003.jpg"), (TRACK, "clip-000001.mp4")):
        distill(pocket({**stage, "steps": 1}), str(copy), tmp_path / stage["kind"])
        store.delete(f"media/{lost}")
        with pytest.raises(SourceError, match=f"s3://.*{lost}.*not at hand"):
            distill(pocket({**stage, "steps": 1}), str(copy), tmp_path / f"{stage['kind']}-again")


def test_tracks_too_short_for_the_stage_are_refused(scenes, tmp_path):
    with pytest.raises(SourceError, match="499 more frames"):
        distill(pocket({**TRACK, "frames": 500}), scenes, tmp_path / "student")


def test_another_schema_version_is_refused(copy, tmp_path):
    marker = copy / "_datagen/dataset.json"
    marker.write_text(marker.read_text().replace('"regions": 2', '"regions": 9'))
    with pytest.raises(WriteError, match=r"'regions': 9"):
        distill(pocket(SEGMENT), str(copy), tmp_path / "student")


def test_a_diverging_training_stops_and_says_so(scenes, tmp_path):
    with pytest.raises(DatagenError, match="diverged at step"):
        distill(pocket({**SEGMENT, "learning_rate": 1e30, "warmup_steps": 0}), scenes, tmp_path / "student")
