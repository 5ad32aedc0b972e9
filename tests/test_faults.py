import json
import threading

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


def test_a_place_can_be_held_until_a_file_is_there(set_faults, tmp_path):
    set_faults({"decode": {"wait_for": str(tmp_path / "go")}})
    thread = threading.Thread(target=faults.fault_point, args=("decode", "a.png"))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    (tmp_path / "go").touch()
    thread.join(5)
    assert not thread.is_alive()
