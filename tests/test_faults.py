import json
import time

import pytest

from datagen import faults
from datagen.errors import JobError


@pytest.fixture
def set_faults(monkeypatch):
    def set_to(value: dict) -> None:
        monkeypatch.setenv(faults.VARIABLE, json.dumps(value))
        faults._faults.cache_clear()

    yield set_to
    faults._faults.cache_clear()


def test_a_fault_hits_its_place_and_its_assets_only(set_faults):
    set_faults({"perceive": {"raise_if_uri": "bad"}})
    faults.fault_point("decode", "bad.png")
    faults.fault_point("perceive", "good.png")
    with pytest.raises(RuntimeError, match=r"perceive.*bad\.png"):
        faults.fault_point("perceive", "bad.png")


def test_an_unknown_fault_is_refused(set_faults):
    set_faults({"decode": {"kil_if_uri": "x"}})
    with pytest.raises(JobError, match="kil_if_uri"):
        faults.fault_point("decode", "a.png")


def test_a_delay_can_be_for_some_assets_only(set_faults):
    set_faults({"decode": {"delay_s": 0.2, "delay_if_uri": "slow"}, "write": {"delay_s": 0.2}})

    def seconds(place: str, uri: str) -> float:
        started = time.monotonic()
        faults.fault_point(place, uri)
        return time.monotonic() - started

    assert seconds("decode", "quick.png") < 0.2 <= seconds("decode", "slow.png")
    assert seconds("write", "quick.png") >= 0.2
