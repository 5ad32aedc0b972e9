"""What asked for a region or a track: whole, and inside the picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from datagen.check.masks import mask_problem
from datagen.flags import PROMPT_SOURCES

TOLERANCE_PX = 1.0  # annotation tools round outwards; as perceive allows
_KINDS = ("box", "points", "mask")


def prompt_problems(prompt: Mapping[str, Any], width: int | None, height: int | None) -> Iterator[str]:
    """What is wrong with a prompt for a picture of this size, px; None where it is not known.

    In tables of schema v1 a prompt says that it had a mask, and is without it.
    """
    given = [kind for kind in _KINDS if prompt.get(kind) not in (None, [])]
    said = prompt["type"].split("+")
    if not given and said != ["mask"]:
        yield "it asks for nothing: neither box nor points nor mask"
    if [kind for kind in _KINDS if kind in said and (kind != "mask" or "mask" in prompt)] != given or not set(said) <= set(_KINDS):
        yield f"its type is {prompt['type']!r}, and it has {' and '.join(given) or 'nothing'}"
    if prompt["source"] not in PROMPT_SOURCES:
        yield f"its source is {prompt['source']!r:.80}; known are {', '.join(PROMPT_SOURCES)}"
    points, labels, box = prompt["points"], prompt["labels"], prompt["box"]
    if len(points) != len(labels) or not set(labels) <= {0, 1}:
        yield f"{len(points)} points with the labels {labels[:20]}; each has 1 or 0"
    if (box is not None and len(box) != 4) or any(len(point) != 2 for point in points):
        yield "a box has four numbers, a point two"
        return
    numbers = [*(box or ()), *(number for point in points for number in point)]
    if not all(map(math.isfinite, numbers)):
        yield f"its coordinates are {numbers[:8]}"
    elif box is not None and not (box[0] < box[2] and box[1] < box[3]):
        yield f"its box {box} is empty or inverted"
    elif width and height and not (_inside(numbers[0::2], width) and _inside(numbers[1::2], height)):
        yield f"{numbers[:8]} (x, y, ...) lies outside of {width} x {height} px"
    mask = prompt.get("mask")
    if mask is not None:
        problem = mask_problem(mask, height, width)
        if problem:
            yield f"its mask: {problem}"


def _inside(numbers: list[float], side: int) -> bool:
    return all(-TOLERANCE_PX <= number <= side + TOLERANCE_PX for number in numbers)
