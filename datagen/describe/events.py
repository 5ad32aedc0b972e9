"""From an event of a track to the requests that ask for its captions, each told the caption before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from datagen.describe import Request
from datagen.describe.prompter import as_tensor, common_words, sampling_for
from datagen.errors import JobError, ModelOutputError
from datagen.job import DescribeOptions
from datagen.pam.prompts import PromptIds, tokenize, video_prompt
from datagen.records import Sample, Track, TrackTokens

if TYPE_CHECKING:
    import torch

    from datagen.pam.projector import Projector

Said = Mapping[str, str]
"""language -> the latest caption of the object that is not empty; a language without one is left out."""


@dataclass(frozen=True, slots=True)
class EventRequests:
    """All requests of one event, by language. shared_tokens: length of the prefix that their prompts have in common.

    history: the caption before, as the prompt has it; None when there is none. cut: languages whose history had to be shortened.
    """

    requests: dict[str, Request]
    history: dict[str, str | None]
    cut: tuple[str, ...]
    shared_tokens: int


class EventPrompter(Protocol):
    """What makes the requests of one event; runs in a thread of its own."""

    def event(self, sample: Sample, track: Track, number: int, said: Said) -> EventRequests:
        """Requests for `track.events[number]`. Raises ModelOutputError when its tokens do not fit the model, JobError when the
        prompt does not fit `max_model_len`.
        """


class PamEventPrompter:
    """Projects the tokens of an event's 16 frames and puts them into the video prompt of PAM.

    A history too long for the context loses its start, at a token boundary: the end of a caption is what the next one goes on from.
    """

    def __init__(self, projector: Projector, tokenizer: Any, options: DescribeOptions) -> None:
        self._projector = projector
        self._tokenizer = tokenizer
        self._options = options

    def event(self, sample: Sample, track: Track, number: int, said: Said) -> EventRequests:
        """Requests for one event in every language of the job, over one projection."""
        languages: tuple[str, ...] = self._options.languages
        names = {language: event_request_id(sample, track, number, language) for language in languages}
        visual = self._visual(track.events[number].tokens, where=f"object {track.object_index}, event {number}")
        prompts, history = {}, {}
        for language in names:
            prompts[language], history[language] = self._fit(language, said.get(language), len(visual))
        requests = {
            language: Request(name, self._embeds(visual, prompts[language]), sampling_for(self._options, "event", name))
            for language, name in names.items()
        }
        cut = tuple(language for language in names if history[language] != said.get(language))
        return EventRequests(requests, history, cut, len(visual) + common_words(list(prompts.values())))

    def _visual(self, tokens: TrackTokens | None, where: str) -> torch.Tensor:
        import torch

        if tokens is None or len(tokens.semantic) != len(tokens.image_later) + 1:
            found = "none" if tokens is None else f"1 + {len(tokens.image_later)} and {len(tokens.semantic)}"
            raise ModelOutputError(f"{where}: every frame needs its image and its semantic tokens, found {found}")
        device = self._projector.image_newline.device
        arrays = (tokens.image_first, tokens.image_later, tokens.semantic)
        visual = self._projector.clip(*(as_tensor(array, tokens.is_bfloat16).to(device) for array in arrays)).cpu()
        if not torch.isfinite(visual).all():
            raise ModelOutputError(f"{where}: its embeddings are not finite")
        return visual

    def _fit(self, language: str, history: str | None, visual_tokens: int) -> tuple[PromptIds, str | None]:
        """The prompt with as much of the end of the history as the context has room for, and that part of it (None: nothing)."""
        room = self._options.max_model_len - self._options.max_tokens.event - visual_tokens
        bare = self._tokenize(language, None)
        if len(bare) > room:
            self._refuse(language, visual_tokens + len(bare))
        if history is None:
            return bare, None
        prompt, left = self._tokenize(language, history), history
        ids = self._tokenizer.encode(history, add_special_tokens=False)
        start = 0
        while left and len(prompt) > room:
            start += len(prompt) - room
            # A character whose first bytes are cut off is cut off whole.
            left = self._tokenizer.decode(ids[start:]).lstrip("\ufffd").strip()
            prompt = self._tokenize(language, left or None)
        return prompt, left or None

    def _refuse(self, language: str, length: int) -> None:
        answer = self._options.max_tokens.event
        raise JobError(
            f"describe.max_model_len is {self._options.max_model_len}, but event ({language}) needs {length + answer} tokens: a prompt of "
            f"{length} and an answer of up to {answer}, and in a stream up to {answer} more for the caption before. "
            f"Raise max_model_len to {length + 2 * answer}, or lower describe.max_tokens.event"
        )

    def _tokenize(self, language: str, history: str | None) -> PromptIds:
        return tokenize(video_prompt(language, history), self._tokenizer)

    def _embeds(self, visual: torch.Tensor, ids: PromptIds) -> torch.Tensor:
        import torch

        return torch.cat([self._projector.words(ids.before).cpu(), visual, self._projector.words(ids.after).cpu()])


def event_request_id(sample: Sample, track: Track, number: int, language: str) -> str:
    """Stable name of the request for one caption of one event."""
    clip = 0 if sample.clip is None else sample.clip.clip_index
    return f"{sample.asset.asset_id}-{clip:05d}-{track.object_index:04d}-{number:04d}-event_{language}"
