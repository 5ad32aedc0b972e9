from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.assemble import assemble, region_row
from datagen.assemble.texts import clean_label, split_definition, text_flags
from datagen.job import AssembleOptions
from datagen.records import Asset, Prompt, Region, Sample, Text
from datagen.share import share_path


def text(words: str, logprob: float | None = -0.5, finish: str = "stop") -> Text:
    return Text(words, logprob, finish, len(words.split()))


def region(index: int = 0, area_px: int = 100, **texts: Text) -> Region:
    keyed = {tuple(name.split("_")): value for name, value in texts.items()}
    mask = {"size": [8, 9], "counts": "08"}
    return Region(
        index,
        Prompt(box=(1, 2, 3, 4), mask={"size": [3, 4], "counts": "04L4"}, source="coco", id="17"),
        mask,
        (1.0, 2.0, 3.0, 4.0),
        area_px,
        0.9,
        0.95,
        2.5,
        texts=keyed,
    )


def sample(*regions: Region) -> Sample:
    return Sample(0, Asset("ab12", "photo.jpg"), width=9, height=8, regions=list(regions))


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("coffee cup.", "coffee cup"),
        ('"Coffee cup".', "Coffee cup"),
        ("“咖啡杯”。", "咖啡杯"),
        ("\n  cup \nA cup is for drinking.", "cup"),
        ("St. Bernard", "St. Bernard"),
        ("…", "…"),
        ("", ""),
    ],
)
def test_label(answer: str, label: str):
    assert clean_label(answer) == label


@pytest.mark.parametrize(
    ("answer", "label", "definition"),
    [
        ("Cup: a vessel to drink from.", "Cup", "a vessel to drink from."),
        ("杯子：用来喝水的容器。", "杯子", "用来喝水的容器。"),
        ("Cup - a vessel: for drinks", "Cup", "a vessel: for drinks"),
        ("Cup\nA vessel to drink from.", "Cup", "A vessel to drink from."),
        ("“Cup”: a vessel", "Cup", "a vessel"),
        ("A wall-clock at 10:30 in a hall", None, "A wall-clock at 10:30 in a hall"),
        ("It is a cup. Its use: drinking", None, "It is a cup. Its use: drinking"),
        (": nothing before", None, ": nothing before"),
        ("Cup: ", None, "Cup:"),
        ("", None, ""),
    ],
)
def test_definition(answer: str, label: str | None, definition: str):
    assert split_definition(answer) == (label, definition)


@given(st.text(max_size=200))
def test_reading_an_answer_loses_no_letter_of_it(answer: str):
    label, definition = split_definition(answer)
    assert definition == definition.strip()
    kept = sum(c.isalpha() for c in (label or "") + definition)
    assert kept == sum(c.isalpha() for c in answer)
    assert clean_label(answer) in answer


@pytest.mark.parametrize(
    ("words", "finish", "language", "flags"),
    [
        ("A red cup on a table.", "stop", "en", []),
        ("桌上的红色杯子", "stop", "zh", []),
        ("一个 USB 插头", "stop", "zh", []),
        ("A red cup on a", "length", "en", ["truncated"]),
        ("a cup and a cup and a cup and a cup and a cup and", "stop", "en", ["repetition"]),
        ("very very small", "stop", "en", []),
        ("...!", "stop", "en", ["empty_text"]),
        ("桌上的红色杯子", "stop", "en", ["other_language"]),
        ("A red cup", "stop", "zh", ["other_language"]),
    ],
)
def test_flags(words: str, finish: str, language: str, flags: list[str]):
    assert text_flags(text(words, finish=finish), language) == flags


def test_flags_name_their_text_and_are_set_once():
    marked = assemble(sample(region(label_en=text("cup"), caption_en=text("a cup that", finish="length"))), AssembleOptions())
    assert assemble(marked, AssembleOptions()).regions[0].flags == ["truncated:caption_en"]


def test_each_filter_drops_with_its_reason():
    options = AssembleOptions(min_area_px=50, drop_below_logprob=-1.0, drop_empty_text=True)
    kept = region(4, label_en=text("cup", -0.2), label_zh=text("杯子", -1.5))
    unsure = region(1, label_en=text("cup", -2.0))
    # Without a label task, the definition's own certainty counts.
    unsure_definition = region(2, definition_en=text("cup: a vessel", -2.0))
    small, empty = region(0, area_px=49, label_en=text("cup")), region(3, label_en=text("--", -0.1))
    done = assemble(sample(small, unsure, unsure_definition, empty, kept), options)
    assert [r.region_index for r in done.regions] == [4]
    assert done.dropped == {"min_area": 1, "label_logprob": 2, "empty_text": 1}


def test_a_failed_sample_passes_through():
    failed = sample(region())
    failed.fail("decode", "no picture")
    assert assemble(failed, AssembleOptions(min_area_px=1000)).dropped == {}


def test_a_row_has_the_columns_of_the_schema_in_their_order():
    columns = [c["name"] for c in json.loads(share_path("schemas/regions.v2.json").read_text(encoding="utf-8"))["columns"]]
    columns.remove("part_id")
    assert list(region_row(sample(), region(), "run", token_logprobs=True)) == columns
    assert list(region_row(sample(), region(), "run")) == columns[:-1]


def test_row_values():
    answers = {
        "label_en": text("Cup.", -0.25),
        "definition_en": text("Mug: for tea", -0.5, "length"),
        "definition_zh": text("杯子：喝茶用"),
    }
    row = region_row(sample(), region(7, **answers), "run-1")
    assert row["region_id"] == "ab12-000007"
    assert row["prompt"] == {
        **{"type": "box+mask", "source": "coco", "box": [1.0, 2.0, 3.0, 4.0], "points": [], "labels": []},
        **{"mask": {"size": [3, 4], "counts": "04L4"}, "id": "17"},
    }
    assert (row["label_en"], row["label_en_logprob"], row["label_en_finish"]) == ("Cup", -0.25, "stop")
    assert (row["definition_en"], row["definition_en_finish"]) == ("for tea", "length")
    # No label was asked for in Chinese: it is read from the definition, and has no log-probability of its own.
    assert (row["label_zh"], row["label_zh_logprob"], row["label_zh_finish"]) == ("杯子", None, None)
    assert row["definition_zh"] == "喝茶用"
    assert row["caption_en"] is None
    assert row["run_id"] == "run-1"
