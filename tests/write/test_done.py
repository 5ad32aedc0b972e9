import time

import numpy as np
import pytest
from corpora import mixed_parts, write_dataset
from damage import part_file, rewrite
from hypothesis import given
from hypothesis import strategies as st

from datagen.errors import WriteError
from datagen.write import DoneSet, done_assets, open_store, part_id_of
from datagen.write.done import id_keys


def test_all_committed_assets_are_done_failed_ones_too(tmp_path):
    done = done_assets(write_dataset(tmp_path, mixed_parts()))
    listed = [sample.asset.asset_id for part in mixed_parts() for sample in part]
    assert len(done) == 9
    assert all(asset_id in done for asset_id in listed)
    assert done.contains([*listed, "new"]).tolist() == [True] * 9 + [False]
    assert done.statuses == {"ok": 7, "empty": 1, "failed": 1}
    assert done.num_parts == 3


def test_nothing_is_done_where_nothing_is(tmp_path):
    done = done_assets(open_store(str(tmp_path / "nowhere")))
    assert len(done) == 0
    assert "x" not in done
    assert done.contains([]).tolist() == []
    assert not (tmp_path / "nowhere").exists()


def test_a_damaged_part_is_named(tmp_path):
    write_dataset(tmp_path, mixed_parts()[:1])
    (part,) = (tmp_path / "assets").iterdir()
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(WriteError, match=f"{part.name} cannot be read.*datagen check"):
        done_assets(open_store(str(tmp_path)))


@given(st.sets(st.text()), st.lists(st.text()))
def test_membership_is_that_of_a_set(ids, asked):
    done = DoneSet(id_keys(_utf8(ids)), None, 0)
    assert done.contains(_utf8([*ids, *asked])).tolist() == [True] * len(ids) + [text in _utf8(ids) for text in _utf8(asked)]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1))
def test_equal_high_halves_are_told_apart(pairs):
    keys = np.array(pairs, dtype=np.uint64)
    done = DoneSet(keys, None, 0)
    found = {(int(high), int(low)) for high, low in zip(done._high, done._low, strict=True)}
    assert found == set(pairs)
    wanted = np.array([(high, low) for high in range(4) for low in range(5)], dtype=np.uint64)
    assert done._contains(wanted).tolist() == [(int(high), int(low)) in set(pairs) for high, low in wanted]


def test_a_key_behind_others_with_its_high_half_is_found():
    done = DoneSet(np.array([(7, low) for low in range(5)], dtype=np.uint64))
    assert done._contains(np.array([(7, 0), (7, 4), (7, 5), (6, 0)], dtype=np.uint64)).tolist() == [True, True, False, False]


def test_a_part_without_rows_commits_nothing(tmp_path):
    write_dataset(tmp_path, mixed_parts())
    path = part_file(tmp_path, "assets", part_id_of(sample.asset.asset_id for sample in mixed_parts()[1]))
    rewrite(path, lambda table: table.slice(0, 0))
    done = done_assets(open_store(str(tmp_path)))
    assert (len(done), done.num_parts, done.empty_parts) == (6, 2, [path.stem.removeprefix("part-")])


def test_a_million_ids_fit_in_sixteen_bytes_each():
    keys = np.random.default_rng(0).integers(0, 2**63, size=(1_000_000, 2), dtype=np.uint64)
    done = DoneSet(keys, None, 0)
    assert done._high.nbytes + done._low.nbytes == 16_000_000
    started = time.monotonic()
    assert not done.contains([f"new-{i}" for i in range(10_000)]).any()
    assert time.monotonic() - started < 60


def _utf8(texts):
    return [text.encode("utf-8", "replace").decode() for text in texts]
