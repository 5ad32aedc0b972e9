import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from datagen.errors import SourceError
from datagen.job import SourceOptions
from datagen.records import Asset
from datagen.sources import Source, open_source


def source_of(folder: Path | str, **options) -> Source:
    return open_source(SourceOptions(input=str(folder), **options))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names_of(source: Source, folder: Path) -> list[str]:
    return [os.path.relpath(asset.uri, folder) for asset in source]


def test_images_are_listed_recursively_in_order(tmp_path):
    touch(tmp_path, "b.JPG", "a/z.png", "a/b/c.TIFF", "a b/ça été.jpeg", "c.webp", "d.bmp", "e.tif", "f.gif", "A.png")
    expected = ["A.png", "a/b/c.TIFF", "a/z.png", "a b/ça été.jpeg", "b.JPG", "c.webp", "d.bmp", "e.tif", "f.gif"]
    assert names_of(source_of(tmp_path), tmp_path) == expected
    assert names_of(source_of(tmp_path), tmp_path) == expected


def test_assets_have_absolute_uris_and_stable_ids(tmp_path, monkeypatch):
    touch(tmp_path, "photos/a.png", "photos/b.png")
    monkeypatch.chdir(tmp_path)
    absolute, relative = list(source_of(tmp_path / "photos")), list(source_of("./photos/../photos"))
    assert absolute == relative
    assert absolute[0].uri == str(tmp_path / "photos/a.png")
    assert len({asset.asset_id for asset in absolute}) == 2
    assert absolute[0].prompts is None


def test_what_is_no_image_is_counted(tmp_path):
    touch(tmp_path, "a.png", "film.MP4", "clips/film.mov", "notes.txt", "README", ".hidden", "jpg")
    source = source_of(tmp_path)
    assert names_of(source, tmp_path) == ["a.png"]
    assert source.skipped == {"video": 2, ".txt file": 1, "file without an extension": 3}
    list(source)
    assert source.skipped["video"] == 2


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(SourceError, match=r"there are no images in .*: it is empty"):
        list(source_of(tmp_path))


def test_links_do_not_loop_or_repeat(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root, "a/one.png", "b/two.png")
    touch(outside, "three.png", "deep/four.png")
    (root / "a/up").symlink_to(root)
    (root / "a/self").symlink_to(root / "a/self")
    (root / "again").symlink_to(root / "b")
    (root / "link").symlink_to(outside)
    (root / "link2").symlink_to(outside)
    (outside / "back").symlink_to(tmp_path)
    (root / "one more.png").symlink_to(root / "a/one.png")
    (root / "broken.png").symlink_to(root / "nothing.png")
    listed = names_of(source_of(root), root)
    assert sorted(listed) == ["a/one.png", "b/two.png", "broken.png", "link/deep/four.png", "link/three.png", "one more.png"]


def test_a_link_to_the_folder_itself_is_a_folder(tmp_path):
    touch(tmp_path, "root/a/one.png")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    assert names_of(source_of(tmp_path / "link"), tmp_path) == ["link/a/one.png"]


def test_a_name_that_is_not_utf8_becomes_a_file_uri(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9 1.png")).write_bytes(b"x")
    (asset,) = source_of(tmp_path)
    assert asset.uri == f"file://{tmp_path}/caf%E9%201.png"


def test_a_folder_that_vanishes_while_listing_is_counted(tmp_path):
    touch(tmp_path, "a.png", "gone/b.png", "z.png")
    source = source_of(tmp_path)
    assets = iter(source)
    first = next(assets)
    shutil.rmtree(tmp_path / "gone")
    assert [Path(asset.uri).name for asset in (first, *assets)] == ["a.png", "z.png"]
    assert source.skipped == {"unreadable folder": 1}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_unreadable_folders_as_another_user():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        touch(folder, "a.png", "closed/b.png")
        (folder / "closed").chmod(stat.S_IRWXU)
        os.seteuid(65534)
        try:
            source = source_of(folder)
            listed = list(source)
            with pytest.raises(SourceError, match="cannot be listed"):
                list(source_of(folder / "closed"))
        finally:
            os.seteuid(0)
    assert len(listed) == 1
    assert source.skipped == {"unreadable folder": 1}


def test_changed_files_count_as_new_only_when_asked(tmp_path):
    def listed(**options) -> Asset:
        (asset,) = source_of(tmp_path, **options)
        return asset

    touch(tmp_path, "a.png")
    before, versioned = listed(), listed(reprocess_changed=True)
    (tmp_path / "a.png").write_bytes(b"longer")
    assert listed() == before
    assert listed(reprocess_changed=True).asset_id not in (versioned.asset_id, before.asset_id)


@pytest.mark.parametrize(
    ("name", "said"),
    [("nothing", "does not exist"), ("photo.jpg", r"ends in \.jpg"), ("ftp://host/x", "ftp://"), ("noext", "no extension")],
)
def test_an_input_that_cannot_be_read_says_what_is_allowed(tmp_path, monkeypatch, name, said):
    touch(tmp_path, "photo.jpg", "noext")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=said) as caught:
        source_of(name)
    assert "a folder of images or videos, a manifest" in str(caught.value)


def test_no_input_and_wrong_kind(tmp_path):
    touch(tmp_path, "manifest.jsonl")
    with pytest.raises(SourceError, match="--input"):
        open_source(SourceOptions())
    with pytest.raises(SourceError, match="not a folder"):
        source_of(tmp_path / "manifest.jsonl", kind="folder")
    with pytest.raises(SourceError, match="no manifest by its name"):
        source_of(tmp_path, kind="manifest")
    with pytest.raises(SourceError, match="cannot be read"):
        source_of(tmp_path, kind="coco")


def test_describe_names_the_input(tmp_path):
    assert str(tmp_path) in source_of(tmp_path).describe()
