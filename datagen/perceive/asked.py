"""What a video's prompts ask for: which object on which frame, and which prompts cannot be used, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from datagen.errors import PromptError
from datagen.ids import track_id_of
from datagen.perceive.clips import ClipObject, Sighting
from datagen.perceive.prompted_frames import TimedVideo, frame_numbers, name_of
from datagen.perceive.prompts import check_prompt, merge_prompts
from datagen.records import Asset, Failure, Handover, Prompt
from datagen.refusals import unusable
from datagen.spans import SpanPlan
from datagen.stated import CROWD


@dataclass(slots=True)
class AskedObject:
    """One object that the prompts ask for. prompts: by number of the frame in the video. names: of the prompts given for each frame."""

    track_id: str
    object_id: int | None
    prompts: dict[int, Prompt] = field(default_factory=dict)
    names: dict[int, list[str]] = field(default_factory=dict)

    def add(self, frame: int, prompt: Prompt, name: str, width: int, height: int) -> None:
        """Take a prompt. width, height: of the video, px. Raises PromptError: it makes no sense, or contradicts another there."""
        prompt = check_prompt(prompt, width, height)
        if frame in self.prompts:
            prompt = check_prompt(merge_prompts(self.prompts[frame], prompt), width, height)
        self.prompts[frame] = prompt
        self.names.setdefault(frame, []).append(name)

    def refuse(self, frame: int, code: str, why: str) -> list[PromptError]:
        """The errors of all prompts given for a frame."""
        return [PromptError(f"{name} {why}", code=code) for name in self.names[frame]]


def objects_of(asset: Asset, video: TimedVideo) -> tuple[list[AskedObject], list[PromptError]]:
    """The objects that an asset's prompts ask for, in the input's order, and the errors of the prompts that cannot be used.

    The objects have the first numbers of the asset's tracks, in every run alike; one without a usable prompt keeps its own. Raises
    DecodeError.
    """
    objects: dict[tuple[str, int], AskedObject] = {}
    refused: list[PromptError] = []
    prompts = asset.prompts or []
    for position, (prompt, frame) in enumerate(zip(prompts, frame_numbers(prompts, video), strict=True)):
        key = ("prompt", position) if prompt.object_id is None else ("object", prompt.object_id)
        item = objects.setdefault(key, AskedObject(track_id_of(asset.asset_id, len(objects)), prompt.object_id))
        if isinstance(frame, PromptError):
            refused.append(frame)
            continue
        name = name_of(prompt, position, frame)
        try:
            item.add(frame, prompt, name, video.info.width, video.info.height)
        except PromptError as error:
            refused.append(PromptError(f"{name}: {error.message}", code=error.code))
    for item in objects.values():
        refused += _without_beginning(item)
    return list(objects.values()), refused


def _without_beginning(item: AskedObject) -> list[PromptError]:
    """Take out the prompts that only say where the object is not before any has said where it is."""
    refused = []
    for frame in sorted(item.prompts):
        if item.prompts[frame].is_positive:
            break
        why = "says only where the object is not, and none before it says where it is; add a box, a mask or a point inside the object"
        refused += item.refuse(frame, "prompt_negative", why)
        del item.prompts[frame]
    return refused


def refusal_of(asset: Asset, asked: Sequence[AskedObject], refused: Sequence[PromptError]) -> Failure | None:
    """Why a video fails whose input gave prompts, of which none is usable; None when one is, or when it gave none, or crowds alone.

    asked, refused: of objects_of. What the source refused is in the asset.
    """
    counts = Counter(error.code for error in refused) + Counter(asset.dropped)
    counts.pop(CROWD, None)
    if asset.prompts is None or not counts or any(item.prompts for item in asked):
        return None
    return unusable(counts, refused[0].message if refused else asset.problem)


def clip_objects(
    plan: SpanPlan, asked: Sequence[AskedObject], handovers: Sequence[Handover], sightings: Mapping[str, Sighting]
) -> tuple[list[ClipObject], list[PromptError]]:
    """The objects of a clip: those that go on from the clip before, and those with prompts in it, each on the very frame that it names.

    plan: with the frames that decode. sightings: where lost objects were seen, by track. Also returns the errors of the prompts on frames
    that do not decode, and of those that correct an object that is not followed here.
    """
    positions = {index: position for position, (index, _) in enumerate(plan.sampled)}
    ids = {item.track_id for item in asked}
    objects: dict[str, ClipObject] = {}
    for handover in handovers:
        name = handover.track_id
        objects[name] = ClipObject(name, {}, handover.object_id, name in ids, sightings.get(name))
    refused = []
    handed = {item.track_id: item.prompt for item in handovers if not item.lost}
    for item in asked:
        for frame in sorted(frame for frame in item.prompts if plan.first_frame <= frame < plan.end_frame):
            prompt = item.prompts[frame]
            if frame not in positions:
                refused += item.refuse(frame, "prompt_frame_missing", "asks about a frame that cannot be decoded")
            elif item.track_id not in objects and not prompt.is_positive:
                why = "says only where the object is not, and the object is not followed to there; say where it is, after a shot cut anew"
                refused += item.refuse(frame, "prompt_negative", why)
            else:
                one = objects.setdefault(item.track_id, ClipObject(item.track_id, {}, item.object_id, True))
                one.prompts[positions[frame]] = prompt
    for track_id, prompt in handed.items():
        prompts = objects[track_id].prompts
        if plan.sampled:
            prompts[0] = carried_on(prompt, prompts.get(0))
    return list(objects.values()), refused


def carried_on(carried: Prompt, own: Prompt | None) -> Prompt:
    """What asks for an object that goes on into a clip or segment, on its first frame. own: what the input says of it there."""
    if own is None or own.is_positive:
        return own or carried
    return merge_prompts(carried, own)


def num_behind(asked: Sequence[AskedObject], first_frame: int) -> int:
    """How many prompts ask about that frame or a later one."""
    return sum(len(item.names[frame]) for item in asked for frame in item.prompts if frame >= first_frame)
