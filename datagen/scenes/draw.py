"""Scenes as data, and their drawing: coloured shapes with smooth edges on textured, noisy backgrounds, with exact masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datagen.scenes.words import COLORS, Texts, caption, label

Floats = NDArray[np.float64]
Window = tuple[slice, slice]

BACKGROUNDS = ("plain", "clouds", "stripes", "checker", "gradient", "dots", "grain")
TINTS = ((176, 166, 148), (142, 156, 164), (160, 172, 150), (178, 160, 166), (150, 150, 158))

_SUPERSAMPLING = 3


@dataclass(frozen=True, slots=True)
class Shape:
    """One object. center: (x, y) px. radius: of the circle around it, px. angle_deg: clockwise."""

    kind: str
    color: str
    size: str
    center: tuple[float, float]
    radius: float
    angle_deg: float = 0.0

    @property
    def label(self) -> Texts:
        """What it is called."""
        return label(self.color, self.kind)

    @property
    def caption(self) -> Texts:
        """Its size and what it is called."""
        return caption(self.size, self.label)


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture: shapes are drawn in order, later ones over earlier ones. background: texture; tint: its colour, RGB."""

    width: int
    height: int
    background: str
    tint: tuple[int, int, int]
    shapes: tuple[Shape, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """pixels (H, W, 3) uint8 RGB; masks (N, H, W) bool: the visible part of each shape, in the scene's order.

    visible: (N) share of each shape's pixels that is seen; what lies outside the picture counts as not seen.
    """

    pixels: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    visible: Floats


def render(scene: Scene) -> Rendered:
    """Draw a scene. A pixel belongs to the topmost shape that covers at least half of it."""
    rng = np.random.RandomState(scene.seed % 2**32)
    canvas = background_texture(scene, rng)
    owner = np.full((scene.height, scene.width), -1)
    areas = np.zeros(len(scene.shapes))
    for index, shape in enumerate(scene.shapes):
        window, coverage = covered_part(shape, scene.width, scene.height)
        areas[index] = full_area(shape)
        owner[window][coverage >= 0.5] = index
        surface = _surface(shape, window) + rng.normal(0, 4, coverage.shape)[..., None]
        canvas[window] += (surface - canvas[window]) * coverage[..., None]
    masks = owner[None] == np.arange(len(scene.shapes))[:, None, None]
    visible = np.minimum(masks.sum(axis=(1, 2)) / np.maximum(areas, 1), 1.0)
    return Rendered(np.clip(np.round(canvas), 0, 255).astype(np.uint8), masks, visible)


def background_texture(scene: Scene, rng: np.random.RandomState) -> Floats:
    """The scene's background, (H, W, 3): its tint, made lighter and darker by the texture."""
    y, x = np.mgrid[0 : scene.height, 0 : scene.width].astype(float)
    cell = max(12.0, min(scene.width, scene.height) / 9)
    light: Floats
    match scene.background:
        case "plain":
            light = np.zeros(x.shape)
        case "clouds":
            light = 0.5 * sum((_soft_noise(scene, rng, cells) / weight for cells, weight in ((3, 1.0), (7, 2.0), (15, 4.0))), start=0 * x)
        case "stripes":
            light = 0.6 * np.sign(np.sin((x + 0.6 * y) * math.pi / cell))
        case "checker":
            light = 0.6 * np.sign(np.sin(x * math.pi / cell) * np.sin(y * math.pi / cell))
        case "gradient":
            light = x / scene.width + y / scene.height - 1
        case "dots":
            light = np.where(np.hypot((x % cell) - cell / 2, (y % cell) - cell / 2) < cell / 4, -0.9, 0.2)
        case "grain":
            light = rng.normal(0, 0.6, x.shape)
        case _:
            raise ValueError(f"unknown background {scene.background}; known: {', '.join(BACKGROUNDS)}")
    light = light + rng.normal(0, 0.12, x.shape)
    return np.asarray(scene.tint, dtype=float) + 28 * light[..., None]


def covered_part(shape: Shape, width: int, height: int) -> tuple[Window, Floats]:
    """The window (rows, columns) of the picture around the shape, and how much of each of its pixels the shape covers, 0..1."""
    (x, y), reach = shape.center, shape.radius + 1
    window = _clipped(y - reach, y + reach, height), _clipped(x - reach, x + reach, width)
    inside = _INSIDE[shape.kind](*_own_coordinates(shape, window, _SUPERSAMPLING))
    rows, columns = (side // _SUPERSAMPLING for side in inside.shape)
    return window, inside.reshape(rows, _SUPERSAMPLING, columns, _SUPERSAMPLING).mean(axis=(1, 3))


def full_area(shape: Shape) -> int:
    """Pixels of the whole shape, whether in the picture or not."""
    side = 2 * math.ceil(shape.radius + 2)
    inside = tuple(value % 1 + side // 2 for value in shape.center)
    _, coverage = covered_part(replace(shape, center=(inside[0], inside[1])), side, side)
    return int((coverage >= 0.5).sum())


def _clipped(low: float, high: float, side: int) -> slice:
    start = min(max(0, math.floor(low)), side)
    return slice(start, max(start, min(side, math.ceil(high))))


def _soft_noise(scene: Scene, rng: np.random.RandomState, cells: int) -> Floats:
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32))
    return np.asarray(coarse.resize((scene.width, scene.height), Image.Resampling.BICUBIC), dtype=float)


def _own_coordinates(shape: Shape, window: Window, per_pixel: int) -> tuple[Floats, Floats]:
    """(u, v) of each sample of the window: the shape's centre is (0, 0), its radius 1; u points right, v down, before it is turned."""
    rows, columns = window
    y, x = np.mgrid[rows.start * per_pixel : rows.stop * per_pixel, columns.start * per_pixel : columns.stop * per_pixel] + 0.5
    x, y = (x / per_pixel - shape.center[0]) / shape.radius, (y / per_pixel - shape.center[1]) / shape.radius
    cos, sin = math.cos(math.radians(shape.angle_deg)), math.sin(math.radians(shape.angle_deg))
    return cos * x + sin * y, -sin * x + cos * y


def _surface(shape: Shape, window: Window) -> Floats:
    """The shape's colour over the window, lit from the top left, with a darker rim; (h, w, 3)."""
    u, v = _own_coordinates(shape, window, 1)
    color = np.asarray(COLORS[shape.color][0], dtype=float)
    light = 1 - 0.10 * np.clip(u + v, -1.5, 1.5)
    rim = ~_INSIDE[shape.kind](u / 0.93, v / 0.93)
    surface: Floats = color * (light * np.where(rim, 0.72, 1.0))[..., None] + 6
    return surface


Inside = Callable[[Floats, Floats], NDArray[np.bool_]]


def _polygon(corners: Sequence[tuple[float, float]]) -> Inside:
    def inside(u: Floats, v: Floats) -> NDArray[np.bool_]:
        result = np.zeros(u.shape, dtype=bool)
        for (u1, v1), (u2, v2) in zip(corners, [*corners[1:], corners[0]], strict=True):
            if v1 != v2:
                result ^= ((v1 > v) != (v2 > v)) & (u < (u2 - u1) * (v - v1) / (v2 - v1) + u1)
        return result

    return inside


def _regular(num_corners: int, inner: float = 1.0) -> list[tuple[float, float]]:
    radii = [1.0 if index % 2 == 0 else inner for index in range(num_corners)]
    angles = [2 * math.pi * index / num_corners - math.pi / 2 for index in range(num_corners)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles, strict=True)]


def _heart(u: Floats, v: Floats) -> NDArray[np.bool_]:
    x, y = u * 1.26, 0.24 - v * 1.26
    return np.asarray((x**2 + y**2 - 1) ** 3 <= x**2 * y**3)


# shape -> which points (u, v) of the unit circle it covers
_INSIDE: dict[str, Inside] = {
    "circle": lambda u, v: u**2 + v**2 <= 0.9,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.7,
    "triangle": _polygon(_regular(3)),
    "star": _polygon(_regular(10, inner=0.45)),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= 0.3) & (np.maximum(abs(u), abs(v)) <= 0.92),
    "ring": lambda u, v: (u**2 + v**2 <= 0.95) & (u**2 + v**2 >= 0.28),
    "heart": _heart,
    "crescent": lambda u, v: (u**2 + v**2 <= 0.95) & ((u - 0.45) ** 2 + (v + 0.1) ** 2 >= 0.5),
}
