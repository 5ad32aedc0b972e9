"""What moves between the steps: assets, prompts, regions, and the sample that carries them.

Coordinates are pixels of the image as displayed (after EXIF rotation), origin at the top left corner. A box is XYXY with
right and bottom exclusive. A mask is COCO run-length encoding at the image's own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np

from datagen.ids import work_id_of
from datagen.redaction import redact

TASKS = ("label", "definition", "caption", "description")
LANGUAGES = ("en", "zh")

SHOT_END = "shot_end"
"""A flag of a clip: the shot changes where it ends."""

Task = Literal["label", "definition", "caption", "description"]
Language = Literal["en", "zh"]


class RLE(TypedDict):
    """COCO run-length encoding: `size` is [height, width], `counts` the compressed string (column-major runs)."""

    size: list[int]
    counts: str


@dataclass(slots=True)
class Prompt:
    """What asks for one object: a box, points, a mask, or several of them together.

    box: (x1, y1, x2, y2) px. points: (x, y) px each. labels: 1 inside the object, 0 outside, one per point.
    source: who asked (`manifest`, `coco`, `annotation`, `everything`, or `handover` from the clip before). id: the input's own name for
    it, such as the id of a COCO annotation. index: its place among the prompts that the input gives its asset, from 0, those refused
    counted; the `region_index` of what it finds in an image. object_id: prompts with one id are of one object of a video.
    """

    box: tuple[float, float, float, float] | None = None
    points: list[tuple[float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    mask: RLE | None = None
    source: str = "manifest"
    frame_index: int | None = None
    time_s: float | None = None
    object_id: int | None = None
    id: str | None = None
    index: int | None = None

    @property
    def is_positive(self) -> bool:
        """Whether it says where its object is, rather than only where it is not."""
        return self.box is not None or self.mask is not None or 1 in self.labels

    @property
    def type(self) -> str:
        """`box`, `points`, `mask` or a combination such as `box+points`."""
        kinds = (("box", self.box is not None), ("points", bool(self.points)), ("mask", self.mask is not None))
        return "+".join(name for name, given in kinds if given)


@dataclass(slots=True)
class Failure:
    """Why an asset became a failed row: a stable `code` and a `message` a person can act on. step: where, once the guard has seen it."""

    code: str
    message: str
    step: str | None = None


class Span(NamedTuple):
    """Where an asset's bytes lie in the archive that holds it, and which version of the archive that is true of."""

    offset: int
    size: int
    version: str


@dataclass(slots=True)
class Asset:
    """One listed file. `prompts` None means: find everything. `extra` passes through to the `assets` table.

    `failure` is set by a source for a row that it cannot use (a manifest row without a URI): the row is kept and reported.
    `retries` counts the earlier runs in which it failed and after which it was tried again, this one included. `span` is known for a
    member of a listed archive; without it the member is looked up by its name.

    stated_size: (width, height) px as the input states it, held against the decoded picture. dropped: prompts that the source could not
    use, counted by code; they are not in `prompts`. problem: what is wrong with the first of these, for a person. num_prompts: how many
    the input gave, those included, and prompts_hash: 16 hex digits over all of them as given, by which a later run notices that they
    changed; both None where it gave none.
    """

    asset_id: str
    uri: str
    media_type: Literal["image", "video"] = "image"
    prompts: list[Prompt] | None = None
    license: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    retries: int = 0
    span: Span | None = None
    stated_size: tuple[int, int] | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    num_prompts: int | None = None
    prompts_hash: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class TokenLogprobs:
    """What the model held likely at each of the T tokens of one answer, nats, before temperature and penalties.

    token_ids: (T,) int32, those it said, with the end of turn where it came to it. logprobs: (T,) float32, theirs. top_ids: (T, k)
    int32, the k most likely at each place, most likely first. top_logprobs: (T, k) float32, theirs. tokenizer: fingerprint of the
    tokenizer that the ids belong to.
    """

    tokenizer: str
    token_ids: np.ndarray
    logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray


@dataclass(slots=True)
class Text:
    """One generated text of one region.

    logprob: mean log-probability of the generated tokens (nats). finish_reason: `stop` (end of turn) or `length`. token_logprobs: only
    where the job asks for them.
    """

    text: str
    logprob: float | None
    finish_reason: str
    num_tokens: int
    token_logprobs: TokenLogprobs | None = None


@dataclass(slots=True)
class Region:
    """One object of one image. Scores are the mask decoder's: predicted_iou in [0, 1], stability in [0, 1], object_score a logit.

    mask_source: `prompt` (the decoder's answer to the given prompt), `given` (the mask of the prompt is the answer), or for
    segment-everything `candidate` / `refined`.
    texts: (task, language) -> text.
    """

    region_index: int
    prompt: Prompt
    mask: RLE
    box_xyxy: tuple[float, float, float, float]
    area_px: int
    predicted_iou: float
    stability: float
    object_score: float
    mask_source: str = "prompt"
    texts: dict[tuple[str, str], Text] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


@dataclass(slots=True)
class RegionTokens:
    """The perceiver's tokens of all regions of a sample, in the order of `Sample.regions`.

    image: (regions, image tokens, channels), 1024 x 1024 for PAM at 1024 px. semantic: (regions, 16, 256).
    Both float32, or bfloat16 stored as its int16 bit pattern (NumPy and Arrow know no bfloat16).
    """

    image: np.ndarray
    semantic: np.ndarray
    is_bfloat16: bool = False


class Frame(NamedTuple):
    """One sampled frame of a clip.

    frame_index: 0, 1, 2 ... in the clip. timestamp_s: true presentation time, seconds from the asset's start.
    pixels: (S, S, 3) uint8 RGB, resized for the model.
    """

    frame_index: int
    timestamp_s: float
    pixels: np.ndarray


@dataclass(slots=True)
class TrackFrame:
    """One object in one frame, whose number within the clip becomes that within the video once the clip is done.

    mask and box_xyxy are None where it is not seen: object_score <= 0, or no pixel is left. object_score is a logit, predicted_iou in
    [0, 1]; +10 and 1 where the prompt was a mask, which is then the answer itself.
    """

    object_index: int
    frame_index: int
    timestamp_s: float
    mask: RLE | None
    box_xyxy: tuple[float, float, float, float] | None
    object_score: float
    predicted_iou: float


@dataclass(slots=True)
class TrackTokens:
    """The perceiver's tokens of one track in the 16 frames that the language model sees, for PAM at 1024 px.

    frame_indices: the 16 frames, in time order. image_first: (1024, 1024) of the first. image_later: (15, 256, 1024) of the others.
    semantic: (16, 16, 256). All float32, or bfloat16 stored as its int16 bit pattern.
    """

    frame_indices: list[int]
    image_first: np.ndarray
    image_later: np.ndarray
    semantic: np.ndarray
    is_bfloat16: bool = False


@dataclass(slots=True)
class Event:
    """What one object does in a time range of a clip: [start_s, end_s), frames start_frame to end_frame inclusive.

    texts: language -> caption. history: language -> the previous caption it was conditioned on, None at the start of a chain.
    tokens: of the 16 frames that the language model sees; dropped by the describe step.
    """

    start_s: float
    end_s: float
    start_frame: int
    end_frame: int
    tokens: TrackTokens | None = None
    texts: dict[str, Text] = field(default_factory=dict)
    history: dict[str, str | None] = field(default_factory=dict)


@dataclass(slots=True)
class Track:
    """One object through one clip: what asked for it (frame index -> prompt), and its frames, indices rising without repeats.

    track_id: the same in every clip of an asset that the object is handed over to. object_id: the input's own number of it, if any.
    tokens: dropped by the step that uses them. events: one for the whole clip, or one per segment of a stream, in order.
    """

    object_index: int
    prompts: dict[int, Prompt]
    frames: list[TrackFrame]
    tokens: TrackTokens | None = None
    track_id: str = ""
    events: list[Event] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    object_id: int | None = None


@dataclass(slots=True)
class Handover:
    """How the next clip finds an object of this one. object_id: the input's own number of it, if any.

    prompt: shows the object on the next clip's first frame; or, when it is `lost` (out of sight where this clip ends), in the frame that
    appears at seen_s, by which the next clip goes on looking for it. seen_s, when it is not lost: where the prompt is from. unseen_s: of a
    lost one, when the last frames appear in which it was not seen. All in seconds from the video's start.
    """

    track_id: str
    prompt: Prompt
    object_id: int | None = None
    seen_s: float | None = None
    unseen_s: list[float] = field(default_factory=list)

    @property
    def lost(self) -> bool:
        """Whether it was out of sight when the clip ended."""
        return bool(self.unseen_s)


@dataclass(slots=True)
class Clip:
    """One part of a video, the unit of commit: [start_s, end_s) of the asset, with `num_frames` sampled frames.

    is_last: no clip follows, so that the asset is complete when all up to this one are. truncated: the file ended early here.
    handovers: objects that go on into the next clip. num_video_frames, fps and duration_s are of the whole video, as its header says.
    next_track: number of the next new object of the asset, which a later run goes on from; 0: one more than those still known here.
    missing_frames: frames that the file has here and that could not be decoded or placed in time. flags: what is unusual, see SHOT_END.
    """

    clip_index: int
    start_s: float
    end_s: float
    num_frames: int
    is_last: bool
    truncated: bool = False
    handovers: list[Handover] = field(default_factory=list)
    num_video_frames: int | None = None
    fps: float | None = None
    duration_s: float | None = None
    next_track: int = 0
    missing_frames: int = 0
    flags: list[str] = field(default_factory=list)


class ResumePoint(NamedTuple):
    """Where a run goes on in a video of which an earlier one committed clips: the next clip, its start, the next new object's number.

    start_s: seconds from the asset's start. handovers: the objects that go on into this clip. shot_start_s: where its shot began.
    """

    clip_index: int = 0
    start_s: float = 0.0
    next_track: int = 0
    handovers: Sequence[Handover] = ()
    shot_start_s: float = 0.0

    def after(self, clip: Clip) -> ResumePoint:
        """Where to go on when this clip, the next one, is done, too."""
        shot_start_s = clip.end_s if SHOT_END in clip.flags else self.shot_start_s
        return ResumePoint(clip.clip_index + 1, clip.end_s, max(self.next_track, clip.next_track), clip.handovers, shot_start_s)


@dataclass(slots=True)
class Sample:
    """One image, or one clip of a video, with everything learned about it so far; what moves between the steps.

    index: position of the asset in this run's listing. pixels: (S, S, 3) uint8 RGB, the image resized for the model (S is the
    model's image size); width and height are those of the image itself. Each heavy array is dropped by the step that uses it.
    A sample with a `failure` passes through the remaining steps untouched. A video enters as one sample without `clip`, and `resume`
    says where in it; tracking makes one per clip of it. num_frames: pictures in an image file of several, of which the first is used.
    portion: (number, of how many), of an image with many prompts. left: the run ends before it was finished; it leaves no row.
    """

    index: int
    asset: Asset
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    attempts: int = 1
    pixels: np.ndarray | None = None
    regions: list[Region] = field(default_factory=list)
    tokens: RegionTokens | None = None
    clip: Clip | None = None
    resume: ResumePoint | None = None
    tracks: list[Track] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)
    failure: Failure | None = None
    left: bool = False
    portion: tuple[int, int] | None = None

    def fail(self, code: str, message: str) -> None:
        """Turn this sample into a failed row and let go of its arrays."""
        self.failure = Failure(code=code, message=redact(message))
        self.pixels = self.tokens = None
        self.regions, self.tracks = [], []

    def leave(self) -> None:
        """Leave it to a later run, and let go of its arrays."""
        self.left = True
        self.pixels = self.tokens = self.failure = None
        self.regions, self.tracks = [], []

    @property
    def work_id(self) -> str:
        """See work_id_of."""
        return work_id_of(self.asset.asset_id, self.clip.clip_index if self.clip else None, self.portion and self.portion[0])

    @property
    def status(self) -> Literal["ok", "empty", "failed"]:
        """What the `assets` table will say."""
        if self.failure is not None:
            return "failed"
        return "ok" if self.regions or self.tracks else "empty"
