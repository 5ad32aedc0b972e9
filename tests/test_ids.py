"""No two different ids are ever one key, whatever they look like."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.ids import MAX_ID_CHARS, asset_id_of, clip_id_of, id_key, id_problem, track_id_of, work_id_of
from datagen.write.done import DoneSet, id_keys
from datagen.write.parts import clip_part_id, part_id_of

HEX = st.text("0123456789abcdef", min_size=1, max_size=24)
KINDS = st.one_of(
    st.integers(0, 10**24).map(str),
    HEX,
    HEX.map(str.upper),
    st.text("ab\n\r\0\t\x1b", min_size=1, max_size=5),
    st.text(max_size=8),
    st.text("éÅﬁ한\u0301\u030a", min_size=1, max_size=4).flatmap(
        lambda text: st.sampled_from([unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")])
    ),
    st.text(st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF), min_size=1, max_size=3),
    HEX.map(lambda text: text * 500),
    st.builds(clip_id_of, HEX, st.integers(0, 100_000)),
    st.builds(track_id_of, HEX, st.integers(0, 100_000)),
    st.builds(lambda asset, number: f"{asset}-{number:06d}", HEX, st.integers(0, 100_000)),
    st.builds(lambda number, asset: f"clip {number} of {asset}", st.integers(0, 20), HEX),
    st.lists(st.sampled_from(["a", "b", "a\nb"]), min_size=1, max_size=3, unique=True).map(lambda ids: '["' + '", "'.join(ids) + '"]'),
)
# Those that were one key once, or could be with a key made in a hurry.
ALIKE = [
    "0",
    "00",
    "30",
    "3030",
    "a",
    "A",
    "61",
    "a\nb",
    "b",
    "",
    "\n",
    "\n\n",
    "é",
    "e\u0301",
    "\ud800",
    "\udc80",
    "?",
    "a-00001",
    '["a", "b"]',
]


@given(st.sets(KINDS, max_size=40).map(lambda ids: ids | set(ALIKE)))
def test_every_key_of_an_id_is_its_own(ids):
    assert len({id_key(text) for text in ids}) == len(ids)
    assert len({part_id_of([text]) for text in ids}) == len(ids)
    works = [(asset_id, index) for asset_id in ids for index in (None, 0, 1, 12)]
    assert len({work_id_of(*work) for work in works}) == len(works)
    clips = [(asset_id, index) for asset_id in ids for index in (0, 1, 12, 100_000)]
    assert len({clip_part_id(*clip) for clip in clips}) == len(clips)
    assert len({track_id_of(*clip) for clip in clips}) == len(clips)
    done = DoneSet.of(list(ids)[::2])
    assert done.contains(list(ids)).tolist() == [index % 2 == 0 for index in range(len(ids))]
    assert [tuple(key) for key in id_keys(ids)] == [tuple(id_keys([text])[0]) for text in ids]


@given(st.sets(st.frozensets(st.one_of(KINDS, st.sampled_from(ALIKE)), min_size=1, max_size=4), min_size=2, max_size=20))
def test_no_two_sets_of_assets_have_one_name(sets):
    assert len({part_id_of(ids) for ids in sets}) == len(sets)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a", "b"], ["a\nb"]),
        (["a\nb"], ['["a\\nb"]']),
        (["", "a"], ["\na"]),
        (["a\nb", "c"], ["a", "b\nc"]),
        (["a", "b", "a\nb"], ["a", "b"]),
        (["\n\n" + '["a\\nb"]'], ["a\nb"]),
    ],
)
def test_sets_that_join_to_one_text_have_two_names(one, other):
    assert part_id_of(one) != part_id_of(other)


def test_the_names_of_parts_that_there_are_stay():
    """A dataset of an earlier version is gone on with under the same names."""
    assert part_id_of(["0a1b2c3d4e5f60718293", "ffffffffffffffffffff"]) == "f49ae0023df0045b4aa1"
    assert clip_part_id("0a1b2c3d4e5f60718293", 3) == "bed1f8ade5976e2fe1e1"
    assert part_id_of(["straße", "図"]) == "e763bb89df19ab03271c"


@given(st.text(), st.text(), st.from_regex(r"[0-9]{0,6}(-[0-9]{1,9})?", fullmatch=True), st.from_regex(r"[0-9]{0,6}", fullmatch=True))
def test_no_two_files_or_versions_have_one_id(uri, other, version, another):
    if (uri, version) != (other, another):
        assert asset_id_of(uri, version) != asset_id_of(other, another)
    if version:
        assert asset_id_of(uri, version) != asset_id_of(f"{uri}\n{version}")


def test_a_version_holds_no_line_feed():
    with pytest.raises(ValueError, match="line feed"):
        asset_id_of("a", "b\nc")


@pytest.mark.parametrize("text", ["0", "F" * MAX_ID_CHARS, "two words", "é", "e\u0301", "図/1", "a-00001", "#%?", "\u200d"])
def test_most_texts_can_be_an_id(text):
    assert id_problem(text) is None


@pytest.mark.parametrize("text", ["", "a\nb", "\0", "\x1b[31m", "\x7f", "\x85", "\u2028", "\ud800", "a" * (MAX_ID_CHARS + 1)])
def test_what_cannot_be_an_id_is_named(text):
    assert id_problem(text)
