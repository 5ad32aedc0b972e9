"""The committed samples/ are `datagen scenes samples --images 12 --clips 2 --seed 25`."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datagen.check import check_dataset
from datagen.decode.video import read_frames
from datagen.job import DecodeOptions
from datagen.scenes import write_scenes

SAMPLES = Path(__file__).parents[2] / "samples"
OF_A_RUN = ["run_id", "finished_at", "sha256", "size_bytes"]  # the last two change with the codecs' versions


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "samples"
    write_scenes(folder, num_images=12, num_clips=2, seed=25)
    return folder


def rows(folder: Path, table: str) -> str:
    found = pd.read_parquet(folder / table)
    return found.drop(columns=OF_A_RUN, errors="ignore").sort_values(found.columns[0]).to_json(orient="records")


@pytest.mark.parametrize("table", ["assets", "regions", "clips", "tracks"])
def test_the_truth_is_what_the_renderer_says(rendered: Path, table: str) -> None:
    assert rows(SAMPLES, table) == rows(rendered, table)


def test_the_manifests_are_what_the_renderer_writes(rendered: Path) -> None:
    names = sorted(path.name for path in SAMPLES.glob("manifest-*.jsonl"))
    assert names == sorted(path.name for path in rendered.glob("manifest-*.jsonl"))
    for name in names:
        assert (SAMPLES / name).read_text() == (rendered / name).read_text()


def test_the_media_show_what_the_renderer_draws(rendered: Path) -> None:
    media = sorted(path.name for path in (SAMPLES / "media").iterdir())
    assert media == sorted(path.name for path in (rendered / "media").iterdir())
    for name in media:
        for one, other in zip(*(pictures(folder / "media" / name) for folder in (SAMPLES, rendered)), strict=True):
            assert np.abs(one.astype(int) - other).mean() < 3


def pictures(path: Path) -> list[np.ndarray]:
    if path.suffix == ".jpg":
        return [np.asarray(Image.open(path))]
    return [frame.pixels for frame in read_frames(str(path), DecodeOptions(), 128)]


def test_they_are_a_dataset_like_any_other() -> None:
    report = check_dataset(str(SAMPLES))
    assert report.ok, report.violations
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*.*")) < 1_000_000
