"""What a distillation does: the student's sizes, and the stages of its training, in one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from datagen.errors import JobError
from datagen.options import Fraction, Options, Positive, read_yaml
from datagen.records import Language, Task


class StudentOptions(Options):
    """A PAM of any size. Sizes not named are those of the embedded tiny checkpoint."""

    init: str | None = Field(None, description="checkpoint to start from: a folder or hub id; left out: random weights of the sizes below")
    segmenter: dict[str, Any] = Field(
        {},
        description="entries of the SAM 2 config, by dotted path, such as `image_size: 128`; with `init` those that its weights still fit",
    )
    llm: dict[str, Any] = Field({}, description="entries of the language model's config.json, such as `hidden_size: 128`")
    tokenizer: str | None = Field(
        None,
        description="checkpoint whose tokenizer the student takes, such as its teacher's: a folder or hub id; left out: one of its own",
    )
    vocabulary: Positive = Field(800, description="entries of its own tokenizer at most, which is trained on the texts and the prompts")

    @model_validator(mode="after")
    def _either(self) -> StudentOptions:
        if self.init is not None and (self.llm or self.tokenizer):
            raise ValueError(
                "a student that starts from a checkpoint has its language model and its tokenizer: leave out llm and tokenizer"
            )
        return self


class StageOptions(Options):
    """What all stages have in common. The learning rate rises over `warmup_steps`, then falls to a twentieth along a cosine."""

    steps: Positive = Field(description="optimizer steps")
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(100, ge=0)
    muon_learning_rate: float | None = Field(
        None, gt=0, description="with it the matrices of linear layers are trained by Muon at this rate, and the rest at learning_rate"
    )
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")


class EncodeStage(StageOptions):
    """SAM 2's image encoder, before any prompt: which words lie where, from all regions of a picture at once."""

    kind: Literal["encode"]
    batch_size: Positive = Field(16, description="images per step")
    flip: bool = Field(True, description="mirror half of the images")


class SegmentStage(StageOptions):
    """SAM 2's image side: masks, their IoU, and whether anything is there, from box and point prompts taken from stored masks."""

    kind: Literal["segment"]
    batch_size: Positive = Field(8, description="images per step")
    prompts_per_image: Positive = 4
    box_share: Fraction = Field(0.5, description="share of steps with box prompts; the others have a point each")
    background_share: Fraction = Field(0.25, description="share of point prompts on no object, whose score should be low")
    best_of_three: Fraction = Field(
        1.0, description="1: of the three answers to an ambiguous prompt only the best is taught, as in SAM 2; 0: all alike"
    )
    flip: bool = Field(True, description="mirror half of the images")
    encoder_rate: Fraction = Field(
        1.0, description="share of the learning rates that the image encoder has; small after an encode stage, 0: it is frozen"
    )
    guide_weight: float = Field(0.5, ge=0, description="weight of reading the object's cells and box off the decoder's two sides")
    words_weight: float = Field(
        0.1, ge=0, description="weight of naming the words of label and caption from the mask token, so that features carry meaning"
    )


class DescribeStage(StageOptions):
    """Perceiver, projectors and language model: next-token loss on the stored texts, over features of the frozen SAM 2.

    With a distill_weight above 0 the texts are learned as the teacher wrote them, token by token, and what it held likely beside what
    it said is learned, too: the dataset needs the column `token_logprobs`, and the student the teacher's tokenizer.
    """

    kind: Literal["describe"]
    batch_size: Positive = Field(16, description="regions per step, or a quarter as many tracks")
    tasks_per_region: Positive = Field(4, description="texts of one region per step, drawn from those it has")
    query_rate: Fraction = Field(
        0.1,
        description="share of the learning rates that queries and keys of the perceiver's attention have; at the full rate of Muon each "
        "token soon looks at one cell of the picture and nowhere else, and learns no more where to look",
    )
    guide_weight: float = Field(
        1.0,
        ge=0,
        description="weight of reading box and words of the region, and of the one nearest to it, off the perceiver's tokens; "
        "what reads them is new in every stage, and is followed only after warmup_steps",
    )
    clip_share: Fraction = Field(0.0, description="share of steps on tracks of clips instead of regions of images")
    tasks: tuple[Task, ...] = ("label", "definition", "caption", "description")
    languages: tuple[Language, ...] = ("en", "zh")
    distill_weight: Fraction = Field(
        0.0, description="share of the loss that is the divergence from the teacher's most likely tokens; the rest is the next-token loss"
    )
    temperature: float = Field(1.0, gt=0, description="both distributions are flattened by it before they are compared")


class TrackStage(StageOptions):
    """SAM 2's memory: masks in the frames after a prompted one."""

    kind: Literal["track"]
    frames: int = Field(6, ge=2, description="frames per step, evenly strided")
    max_stride: Positive = Field(2, description="largest distance between two of them, frames")
    objects: Positive = Field(8, description="tracks per step")
    decoder_rate: Fraction = Field(
        0.0, description="share of the learning rates that the mask decoder has, 0: it is frozen; above 0 `describe` comes after"
    )


Stage = Annotated[EncodeStage | SegmentStage | DescribeStage | TrackStage, Field(discriminator="kind")]


class DistillConfig(Options):
    """One declared training."""

    version: Literal[1] = 1
    name: str = Field("student", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = 0
    device: str = Field("auto", description="`auto`, `cpu` or `cuda`")
    bfloat16: bool = Field(False, description="bfloat16 autocast, where the device has it")
    save_every_s: float = Field(60.0, gt=0, description="a kill costs at most this much training, seconds")
    steps_per_epoch: Positive = Field(200, description="metrics are written this often")
    keep_stages: bool = Field(
        False, description="after each stage also write the student as it is to `<output>.work/after-N-KIND`, to try or to start from"
    )
    student: StudentOptions = StudentOptions()
    stages: tuple[Stage, ...] = Field(min_length=1)


def load_config(path: str | Path) -> DistillConfig:
    """Read a distillation's YAML. Raises JobError naming the file, the key, what was found and what is allowed."""
    return parse_config(read_yaml(path, "distillation file"), str(path))


def parse_config(data: Any, where: str = "config") -> DistillConfig:
    """Check a configuration given as a mapping. Raises JobError with one line per wrong key."""
    try:
        return DistillConfig.model_validate(data)
    except ValidationError as error:
        lines = [f"`{'.'.join(str(part) for part in item['loc'])}`: {item['msg']}, found {item.get('input')!r}" for item in error.errors()]
        raise JobError(f"{where}: " + "\n".join(lines)) from error
