"""Pictures as data: coloured shapes on textured backgrounds, with exact masks.

Make a `Scene` (with `random_scene`, or by hand) and `render` it. Everything follows from the seeds, through generators whose
numbers are the same in every version (random.Random.random, numpy's RandomState).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIZES = {"small": (0.10, "小"), "medium": (0.16, "中等大小"), "large": (0.24, "大")}
COLORS = {
    "red": ((214, 40, 40), "红色"),
    "orange": ((240, 130, 20), "橙色"),
    "yellow": ((245, 215, 40), "黄色"),
    "green": ((40, 160, 60), "绿色"),
    "cyan": ((40, 200, 210), "青色"),
    "blue": ((40, 80, 210), "蓝色"),
    "purple": ((130, 50, 170), "紫色"),
    "pink": ((245, 130, 180), "粉色"),
    "brown": ((120, 70, 35), "棕色"),
    "black": ((25, 25, 28), "黑色"),
    "white": ((248, 248, 245), "白色"),
}
BACKGROUNDS = ("clouds", "stripes", "checker", "gradient", "dots", "grain")
TINTS = ((176, 166, 148), (142, 156, 164), (160, 172, 150), (178, 160, 166), (150, 150, 158))

_SUPERSAMPLING = 4
_MIN_VISIBLE = 0.6


@dataclass(frozen=True)
class Shape:
    """One object. center: (x, y) px. radius: of the circle around it, px. angle_deg: clockwise."""

    kind: str
    color: str
    size: str
    center: tuple[float, float]
    radius: float
    angle_deg: float = 0.0

    @property
    def label(self) -> dict[str, str]:
        return {"en": f"{self.color} {KINDS[self.kind][0]}", "zh": COLORS[self.color][1] + KINDS[self.kind][1]}

    @property
    def caption(self) -> dict[str, str]:
        return {"en": f"A {self.size} {self.label['en']}.", "zh": f"一个{SIZES[self.size][1]}的{self.label['zh']}。"}


@dataclass(frozen=True)
class Scene:
    """One picture: shapes are drawn in order, later ones over earlier ones. background: texture; tint: its colour, RGB."""

    width: int
    height: int
    background: str
    tint: tuple[int, int, int]
    shapes: tuple[Shape, ...]
    seed: int


@dataclass(frozen=True)
class Rendered:
    """pixels (H, W, 3) uint8 RGB; masks (N, H, W) bool: the visible part of each shape, in the scene's order."""

    pixels: np.ndarray
    masks: np.ndarray


def render(scene: Scene) -> Rendered:
    """Draw a scene with smooth edges. A pixel belongs to the topmost shape that covers at least half of it."""
    rng = np.random.RandomState(scene.seed)
    canvas = background_texture(scene, rng)
    owner = np.full((scene.height, scene.width), -1)
    for index, shape in enumerate(scene.shapes):
        window, coverage = covered_part(shape, scene.width, scene.height)
        owner[window][coverage >= 0.5] = index
        surface = _surface(shape, window) + rng.normal(0, 4, coverage.shape)[..., None]
        canvas[window] += (surface - canvas[window]) * coverage[..., None]
    masks = owner[None] == np.arange(len(scene.shapes))[:, None, None]
    return Rendered(pixels=np.clip(np.round(canvas), 0, 255).astype(np.uint8), masks=masks)


def background_texture(scene: Scene, rng: np.random.RandomState) -> np.ndarray:
    """The scene's background, (H, W, 3) float: its tint, made lighter and darker by the texture."""
    y, x = np.mgrid[0 : scene.height, 0 : scene.width].astype(float)
    cell = max(12.0, min(scene.width, scene.height) / 9)
    match scene.background:
        case "clouds":
            light = sum(_soft_noise(scene, rng, cells) / weight for cells, weight in ((3, 1.0), (7, 2.0), (15, 4.0))) * 0.5
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


def _soft_noise(scene: Scene, rng: np.random.RandomState, cells: int) -> np.ndarray:
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32))
    return np.asarray(coarse.resize((scene.width, scene.height), Image.Resampling.BICUBIC), dtype=float)


Window = tuple[slice, slice]


def covered_part(shape: Shape, width: int, height: int) -> tuple[Window, np.ndarray]:
    """The window (rows, columns) of the picture around the shape, and how much of each of its pixels the shape covers, 0..1.

    The window of a shape outside the picture is empty.
    """
    (x, y), reach = shape.center, shape.radius + 1
    window = (
        slice(min(max(0, int(y - reach)), height), max(0, min(height, math.ceil(y + reach)))),
        slice(min(max(0, int(x - reach)), width), max(0, min(width, math.ceil(x + reach)))),
    )
    inside = KINDS[shape.kind][2](*_own_coordinates(shape, window, _SUPERSAMPLING))
    rows, columns = (side // _SUPERSAMPLING for side in inside.shape)
    return window, inside.reshape(rows, _SUPERSAMPLING, columns, _SUPERSAMPLING).mean(axis=(1, 3))


def _own_coordinates(shape: Shape, window: Window, per_pixel: int) -> tuple[np.ndarray, np.ndarray]:
    """(u, v) of each sample of the window: the shape's centre is (0, 0), its radius 1; u points right, v down, before it is turned."""
    rows, columns = window
    y, x = np.mgrid[rows.start * per_pixel : rows.stop * per_pixel, columns.start * per_pixel : columns.stop * per_pixel] + 0.5
    x, y = (x / per_pixel - shape.center[0]) / shape.radius, (y / per_pixel - shape.center[1]) / shape.radius
    cos, sin = math.cos(math.radians(shape.angle_deg)), math.sin(math.radians(shape.angle_deg))
    return cos * x + sin * y, -sin * x + cos * y


def _surface(shape: Shape, window: Window) -> np.ndarray:
    """The shape's colour over the window, lit from the top left, with a darker rim; (h, w, 3) float."""
    u, v = _own_coordinates(shape, window, 1)
    color = np.asarray(COLORS[shape.color][0], dtype=float)
    light = 1 - 0.10 * np.clip(u + v, -1.5, 1.5)
    rim = ~KINDS[shape.kind][2](u / 0.93, v / 0.93)
    return color * (light * np.where(rim, 0.72, 1.0))[..., None] + 6


def _polygon(corners: Sequence[tuple[float, float]]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
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


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x, y = u * 1.26, 0.24 - v * 1.26
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3


# kind -> English noun, Chinese noun, which points (u, v) of the unit circle it covers
KINDS: dict[str, tuple[str, str, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "circle": ("circle", "圆形", lambda u, v: u**2 + v**2 <= 0.9),
    "ellipse": ("ellipse", "椭圆形", lambda u, v: u**2 + (v / 0.55) ** 2 <= 1),
    "square": ("square", "正方形", lambda u, v: np.maximum(abs(u), abs(v)) <= 0.7),
    "rectangle": ("rectangle", "长方形", lambda u, v: (abs(u) <= 0.88) & (abs(v) <= 0.44)),
    "triangle": ("triangle", "三角形", _polygon(_regular(3))),
    "pentagon": ("pentagon", "五边形", _polygon(_regular(5))),
    "hexagon": ("hexagon", "六边形", _polygon(_regular(6))),
    "star": ("star", "五角星", _polygon(_regular(10, inner=0.45))),
    "cross": ("cross", "十字形", lambda u, v: (np.minimum(abs(u), abs(v)) <= 0.3) & (np.maximum(abs(u), abs(v)) <= 0.92)),
    "ring": ("ring", "圆环", lambda u, v: (u**2 + v**2 <= 0.95) & (u**2 + v**2 >= 0.28)),
    "heart": ("heart", "心形", _heart),
    "crescent": ("crescent", "月牙形", lambda u, v: (u**2 + v**2 <= 0.95) & ((u - 0.45) ** 2 + (v + 0.1) ** 2 >= 0.5)),
}


def random_scene(width: int, height: int, num_shapes: int, background: str, seed: int, closeness: float = 0.85) -> Scene:
    """A scene of shapes that all differ in kind and colour; fewer than asked when there is no room.

    closeness: how near two may come, as a share of the distance at which their circles touch; below 1 they overlap.
    """
    rng = random.Random(seed)
    kinds, colors = _shuffled(list(KINDS), rng), _shuffled(list(COLORS), rng)
    shapes: list[Shape] = []
    for index in range(num_shapes):
        size = list(SIZES)[int(rng.random() * len(SIZES))]
        shape = _placed(kinds[index % len(kinds)], colors[index % len(colors)], size, width, height, shapes, closeness, rng)
        if shape is not None:
            shapes.append(shape)
    tint = TINTS[int(rng.random() * len(TINTS))]
    return Scene(width, height, background, tint, _all_visible(shapes, width, height), seed)


def _placed(
    kind: str, color: str, size: str, width: int, height: int, others: list[Shape], closeness: float, rng: random.Random
) -> Shape | None:
    """The shape at a free place (None when there is none after many tries), turned a little."""
    radius = SIZES[size][0] * min(width, height) * (0.92 + 0.16 * rng.random())
    angle = 36 * rng.random() - 18
    for _ in range(400):
        center = (radius + rng.random() * (width - 2 * radius), radius + rng.random() * (height - 2 * radius))
        if all(math.dist(center, other.center) >= closeness * (radius + other.radius) for other in others):
            return Shape(kind, color, size, (round(center[0], 2), round(center[1], 2)), round(radius, 2), round(angle, 2))
    return None


def _all_visible(shapes: list[Shape], width: int, height: int) -> tuple[Shape, ...]:
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


def _shuffled(items: list[str], rng: random.Random) -> list[str]:
    return [item for _, item in sorted((rng.random(), item) for item in items)]
