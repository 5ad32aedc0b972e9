"""Which frame of its video a prompt is about: said once, before the clips are cut, so that all that follows goes by the number alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from datagen.errors import PromptError
from datagen.records import Prompt
from datagen.spans import VideoInfo


class TimedVideo(Protocol):
    """What is asked of a video."""

    @property
    def info(self) -> VideoInfo:
        """What it is."""

    def frames_at(self, times_s: Sequence[float]) -> list[int | None]:
        """The number of the frame on the screen at each time, seconds after the first frame, within 1 ms; None where none is."""


def frame_numbers(prompts: Sequence[Prompt], video: TimedVideo) -> list[int | PromptError]:
    """The number of each prompt's frame in the video, from 0, or why it has none (`prompt_frame`).

    A prompt's `frame_index` is that number; its `time_s` means what is on the screen then, also in the middle of a long still frame;
    neither means the first frame. Raises DecodeError.
    """
    asked = [position for position, prompt in enumerate(prompts) if prompt.frame_index is None and prompt.time_s is not None]
    at_time = dict(zip(asked, video.frames_at([prompts[position].time_s or 0.0 for position in asked]), strict=True))
    info = video.info
    found: list[int | PromptError] = []
    for position, prompt in enumerate(prompts):
        number = at_time.get(position, prompt.frame_index or 0)
        if number is None or not 0 <= number < info.num_frames:
            given = f"second {prompt.time_s:g}" if position in at_time else f"frame {number}"
            there = f"{info.duration_s:.3f} s" if position in at_time else f"frames 0 to {info.num_frames - 1}"
            message = f"{name_of(prompt, position)} asks about {given}; the video has {there}"
            found.append(PromptError(message, code="prompt_frame"))
        else:
            found.append(number)
    return found


def name_of(prompt: Prompt, position: int, frame: int | None = None) -> str:
    """A prompt as messages name it: its place in the input, from 0, its object and its frame."""
    about = [] if frame is None else [f"frame {frame}"]
    about += [] if prompt.object_id is None else [f"object {prompt.object_id}"]
    return f"prompt {position if prompt.index is None else prompt.index}" + (f" ({', '.join(about)})" if about else "")
