"""Whatever a step may write as a flag or as a reason is in the one list of them."""

import re
from pathlib import Path

import pytest

from datagen.assemble.texts import text_flags
from datagen.flags import DROP_REASONS, is_drop_reason, is_flag
from datagen.records import Text

PACKAGE = Path(__file__).resolve().parents[1] / "datagen"
CODE = re.compile(r'"(prompt_[a-z_]+)"')
NO_CODES = {"prompt_clipped", "prompt_count", "prompt_dropped", "prompt_embeds", "prompt_tokens"}


def test_every_code_of_a_prompt_is_a_known_reason():
    found = {code for path in PACKAGE.rglob("*.py") if path.name != "flags.py" for code in CODE.findall(path.read_text())} - NO_CODES
    assert len(found) > 10
    assert {code for code in found if not is_drop_reason(code)} == set()


@pytest.mark.parametrize("text", [Text("", None, "length", 3), Text("ab" * 40, None, "stop", 9), Text("图", None, "stop", 1)])
def test_every_flag_of_a_text_is_known(text):
    for flag in text_flags(text, "en"):
        assert is_flag("regions", f"{flag}:caption_en")
        assert is_flag("tracks", f"{flag}:event_en")


@pytest.mark.parametrize(
    "flag", ["", "banana", "truncated", "truncated:caption_fr", "truncated:event_en", "history_cut:event_en", "clock_restart"]
)
def test_what_no_region_has_is_unknown(flag):
    assert not is_flag("regions", flag)


def test_reasons_are_words():
    assert not is_drop_reason("")
    assert not is_drop_reason("prompt_banana")
    assert all(re.fullmatch("[a-z_]+", reason) and meaning for reason, meaning in DROP_REASONS.items())
