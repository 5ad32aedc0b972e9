"""The track stage: SAM 2's memory learns to find an object again in the frames after a prompted one, image encoder frozen.

Source: Ravi et al., "SAM 2: Segment Anything in Images and Videos", 2024: the objects of several clips are followed together through
a few frames, and the masks of all frames are taught. Letters of shapes: K objects, F frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datagen.distill.clips import ClipCorpus, TrackData
from datagen.distill.config import TrackStage
from datagen.distill.prompts import BOX_LABELS, POINT_LABELS, Seed, inside_point
from datagen.distill.segment import mask_losses
from datagen.distill.student import Student
from datagen.distill.words import mean_where
from datagen.errors import SourceError
from datagen.pam.tracker import FrameFeatures, MemoryBank, StepOutput, Tracker, TrackPrompts

_NUM_FRAMES = 16  # what pointers' time codes are divided by for a clip of this length or longer


@dataclass(slots=True)
class TrackBatch:
    """pixels: (F, K, S, S, 3) uint8. points: (K, N, 2) model pixels, labels: (K, N), on frame 0. masks: (F, K, M, M) 0..1."""

    pixels: Tensor
    points: Tensor
    labels: Tensor
    masks: Tensor


class TrackTask:
    """What the track stage trains, on what, and with which loss."""

    def __init__(self, stage: TrackStage, student: Student, corpus: ClipCorpus, seed: Seed) -> None:
        self.stage, self.student, self.corpus, self.seed = stage, student, corpus, seed
        self.rates = {student.segmenter.get_submodule("sam_mask_decoder"): stage.decoder_rate}
        self.head: nn.Module = nn.Module()
        self._starts = [
            (track, index)
            for track in corpus.tracks
            for index in range(len(track.frames) - stage.frames + 1)
            if track.boxes[index] is not None
        ]
        if not self._starts:
            raise SourceError(
                f"no track is seen in a frame that {stage.frames - 1} more frames follow: lower the track stage's `frames`, or make longer "
                "clips (decode.max_clip_s)"
            )

    def modules(self) -> Iterator[nn.Module]:
        """The parts that are trained."""
        segmenter: Any = self.student.segmenter
        yield from (segmenter.memory_attention, segmenter.memory_encoder, segmenter.obj_ptr_proj, segmenter.obj_ptr_tpos_proj)
        yield segmenter.sam_mask_decoder
        names = ("maskmem_tpos_enc", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial")
        yield nn.ParameterList(weight for name in names if (weight := getattr(segmenter, name, None)) is not None)

    def batch(self, step: int) -> TrackBatch:
        """The batch of one step: a function of seed and step alone."""
        rng = np.random.default_rng([*self.seed, step])
        kind = "box" if rng.random() < 0.5 else "point"
        parts = [self._example(rng, *self._starts[int(number)], kind) for number in rng.integers(0, len(self._starts), self.stage.objects)]
        frames, points, masks = zip(*parts, strict=True)
        labels = BOX_LABELS if kind == "box" else POINT_LABELS
        return TrackBatch(
            torch.from_numpy(np.stack(frames, axis=1)),
            torch.from_numpy(np.stack(points).astype(np.float32)) * self.corpus.pixels.shape[1],
            torch.tensor([labels] * len(parts), dtype=torch.int32),
            torch.from_numpy(np.stack(masks, axis=1).astype(np.float32) / 255),
        )

    def _example(self, rng: np.random.Generator, track: TrackData, start: int, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frames (F, S, S, 3), points (N, 2) in shares of the sides, masks (F, M, M)."""
        longest = (len(track.frames) - 1 - start) // (self.stage.frames - 1)
        stride = int(rng.integers(1, min(self.stage.max_stride, longest) + 1))
        numbers = start + stride * np.arange(self.stage.frames)
        masks = np.asarray(self.corpus.masks[track.masks.start + numbers])
        points = np.asarray(track.boxes[start]).reshape(2, 2) if kind == "box" else inside_point(rng, masks[0])
        return np.asarray(self.corpus.pixels[track.frames.start + numbers]), points, masks

    def loss(self, batch: TrackBatch) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch over all frames, and what to report of it; `j` is the mean IoU over tracked frames that show the object."""
        tracker = Tracker(self.student.front_end(training=True))
        losses, ious, right = [], [], []
        for index, step in enumerate(self._steps(tracker, batch)):
            masks = batch.masks[index].to(step.logits.device)
            present = (masks > 0.5).flatten(1).any(1).float()
            each, iou = mask_losses(step.decoded.logits[:, :1], masks)
            mask = mean_where(each[:, 0], present)
            score = F.binary_cross_entropy_with_logits(step.decoded.object_score, present)
            predicted = (step.decoded.predicted_iou[:, 0] - iou[:, 0] * present).abs().mean()
            losses.append(mask + score + predicted)
            if index > 0:
                ious += iou[present > 0, 0].tolist()
                right += ((step.decoded.object_score > 0) == (present > 0)).tolist()
        total = torch.stack(losses).mean()
        report = {"loss": float(total.detach()), "presence_right": sum(right) / len(right)}
        return total, report | ({"j": sum(ious) / len(ious)} if ious else {})

    def _steps(self, tracker: Tracker, batch: TrackBatch) -> Iterator[StepOutput]:
        """The prompted frame, then the others from memory."""
        bank, (num_frames, count) = MemoryBank(), batch.pixels.shape[:2]
        with torch.no_grad():
            levels, codes = tracker.front_end.pyramid(batch.pixels.flatten(0, 1))
        for index in range(num_frames):
            rows = slice(index * count, (index + 1) * count)
            features = FrameFeatures.of([level[rows] for level in levels], [code[rows] for code in codes])
            if index == 0:
                prompts = TrackPrompts(points=batch.points, labels=batch.labels)
                yield tracker.condition(bank, features, 0, _NUM_FRAMES, [(list(range(count)), prompts)])
            else:
                yield tracker.track(bank, features, index, _NUM_FRAMES)
