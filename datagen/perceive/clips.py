"""What finds and follows objects in one clip of a video, and what it is told and tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from datagen.records import Handover, Prompt, Track, TrackFrame
from datagen.spans import DecodedFrame

NewTrackId = Callable[[], str]


@dataclass(slots=True)
class Sighting:
    """An object before the clip. prompt: shows it in the frame that appears at seen_s, seconds from the video's start.

    seen: that frame's pixels, (S, S, 3) uint8; None where they are not needed or there no more. unseen: of the latest frames without it, in
    order; none when it was in sight until the clip before ended.
    """

    prompt: Prompt
    seen_s: float
    seen: NDArray[np.uint8] | None = None
    unseen: list[NDArray[np.uint8]] = field(default_factory=list)


@dataclass(slots=True)
class ClipObject:
    """One object to follow. prompts: position among the clip's sampled frames -> prompt. object_id: the input's own number of it, if any.

    is_asked: whether the input's prompts ask for it; such an object is looked for as long as its shot goes on. last: where it was seen
    before the clip. With pixels, and without a prompt for the first frame, it is looked for from there on; a prompt that was handed over
    for that frame is asked only where the object is still to be seen.
    """

    track_id: str
    prompts: dict[int, Prompt]
    object_id: int | None = None
    is_asked: bool = False
    last: Sighting | None = None


@dataclass(frozen=True, slots=True)
class ClipScene:
    """A clip before it is looked at. sampled: (frame_index, timestamp_s) of its frames. end_s: seconds. width, height: of the video, px."""

    sampled: Sequence[tuple[int, float]]
    end_s: float
    width: int
    height: int


@dataclass(slots=True)
class ClipFindings:
    """What a clip holds: its tracks, what the next clip needs to go on with objects, and what was dropped, by reason."""

    tracks: list[Track] = field(default_factory=list)
    handovers: list[Handover] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


class ClipPerceiver(Protocol):
    """The models of a worker."""

    image_size: int

    def perceive(
        self, scene: ClipScene, frames: Iterator[DecodedFrame], objects: Sequence[ClipObject], new_track_id: NewTrackId | None
    ) -> ClipFindings:
        """Follow the given objects; with `new_track_id` also look for others, and call it for each.

        frames: exactly those of `scene.sampled`, in order. Raises PromptError for a prompt that makes no sense, ModelOutputError
        (`out_of_memory`), MemoryShortError, and ClusterError when the device is broken.
        """


def handover_prompt(last: TrackFrame, kind: Literal["box", "mask", "box+mask"] = "box") -> Prompt | None:
    """What asks the next clip for the same object, on its first frame; None when the object is not seen in `last`.

    box: the reference's rule for streams. mask: taken as the answer itself, so it fits only where the next clip begins with this
    very frame. box+mask: where the next clip begins with the frame after, the decoder finds the object anew from both.
    """
    if last.mask is None:
        return None
    return Prompt(
        box=last.box_xyxy if kind != "mask" else None,
        mask=last.mask if kind != "box" else None,
        source="handover",
    )
