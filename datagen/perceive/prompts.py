"""From a prompt in pixels of the image to what SAM 2's prompt encoder takes, and the checks before that.

What a mask means: alone it is the answer itself (`given_mask`), and the decoder is asked about its box with it, for the tokens and the
scores. Beside a box or points the decoder starts from it, and the decoder's answer is stored. The decoder never gets a mask without a
place: a mask alone, or with nothing but clicks, comes with its own box, stretched to the clicks inside the object, because SAM 2 was
trained with masks beside points, and finds something else from a mask alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from datagen.errors import PromptError
from datagen.masks import Box, check_rle, decode_mask, mask_prompt_logits, rle_box
from datagen.records import RLE, Prompt

# Annotation tools round outwards; a point further out than this belongs to another image or another scale.
_TOLERANCE_PX = 1.0

_BOX_CORNERS = (2, 3)


@dataclass(slots=True)
class EncodedPrompt:
    """points: (N, 2) float32 (x, y) in model pixels. labels: (N) int32: 1 inside, 0 outside, 2 and 3 box corners.

    mask_logits: (L, L) float32 dense prompt at the decoder's resolution, or None.
    """

    points: NDArray[np.float32]
    labels: NDArray[np.int32]
    mask_logits: NDArray[np.float32] | None = None

    @property
    def group(self) -> tuple[int, bool]:
        """Prompts of one group can share a call: a padded point would change the others' attention, so counts must be equal."""
        return len(self.labels), self.mask_logits is not None


def check_prompt(prompt: Prompt, width: int, height: int) -> Prompt:
    """The prompt as it is used in an image of `width` x `height` pixels: a box that reaches outside is cut to the image, points less
    than a pixel outside are moved onto its edge. Raises PromptError when it makes no sense there.

    Codes: `prompt_empty` (asks for nothing, or a mask without a pixel), `prompt_labels`, `prompt_nan`, `prompt_inverted` (a box without
    area), `prompt_outside` (a box or a point outside the image), `prompt_mask_size` (mask of another image), `prompt_mask` (damaged
    encoding), `prompt_conflict` (box and mask are apart).
    """
    if not prompt.type:
        raise PromptError("the prompt has neither box nor points nor mask", code="prompt_empty")
    if len(prompt.labels) != len(prompt.points) or not set(prompt.labels) <= {0, 1}:
        message = f"labels are {prompt.labels} for {len(prompt.points)} points; give one per point, 1 (inside) or 0 (outside)"
        raise PromptError(message, code="prompt_labels")
    _check_numbers(prompt)
    box = None if prompt.box is None else _clipped(prompt.box, width, height)
    points = [_moved(point, width, height) for point in prompt.points]
    if prompt.mask is not None:
        _check_mask(prompt.mask, width, height)
        if box is not None and not _meet(box, rle_box(prompt.mask)):
            raise PromptError(f"the mask has no pixel near the box {list(box)}: they are of different objects", code="prompt_conflict")
    return replace(prompt, box=box, points=points)


def given_mask(prompt: Prompt) -> RLE | None:
    """The mask that is the answer itself: that of a prompt that gives nothing else."""
    return prompt.mask if prompt.type == "mask" else None


def merge_prompts(first: Prompt, second: Prompt) -> Prompt:
    """One prompt from two about the same object on the same frame; what both say alike is said once.

    Raises PromptError (`prompt_conflict`) for two different boxes or masks, and for one point both inside and outside.
    """
    for name in ("box", "mask"):
        one, other = getattr(first, name), getattr(second, name)
        if one is not None and other is not None and one != other:
            message = f"two prompts give one object a {name} on the same frame; keep one, or give them different object_ids"
            raise PromptError(message, code="prompt_conflict")
    clicks = dict.fromkeys(zip([*first.points, *second.points], [*first.labels, *second.labels], strict=True))
    points = [point for point, _ in clicks]
    if len(set(points)) < len(points):
        message = "two prompts have one point inside and outside of one object on the same frame; keep one of them"
        raise PromptError(message, code="prompt_conflict")
    return replace(
        first,
        box=first.box or second.box,
        mask=first.mask or second.mask,
        points=points,
        labels=[label for _, label in clicks],
    )


def prompt_group(prompt: Prompt) -> tuple[int, bool]:
    """(points, box corners included, that the prompt encoder gets; whether it gets a mask). Prompts of one group can share a call."""
    return 2 * (prompt.box is not None or prompt.mask is not None) + len(prompt.points), prompt.mask is not None


def encode_prompt(prompt: Prompt, width: int, height: int, image_size: int) -> EncodedPrompt:
    """Check a prompt and turn it into model coordinates.

    A box becomes its two corners, as the PAM reference gives it, before the points. A mask becomes SAM 2's dense mask prompt
    (the reference takes no masks), with a box in any case (see the module's docstring). Raises PromptError.
    """
    prompt = check_prompt(prompt, width, height)
    box = prompt.box
    if prompt.mask is not None and box is None:
        box = _around(rle_box(prompt.mask), [point for point, label in zip(prompt.points, prompt.labels, strict=True) if label == 1])
    corners = [] if box is None else [box[:2], box[2:]]
    labels = [*(_BOX_CORNERS if corners else ()), *prompt.labels]
    points = np.asarray([*corners, *prompt.points], dtype=np.float32)
    # Order of operations and precision are the reference's: float32, divided by the image's size first.
    scaled = points / np.asarray([width, height], dtype=np.float32) * np.float32(image_size)
    logits = None if prompt.mask is None else mask_prompt_logits(decode_mask(prompt.mask), image_size // 4)
    return EncodedPrompt(scaled.astype(np.float32), np.asarray(labels, dtype=np.int32), logits)


def _check_numbers(prompt: Prompt) -> None:
    coordinates = [*(prompt.box or ()), *(value for point in prompt.points for value in point)]
    if not all(math.isfinite(value) for value in coordinates):
        raise PromptError(f"coordinates must be numbers, found {coordinates!r:.200}", code="prompt_nan")


def _clipped(box: Box, width: int, height: int) -> Box:
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        message = f"the box {list(box)} is inverted or empty; write x1, y1, x2, y2 with x1 < x2 and y1 < y2"
        raise PromptError(message, code="prompt_inverted")
    left, top, right, bottom = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if right <= left or bottom <= top:
        raise PromptError(f"the box {list(box)} lies outside the image, {_size(width, height)}", code="prompt_outside")
    return left, top, right, bottom


def _moved(point: tuple[float, float], width: int, height: int) -> tuple[float, float]:
    x, y = point
    if not (-_TOLERANCE_PX <= x <= width + _TOLERANCE_PX and -_TOLERANCE_PX <= y <= height + _TOLERANCE_PX):
        raise PromptError(f"the point {list(point)} lies outside the image, {_size(width, height)}", code="prompt_outside")
    return min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))


def _size(width: int, height: int) -> str:
    return f"which is {width} x {height} px (after EXIF rotation)"


def _check_mask(mask: RLE, width: int, height: int) -> None:
    if list(mask["size"]) != [height, width]:
        message = f"the mask prompt is {list(mask['size'])}, the image {[height, width]} (height, width); give it at the image's size"
        raise PromptError(message, code="prompt_mask_size")
    try:
        check_rle(mask)
    except ValueError as error:
        raise PromptError(str(error), code="prompt_mask") from error
    if rle_box(mask) is None:
        raise PromptError("the mask prompt has no pixel", code="prompt_empty")


def _meet(box: Box, other: Box | None) -> bool:
    return other is not None and box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def _around(box: Box | None, points: Sequence[tuple[float, float]]) -> Box | None:
    """A box stretched to the points."""
    if box is None:
        return None
    xs, ys = [box[0], box[2], *(x for x, _ in points)], [box[1], box[3], *(y for _, y in points)]
    return min(xs), min(ys), max(xs), max(ys)
