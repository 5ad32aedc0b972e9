import json

import pytest
from corpora import make_sample, mixed_clips, mixed_parts, write_dataset
from rich.console import Console

from datagen.errors import SourceError
from datagen.records import Text
from datagen.stats import dataset_stats, render_stats


@pytest.fixture
def root(tmp_path):
    write_dataset(tmp_path, mixed_parts())
    return tmp_path


def text_of(found):
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_stats(found))
    return console.export_text()


def test_counts(root):
    found = dataset_stats(str(root))
    assert (found["num_assets"], found["num_regions"], found["num_parts"]) == (9, 17, 3)
    assert found["statuses"] == {"ok": 7, "empty": 1, "failed": 1}
    assert found["failures"] == {"decode_truncated": 1}
    assert found["dropped"] == {"box_nms": 9}
    assert found["flags"] == {"truncated:caption_en": 17}
    assert found["regions_per_asset"] == {"mean": 2.12, "p50": 2, "p90": 3, "max": 3}
    assert found["labels"]["en"] == {"thing 0": 7, "thing 1": 7, "thing 2": 3}
    assert found["labels"]["zh"] == {"东西": 17}
    assert found["texts"]["caption_en"] == {"count": 17, "mean_characters": 19.0, "lengths": {"5-9": 17}, "finish": {"length": 17}}
    assert set(found["texts"]) == {"label_en", "label_zh", "caption_en", "caption_zh"}
    json.dumps(found)


def test_runs_have_rates(root):
    (run,) = dataset_stats(str(root))["runs"]
    assert run["status"] == "finished"
    assert (run["assets"], run["regions"], run["seconds"]) == (9, 10, 2.0)
    assert (run["assets_per_s"], run["regions_per_s"], run["output_tokens_per_s"]) == (4.5, 5.0, 25.0)
    assert run["cached_share"] is None
    assert "trk/s" not in text_of(dataset_stats(str(root)))


def test_uncommitted_regions_do_not_count(root):
    next((root / "assets").iterdir()).unlink()
    found = dataset_stats(str(root))
    assert found["num_parts"] == 2
    assert found["texts"]["label_en"]["count"] == found["num_regions"] < 17


def test_labels_of_one_name_are_counted_together_and_few_are_listed(tmp_path):
    sample = make_sample(0, num_regions=60)
    for region in sample.regions:
        region.texts[("label", "en")] = Text(
            f"kind {region.region_index}" if region.region_index > 2 else [" Cat", "cat", "CAT "][region.region_index], 0, "stop", 1
        )
    write_dataset(tmp_path, [[sample]])
    labels = dataset_stats(str(tmp_path))["labels"]["en"]
    assert len(labels) == 20
    assert labels["cat"] == 3


def test_rare_labels_are_forgotten_before_memory_is(root, monkeypatch):
    monkeypatch.setattr("datagen.stats.dataset._LABELS_KEPT", 2)
    found = dataset_stats(str(root))
    assert found["labels_approximate"] is True
    assert len(found["labels"]["en"]) <= 2


def test_an_empty_dataset_has_stats_too(tmp_path):
    write_dataset(tmp_path, [])
    found = dataset_stats(str(tmp_path))
    assert (found["num_assets"], found["num_regions"], found["regions_per_asset"]) == (0, 0, {})
    assert "assets" in text_of(found)


def test_the_tables_show_the_numbers(root):
    shown = text_of(dataset_stats(str(root)))
    for word in ("decode_truncated", "box_nms", "东西", "Length of caption_en, words", "25.0", "finished", "█"):
        assert word in shown


def test_brackets_in_texts_are_no_markup(tmp_path):
    sample = make_sample(0, num_regions=1)
    sample.regions[0].texts[("label", "en")] = Text("[red]stop[/red] [/x]", 0, "stop", 1)
    write_dataset(tmp_path / "[bold]", [[sample]])
    shown = text_of(dataset_stats(str(tmp_path / "[bold]")))
    assert "[red]stop[/red] [/x]" in shown
    assert "[bold]" in shown


def test_what_cannot_be_read_is_an_error(root, tmp_path):
    path = next((root / "regions").iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SourceError, match=f"{path.name} cannot be read.*datagen check"):
        dataset_stats(str(root))


# --- videos ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    root = tmp_path_factory.mktemp("films")
    write_dataset(root, mixed_parts(), mixed_clips())
    return root


def test_counts_of_videos_stand_beside_those_of_images(films, root):
    found, images = dataset_stats(str(films)), dataset_stats(str(root))
    assert images["videos"] == {}
    for name in ("num_regions", "regions_per_asset", "labels", "texts", "dropped", "flags"):
        assert found[name] == images[name], name
    assert (found["num_assets"], found["num_parts"]) == (13, 16)
    assert found["statuses"] == {"ok": 9, "empty": 2, "failed": 2}
    assert found["failures"] == {"decode_truncated": 1, "corrupt": 1}
    json.dumps(found)


def test_counts_of_videos(films):
    videos = dataset_stats(str(films))["videos"]
    assert (videos["num_videos"], videos["num_unfinished"], videos["num_clips"]) == (4, 1, 11)
    assert videos["statuses"] == {"ok": 2, "empty": 1, "failed": 1}
    assert videos["failures"] == {"corrupt": 1}
    assert videos["clip_statuses"] == {"ok": 7, "empty": 3, "failed": 1}
    assert videos["hours"] == round(10 * 2 / 3600, 4)
    assert videos["clip_seconds"] == {"mean": 2.0, "p50": 2.0, "p90": 2.0, "max": 2.0}
    assert (videos["num_tracks"], videos["num_objects"], videos["num_events"]) == (11, 3 + 1 + 2, 22)
    assert videos["tracks_per_clip"] == {"mean": 1.1, "p50": 1, "p90": 2, "max": 3}
    assert videos["events_per_track"] == {"mean": 2.0, "p50": 2, "p90": 2, "max": 2}
    assert videos["visible_share"] == 0.75
    assert videos["dropped"] == {"already_followed": 10}
    assert videos["flags"] == {"truncated:event_en": 11}
    english = {"count": 22, "mean_characters": 21.0, "lengths": {"5-9": 22}, "finish": {"stop": 11, "length": 11}}
    assert videos["texts"] == {
        "event_en": english,
        "event_zh": {"count": 22, "mean_characters": 3.0, "lengths": {"1-4": 22}, "finish": {"stop": 22}},
    }


def test_the_tables_show_the_numbers_of_videos(films):
    shown = text_of(dataset_stats(str(films)))
    words = ("finished videos", "hours in clips", "0.0056", "tracks per clip, mean", "0.75", "corrupt", "already_followed")
    for word in (*words, "truncated:event_en", "Length of event_en, words", "Length of event_zh, characters"):
        assert word in shown, word
    lines = [line.split() for line in shown.splitlines()]
    assert [line[1] for line in lines if line[:1] == ["ok"]] == ["9", "2", "7"]


def test_runs_of_videos_have_their_rates(tmp_path):
    store = write_dataset(tmp_path, [], mixed_clips()[:3])
    (path,) = (tmp_path / "_datagen" / "runs").iterdir()
    record = json.loads(path.read_text())
    record["summary"] |= {"clips": 3, "tracks": 6}
    path.write_text(json.dumps(record))
    found = dataset_stats(store.uri)
    (run,) = found["runs"]
    assert (run["clips"], run["tracks"], run["tracks_per_s"]) == (3, 6, 3.0)
    assert "trk/s" in text_of(found)


def test_uncommitted_tracks_do_not_count(tmp_path):
    write_dataset(tmp_path, [], mixed_clips()[:3])
    before = dataset_stats(str(tmp_path))["videos"]
    next((tmp_path / "clips").iterdir()).unlink()
    videos = dataset_stats(str(tmp_path))["videos"]
    assert videos["num_clips"] == before["num_clips"] - 1 == 2
    assert videos["num_tracks"] < before["num_tracks"]


def test_a_dataset_of_unfinished_videos_has_stats(tmp_path):
    write_dataset(tmp_path, [], mixed_clips()[-2:])
    found = dataset_stats(str(tmp_path))
    assert (found["num_assets"], found["videos"]["num_unfinished"], found["videos"]["num_tracks"]) == (0, 1, 2)
    assert "tracks per clip, mean" in text_of(found)


def test_clips_that_cannot_be_read_are_an_error(tmp_path):
    write_dataset(tmp_path, [], mixed_clips()[:1])
    (path,) = (tmp_path / "tracks").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SourceError, match=f"{path.name} cannot be read"):
        dataset_stats(str(tmp_path))
