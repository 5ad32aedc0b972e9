"""What becomes of an image whose input gave prompts of which none can be used."""

from __future__ import annotations

from collections.abc import Mapping

from datagen.records import Failure

_SEVERAL = "prompts_unusable"
_STEP = "perceive"


def unusable(refused: Mapping[str, int], problem: str = "") -> Failure:
    """The failure of an image whose prompts were all refused, so many by each code. problem: what is wrong with the first of them.

    Its code is theirs, or `prompts_unusable` where they have several.
    """
    counts = ", ".join(f"{count} {code}" for code, count in sorted(refused.items()))
    message = f"none of its {sum(refused.values())} prompts can be used ({counts})"
    code = next(iter(refused)) if len(refused) == 1 else _SEVERAL
    return Failure(code, f"{message}; {problem}" if problem else message, _STEP)


def problem_of(failure: Failure, dropped: Mapping[str, int]) -> str | None:
    """What is wrong with the first prompt, when a failure says that none can be used, and `dropped` counts them; None for any other."""
    is_refusal = failure.step == _STEP and (failure.code == _SEVERAL or failure.code in dropped)
    return failure.message.partition("; ")[2] if is_refusal else None
