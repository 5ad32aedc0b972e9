"""A small real model for tracking tests: the golden SAM 2 weights at 128 px, a random perceiver, and frames with moving shapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw

from datagen.pam.front_end import FrontEnd
from datagen.pam.segmenter import build_segmenter
from datagen.pam.semantic_perceiver import SemanticPerceiver
from datagen.records import Frame, Sample

GOLDEN = Path(__file__).parents[1] / "golden"
SIZE = 128
WIDTH, HEIGHT = 200, 150
FPS, NUM_FRAMES = 4, 12  # of the video that `write_video` writes
FEW = {"points_per_side": 2, "predicted_iou_min": 0.0, "stability_min": 0.0, "max_regions": 3}

Clips = Callable[..., list[Sample]]
"""What the fixture `clips` gives."""


def small_front_end() -> FrontEnd:
    arrays = np.load(GOLDEN / "sam2_tiny_state_dict.npz")
    config = {**json.loads((GOLDEN / "sam2_tiny_config.json").read_text())["resolved_model_config"], "image_size": SIZE}
    segmenter = build_segmenter(config, {key: torch.from_numpy(arrays[key]) for key in arrays.files})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        perceiver = SemanticPerceiver().eval().requires_grad_(False)
    return FrontEnd(segmenter, perceiver)


def box_at(index: int, shape: int = 0) -> tuple[float, float, float, float]:
    """Where shape number `shape` is in frame number `index`, XYXY px of the video."""
    x, y = ((20 + 4 * index, 30), (150 - 4 * index, 90), (80, 100 - 3 * index))[shape]
    return float(x), float(y), float(x + 40), float(y + 36)


def picture(index: int) -> Image.Image:
    """Frame number `index` at the video's size: three shapes that move over a textured ground."""
    ground = np.random.default_rng(7).integers(60, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = Image.fromarray(ground)
    draw = ImageDraw.Draw(image)
    draw.rectangle(box_at(index, 1), fill=(40, 90, 220))
    draw.ellipse(box_at(index, 2), fill=(60, 200, 80))
    draw.ellipse(box_at(index, 0), fill=(230, 60, 50))
    return image


def frames(count: int, start: int = 0) -> list[Frame]:
    """`count` frames of a clip whose first is number `start` of the video, at 4 frames a second."""
    return [Frame(i, (start + i) / 4, np.asarray(picture(start + i).resize((SIZE, SIZE)))) for i in range(count)]


def write_video(path: Path, pictures: Sequence[Image.Image] | None = None) -> Path:
    """A video of these pictures, by default the first ones of `picture`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "g": "4", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for image in pictures or [picture(index) for index in range(NUM_FRAMES)]:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    return path
