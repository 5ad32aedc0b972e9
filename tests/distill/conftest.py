"""A handful of scenes to learn from."""

import pytest

from datagen.scenes import write_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_scenes(folder, num_images=6, num_clips=2, seed=11)
    return str(folder)
