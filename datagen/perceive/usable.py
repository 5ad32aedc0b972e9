"""Which prompts of an image can be used: one that makes no sense costs itself, and an image whose prompts all make none fails."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from datagen.errors import PromptError
from datagen.perceive.prompts import check_prompt
from datagen.records import Failure, Prompt, Sample
from datagen.refusals import unusable
from datagen.stated import CROWD

CLIPPED = "prompt_clipped"
"""Flag of a region whose box reached out of the image and was cut to it."""

_CLIPPED_PX = 1.0  # annotation tools round outwards; less is not worth a mark


@dataclass(slots=True)
class Usable:
    """What is left of an image's prompts. prompts: None means everything; each knows its place in the input by `index`.

    clipped: the places of those that were cut by more than a pixel. refused: how many were not usable, by code; those that the source
    refused are not among them. problem: what is wrong with the first of these.
    """

    prompts: list[Prompt] | None
    clipped: set[int] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    problem: str = ""


def usable_prompts(sample: Sample) -> Usable:
    """The usable prompts of a decoded image, as they are used (see check_prompt), without changing the sample."""
    if sample.asset.prompts is None or sample.width is None or sample.height is None:
        return Usable(sample.asset.prompts)
    usable = Usable(kept := [])
    for place, given in enumerate(sample.asset.prompts):
        index = place if given.index is None else given.index
        try:
            prompt = check_prompt(given, sample.width, sample.height)
        except PromptError as error:
            usable.refused[error.code] += 1
            usable.problem = usable.problem or f"prompt {index}: {error.message}"
            continue
        kept.append(replace(prompt, index=index))
        if given.box is not None and prompt.box is not None and _distance(given.box, prompt.box) > _CLIPPED_PX:
            usable.clipped.add(index)
    return usable


def refusal(sample: Sample, usable: Usable) -> Failure | None:
    """Why an image fails whose input gave prompts, of which none is usable; None when one is, or when it gave none, or crowds alone."""
    refused = usable.refused + Counter(sample.asset.dropped)
    refused.pop(CROWD, None)
    if usable.prompts or not refused:
        return None
    return unusable(refused, usable.problem or sample.asset.problem)


def count_refused(sample: Sample, usable: Usable) -> None:
    """Note the prompts that were not used, those that the source refused included, in `dropped`. Once per sample."""
    sample.dropped = dict(Counter(sample.dropped) + usable.refused + Counter(sample.asset.dropped))


def _distance(given: tuple[float, float, float, float], used: tuple[float, float, float, float]) -> float:
    return max(abs(one - other) for one, other in zip(given, used, strict=True))
