"""The job: one YAML file says what is read, what is asked, and with which resources.

Options live beside what they configure, each with its unit. Unknown keys are refused, with the nearest known one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from datagen.budget import BudgetOptions
from datagen.errors import JobError
from datagen.options import Fraction, Options, Positive, parse_yaml, read_yaml
from datagen.paths import located
from datagen.records import LANGUAGES, TASKS, Language, Task
from datagen.s3_options import S3Options as S3Options  # for those who know it from here

# Options outside pools that decide how fast a row is made, and where, but not what it says.
_RESOURCES = {
    *("decode.timeout_s", "decode.memory_gib", "decode.prefetch_frames", "decode.video_threads"),
    *("perceive.timeout_s", "perceive.batch_size", "perceive.prompts_per_call", "perceive.device", "perceive.fake_delay_s"),
    *("perceive.everything.points_per_call", "perceive.track.objects_per_call"),
    *("describe.concurrent_batches", "describe.max_num_seqs", "describe.device", "describe.fake_delay_s"),
    *("describe.gpu_memory_fraction", "describe.cpu_kv_cache_gib", "describe.enforce_eager", "describe.hang_timeout_s"),
}


class Pool(Options):
    """Workers of one step. Counts left out are computed from what the machine or cluster has."""

    num_cpus: float | None = Field(None, ge=0, description="CPU cores per worker")
    num_gpus: float | None = Field(None, ge=0, description="GPUs per worker, fractions allowed")
    min_workers: Positive | None = Field(None, description="workers kept at least")
    max_workers: Positive | None = Field(None, description="workers at most")

    @model_validator(mode="after")
    def _ordered(self) -> Pool:
        if self.min_workers and self.max_workers and self.min_workers > self.max_workers:
            raise ValueError(f"min_workers is {self.min_workers}, more than max_workers {self.max_workers}")
        return self


class ModelOptions(Options):
    """Which weights. Licences differ between them; the run record says what was used."""

    checkpoint: str = Field("Perceive-Anything/PAM-1.5B", description="PAM checkpoint: `tiny-shapes`, `tiny`, a folder, or a hub id")
    sam2: str | None = Field(
        None, description="SAM 2.1 weights: a file, a folder or a hub id; left out: those beside or inside the checkpoint"
    )
    sam2_config: str | None = Field(
        None, description="SAM 2 config: a name in the sam2 package or a YAML/JSON file; left out: by the weights"
    )
    revision: str | None = Field(None, description="hub revision (branch, tag or commit)")


class SourceOptions(Options):
    """What is listed. Prompts come from a manifest or COCO file; an asset without prompts is segmented whole."""

    input: str | None = Field(
        None,
        description="folder, manifest (.parquet, .jsonl, .csv), COCO .json, tar archives, or a Hugging Face dataset; a path, or s3://, "
        "gs:// or hf:// with what follows; tars and tables also as a pattern, such as shards/train-*.tar",
    )
    kind: Literal["auto", "folder", "manifest", "coco", "webdataset", "dataset", "frames"] = Field(
        "auto",
        description="how `input` is read; `webdataset`: tars, `dataset`: tables with a column of pictures, `frames`: a video segmentation "
        "dataset, whose videos are folders of numbered pictures (decode.frames_fps) or video files, or YouTube-VIS JSON; auto: by names, "
        "and for a folder by what its first 1000 files are",
    )
    annotations: str = Field(
        "auto",
        description="`frames`: where the objects' masks are, of which each object's first becomes a prompt; `auto`: in the folder "
        "Annotations beside JPEGImages, or in the JSON file beside a video; `none`: they are not read; or a folder laid out as the input",
    )
    image_column: str | None = Field(
        None, description="`dataset`: the column of pictures, a struct of bytes and path or plain bytes; left out: the only such struct"
    )
    media_root: str | None = Field(
        None, description="folder that relative URIs of a manifest or COCO file start from, and that none may leave; left out: beside it"
    )
    pass_through: tuple[str, ...] = Field(
        (),
        description="columns of a manifest that are no prompts although their names say so, such as bbox or mask, or not the picture's "
        "size, such as width and height; they are kept in `extra`",
    )
    allow_local_uris: bool = Field(False, description="let a manifest or COCO file in a bucket name files of this machine")
    media: Literal["image", "video", "any"] = Field(
        "image",
        description="what is listed from a folder or tars; the other kind is skipped and counted. An animation (.gif, .apng) is a video "
        "where this is `video`, and else a picture, its first",
    )
    coco_prompt: Literal["box", "mask"] = Field("box", description="which part of a COCO annotation becomes the prompt")
    reprocess_changed: bool = Field(False, description="count a file whose size or time changed, or whose prompts did, as a new asset")


class DecodeOptions(Options):
    """Images and videos to pixels, in a child process that may die or hang without harm."""

    max_pixels: Positive = Field(178_956_970, description="more pixels than this, in an image or a frame, is a decompression bomb")
    timeout_s: float = Field(60.0, gt=0, description="an image, or the next frame of a video, may take this long, seconds")
    memory_gib: float = Field(
        4.0, ge=0.1, description="address space that the decoding process may take for its files; a file that wants more fails, GiB"
    )
    fps: float | None = Field(None, gt=0, le=1000, description="frames sampled per second of video; left out: every frame")
    frames_fps: float = Field(
        24.0,
        gt=0,
        le=1000,
        description="frames per second of a video that is a folder of pictures, which says nothing about it (DAVIS: 24)",
    )
    max_clip_s: float = Field(30.0, ge=0.1, description="a video is cut into clips of at most this length, seconds")
    shots: bool = Field(False, description="cut a video where the shot changes, too")
    shot_threshold: float = Field(27.0, gt=0, le=255, description="a shot changes where consecutive frames differ by this much in HSV")
    min_shot_s: float = Field(0.6, ge=0, description="no cut within this time after a cut, seconds")
    prefetch_frames: Positive = Field(8, description="frames decoded ahead while the model works on earlier ones")
    video_threads: Positive = Field(2, description="threads of a video's decoder")
    fetch_threads: Positive = Field(8, description="files of a bucket fetched at the same time by each worker")
    max_file_gib: float = Field(32.0, gt=0, description="a video in a bucket that is larger is not fetched, GiB")
    pool: Pool = Pool()


class EverythingOptions(Options):
    """Segment everything: thresholds of SAM 2's automatic mask generator, with its defaults."""

    points_per_side: Positive = Field(32, description="the point grid is this wide and high")
    points_per_call: Positive = Field(64, description="grid points per mask-decoder call")
    predicted_iou_min: Fraction = Field(0.8, description="candidates below are dropped")
    stability_min: Fraction = Field(0.95, description="candidates below are dropped")
    stability_offset: float = Field(1.0, gt=0, description="logit shift of the stability score")
    box_nms_iou: Fraction = Field(0.7, description="of two candidates whose boxes overlap more, the worse is dropped")
    mask_iou_max: Fraction = Field(0.9, description="of two candidates whose masks overlap more, the worse is dropped")
    min_area_px: int = Field(0, ge=0, description="smaller masks are dropped, pixels of the image")
    max_regions: Positive = Field(64, description="the best this many are kept")
    stored_mask: Literal["candidate", "refined"] = Field(
        "candidate", description="which mask is stored: the grid's candidate or the box-prompted one"
    )


class TrackOptions(Options):
    """Videos: objects followed through a clip, and handed over to the next."""

    objects_per_call: Positive = Field(16, description="objects that share a call of memory attention and mask decoder")
    backward: bool = Field(True, description="also follow an object through the frames before its first prompt")
    handover: Literal["box", "mask", "box+mask"] = Field("box+mask", description="what of an object's last mask asks the next clip for it")
    find_at: Fraction = Field(
        0.0, description="without prompts, where in each clip new objects are looked for: 0 its first frame, 1 its last"
    )
    segment_frames: int | None = Field(None, ge=1, description="stream: sampled frames per segment, each captioned after the one before")


class PerceiveOptions(Options):
    """SAM 2 and the Semantic Perceiver: prompts to masks and region tokens."""

    engine: Literal["pam", "fake"] = Field("pam", description="`fake` invents regions, for tests and overhead measurements")
    batch_size: Positive = Field(8, description="images that travel from step to step, and are encoded, together")
    prompts_per_call: Positive = Field(64, description="prompts per mask-decoder call")
    device: str = Field("auto", description="`auto`, `cpu` or `cuda`")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="arithmetic; auto: bfloat16 autocast on a GPU, float32 on a CPU"
    )
    timeout_s: float = Field(600.0, gt=0, description="a call of the model may take this long, seconds, the first one four times as long")
    drop_absent: bool = Field(False, description="drop regions whose object score is <= 0 (nothing there) instead of flagging them")
    everything: EverythingOptions = EverythingOptions()
    track: TrackOptions = TrackOptions()
    fake_delay_s: float = Field(0.0, ge=0, description="`fake` sleeps this long per batch, seconds")
    pool: Pool = Pool()


class MaxTokens(Options):
    """Longest answer per task, tokens."""

    label: Positive = 32
    definition: Positive = 160
    caption: Positive = 96
    description: Positive = 384
    event: Positive = Field(256, description="caption of one object in a clip or segment")


class DescribeOptions(Options):
    """Region tokens to text, in large batches."""

    engine: Literal["vllm", "transformers", "fake"] = Field("vllm", description="`transformers` is the reference, `fake` invents text")
    tasks: tuple[Task, ...] = Field(("label", "definition", "caption", "description"), description="which texts")
    languages: tuple[Language, ...] = Field(("en",), description="in which languages")
    max_tokens: MaxTokens = MaxTokens()
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, description="keep at 1.0: engines disagree on what it counts")
    seed: int = Field(0, description="used where sampling is")
    logprobs: int = Field(
        0,
        ge=0,
        le=100,
        description="store the log-probabilities of so many most likely tokens at every generated one, for `datagen distill`",
    )
    concurrent_batches: Positive = Field(8, description="batches of perceive in flight per worker, so that the engine never drains")
    max_num_seqs: Positive = Field(256, description="requests decoded together by the engine")
    max_model_len: Positive = Field(2048, description="longest prompt plus answer, tokens")
    device: str = Field("auto", description="`auto`, `cpu` or `cuda`")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="weights of the LLM; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    gpu_memory_fraction: Fraction = Field(0.75, description="of one GPU's memory, for weights and KV cache")
    cpu_kv_cache_gib: Positive = Field(1, description="KV cache on a CPU, GiB")
    enforce_eager: bool | None = Field(None, description="skip graph capture; left out: skipped on a CPU")
    hang_timeout_s: float = Field(
        300.0,
        gt=0,
        description="an engine that gives no token for this long while requests wait (before its first token four times as long) is ended, "
        "and another one started, seconds",
    )
    fake_delay_s: float = Field(0.0, ge=0, description="`fake` sleeps this long per batch, seconds")
    pool: Pool = Pool()

    @model_validator(mode="after")
    def _something_asked(self) -> DescribeOptions:
        if not self.tasks or not self.languages:
            raise ValueError("tasks and languages need at least one entry each")
        if len(set(self.tasks)) != len(self.tasks) or len(set(self.languages)) != len(self.languages):
            raise ValueError("tasks and languages must not repeat")
        return self


class AssembleOptions(Options):
    """Rows from texts. A dropped region is counted by its reason; a flag only marks."""

    drop_below_logprob: float | None = Field(None, le=0, description="drop regions whose mean label log-probability is lower (nats)")
    drop_empty_text: bool = Field(False, description="drop regions none of whose texts has a letter")
    min_area_px: int = Field(0, ge=0, description="drop regions with a smaller mask, pixels")


class WriteOptions(Options):
    """Parquet parts. A part is the unit of commit: what a crash can cost."""

    assets_per_part: Positive = Field(256, description="assets committed together")
    row_group_rows: Positive = Field(8192, description="rows per Parquet row group")
    compression_level: int = Field(3, ge=1, le=22, description="Zstandard level")
    pool: Pool = Pool()


class RunOptions(Options):
    """The run as a whole."""

    executor: Literal["ray", "inprocess"] = Field("ray", description="`inprocess` runs the same steps without Ray")
    ray_address: str | None = Field(None, description="an existing cluster, such as `auto`; left out: an embedded one")
    object_store_gib: float | None = Field(None, gt=0, description="size of the embedded Ray's object store, GiB")
    num_cpus: Positive | None = Field(None, description="logical CPUs of the embedded Ray")
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="port of the loopback where the embedded Ray serves Prometheus metrics; left out: a free one, in the event log",
    )
    assets_per_wave: Positive = Field(250_000, description="assets handed to Ray at once; bounds the driver's memory")
    max_failed_fraction: Fraction = Field(
        0.5, description="exit 1 when a larger share of the assets that this run did failed; 1: never, 0: when any did"
    )
    retry_failed: int = Field(0, ge=0, description="failed assets are tried again in up to this many further runs, then left")
    deaths_timeout_s: float = Field(
        90.0, gt=0, description="workers may die again and again for this long while nothing gets done; then the run ends, seconds"
    )
    workers_timeout_s: float = Field(
        900.0, gt=0, description="a step may wait this long for a node with room for its first worker; then the run ends, seconds"
    )
    loading_timeout_s: float = Field(1800.0, gt=0, description="a worker may load its model for this long; then the run ends, seconds")
    crash_tries: Positive = Field(3, description="an asset that kills its worker this often becomes a failed row")
    seed: int = Field(0, description="recorded; greedy decoding does not use it")
    budget: BudgetOptions = BudgetOptions()
    grace_s: float = Field(
        20.0, ge=0, description="after SIGTERM, or a used-up budget, what is begun may take this long to finish, seconds"
    )


class Job(Options):
    """One declared job."""

    version: Literal[1] = 1
    name: str = Field("job", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="short name, used in run records")
    model: ModelOptions = ModelOptions()
    source: SourceOptions = SourceOptions()
    decode: DecodeOptions = DecodeOptions()
    perceive: PerceiveOptions = PerceiveOptions()
    describe: DescribeOptions = DescribeOptions()
    assemble: AssembleOptions = AssembleOptions()
    write: WriteOptions = WriteOptions()
    run: RunOptions = RunOptions()
    s3: S3Options = S3Options()
    output: str | None = Field(None, description="dataset: a folder, or s3://bucket/prefix")

    def hash(self) -> str:
        """16 hex digits of the options that determine the rows: two jobs with the same hash make the same rows."""
        options = row_options(self.located().model_dump(mode="json"))
        return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]

    def located(self) -> Job:
        """The same job with absolute paths, which mean the same in every process and on every node; names of models stay."""
        data = self.model_dump()
        found = located(data)
        for path, value in found.items():
            _assign(data, path, value)
        return Job.model_validate(data) if found else self


def row_options(job: Mapping[str, Any]) -> dict[str, Any]:
    """Path -> value of the options that determine the rows, without resources, of a job as run records hold it."""
    groups = {group: job.get(group, {}) for group in ("model", "decode", "perceive", "describe", "assemble")}
    return {path: value for path, value in _leaves(groups) if path not in _RESOURCES and ".pool." not in path}


def _leaves(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def load_job(path: str | Path, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None) -> Job:
    """Read a job file. `overrides` are `key.path=value` (YAML values), `values` the same already parsed; both win over the file.

    Raises JobError naming the file, the key, what was found and what is allowed.
    """
    data = read_yaml(path, "job file", "Shipped jobs are in pipelines/.")
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise JobError(f"{path}: a job file is a mapping of keys, found {type(data).__name__}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise JobError(f"--set {override}: write key.path=value, for example --set perceive.everything.max_regions=32")
        _assign(data, key.strip(), parse_yaml(value, f"--set {override}: the value"))
    for key, value in (values or {}).items():
        _assign(data, key, value)
    return parse_job(data, where=str(path))


def parse_job(data: Mapping[str, Any], where: str = "job") -> Job:
    """Check a job given as a mapping. Raises JobError with one line per wrong key."""
    try:
        return Job.model_validate(data)
    except ValidationError as error:
        raise JobError(f"{where}: {refusal(error, Job)}") from error


def _assign(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        child = data.setdefault(parent, {})
        if not isinstance(child, dict):
            raise JobError(f"--set {key}: `{parent}` is a value, not a group of options")
        data = child
    data[last] = value


def refusal(error: ValidationError, model: type[BaseModel]) -> str:
    """One line per wrong key: what was found, what is allowed. model: what the data was checked against."""
    return "\n".join(_explain(dict(item), model) for item in error.errors())


def _explain(item: dict[str, Any], root: type[BaseModel]) -> str:
    location: Sequence[str | int] = item["loc"]
    path = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        known = _known_keys(location[:-1], root)
        nearest = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean `{nearest[0]}`?" if nearest else "known keys: " + ", ".join(sorted(known))
        return f"unknown key `{path}`; {hint}"
    if item["type"] in ("secret", "value_error"):  # what was found may hold a password; the other says itself what was found
        return (f"`{path}`: " if path else "") + str(item["msg"]).removeprefix("Value error, ")
    return f"`{path}`: {item['msg']}, found {item.get('input')!r}"


def _known_keys(location: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    for part in location:
        if isinstance(part, int):  # an entry of a list
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)


def job_schema() -> dict[str, Any]:
    """The JSON Schema of a job file, as stored in schemas/job.schema.json."""
    return Job.model_json_schema()


__all__ = ["LANGUAGES", "TASKS", "Job", "job_schema", "load_job", "parse_job", "row_options"]


if __name__ == "__main__":
    print(json.dumps(job_schema(), indent=2, ensure_ascii=False))
