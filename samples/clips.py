"""The project's own short films: the shapes of scenes.py, moving, with prompts and exact ground truth in every frame.

`python samples/clips.py [FOLDER]` writes the films, `videos.jsonl` (prompts) and `videos-truth.jsonl` (masks, boxes, labels) again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from render import encode_mask, innermost_point, mask_box
from scenes import TINTS, Rendered, Scene, Shape, render

# Sharp enough for the masks to fit; one thread, so that a second encoding gives the same bytes.
_ENCODER = {"preset": "slow", "crf": "21", "threads": "1"}


@dataclass(frozen=True)
class Mover:
    """A shape that goes in straight lines from stop to stop, (frame, x, y) px each; before the first and after the last it rests.

    spin_deg: turn per frame, clockwise. event: what it does, by language. prompts: what asks for it, kind by frame (`box`, `points`).
    """

    shape: Shape
    stops: tuple[tuple[int, float, float], ...]
    event: dict[str, str]
    prompts: dict[int, str]
    spin_deg: float = 0.0

    def at(self, frame: int) -> Shape:
        """The shape as it is in a frame."""
        times, xs, ys = zip(*self.stops, strict=True)
        x, y = (float(np.interp(frame, times, places)) for places in (xs, ys))
        return replace(self.shape, center=(round(x, 2), round(y, 2)), angle_deg=round(self.shape.angle_deg + frame * self.spin_deg, 2))


@dataclass(frozen=True)
class Film:
    """A file of this folder. scene: size and background, without shapes. movers: drawn in order, later ones in front."""

    name: str
    scene: Scene
    movers: tuple[Mover, ...]
    num_frames: int
    fps: int

    def frame(self, index: int) -> Rendered:
        """Pixels and masks of one frame; a mover that is hidden or outside has an empty mask."""
        return render(replace(self.scene, shapes=tuple(mover.at(index) for mover in self.movers)))


def films() -> list[Film]:
    """The committed films: one with a shape that passes behind another, one with a shape that leaves and returns."""
    return [
        Film("videos/01.mp4", Scene(320, 240, "clouds", TINTS[1], (), 201), _PASSING, num_frames=32, fps=8),
        Film("videos/02.mp4", Scene(256, 192, "gradient", TINTS[0], (), 202), _LEAVING, num_frames=30, fps=10),
    ]


_PASSING = (
    Mover(
        Shape("circle", "red", "small", (0, 0), 26),
        ((2, 42, 120), (29, 280, 105)),
        {
            "en": "The red circle moves to the right, disappears behind the blue square and comes out on its other side.",
            "zh": "红色圆形向右移动，消失在蓝色正方形后面，然后从另一侧出来。",
        },
        {0: "box", 28: "box"},
    ),
    Mover(
        Shape("square", "blue", "large", (0, 0), 60, 4),
        ((0, 158, 112), (31, 162, 116)),
        {"en": "The blue square stays in the middle.", "zh": "蓝色正方形停在中间。"},
        {0: "points"},
    ),
    Mover(
        Shape("star", "yellow", "medium", (0, 0), 35),
        ((0, 55, 42), (31, 255, 38)),
        {"en": "The yellow star turns and moves to the right along the top.", "zh": "黄色五角星一边旋转一边沿上方向右移动。"},
        {12: "box"},
        spin_deg=7,
    ),
    Mover(
        Shape("triangle", "green", "small", (0, 0), 26, -10),
        ((4, 270, 186), (27, 60, 162)),
        {
            "en": "The green triangle moves to the left in front of the blue square's lower edge.",
            "zh": "绿色三角形从蓝色正方形下边缘的前面向左移动。",
        },
        {6: "points"},
    ),
)

_LEAVING = (
    Mover(
        Shape("hexagon", "orange", "medium", (0, 0), 29),
        ((0, 175, 50), (8, 292, 60), (17, 292, 105), (27, 180, 118)),
        {"en": "The orange hexagon leaves on the right and comes back further down.", "zh": "橙色六边形从右边离开，然后从更低的位置回来。"},
        {0: "box"},
        spin_deg=3,
    ),
    Mover(
        Shape("heart", "purple", "large", (0, 0), 43, 5),
        ((3, 80, 135), (14, 80, 55), (26, 90, 100)),
        {"en": "The purple heart moves up and then down again.", "zh": "紫色心形先向上移动，然后又向下移动。"},
        {0: "points"},
    ),
    Mover(
        Shape("ring", "white", "medium", (0, 0), 29),
        ((5, -31, 150), (24, 150, 158)),
        {
            "en": "The white ring comes in from the left and moves to the right along the bottom.",
            "zh": "白色圆环从左边进入，沿底部向右移动。",
        },
        {16: "points", 28: "box"},
    ),
)


def manifest_row(film: Film, rendered: Sequence[Rendered]) -> dict[str, Any]:
    """The film's row of videos.jsonl; object i of the prompts is mover i. Boxes name their frame, points its time."""
    prompts = [
        _prompt(rendered[frame].masks, number, kind) | ({"frame": frame} if kind == "box" else {"time_s": frame / film.fps})
        for number, mover in enumerate(film.movers)
        for frame, kind in mover.prompts.items()
    ]
    return {"uri": film.name, "license": "Apache-2.0", "background": film.scene.background, "prompts": prompts}


def _prompt(masks: np.ndarray, number: int, kind: str) -> dict[str, Any]:
    """One point inside and one on a neighbour that is in sight, or a box."""
    if kind == "box":
        return {"object_id": number, "box": mask_box(masks[number])}
    others = [mask for index, mask in enumerate(masks) if index != number and mask.any()]
    return {"object_id": number, "points": [innermost_point(masks[number]), innermost_point(others[0])], "labels": [1, 0]}


def truth_row(film: Film, rendered: Sequence[Rendered]) -> dict[str, Any]:
    """The film's row of videos-truth.jsonl: per object what it is and does, and where it is in every frame."""
    objects = [
        {
            "label": mover.shape.label,
            "caption": mover.shape.caption,
            "event": mover.event,
            "attributes": {"shape": mover.shape.kind, "color": mover.shape.color, "size": mover.shape.size},
            "frames": [_place(index, film.fps, frame.masks[number]) for index, frame in enumerate(rendered)],
        }
        for number, mover in enumerate(film.movers)
    ]
    size = {"width": film.scene.width, "height": film.scene.height, "fps": film.fps, "num_frames": film.num_frames}
    return {"uri": film.name, **size, "objects": objects}


def _place(index: int, fps: int, mask: np.ndarray) -> dict[str, Any]:
    """Where an object is in a frame; box and mask are null where nothing of it is seen."""
    seen = bool(mask.any())
    return {
        "frame_index": index,
        "timestamp_s": index / fps,
        "box_xyxy": mask_box(mask) if seen else None,
        "area_px": int(mask.sum()),
        "mask": encode_mask(mask) if seen else None,
    }


def write_film(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    """Encode (H, W, 3) uint8 RGB frames as H.264 in an MP4 that can be read while it arrives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=_ENCODER)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, fps)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_clips(folder: Path) -> None:
    """Write all films, videos.jsonl and videos-truth.jsonl into `folder`."""
    manifest, truth = [], []
    for film in films():
        rendered = [film.frame(index) for index in range(film.num_frames)]
        write_film(folder / film.name, [frame.pixels for frame in rendered], film.fps)
        manifest.append(manifest_row(film, rendered))
        truth.append(truth_row(film, rendered))
    for name, rows in (("videos.jsonl", manifest), ("videos-truth.jsonl", truth)):
        (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write_clips(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
