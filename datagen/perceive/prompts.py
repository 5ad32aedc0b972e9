"""From a prompt in pixels of the image to what SAM 2's prompt encoder takes, and the checks before that."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from datagen.errors import PromptError
from datagen.masks import check_rle, decode_mask, mask_area, mask_prompt_logits
from datagen.records import RLE, Prompt

# Annotation tools round outwards; a coordinate further out than this belongs to another image or another scale.
_TOLERANCE_PX = 1.0

_BOX_CORNERS = (2, 3)
_NO_POINT = -1


@dataclass(slots=True)
class EncodedPrompt:
    """points: (N, 2) float32 (x, y) in model pixels. labels: (N) int32: 1 inside, 0 outside, 2 and 3 box corners, -1 no point.

    mask_logits: (L, L) float32 dense prompt at the decoder's resolution, or None.
    """

    points: NDArray[np.float32]
    labels: NDArray[np.int32]
    mask_logits: NDArray[np.float32] | None = None

    @property
    def group(self) -> tuple[int, bool]:
        """Prompts of one group can share a call: a padded point would change the others' attention, so counts must be equal."""
        return len(self.labels), self.mask_logits is not None


def check_prompt(prompt: Prompt, width: int, height: int) -> None:
    """Raise PromptError when a prompt makes no sense for an image of `width` x `height` pixels.

    Codes: `prompt_empty` (asks for nothing), `prompt_labels`, `prompt_nan`, `prompt_inverted`, `prompt_outside`,
    `prompt_mask_size` (mask of another image), `prompt_mask` (damaged encoding).
    """
    if not prompt.type:
        raise PromptError("the prompt has neither box nor points nor mask", code="prompt_empty")
    if len(prompt.labels) != len(prompt.points) or not set(prompt.labels) <= {0, 1}:
        message = f"labels are {prompt.labels} for {len(prompt.points)} points; give one per point, 1 (inside) or 0 (outside)"
        raise PromptError(message, code="prompt_labels")
    _check_coordinates(prompt, width, height)
    if prompt.mask is not None:
        _check_mask(prompt.mask, width, height)


def has_positive(prompt: Prompt) -> bool:
    """Whether a prompt says where its object is, rather than only where it is not."""
    return prompt.box is not None or prompt.mask is not None or 1 in prompt.labels


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


def encode_prompt(prompt: Prompt, width: int, height: int, image_size: int) -> EncodedPrompt:
    """Check a prompt and turn it into model coordinates.

    A box becomes its two corners, as the PAM reference gives it, before the points. A mask becomes SAM 2's dense mask prompt
    (the reference takes no masks); alone, it comes with one empty point, as in sam2. Raises PromptError.
    """
    check_prompt(prompt, width, height)
    corners = [] if prompt.box is None else [prompt.box[:2], prompt.box[2:]]
    labels = [*(_BOX_CORNERS if corners else ()), *prompt.labels]
    points = np.asarray([*corners, *prompt.points], dtype=np.float32).reshape(-1, 2)
    if not labels:
        points, labels = np.zeros((1, 2), dtype=np.float32), [_NO_POINT]
    # Order of operations and precision are the reference's: float32, divided by the image's size first.
    scaled = points / np.asarray([width, height], dtype=np.float32) * np.float32(image_size)
    logits = None if prompt.mask is None else mask_prompt_logits(decode_mask(prompt.mask), image_size // 4)
    return EncodedPrompt(scaled.astype(np.float32), np.asarray(labels, dtype=np.int32), logits)


def _check_coordinates(prompt: Prompt, width: int, height: int) -> None:
    coordinates = [*(prompt.box or ()), *(value for point in prompt.points for value in point)]
    if not all(math.isfinite(value) for value in coordinates):
        raise PromptError(f"coordinates must be numbers, found {coordinates}", code="prompt_nan")
    if prompt.box is not None and (prompt.box[2] <= prompt.box[0] or prompt.box[3] <= prompt.box[1]):
        raise PromptError(
            f"the box {list(prompt.box)} is inverted or empty; write x1, y1, x2, y2 with x1 < x2 and y1 < y2", code="prompt_inverted"
        )
    if any(_outside(x, width) for x in coordinates[0::2]) or any(_outside(y, height) for y in coordinates[1::2]):
        message = f"{coordinates} (x, y, ...) reaches outside the image, which is {width} x {height} px (after EXIF rotation)"
        raise PromptError(message, code="prompt_outside")


def _outside(value: float, side: int) -> bool:
    return not -_TOLERANCE_PX <= value <= side + _TOLERANCE_PX


def _check_mask(mask: RLE, width: int, height: int) -> None:
    if list(mask["size"]) != [height, width]:
        message = f"the mask prompt is {list(mask['size'])}, the image {[height, width]} (height, width); give it at the image's size"
        raise PromptError(message, code="prompt_mask_size")
    try:
        check_rle(mask)
    except ValueError as error:
        raise PromptError(str(error), code="prompt_mask") from error
    if mask_area(mask) == 0:
        raise PromptError("the mask prompt has no pixel", code="prompt_empty")
