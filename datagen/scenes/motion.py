"""Clips: scenes whose shapes move, turn, stop, pass behind one another, leave the picture and come back."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from datagen.scenes.compose import distinct_names, pick, pick_index, place_shape, random_size
from datagen.scenes.draw import BACKGROUNDS, TINTS, Rendered, Scene, Shape, render
from datagen.scenes.words import SIZES, Texts, told

FPS = 8

_STEPS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
_NUM_FRAMES = (16, 24)
_SHORTEST_MOVE = 0.3  # of the picture's side, so that a move is never mistaken for standing still


@dataclass(frozen=True, slots=True)
class Phase:
    """What a shape does in frames [start, stop). action: a key of words.ACTIONS. Its centre goes from `begin` to `end`, (x, y) px."""

    action: str
    start: int
    stop: int
    begin: tuple[float, float]
    end: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Actor:
    """A shape and what it does, phase after phase, from the first frame to the last. turn_deg: how far it turns per frame."""

    shape: Shape
    phases: tuple[Phase, ...]
    turn_deg: float

    def at(self, frame: int) -> Shape:
        """The shape in one frame."""
        phase = next(phase for phase in self.phases if frame < phase.stop)
        part = (frame - phase.start + 1) / (phase.stop - phase.start)
        x, y = (a + (b - a) * part for a, b in zip(phase.begin, phase.end, strict=True))
        return replace(self.shape, center=(x, y), angle_deg=self.shape.angle_deg + self.turn_deg * frame)

    @property
    def caption(self) -> Texts:
        """What it does in the whole clip."""
        return told(self.shape.label, [phase.action for phase in self.phases])

    def event(self, phase: Phase) -> Texts:
        """What it does in one phase."""
        return told(self.shape.label, [phase.action])


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip. scene: its background; the actors take the place of its shapes, later ones in front of earlier ones."""

    scene: Scene
    actors: tuple[Actor, ...]
    num_frames: int


def random_clip(seed: int) -> Clip:
    """A clip of 16 to 24 frames (at FPS) of one to three shapes that all differ in label, colour and shape."""
    rng = random.Random(seed)
    width, height = random_size(rng)
    num_frames = _NUM_FRAMES[0] + pick_index(rng, _NUM_FRAMES[1] - _NUM_FRAMES[0] + 1)
    scene = Scene(width, height, pick(rng, BACKGROUNDS), pick(rng, TINTS), (), seed)
    names = distinct_names(rng)
    placed: list[Shape] = []
    actors = []
    for _ in range(1 + pick_index(rng, 3)):
        shape = place_shape(next(names), pick(rng, tuple(SIZES)), width, height, placed, 1.0, rng)
        if shape is not None:
            placed.append(shape)
            actors.append(_act(shape, width, height, num_frames, rng))
    return Clip(scene, tuple(actors), num_frames)


def render_clip(clip: Clip) -> Iterator[Rendered]:
    """The frames, in order."""
    for frame in range(clip.num_frames):
        yield render(replace(clip.scene, shapes=tuple(actor.at(frame) for actor in clip.actors)))


def _act(shape: Shape, width: int, height: int, num_frames: int, rng: random.Random) -> Actor:
    """One of the scripts; those for which there is no room give way to standing still."""
    script = pick(rng, (_rest, _go, _go, _go_and_rest, _rest_and_go, _turn, _leave_and_return))
    phases = script(shape, (width, height), num_frames, rng)
    turn_deg = pick(rng, (0.0, 0.0, 2.0, -2.0))
    return Actor(shape, phases or _rest(shape, (width, height), num_frames, rng) or (), turn_deg)


Size = tuple[int, int]
Phases = tuple[Phase, ...] | None


def _rest(shape: Shape, size: Size, num_frames: int, rng: random.Random) -> Phases:
    return _phases([("still", shape.center)], [0, num_frames], shape.center)


def _go(shape: Shape, size: Size, num_frames: int, rng: random.Random) -> Phases:
    way = _way(shape, shape.center, size, rng)
    return way and _phases([(f"move {way[0]}", way[1])], [0, num_frames], shape.center)


def _go_and_rest(shape: Shape, size: Size, num_frames: int, rng: random.Random) -> Phases:
    way = _way(shape, shape.center, size, rng)
    return way and _phases([(f"move {way[0]}", way[1]), ("stop", way[1])], [0, _middle(num_frames, rng), num_frames], shape.center)


def _rest_and_go(shape: Shape, size: Size, num_frames: int, rng: random.Random) -> Phases:
    way = _way(shape, shape.center, size, rng)
    acts = [("still", shape.center), (f"move {way[0]}", way[1])] if way else []
    return _phases(acts, [0, _middle(num_frames, rng), num_frames], shape.center) if acts else None


def _turn(shape: Shape, size: Size, num_frames: int, rng: random.Random) -> Phases:
    first = _way(shape, shape.center, size, rng)
    if first is None:
        return None
    across = ("up", "down") if first[0] in ("left", "right") else ("left", "right")
    second = _way(shape, first[1], size, rng, across)
    acts = [(f"move {first[0]}", first[1]), (f"turn {second[0]}", second[1])] if second else []
    return _phases(acts, [0, _middle(num_frames, rng), num_frames], shape.center) if acts else None


def _leave_and_return(shape: Shape, size: Size, num_frames: int, rng: random.Random) -> Phases:
    """Out over the nearest edge, further away, and in again: some frames show nothing of it."""
    x, y, reach = *shape.center, shape.radius + 2
    exits = {x: (-reach, y), size[0] - x: (size[0] + reach, y), y: (x, -reach), size[1] - y: (x, size[1] + reach)}
    edge = exits[min(exits)]
    away = (x + 1.5 * (edge[0] - x), y + 1.5 * (edge[1] - y))
    return _phases([("leave", away), ("return", shape.center)], [0, _middle(num_frames, rng), num_frames], shape.center)


def _way(
    shape: Shape, start: tuple[float, float], size: Size, rng: random.Random, ways: Sequence[str] = tuple(_STEPS)
) -> tuple[str, tuple[float, float]] | None:
    """A direction with enough room, and where the move ends; the shape stays in the picture."""
    options = []
    for way in ways:
        (dx, dy), side = _STEPS[way], size[0] if way in ("left", "right") else size[1]
        room = _room(start, way, size) - shape.radius
        if room >= _SHORTEST_MOVE * side:
            distance = _SHORTEST_MOVE * side + rng.random() * (room - _SHORTEST_MOVE * side)
            options.append((way, (start[0] + dx * distance, start[1] + dy * distance)))
    return pick(rng, options) if options else None


def _room(start: tuple[float, float], way: str, size: Size) -> float:
    """From a point to the picture's edge in a direction, px."""
    return {"left": start[0], "right": size[0] - start[0], "up": start[1], "down": size[1] - start[1]}[way]


def _middle(num_frames: int, rng: random.Random) -> int:
    """A frame around the middle at which a shape does something else."""
    return math.floor(num_frames * (0.4 + 0.2 * rng.random()))


def _phases(acts: Sequence[tuple[str, tuple[float, float]]], bounds: Sequence[int], begin: tuple[float, float]) -> tuple[Phase, ...]:
    """Phases from (action, where it ends) and the frames between them."""
    phases = []
    for (action, end), (start, stop) in zip(acts, pairwise(bounds), strict=True):
        phases.append(Phase(action, start, stop, begin, end))
        begin = end
    return tuple(phases)
