"""The perceive step with the real model: a worker that holds the front end and never lets one image hurt another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from datagen.errors import DatagenError, JobError, ModelLoadError
from datagen.events import Note, log_event
from datagen.job import ModelOptions, PerceiveOptions
from datagen.pam.checkpoint import resolve_model
from datagen.pam.front_end import FrontEnd, load_front_end
from datagen.perceive.batch import Perception, Picture, perceive_batch
from datagen.perceive.memory import CallSize, CallTooLargeError, does_not_fit, free_cache
from datagen.perceive.usable import CLIPPED, Usable, count_refused, refusal, usable_prompts
from datagen.records import Failure, Sample


def front_end_for(model: ModelOptions, options: PerceiveOptions) -> FrontEnd:
    """The front end on the device and in the arithmetic that a job asks for. Raises ModelLoadError."""
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    bfloat16 = options.dtype == "bfloat16" or (options.dtype == "auto" and device.startswith("cuda"))
    return load_front_end(resolve_model(model), device, torch.bfloat16 if bfloat16 else torch.float32)


class PamPerceiveStep:
    """Samples with `pixels` become samples with `regions` and `tokens`. Implements `guard.Step`.

    Where memory is short, fewer images share a call of the encoder, or fewer prompts one of the decoder, for a while: see CallSize.
    A prompt that makes no sense costs itself: it is counted in `dropped` under its code (`check_prompt`).
    Failure codes: such a code, or `prompts_unusable`, when that leaves none of an image's prompts; `out_of_memory` (one image alone,
    one prompt per call, still does not fit), and `perceive` for anything else, with the exception's own words.
    """

    def __init__(self, model: ModelOptions, options: PerceiveOptions, note: Note = log_event) -> None:
        self.model, self.options = model, options
        self._images = CallSize("perceive.batch_size", options.batch_size, note)
        self._prompts = CallSize("perceive.prompts_per_call", options.prompts_per_call, note)
        self.front_end: FrontEnd | None = None

    def setup(self) -> None:
        """Load the weights onto the device. Raises ModelLoadError."""
        self.front_end = front_end_for(self.model, self.options)

    def process(self, samples: list[Sample]) -> list[Sample]:
        """Perceive a batch, in place. Failed samples pass through; a sample that fails here becomes a failed one."""
        # Decode keeps no pixels of a picture too thin to hold anything: it ends as empty.
        ready = [sample for sample in samples if sample.failure is None and (sample.pixels is not None or sample.asset.prompts)]
        asked = [_Asked(sample, usable_prompts(sample)) for sample in ready]
        # Those without any usable prompt are known before the batch is encoded, so that they cost their neighbours nothing.
        self._perceive_all([one for one in asked if not _refused(one)])
        return samples

    def teardown(self) -> None:
        """Let go of the weights."""
        self.front_end = None

    def _perceive_all(self, samples: Sequence[_Asked]) -> None:
        done = 0
        while done < len(samples):
            some = samples[done : done + self._images.value]
            self._perceive(some)
            done += len(some)

    def _perceive(self, samples: Sequence[_Asked], last_try: bool = False) -> None:
        """The whole batch; less at a time where memory is short; when it breaks, halves of it, down to the image that is to blame."""
        problem = self._try(samples)
        if problem is None:
            self._images.fitted(len(samples))
        elif isinstance(problem, CallTooLargeError):
            free_cache()
            if self._ask_less(problem, len(samples)):
                self._perceive_all(samples)
            elif not last_try:
                self._perceive(samples, last_try=True)  # all that could be given back has been
            else:
                failure = does_not_fit("one image with one prompt per call", problem)
                samples[0].sample.fail(failure.code, failure.message)
        elif len(samples) > 1:
            middle = len(samples) // 2
            self._perceive(samples[:middle])
            self._perceive(samples[middle:])
        else:
            samples[0].sample.fail(problem.code, problem.message)

    def _ask_less(self, short: CallTooLargeError, num_images: int) -> bool:
        """Of the call that did not fit; of fewer images where it cannot be smaller itself."""
        if short.option == self._prompts.option and self._prompts.shrink(short):
            return True
        return self._images.shrink(CallTooLargeError(self._images.option, num_images, str(short)))

    def _try(self, samples: Sequence[_Asked]) -> Failure | CallTooLargeError | None:
        """Returns what went wrong as a value, because an exception would keep the batch's tensors alive during the next try."""
        try:
            self._perceive_together(samples)
        except (JobError, ModelLoadError, torch.AcceleratorError):
            raise  # the job, the weights or the device are broken, not this image
        except CallTooLargeError as error:
            return error.bare()
        except DatagenError as error:
            return Failure(error.code, error.message)
        except Exception as error:  # noqa: BLE001 (any defect of one image becomes its own row)
            return Failure("perceive", f"{type(error).__name__}: {error}")
        return None

    def _perceive_together(self, asked: Sequence[_Asked]) -> None:
        if self.front_end is None:
            raise JobError("the perceive step was not set up: call setup() before process()")
        size = self.front_end.image_size
        pictures = []
        for one in asked:
            sample = one.sample
            if sample.pixels is None or sample.pixels.shape != (size, size, 3):
                found = None if sample.pixels is None else sample.pixels.shape
                raise ValueError(f"the decode step should give pixels of shape {(size, size, 3)}, found {found}")
            pictures.append(Picture(sample.pixels, *_size(sample), one.usable.prompts))
        found_all = perceive_batch(self.front_end, pictures, self.options, self._prompts)
        for one, perception in zip(asked, found_all, strict=True):
            one.finish(perception)


@dataclass(slots=True)
class _Asked:
    """A sample, and what is asked about it."""

    sample: Sample
    usable: Usable

    def finish(self, perception: Perception) -> None:
        """Put into the sample what was found."""
        sample = self.sample
        sample.regions, sample.tokens, sample.pixels = perception.regions, perception.tokens, None
        for region in sample.regions:
            region.flags += [CLIPPED] if region.region_index in self.usable.clipped else []
        sample.dropped = dict(Counter(sample.dropped) + perception.dropped)
        count_refused(sample, self.usable)


def _refused(asked: _Asked) -> bool:
    """Fail the sample when its input gave prompts and none of them is usable."""
    failure = refusal(asked.sample, asked.usable)
    if failure is not None:
        count_refused(asked.sample, asked.usable)
        asked.sample.fail(failure.code, failure.message)
    return failure is not None


def _size(sample: Sample) -> tuple[int, int]:
    """(width, height) of the image itself."""
    if sample.width is None or sample.height is None:
        raise DatagenError(f"the decode step left no image size for {sample.asset.uri}", code="perceive")
    return sample.width, sample.height
