import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from bad_media import FAULTS, Media, encoded, make_media, quadrants, write_manifest

from datagen.decode import make_decode_step
from datagen.decode.child import DecoderProcess
from datagen.decode.files import read_file
from datagen.decode.process import Child
from datagen.decode.step import DecodeStep
from datagen.errors import ClusterError, DecodeError
from datagen.ids import asset_id_of
from datagen.job import DecodeOptions, Job, SourceOptions
from datagen.records import Asset, Failure, Sample
from datagen.sources import open_source
from datagen.sources.uris import uri_of_path

SIZE = 32


def sample_of(path: Path | str, index: int = 0, **fields) -> Sample:
    uri = uri_of_path(str(path))
    return Sample(index, Asset(asset_id_of(uri), uri, **fields))


@contextmanager
def decode_step(**options):
    step = DecodeStep(DecodeOptions(**options), SIZE)
    step.setup()
    try:
        yield step
    finally:
        step.teardown()


def picture(folder: Path, name: str = "picture.png") -> Path:
    path = folder / name
    path.write_bytes(encoded(quadrants(), "PNG"))
    return path


def wait_until(condition, timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_every_odd_and_bad_file_ends_as_it_should(tmp_path, monkeypatch):
    monkeypatch.setenv("DATAGEN_FAULTS", FAULTS)
    media = make_media(tmp_path / "media")
    source = open_source(SourceOptions(input=str(write_manifest(tmp_path / "media", media))))
    samples = [Sample(index, asset) for index, asset in enumerate(source)]
    hanging = [sample for sample in samples if "hangs" in sample.asset.uri]
    with decode_step() as patient, decode_step(timeout_s=1.0) as hasty:
        patient.process([sample for sample in samples if "hangs" not in sample.asset.uri])
        hasty.process(hanging)
    assert len(samples) == len(media)
    assert {case.name: fate_of(sample) for case, sample in zip(media, samples, strict=True)} == {
        case.name: expected_fate(case) for case in media
    }


def expected_fate(case: Media) -> tuple[str, object]:
    if case.step == "perceive":
        return "decoded", case.size
    return (case.fate, case.code) if case.fate == "failed" else (case.fate, case.size)


def fate_of(sample: Sample) -> tuple[str, object]:
    if sample.failure is not None:
        assert sample.pixels is None
        assert len(sample.failure.message) > 20
        return "failed", sample.failure.code
    assert sample.size_bytes
    if sample.pixels is None:
        return sample.status, (sample.width, sample.height)
    assert sample.pixels.shape == (SIZE, SIZE, 3)
    return "decoded", (sample.width, sample.height)


def test_size_checksum_and_pixels(tmp_path):
    path = picture(tmp_path)
    with decode_step() as step:
        (sample,) = step.process([sample_of(path)])
    assert sample.sha256 == subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert sample.size_bytes == path.stat().st_size
    np.testing.assert_array_equal(sample.pixels, np.asarray(quadrants().resize((SIZE, SIZE))))


def test_further_frames_and_pages_are_counted(tmp_path):
    pages = tmp_path / "pages.tif"
    pages.write_bytes(encoded(quadrants(), "TIFF", save_all=True, append_images=[quadrants()] * 3))
    with decode_step() as step:
        several, one = step.process([sample_of(pages, 0), sample_of(picture(tmp_path), 1)])
    assert (several.num_frames, several.dropped) == (4, {"further_frames": 3})
    assert (one.num_frames, one.dropped) == (None, {})


def test_a_tiny_picture_with_a_prompt_is_left_to_the_prompts_check(tmp_path):
    path = tmp_path / "one.png"
    path.write_bytes(encoded(quadrants(2, 2).resize((1, 1)), "PNG"))
    with decode_step() as step:
        empty, asked = step.process([sample_of(path), sample_of(path, prompts=[])])
    assert empty.pixels is None
    assert empty.status == "empty"
    assert asked.pixels is not None


def test_failed_samples_and_other_media_pass_by(tmp_path):
    earlier = sample_of(tmp_path / "gone.png")
    earlier.fail("earlier", "failed before")
    listed = sample_of(tmp_path / "row", failure=Failure("manifest_no_uri", "row 3 has no uri"))
    video = sample_of(tmp_path / "film.mp4", media_type="video")
    with decode_step() as step:
        step.process([earlier, listed, video])
    assert [s.failure.code for s in (earlier, listed, video)] == ["earlier", "manifest_no_uri", "unsupported_media"]


def test_what_is_no_readable_file(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(20 << 30)
    names = ["folder.png", "pipe.png", "loop.png", "sparse.png", "sparse.png/x.png", "a" * 300 + ".png"]
    with decode_step() as step:
        samples = step.process([sample_of(tmp_path / name) for name in names])
    assert [s.failure.code for s in samples] == ["unreadable", "unreadable", "unreadable", "bomb", "missing_file", "unreadable"]


def test_a_file_without_permission():
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        path = picture(Path(name))
        path.chmod(0)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)  # root may read everything
        try:
            with pytest.raises(DecodeError, match="cannot be read: Permission denied") as caught:
                read_file(str(path), max_pixels=100)
        finally:
            if is_root:
                os.seteuid(0)
    assert caught.value.code == "unreadable"


def test_a_name_that_is_not_text(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 100%.png")
    shutil.copy(picture(tmp_path), path)
    with decode_step() as step:
        (sample,) = step.process([sample_of(path)])
    assert sample.asset.uri.isascii()
    assert (sample.width, sample.height) == (64, 48)


def test_the_message_says_how_the_decoder_died_and_neighbours_live(tmp_path, monkeypatch):
    monkeypatch.setenv("DATAGEN_FAULTS", json.dumps({"decode": {"kill_if_uri": "kill", "raise_if_uri": "raise"}}))
    names = ["a.png", "kill.png", "b.png", "raise.png", "c.png"]
    with decode_step() as step:
        samples = step.process([sample_of(picture(tmp_path, name)) for name in names])
    killed, raised = samples[1], samples[3]
    assert [s.failure is None for s in samples] == [True, False, True, False, True]
    assert {killed.failure.code, raised.failure.code} == {"decoder_crashed"}
    assert "SIGKILL" in killed.failure.message
    assert "injected fault" in raised.failure.message
    assert killed.sha256 == samples[0].sha256


def test_a_decoder_that_died_between_files_costs_nothing(tmp_path):
    decoder = DecoderProcess(DecodeOptions(), SIZE)
    decoder.start()
    first = decoder.pid
    os.kill(first, signal.SIGKILL)
    outcome = decoder.decode(str(picture(tmp_path)), "picture")
    assert outcome.error is None
    assert decoder.pid != first
    decoder.close()
    assert is_gone(first)


def test_a_hang_is_final_and_leaves_no_process(tmp_path, monkeypatch):
    monkeypatch.setenv("DATAGEN_FAULTS", json.dumps({"decode": {"hang_if_uri": "hang"}}))
    decoder = DecoderProcess(DecodeOptions(timeout_s=0.5), SIZE)
    decoder.start()
    hung = decoder.pid
    start = time.monotonic()
    outcome = decoder.decode(str(picture(tmp_path, "hang.png")), "hang.png")
    assert outcome.error.code == "decode_timeout"
    assert outcome.sha256
    assert time.monotonic() - start < 3
    assert is_gone(hung)
    assert decoder.pid is None


def test_a_hung_child_ends_without_its_parents_help(tmp_path, monkeypatch):
    monkeypatch.setenv("DATAGEN_FAULTS", json.dumps({"decode": {"hang_if_uri": "hang"}}))
    child = Child(DecodeOptions(timeout_s=0.2), SIZE)
    child.send({"kind": "image", "path": str(picture(tmp_path)), "uri": "hang"})
    assert wait_until(lambda: is_gone(child.pid), 10)
    assert "SIGALRM" in child.epitaph()
    child.end()


def test_an_interrupted_exchange_is_never_continued(tmp_path, monkeypatch):
    decoder = DecoderProcess(DecodeOptions(), SIZE)
    decoder.start()
    first, large, small = decoder.pid, tmp_path / "large.png", picture(tmp_path)
    large.write_bytes(encoded(quadrants(4000, 3000), "PNG"))
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(KeyboardInterrupt):
        decoder.decode(str(large), "large")
    signal.signal(signal.SIGALRM, previous)
    outcome = decoder.decode(str(small), "small")
    assert (outcome.decoded.width, outcome.decoded.height) == (64, 48)
    assert decoder.pid != first
    decoder.close()


def test_teardown_ends_the_child(tmp_path):
    before = set(psutil.Process().children())  # such as the S3 server of other tests
    step = make_decode_step(Job(), SIZE)
    step.setup()
    children = set(psutil.Process().children()) - before
    step.teardown()
    step.teardown()
    assert children
    assert all(is_gone(child.pid) for child in children)


PARENT = """
import sys, time
from datagen.decode.child import DecoderProcess
from datagen.job import DecodeOptions
decoder = DecoderProcess(DecodeOptions(), 32)
decoder.start()
print(decoder.pid, flush=True)
decoder.decode(sys.argv[1], sys.argv[1])
time.sleep(60)
"""


@pytest.mark.parametrize("name", ["idle.png", "hang.png"])
def test_no_orphan_when_the_parent_is_killed(tmp_path, name, request):
    environment = os.environ | {"DATAGEN_FAULTS": json.dumps({"decode": {"hang_if_uri": "hang"}})}
    command = [sys.executable, "-c", PARENT, str(picture(tmp_path, name))]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=request.config.rootpath)
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: is_gone(child), 5)


def test_a_child_that_cannot_start_is_the_machines_fault(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ClusterError, match="/nowhere/python"):
        DecodeStep(DecodeOptions(), SIZE).setup()


def test_a_child_that_breaks_at_the_start_says_why(monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(ClusterError, match=r"does not start.*exit status"):
        DecodeStep(DecodeOptions(), SIZE).setup()


def test_a_module_in_the_current_folder_cannot_stand_in(tmp_path, monkeypatch):
    (tmp_path / "queue.py").write_text("raise SystemExit('the wrong queue')")
    monkeypatch.chdir(tmp_path)
    with decode_step() as step:
        (sample,) = step.process([sample_of(picture(tmp_path))])
    assert sample.failure is None
