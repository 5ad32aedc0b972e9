"""Which scenes there are: random arrangements of shapes, and what is true of them."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from datagen.scenes.draw import BACKGROUNDS, TINTS, Rendered, Scene, Shape, covered_part
from datagen.scenes.words import COLORS, HIDDEN_BELOW, SHAPES, SIZES, Texts, definition, description

T = TypeVar("T")

_MIN_VISIBLE = 0.6
_SIDES_PX = (128, 288)
_ASPECTS = (1.0, 1.0, 4 / 3, 3 / 4, 3 / 2)


def scene_seed(seed: int, kind: str, number: int) -> int:
    """The seed of picture or clip `number` of the data set `seed`; kind: `image` or `clip`. 64 bits, so that no two ever meet."""
    return int.from_bytes(hashlib.sha256(f"scenes {seed} {kind} {number}".encode()).digest()[:8], "big")


def random_scene(seed: int) -> Scene:
    """A picture of one to six shapes, no two with the same label, some of which overlap; each at least 60 % visible."""
    rng = random.Random(seed)
    width, height = random_size(rng)
    names = distinct_names(rng)
    closeness = 0.4 + 0.5 * rng.random()
    shapes: list[Shape] = []
    for _ in range(1 + pick_index(rng, 6)):
        shape = place_shape(next(names), pick(rng, tuple(SIZES)), width, height, shapes, closeness, rng)
        if shape is not None:
            shapes.append(shape)
    return Scene(width, height, pick(rng, BACKGROUNDS), pick(rng, TINTS), _seen(shapes, width, height), seed)


def texts_of(scene: Scene, rendered: Rendered, index: int) -> dict[str, Texts]:
    """task -> language -> what is true of shape number `index`."""
    shape = scene.shapes[index]
    place = place_of(shape.center, scene.width, scene.height)
    hidden = bool(rendered.visible[index] < HIDDEN_BELOW)
    return {
        "label": shape.label,
        "definition": definition(shape.kind),
        "caption": shape.caption,
        "description": description(shape.size, shape.label, place, hidden, neighbour_of(scene.shapes, index)),
    }


def place_of(center: tuple[float, float], width: int, height: int) -> int:
    """The cell of the 3 x 3 grid, an index of words.PLACES."""
    column, row = (min(max(int(3 * part), 0), 2) for part in (center[0] / width, center[1] / height))
    return 3 * row + column


def neighbour_of(shapes: Sequence[Shape], index: int) -> tuple[str, Texts] | None:
    """(where the shape is as seen from its nearest neighbour, a key of words.SIDES; the neighbour's label), None when it is alone."""
    others = [other for number, other in enumerate(shapes) if number != index]
    if not others:
        return None
    shape = shapes[index]
    nearest = min(others, key=lambda other: math.dist(shape.center, other.center))
    return side_of(shape.center, nearest.center), nearest.label


def side_of(center: tuple[float, float], other: tuple[float, float]) -> str:
    """Where a point (x, y) lies as seen from the other, a key of words.SIDES: along the axis on which they are further apart."""
    dx, dy = center[0] - other[0], center[1] - other[1]
    return ("left" if dx < 0 else "right") if abs(dx) >= abs(dy) else ("above" if dy < 0 else "below")


def place_shape(
    name: tuple[str, str], size: str, width: int, height: int, others: Sequence[Shape], closeness: float, rng: random.Random
) -> Shape | None:
    """A shape, slightly turned, at a free place; None when there is none after many tries. name: (colour, shape).

    closeness: how near two may come, as a share of the distance at which their circles touch; below 1 they overlap.
    """
    radius = SIZES[size][0] * min(width, height) * (0.93 + 0.14 * rng.random())
    angle = 36 * rng.random() - 18
    for _ in range(100):
        center = (radius + rng.random() * (width - 2 * radius), radius + rng.random() * (height - 2 * radius))
        if all(math.dist(center, other.center) >= closeness * (radius + other.radius) for other in others):
            return Shape(name[1], name[0], size, center, radius, angle)
    return None


def random_size(rng: random.Random) -> tuple[int, int]:
    """Width and height, px, both even, as video codecs want them."""
    low, high = _SIDES_PX
    shorter, aspect = low + pick_index(rng, (high - low) // 4) * 4, pick(rng, _ASPECTS)
    longer = 2 * round(shorter * max(aspect, 1 / aspect) / 2)
    return (longer, shorter) if aspect >= 1 else (shorter, longer)


def distinct_names(rng: random.Random) -> Iterator[tuple[str, str]]:
    """(colour, shape) pairs without repeats, in random order."""
    pairs = [(color, shape) for color in COLORS for shape in SHAPES]
    yield from (pair for _, pair in sorted((rng.random(), pair) for pair in pairs))


def pick_index(rng: random.Random, count: int) -> int:
    """A number below `count`."""
    return int(rng.random() * count)


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One of the items."""
    return items[pick_index(rng, len(items))]


def _seen(shapes: Sequence[Shape], width: int, height: int) -> tuple[Shape, ...]:
    """The shapes without those that later ones hide too much of."""
    kept: list[Shape] = []
    hidden = np.zeros((height, width), dtype=bool)
    for shape in reversed(shapes):
        window, coverage = covered_part(shape, width, height)
        covered = coverage >= 0.5
        if (covered & ~hidden[window]).sum() >= _MIN_VISIBLE * covered.sum():
            kept.insert(0, shape)
            hidden[window] |= covered
    return tuple(kept)
