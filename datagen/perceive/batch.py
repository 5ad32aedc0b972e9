"""One batch of images through the front end: every prompt of every image in as few mask-decoder calls as can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datagen.job import PerceiveOptions
from datagen.masks import mask_area, rle_box, stability_score
from datagen.pam.front_end import Decoded, FrontEnd, ImageFeatures
from datagen.perceive.everything import Candidate, find_sized
from datagen.perceive.memory import CallSize, sized_by
from datagen.perceive.prompts import EncodedPrompt, encode_prompt, given_mask, prompt_group
from datagen.perceive.regions import ImageMask, image_masks
from datagen.records import Prompt, Region, RegionTokens


@dataclass(slots=True)
class Picture:
    """An image to be perceived. pixels: (S, S, 3) uint8 RGB, S the model's image size. prompts: None means everything."""

    pixels: NDArray[np.uint8]
    width: int
    height: int
    prompts: list[Prompt] | None


@dataclass(slots=True)
class Perception:
    """What the front end found in one image."""

    regions: list[Region] = field(default_factory=list)
    tokens: RegionTokens | None = None
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Image:
    """The work on one image: its prompts, with the grid's candidate behind each where it came from there, and the answers so far."""

    width: int
    height: int
    prompts: list[Prompt]
    candidates: list[Candidate]
    dropped: Counter[str]
    answers: dict[int, _Answer] = field(default_factory=dict)


@dataclass(slots=True)
class _Answer:
    """One region, or the reason why there is none, with its tokens: (T, 1024) and (16, 256)."""

    region: Region | str
    image_tokens: NDArray[np.generic]
    sem_tokens: NDArray[np.generic]


class _Question(NamedTuple):
    """Prompt number `prompt_index` of image number `image_index`."""

    image_index: int
    prompt_index: int


def perceive_batch(front_end: FrontEnd, pictures: Sequence[Picture], options: PerceiveOptions, prompts: CallSize) -> list[Perception]:
    """Regions and tokens of several images, in order. prompts: how many share a mask-decoder call.

    Raises PromptError for a prompt that makes no sense for its image, memory.CallTooLargeError.
    """
    with sized_by("perceive.batch_size", len(pictures)):
        features = front_end.encode(torch.from_numpy(np.stack([picture.pixels for picture in pictures])))
    images = [_open(front_end, features, index, picture, options, prompts) for index, picture in enumerate(pictures)]
    for questions in _calls(images, prompts):
        with sized_by(prompts.option, len(questions)):
            _answer(front_end, images, questions, _decode(front_end, features, images, questions), options)
        prompts.fitted(len(questions))
    return [_close(image, front_end.dtype) for image in images]


def _open(
    front_end: FrontEnd, features: ImageFeatures, index: int, picture: Picture, options: PerceiveOptions, prompts: CallSize
) -> _Image:
    """The prompts of one image: those given, or a box around each candidate of the point grid."""
    if picture.prompts is not None:
        return _Image(picture.width, picture.height, picture.prompts, [], Counter())
    candidates, dropped = find_sized(front_end, features, index, picture.width, picture.height, options.everything, prompts)
    boxes = [Prompt(box=candidate.box, source="everything") for candidate in candidates]
    return _Image(picture.width, picture.height, boxes, candidates, dropped)


def _calls(images: Sequence[_Image], prompts: CallSize) -> Iterator[list[_Question]]:
    """All prompts of all images, in groups that can share a mask-decoder call; images stay together within a call."""
    groups: dict[tuple[int, bool], list[_Question]] = {}
    for image_index, image in enumerate(images):
        for prompt_index, prompt in enumerate(image.prompts):
            groups.setdefault(prompt_group(prompt), []).append(_Question(image_index, prompt_index))
    for questions in groups.values():
        start = 0
        while start < len(questions):
            some = questions[start : start + prompts.value]
            yield some
            start += len(some)


def _decode(front_end: FrontEnd, features: ImageFeatures, images: Sequence[_Image], questions: Sequence[_Question]) -> Decoded:
    encoded = [_encode(images[question.image_index], question, front_end.image_size) for question in questions]
    masks = [prompt.mask_logits for prompt in encoded if prompt.mask_logits is not None]
    return front_end.decode(
        features,
        torch.tensor([question.image_index for question in questions]),
        torch.from_numpy(np.stack([prompt.points for prompt in encoded])),
        torch.from_numpy(np.stack([prompt.labels for prompt in encoded])),
        torch.from_numpy(np.stack(masks)) if masks else None,
    )


def _encode(image: _Image, question: _Question, image_size: int) -> EncodedPrompt:
    return encode_prompt(image.prompts[question.prompt_index], image.width, image.height, image_size)


def _answer(
    front_end: FrontEnd, images: Sequence[_Image], questions: Sequence[_Question], decoded: Decoded, options: PerceiveOptions
) -> None:
    """Turn one call's answers into regions; logits and features end here."""
    image_tokens, sem_tokens = (_to_numpy(tokens) for tokens in front_end.perceive(decoded))
    logits = decoded.logits[:, 0]
    stability = stability_score(logits, options.everything.stability_offset)
    scores = torch.stack([decoded.predicted_iou[:, 0], stability, decoded.object_score], dim=1).tolist()
    row = 0
    for image_index, group in groupby(questions, key=lambda question: question.image_index):
        image, same_image = images[image_index], list(group)
        masks = _masks(image, same_image, logits[row : row + len(same_image)], options)
        for question, mask in zip(same_image, masks, strict=True):
            region = _region(image, question.prompt_index, mask, scores[row], options)
            image.answers[question.prompt_index] = _Answer(region, image_tokens[row], sem_tokens[row])
            row += 1


def _masks(image: _Image, questions: Sequence[_Question], logits: Tensor, options: PerceiveOptions) -> Iterator[ImageMask | None]:
    """Masks at the image's size; None where another is stored and this one is not needed."""
    if image.candidates and options.everything.stored_mask == "candidate":
        return iter([None] * len(logits))
    needed = [given_mask(image.prompts[question.prompt_index]) is None for question in questions]
    made = image_masks(logits[torch.tensor(needed, device=logits.device)], image.height, image.width)
    return (next(made) if is_needed else None for is_needed in needed)


def _region(image: _Image, index: int, mask: ImageMask | None, scores: list[float], options: PerceiveOptions) -> Region | str:
    """The region of prompt number `index`, or the reason why it is dropped. scores: predicted IoU, stability, object score."""
    predicted_iou, stability, object_score = scores
    prompt = image.prompts[index]
    stored: Candidate | None
    if image.candidates and mask is None:
        stored, source = image.candidates[index], "candidate"
    elif mask is None:
        stored, source = _given(prompt, predicted_iou, stability), "given"
    else:
        stored = mask.box and Candidate(mask.encode(), mask.box, mask.area_px, predicted_iou, stability)
        source = "refined" if image.candidates else "prompt"
    if stored is None:
        return "empty_mask"
    if object_score <= 0 and options.drop_absent:
        return "absent"
    return Region(
        region_index=index if prompt.index is None else prompt.index,
        prompt=prompt,
        mask=stored.mask,
        box_xyxy=stored.box,
        area_px=stored.area_px,
        predicted_iou=stored.predicted_iou,
        stability=stored.stability,
        object_score=object_score,
        mask_source=source,
        flags=["absent"] if object_score <= 0 else [],
    )


def _given(prompt: Prompt, predicted_iou: float, stability: float) -> Candidate | None:
    """The mask that was given as the answer. The scores are of what the decoder makes of it: how sure the model is of this region."""
    mask, box = prompt.mask, prompt.mask and rle_box(prompt.mask)
    return Candidate(mask, box, mask_area(mask), predicted_iou, stability) if mask and box else None


def _close(image: _Image, dtype: torch.dtype) -> Perception:
    """Answers in the order of the prompts: regions with their tokens, and counts of what was dropped."""
    perception = Perception(dropped=image.dropped)
    kept = []
    for _, answer in sorted(image.answers.items()):
        if isinstance(answer.region, str):
            perception.dropped[answer.region] += 1
        else:
            perception.regions.append(answer.region)
            kept.append(answer)
    if kept:
        image_tokens, sem_tokens = (np.stack([getattr(answer, name) for answer in kept]) for name in ("image_tokens", "sem_tokens"))
        perception.tokens = RegionTokens(image=image_tokens, semantic=sem_tokens, is_bfloat16=dtype == torch.bfloat16)
    return perception


def _to_numpy(tensor: Tensor) -> NDArray[np.generic]:
    """float32 as it is, bfloat16 as its int16 bit pattern."""
    return np.asarray((tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy())
