"""A clip's frames and prompts to tracks: who is followed where and when, and what of it the language model will see.

Frames come in order and are let go at once, so memory does not grow with the clip. Only the frames up to the last prompted one are
held (as uint8), because objects prompted late are followed backward through them. The order is that of SAM 2's predictor when it is
given all prompts first: prompted frames, then backward, then forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datagen.errors import PromptError
from datagen.masks import decode_mask, mask_box
from datagen.pam.tracker import FrameFeatures, FrameMemory, MemoryBank, ObjectMemory, StepOutput, Tracker, TrackPrompts
from datagen.perceive.prompts import EncodedPrompt, encode_prompt
from datagen.perceive.regions import image_masks
from datagen.records import Frame, Prompt, Track, TrackFrame, TrackTokens

NUM_SELECTED = 16


def selected_frames(first: int, num_frames: int) -> list[int]:
    """The 16 frames of [first, num_frames) that the language model sees: the first, and 15 evenly spaced, cut down to whole numbers.

    The PAM reference's rule, which refuses fewer than 16 frames. Here the same formula then repeats frames, in time order, so that
    the model always reads the layout that it was trained on: 16 frames, 5168 embeddings.
    """
    later = np.linspace(min(first + 1, num_frames - 1), num_frames - 1, NUM_SELECTED - 1, dtype=int)
    return [first, *later.tolist()]


def track_clip(
    tracker: Tracker,
    frames: Iterable[Frame],
    objects: Sequence[Mapping[int, Prompt]],
    num_frames: int,
    width: int,
    height: int,
    *,
    objects_per_call: int = 16,
    backward: bool = True,
    memories: Mapping[int, ObjectMemory] | None = None,
) -> list[Track]:
    """Follow every object through a clip of `num_frames` frames; see `ClipTracking`.

    Raises PromptError for a prompt that makes no sense, ValueError for frames missing or out of order.
    """
    options: dict[str, Any] = {"objects_per_call": objects_per_call, "backward": backward, "memories": memories}
    return follow(ClipTracking(tracker, objects, num_frames, width, height, **options), frames)


def follow(tracking: ClipTracking, frames: Iterable[Frame]) -> list[Track]:
    """The tracks of a clip from all of its frames. Raises as ClipTracking does."""
    found: list[list[TrackFrame]] = [[] for _ in tracking.objects]
    for frame in frames:
        for item in tracking.push(frame):
            found[item.object_index].append(item)
    return [
        Track(index, dict(prompts), sorted(found[index], key=lambda item: item.frame_index), tracking.tokens(index))
        for index, prompts in enumerate(tracking.objects)
    ]


@dataclass(slots=True)
class _Group:
    """Objects prompted on the same frames: they share a memory bank, and a call.

    asked: frames whose prompts say where the objects are. corrected: those whose clicks only say where they are not. first: where they are
    first known, from where they are followed backward and forward; -1 when they are remembered from before the clip. offset: number of the
    clip's first frame in the bank, behind the frames that are remembered. scores: of the objects on the asked frames so far.
    """

    objects: list[int]
    asked: tuple[int, ...]
    corrected: frozenset[int]
    first: int
    selected: list[int]
    bank: MemoryBank = field(default_factory=MemoryBank)
    offset: int = 0
    scores: dict[int, list[float]] = field(default_factory=dict)


class ClipTracking:
    """The tracks of one clip in the making: push its frames in order.

    objects: for each object, its prompts by frame index; one prompt may hold a box, points and a mask together. A mask alone is
    taken as the answer, as in SAM 2. Points that are all outside the object correct the mask that tracking finds on their frame; the first
    prompt of an object says where it is, unless `memories` (by number of the object) do: it is then looked for from the first frame on.
    width and height: of the video, px; prompts and masks are at this size. objects_per_call:
    objects that share a call of memory attention and mask decoder; more need more memory. backward: also follow an object
    through the frames before its first prompt. Raises PromptError (codes of `encode_prompt`, `prompt_frame`).

    An image is encoded once for all objects; frames before the last prompted one once per direction that needs them.
    """

    def __init__(
        self,
        tracker: Tracker,
        objects: Sequence[Mapping[int, Prompt]],
        num_frames: int,
        width: int,
        height: int,
        *,
        objects_per_call: int = 16,
        backward: bool = True,
        memories: Mapping[int, ObjectMemory] | None = None,
    ) -> None:
        self.tracker, self.num_frames, self.width, self.height = tracker, num_frames, width, height
        self.objects = [dict(prompts) for prompts in objects]
        self._memories = dict(memories or {})
        self._encoded = [self._encode_prompts(number, prompts) for number, prompts in enumerate(self.objects)]
        self._backward = backward
        self._groups = self._make_groups(objects_per_call)
        self._first_known = min((group.first for group in self._groups), default=-1)
        self._last_asked = max((frame for group in self._groups for frame in group.asked), default=-1)
        self._tokens: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in objects]
        self._held: list[Frame] = []
        self._next_index = 0
        self._features: tuple[int, FrameFeatures] | None = None

    def push(self, frame: Frame) -> list[TrackFrame]:
        """Take the clip's next frame; return what is now known.

        Nothing until the last prompted frame is there; then everything so far, an object's earlier frames in falling order; from
        then on one TrackFrame per object and frame. Raises ValueError for a frame out of order or of another size.
        """
        self._check(frame)
        self._next_index += 1
        if frame.frame_index > self._last_asked:
            return self._track(self._groups, frame)
        if self._backward or frame.frame_index >= self._first_known:
            self._held.append(frame)
        if frame.frame_index < self._last_asked:
            return []
        found = self._start()
        self._held.clear()
        return found

    def tokens(self, object_index: int) -> TrackTokens:
        """The perceiver's tokens of one object, once every frame was pushed. Raises ValueError before that."""
        if self._next_index != self.num_frames:
            raise ValueError(f"the clip was said to have {self.num_frames} frames, but {self._next_index} came; say how many there are")
        group = next(group for group in self._groups if object_index in group.objects)
        slots = [self._tokens[object_index][slot] for slot in range(NUM_SELECTED)]
        return TrackTokens(
            frame_indices=list(group.selected),
            image_first=_array(slots[0][0]),
            image_later=np.stack([_array(image) for image, _ in slots[1:]]),
            semantic=np.stack([_array(semantic) for _, semantic in slots]),
            is_bfloat16=self.tracker.front_end.dtype == torch.bfloat16,
        )

    def memory(self, object_index: int) -> ObjectMemory:
        """What is best remembered of an object that was prompted: to be given to the tracking of later frames as one of its `memories`."""
        group = next(group for group in self._groups if object_index in group.objects)
        row, bank = group.objects.index(object_index), group.bank
        # Prompted last where it was seen; or what came from before; or a frame that it was looked for in vain.
        places = [*group.scores, *((-1,) if group.first < 0 else ())]
        best = max(places, key=lambda index: (index < 0 or group.scores[index][row] > 0, index >= 0, index))
        latest: list[int] = []
        for index in range(self.num_frames + group.offset - 1, -1, -1):
            if len(latest) == self.tracker.feature_reach or "maskmem_features" not in bank.outputs["non_cond_frame_outputs"].get(index, {}):
                break
            latest.insert(0, index)
        return bank.memory(row, 0 if best < 0 else best + group.offset, latest)

    def _encode_prompts(self, number: int, prompts: Mapping[int, Prompt]) -> dict[int, EncodedPrompt]:
        if not prompts and number not in self._memories:
            raise PromptError("an object without a prompt cannot be tracked", code="prompt_empty")
        outside = [index for index in prompts if not 0 <= index < self.num_frames]
        if outside:
            message = f"prompts ask about frames {outside}; the clip has frames 0 to {self.num_frames - 1}"
            raise PromptError(message, code="prompt_frame")
        size = self.tracker.front_end.image_size
        encoded = {index: encode_prompt(prompt, self.width, self.height, size) for index, prompt in prompts.items()}
        if number not in self._memories and not prompts[first := min(prompts)].is_positive:
            message = f"the first prompt of an object, on frame {first} of the clip, says only where it is not; say where it is"
            raise PromptError(message, code="prompt_negative")
        return encoded

    def _make_groups(self, objects_per_call: int) -> list[_Group]:
        alike: dict[tuple[Any, ...], list[int]] = {}
        for number, prompts in enumerate(self.objects):
            asked = tuple(sorted(index for index, prompt in prompts.items() if prompt.is_positive))
            clicks = tuple(sorted((index, len(prompt.points)) for index, prompt in prompts.items() if index not in asked))
            memory = self._memories.get(number)
            alike.setdefault((asked, clicks, -1 if memory is None else len(memory.recent)), []).append(number)
        groups = []
        for (asked, clicks, num_recent), members in alike.items():
            first = -1 if num_recent >= 0 else asked[0]
            selected = selected_frames(0 if self._backward else max(first, 0), self.num_frames)
            for start in range(0, len(members), objects_per_call):
                chunk = members[start : start + objects_per_call]
                bank = MemoryBank.of([self._memories[number] for number in chunk]) if num_recent >= 0 else MemoryBank()
                groups.append(_Group(chunk, asked, frozenset(index for index, _ in clicks), first, selected, bank, num_recent + 1))
        return groups

    def _check(self, frame: Frame) -> None:
        size = self.tracker.front_end.image_size
        if frame.frame_index != self._next_index or frame.frame_index >= self.num_frames:
            raise ValueError(f"frame {frame.frame_index} came; expected frame {self._next_index} of {self.num_frames}, in order")
        if frame.pixels.shape != (size, size, 3) or frame.pixels.dtype != np.uint8:
            raise ValueError(f"frames are ({size}, {size}, 3) uint8 for this model, found {frame.pixels.shape} {frame.pixels.dtype}")

    def _start(self) -> list[TrackFrame]:
        """All that can be said of the held frames: prompted ones first, then backward, then forward."""
        found = []
        for frame in self._held:
            for group in self._groups:
                if frame.frame_index in group.asked:
                    found += self._condition(group, frame)
        for frame in reversed(self._held) if self._backward else ():
            found += self._track([group for group in self._groups if frame.frame_index < group.first], frame, reverse=True)
        for frame in self._held:
            later = [group for group in self._groups if frame.frame_index > group.first]
            found += self._track([group for group in later if frame.frame_index not in group.asked], frame)
        return found

    def _condition(self, group: _Group, frame: Frame) -> list[TrackFrame]:
        index = frame.frame_index
        encoded = [self._encoded[member][index] for member in group.objects]
        masks = [self._given_mask(member, index) for member in group.objects]
        kinds: dict[tuple[int, bool, bool], list[int]] = {}
        for row, (prompt, mask) in enumerate(zip(encoded, masks, strict=True)):
            kinds.setdefault((*prompt.group, mask is not None), []).append(row)
        parts = [(rows, self._prompts([encoded[row] for row in rows], [masks[row] for row in rows])) for rows in kinds.values()]
        step = self.tracker.condition(group.bank, self._encode(frame), index + group.offset, self.num_frames + group.offset, parts)
        group.scores[index] = step.object_score.tolist()
        found = self._finish(group, step, frame)
        for item, mask in zip(found, masks, strict=True):
            if mask is not None:
                item.mask, item.box_xyxy = self.objects[item.object_index][index].mask, mask_box(mask)
        return found

    def _given_mask(self, member: int, index: int) -> NDArray[np.bool_] | None:
        prompt = self.objects[member][index]
        return decode_mask(prompt.mask) if prompt.mask is not None and prompt.type == "mask" else None

    def _prompts(self, encoded: Sequence[EncodedPrompt], masks: Sequence[NDArray[np.bool_] | None]) -> TrackPrompts:
        """Prompts of one kind as tensors."""
        given = [_model_mask(mask, self.tracker.front_end.image_size) for mask in masks if mask is not None]
        logits = [torch.from_numpy(prompt.mask_logits) for prompt in encoded if prompt.mask_logits is not None]
        return TrackPrompts(
            points=torch.from_numpy(np.stack([prompt.points for prompt in encoded])),
            labels=torch.from_numpy(np.stack([prompt.labels for prompt in encoded])),
            mask_logits=torch.stack(logits) if logits else None,
            masks=torch.stack(given) if given else None,
        )

    def _track(self, groups: Sequence[_Group], frame: Frame, reverse: bool = False) -> list[TrackFrame]:
        found = []
        for group in groups:
            index = frame.frame_index + group.offset
            place = group.bank, self._encode(frame), index, self.num_frames + group.offset
            if frame.frame_index in group.corrected:
                encoded = [self._encoded[member][frame.frame_index] for member in group.objects]
                step = self.tracker.correct(*place, self._prompts(encoded, []), reverse)
            else:
                step = self.tracker.track(*place, reverse)
            # What lies around the first prompt is also read when tracking turns forward there.
            coming = (index - 1, group.first + 1) if reverse else (index + 1,)
            group.bank.forget(coming, self.tracker.feature_reach, self.tracker.pointer_reach)
            found += self._finish(group, step, frame)
        return found

    def _encode(self, frame: Frame) -> FrameFeatures:
        if self._features is None or self._features[0] != frame.frame_index:
            self._features = frame.frame_index, self.tracker.encode(torch.tensor(frame.pixels))
        return self._features[1]

    def _finish(self, group: _Group, step: StepOutput, frame: Frame) -> list[TrackFrame]:
        """Masks to run lengths and, on selected frames, the decoder's features to tokens, so that the large tensors end here."""
        self._perceive(group, step, frame.frame_index)
        scores, ious = step.object_score.tolist(), step.predicted_iou.tolist()
        found = []
        for member, mask, score, iou in zip(group.objects, image_masks(step.logits, self.height, self.width), scores, ious, strict=True):
            box = mask.box if score > 0 else None
            rle = mask.encode() if box is not None else None
            found.append(TrackFrame(member, frame.frame_index, frame.timestamp_s, rle, box, score, iou))
        return found

    def _perceive(self, group: _Group, step: StepOutput, index: int) -> None:
        slots = [slot for slot, selected in enumerate(group.selected) if selected == index]
        for coarse in (False, True):
            chosen = [slot for slot in slots if (slot > 0) == coarse]
            if chosen:
                image, semantic = (tokens.cpu() for tokens in self.tracker.front_end.perceive(step.decoded, coarse))
                for row, member in enumerate(group.objects):
                    self._tokens[member].update(dict.fromkeys(chosen, (image[row], semantic[row])))


def remember(tracker: Tracker, features: FrameFeatures, prompt: Prompt | None, width: int, height: int) -> FrameMemory:
    """What an object looks like, from a frame that it was seen in, and what shows it there; None: it is not there. Raises PromptError."""
    size = tracker.front_end.image_size
    if prompt is None:
        return tracker.remember(features, TrackPrompts(masks=torch.zeros(1, size, size, dtype=torch.bool)))
    encoded = encode_prompt(prompt, width, height, size)
    if prompt.type == "mask" and prompt.mask is not None:
        prompts = TrackPrompts(masks=_model_mask(decode_mask(prompt.mask), size)[None])
    else:
        logits = None if encoded.mask_logits is None else torch.from_numpy(encoded.mask_logits)[None]
        prompts = TrackPrompts(torch.from_numpy(encoded.points)[None], torch.from_numpy(encoded.labels)[None], logits)
    return tracker.remember(features, prompts)


def _model_mask(mask: NDArray[np.bool_], size: int) -> Tensor:
    """A mask at the model's size, (size, size) boolean, antialiased as in sam2; at least one pixel of a tiny object stays."""
    pixels = torch.from_numpy(mask).float()[None, None]
    small = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False, antialias=True)[0, 0]
    return small >= small.max().clamp(max=0.5)


def _array(tokens: Tensor) -> NDArray[np.generic]:
    return (tokens.view(torch.int16) if tokens.dtype == torch.bfloat16 else tokens).numpy()
