"""SAM 2's tracking, many objects of one clip at a time, with memory that a clip's length does not change.

Source: Ravi et al., "SAM 2: Segment Anything in Images and Videos", 2024; the official package, unpatched: this file calls its
`SAM2Base.track_step` and keeps the memory bank that `track_step` reads.
Letters of shapes: K objects tracked together, S image size, G = S/16 feature grid, L = S/4 mask logits, N points.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from datagen.life import alive
from datagen.pam.front_end import Decoded, FrontEnd
from datagen.pam.gradients import no_gradients_unless_training

_LOGIT_LIMIT = 32.0  # of a mask that the decoder starts from, as in SAM 2's predictor


@dataclass(slots=True)
class FrameFeatures:
    """What objects are looked for in, as `track_step` takes it: levels and position codes (H*W, B, C), finest first, with (H, W) of each.

    B: 1 when all objects are in the same frame, otherwise the number of objects.
    """

    levels: list[Tensor]
    positions: list[Tensor]
    sizes: list[tuple[int, int]]

    @classmethod
    def of(cls, levels: Sequence[Tensor], positions: Sequence[Tensor]) -> FrameFeatures:
        """From levels and position codes (B, C, H, W)."""
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        return cls([_sequence(level) for level in levels], [_sequence(code) for code in positions], sizes)


@dataclass(slots=True)
class TrackPrompts:
    """Prompts of one kind for K objects: points, with or without mask logits, or a mask that is the answer itself, or both: then the mask
    is the answer, and `StepOutput.decoded` is what the mask decoder says to the points and logits.

    points: (K, N, 2) (x, y) in model pixels. labels: (K, N): 1 inside, 0 outside, 2 and 3 box corners. mask_logits: (K, L, L) what
    the mask decoder starts from. masks: (K, S, S) boolean, taken as it is.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    mask_logits: Tensor | None = None
    masks: Tensor | None = None


@dataclass(slots=True)
class StepOutput:
    """One frame of K objects. logits: (K, L, L) float32, -1024 where the object is absent.

    object_score: (K) logit, <= 0 where absent. predicted_iou: (K). decoded: what the mask decoder said, for the perceiver.
    For an object whose mask was given, score and IoU are SAM 2's fixed ones: +10 and 1.
    """

    logits: Tensor
    object_score: Tensor
    predicted_iou: Tensor
    decoded: Decoded


@dataclass(frozen=True, slots=True)
class FrameMemory:
    """What is remembered of one object on one frame. features: (1, 64, G, G). pointer: (1, 256). codes: one position code (1, 64, G, G)."""

    features: Tensor
    pointer: Tensor
    codes: list[Tensor]


@dataclass(frozen=True, slots=True)
class ObjectMemory:
    """What is remembered of one object from before a clip: a frame that shows it, and the latest ones, oldest first, it there or not."""

    shown: FrameMemory
    recent: tuple[FrameMemory, ...] = ()


@dataclass(slots=True)
class MemoryBank:
    """What is remembered of K objects that were prompted on the same frames, in the form `track_step` reads.

    `cond_frame_outputs` holds the prompted frames, which are kept; `non_cond_frame_outputs` the tracked ones, which `forget` prunes.
    Each: frame index -> maskmem_features (K, 64, G, G), maskmem_pos_enc [(K, 64, G, G)], obj_ptr (K, 256). The position code is the
    same for all frames and objects: `codes` holds the one copy, float32.
    """

    codes: list[Tensor] = field(default_factory=list)
    outputs: dict[str, dict[int, dict[str, Any]]] = field(default_factory=lambda: {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}})

    @classmethod
    def of(cls, memories: Sequence[ObjectMemory]) -> MemoryBank:
        """A bank of K objects with as many recent frames each: what shows them as frame 0, a prompted one, then the recent ones."""
        bank = cls([code.expand(len(memories), -1, -1, -1) for code in memories[0].shown.codes])
        bank.outputs["cond_frame_outputs"][0] = bank._joined([memory.shown for memory in memories])
        for index, frame in enumerate(zip(*(memory.recent for memory in memories), strict=True), start=1):
            bank.outputs["non_cond_frame_outputs"][index] = bank._joined(frame)
        return bank

    def _joined(self, memories: Sequence[FrameMemory]) -> dict[str, Any]:
        features, pointers = torch.cat([memory.features for memory in memories]), torch.cat([memory.pointer for memory in memories])
        return {"maskmem_features": features, "maskmem_pos_enc": self.codes, "obj_ptr": pointers}

    def memory(self, row: int, frame_index: int, latest: Sequence[int] = ()) -> ObjectMemory:
        """What is remembered of the object in one row: a prompted frame that shows it, and tracked ones."""
        tracked = self.outputs["non_cond_frame_outputs"]
        recent = tuple(self._of_row(tracked[index], row) for index in latest)
        return ObjectMemory(self._of_row(self.outputs["cond_frame_outputs"][frame_index], row), recent)

    def _of_row(self, kept: dict[str, Any], row: int) -> FrameMemory:
        rows = slice(row, row + 1)
        return FrameMemory(kept["maskmem_features"][rows], kept["obj_ptr"][rows], [code[:1] for code in self.codes])

    def exact(self) -> MemoryBank:
        """A copy in float32."""
        outputs = {
            kind: {
                index: {key: value if isinstance(value, list) else value.float() for key, value in out.items()}
                for index, out in found.items()
            }
            for kind, found in self.outputs.items()
        }
        return MemoryBank(self.codes, outputs)

    def forget(self, next_frames: Sequence[int], feature_reach: int, pointer_reach: int) -> None:
        """Drop what no tracking of `next_frames` can read: features further than one reach, object pointers further than the other."""
        tracked = self.outputs["non_cond_frame_outputs"]
        for index in list(tracked):
            distance = min(abs(index - frame) for frame in next_frames)
            if distance > feature_reach:
                tracked[index].pop("maskmem_features", None)
                tracked[index].pop("maskmem_pos_enc", None)
            if distance > max(feature_reach, pointer_reach):
                del tracked[index]


class Tracker:
    """SAM 2 frame by frame. It keeps no state of its own: that is in each `MemoryBank`."""

    def __init__(self, front_end: FrontEnd) -> None:
        self.front_end, self.training = front_end, front_end.training
        self.segmenter: SAM2Base = front_end.segmenter
        model = self.segmenter
        self.feature_reach: int = (model.num_maskmem - 1) * model.memory_temporal_stride_for_eval
        self.pointer_reach: int = model.max_obj_ptrs_in_encoder - 1

    @no_gradients_unless_training
    def encode(self, pixels: Tensor) -> FrameFeatures:
        """Features of one (S, S, 3) uint8 RGB frame, already resized with PIL's bicubic filter; shared by all its objects."""
        return FrameFeatures.of(*self.front_end.pyramid(pixels.unsqueeze(0)))

    @no_gradients_unless_training
    def encode_each(self, pixels: Tensor, which: Tensor) -> FrameFeatures:
        """Features of objects that are in different frames, as training follows them. pixels: (F, S, S, 3) uint8. which: (K) 0..F-1."""
        levels, positions = self.front_end.pyramid(pixels)
        return FrameFeatures.of([level[which] for level in levels], [code[which] for code in positions])

    @no_gradients_unless_training
    def condition(
        self, bank: MemoryBank, features: FrameFeatures, frame_index: int, num_frames: int, parts: Sequence[tuple[list[int], TrackPrompts]]
    ) -> StepOutput:
        """Answer the prompts of a bank's K objects on one frame and remember it as a prompted frame.

        parts: (rows of the bank, their prompts), one per kind of prompt; together every row once.
        """
        exact = _exact(features)
        with torch.autocast(self.front_end.device.type, enabled=False):
            answers = [self._answer(exact, frame_index, num_frames, prompts) for _, prompts in parts]
        memories = [memory for _, memory in answers]
        order = torch.tensor([row for rows, _ in parts for row in rows], device=self.front_end.device).argsort()
        memory: dict[str, Any] = {key: torch.cat([part[key] for part in memories])[order] for key in ("maskmem_features", "obj_ptr")}
        bank.codes = [code[:1].clone().expand(len(order), -1, -1, -1) for code in memories[0]["maskmem_pos_enc"]]
        self._keep(bank, frame_index, memory)
        return _merge([step for step, _ in answers], order)

    def _answer(
        self, features: FrameFeatures, frame_index: int, num_frames: int, prompts: TrackPrompts
    ) -> tuple[StepOutput, dict[str, Any]]:
        """SAM 2's own answer to prompts, and what it remembers. What it decodes from a mask without a place, for its memory alone, is of
        something else: the perceiver gets what it decodes from the mask with its box, as in images."""
        step, memory = self._step(MemoryBank(), features, frame_index, num_frames, prompts=prompts)
        if prompts.masks is not None and prompts.points is not None:
            placed, _ = self._step(MemoryBank(), features, frame_index, num_frames, prompts=replace(prompts, masks=None))
            step = replace(step, decoded=placed.decoded)
        return step, memory

    @no_gradients_unless_training
    def correct(
        self, bank: MemoryBank, features: FrameFeatures, frame_index: int, num_frames: int, prompts: TrackPrompts, reverse: bool = False
    ) -> StepOutput:
        """Find the bank's K objects in one frame as `track` does, and correct what is found by clicks; remember it as a prompted frame.

        As SAM 2's predictor does with clicks on a frame that was tracked before: the decoder starts from the tracked mask, and memory
        stays in sight. prompts: points and labels, as many for each object.
        """
        exact, remembered = _exact(features), bank.exact()
        with torch.autocast(self.front_end.device.type, enabled=False):
            tracked, _ = self._step(remembered, exact, frame_index, num_frames, reverse=reverse)
            clicks = replace(prompts, mask_logits=tracked.logits.clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT))
            step, memory = self._step(remembered, exact, frame_index, num_frames, prompts=clicks, reverse=reverse, corrects=True)
        self._keep(bank, frame_index, memory)
        return step

    @no_gradients_unless_training
    def remember(self, features: FrameFeatures, prompts: TrackPrompts) -> FrameMemory:
        """What one object looks like where a prompt shows it, to be looked for in other frames; an empty mask: it is not there."""
        bank = MemoryBank()
        self.condition(bank, features, 0, 1, [([0], prompts)])
        return bank.memory(0, 0).shown

    def _keep(self, bank: MemoryBank, frame_index: int, memory: dict[str, Any]) -> None:
        """Remember a prompted frame. As in the reference, its features are rounded to bfloat16, whatever the arithmetic."""
        features = memory["maskmem_features"].bfloat16().to(self.front_end.dtype)
        kept = {"maskmem_features": features, "maskmem_pos_enc": bank.codes, "obj_ptr": memory["obj_ptr"]}
        bank.outputs["cond_frame_outputs"][frame_index] = kept

    @no_gradients_unless_training
    def track(self, bank: MemoryBank, features: FrameFeatures, frame_index: int, num_frames: int, reverse: bool = False) -> StepOutput:
        """Find the bank's K objects in one frame from what is remembered, and remember the answer.

        num_frames: of the whole clip; object pointers carry a time code divided by min(num_frames, 16) - 1. reverse: frames come
        in falling order.
        """
        with self.front_end.autocast():
            step, memory = self._step(bank, features, frame_index, num_frames, reverse=reverse)
        memory["maskmem_pos_enc"] = bank.codes
        bank.outputs["non_cond_frame_outputs"][frame_index] = memory
        return step

    def _step(
        self,
        bank: MemoryBank,
        features: FrameFeatures,
        frame_index: int,
        num_frames: int,
        prompts: TrackPrompts | None = None,
        reverse: bool = False,
        corrects: bool = False,
    ) -> tuple[StepOutput, dict[str, Any]]:
        alive()
        points, masks, mask_logits, num_objects = self._inputs(bank, prompts)
        with _capture(self.segmenter.sam_mask_decoder) as captured:
            out = self.segmenter.track_step(
                frame_idx=frame_index,
                is_init_cond_frame=prompts is not None and not corrects,
                current_vision_feats=[level.expand(-1, num_objects, -1) for level in features.levels],
                current_vision_pos_embeds=[code.expand(-1, num_objects, -1) for code in features.positions],
                feat_sizes=features.sizes,
                point_inputs=points,
                mask_inputs=masks,
                output_dict=bank.outputs,
                num_frames=num_frames,
                track_in_reverse=reverse,
                prev_sam_mask_logits=mask_logits,
            )
        decoded = captured.decoded(features.sizes[-1], bool(self.segmenter.pred_obj_scores))
        given = masks is not None and self.segmenter.use_mask_input_as_output_without_sam
        iou = torch.ones_like(decoded.predicted_iou[:, 0]) if given else decoded.predicted_iou[:, 0]
        step = StepOutput(out["pred_masks"].float().squeeze(1), out["object_score_logits"].float().squeeze(1), iou, decoded)
        return step, {key: out[key] for key in ("maskmem_features", "maskmem_pos_enc", "obj_ptr")}

    def _inputs(self, bank: MemoryBank, prompts: TrackPrompts | None) -> tuple[dict[str, Tensor] | None, Tensor | None, Tensor | None, int]:
        """Points, masks and mask logits in the form of `track_step`, and the number of objects."""
        if prompts is None:
            remembered = next(iter(bank.outputs["cond_frame_outputs"].values()))
            return None, None, None, len(remembered["obj_ptr"])
        device = self.front_end.device
        if prompts.masks is not None:
            return None, prompts.masks.to(device).unsqueeze(1), None, len(prompts.masks)
        if prompts.points is None or prompts.labels is None:
            raise ValueError("TrackPrompts need points with labels, or masks")
        points = {"point_coords": prompts.points.to(device), "point_labels": prompts.labels.to(device)}
        logits = None if prompts.mask_logits is None else prompts.mask_logits.to(device).unsqueeze(1)
        return points, None, logits, len(prompts.points)


@dataclass(slots=True)
class _Captured:
    """Outputs of the mask decoder's inner modules, which `track_step` keeps to itself."""

    outputs: dict[str, Any] = field(default_factory=dict)

    def decoded(self, grid: tuple[int, int], has_score_token: bool) -> Decoded:
        tokens, image = self.outputs["transformer"]
        masks, _, _, score = self.outputs["decoder"]
        first = 1 + int(has_score_token)
        return Decoded(
            logits=masks.float(),
            predicted_iou=self.outputs["iou"].float(),
            object_score=score.float().squeeze(1),
            tokens=tokens[:, first : first + self.outputs["iou"].shape[1]].float(),
            image_embed=image.float().transpose(1, 2).unflatten(2, grid),
        )


@contextlib.contextmanager
def _capture(decoder: Any) -> Iterator[_Captured]:
    captured = _Captured()
    modules = {"transformer": decoder.transformer, "iou": decoder.iou_prediction_head, "decoder": decoder}
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: captured.outputs.__setitem__(name, output))
        for name, module in modules.items()
    ]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _exact(features: FrameFeatures) -> FrameFeatures:
    """In float32: one frame per object costs little, and bfloat16 has too few bits for the coordinates of prompts."""
    return FrameFeatures([level.float() for level in features.levels], features.positions, features.sizes)


def _sequence(level: Tensor) -> Tensor:
    """(B, C, H, W) to (H*W, B, C)."""
    return level.flatten(2).permute(2, 0, 1)


def _merge(steps: Sequence[StepOutput], order: Tensor) -> StepOutput:
    """The rows of several steps in the given order."""

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors))[order]

    names = ("logits", "predicted_iou", "object_score", "tokens", "image_embed")
    decoded = Decoded(**{name: joined([getattr(step.decoded, name) for step in steps]) for name in names})
    return StepOutput(
        joined([step.logits for step in steps]),
        joined([step.object_score for step in steps]),
        joined([step.predicted_iou for step in steps]),
        decoded,
    )
