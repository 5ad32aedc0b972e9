"""The describe stage: perceiver, projectors and language model learn the stored texts, next token by next token, SAM 2 frozen.
With a teacher they also learn what it held likely at each token (see teacher.divergence), and the perceiver is asked for places (guide).

All texts of a region share its prefix (system prompt and visual embeddings), which is computed once: they lie one after another in a
sequence whose attention mask lets each see the prefix and itself, at the positions that it has when it is asked for alone.
Letters of shapes: B sequences, T positions, H hidden size, V visual embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from datagen.distill.clips import ClipCorpus, Told, TrackData
from datagen.distill.config import DescribeStage
from datagen.distill.corpus import Corpus, Key, RegionData
from datagen.distill.features import PROMPTS
from datagen.distill.guide import Asked, Guide
from datagen.distill.prompts import Seed
from datagen.distill.student import Student
from datagen.distill.teacher import Taught, Teacher, divergence, stacked
from datagen.errors import SourceError
from datagen.pam.prompts import PromptIds, image_prompt, tokenize, video_prompt
from datagen.perceive.tracking import selected_frames

_NO_TARGET = -100
Features = tuple[NDArray[np.float16], NDArray[np.float16]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One text to learn. key: (task, language). after: prompt ids behind the visual embeddings. ids: the answer with its end.

    taught: what its teacher held likely, where that is learned, too; `ids` are then its tokens as well.
    """

    key: Key
    after: tuple[int, ...]
    ids: tuple[int, ...]
    taught: Taught | None = None


@dataclass(slots=True)
class DescribeBatch:
    """image_side: (B, d, G, G) of regions, or (B, 16, d, G, G) of tracks in the frames that the language model sees. tokens: (B, 2, d)
    or (B, 16, 2, d). answers: those of each region or track. asked: what the guide asks of each region, or of each track's frames in turn;
    None without a guide. is_led: whether the student follows it; in the stage's warm-up it only learns to read, itself.
    """

    image_side: Tensor
    tokens: Tensor
    answers: list[list[Answer]]
    asked: Asked | None
    is_led: bool = True

    @property
    def is_clip(self) -> bool:
        """Whether this is of tracks."""
        return self.image_side.dim() == 5


class DescribeTask:
    """What the describe stage trains, on what, and with which loss. regions, tracks: features of SAM 2 for the corpora.

    teachers: table -> what a teacher held likely; empty when only the texts are learned.
    """

    def __init__(
        self,
        stage: DescribeStage,
        student: Student,
        seed: Seed,
        regions: tuple[Corpus, Features] | None,
        tracks: tuple[ClipCorpus, Features] | None,
        teachers: Mapping[str, Teacher] | None = None,
    ) -> None:
        self.stage, self.student, self.seed = stage, student, seed
        self.regions, self.tracks, self._teachers = regions, tracks, teachers or {}
        queries, hidden = student.perceiver.sem_tokens.num_embeddings, student.projector.hidden_size
        self._guide = Guide(queries, hidden, regions[0] if regions else None)
        self.head: nn.Module = self._guide
        attention = (part for name, part in student.perceiver.named_modules() if name.endswith(("q_proj", "k_proj")))
        self.rates: dict[nn.Module, float] = dict.fromkeys(attention, stage.query_rate)
        self._prompts: dict[Key, PromptIds] = {
            (task, lang): self._tokenized(image_prompt(task, lang)) for task in stage.tasks for lang in stage.languages
        }
        # Every prompt begins with the system's part; it lies before the visual embeddings.
        self._before = self._tokenized(image_prompt("label", "en")).before
        if regions is not None:
            self._asked = [[key for key in self._prompts if key in region.texts] for region in regions[0].regions]
            self._usable = [index for index, keys in enumerate(self._asked) if keys]
        if tracks is not None:
            corpus = tracks[0]
            self._told = [(track, told) for track in corpus.tracks for told in track.told if _usable(track, told, stage.languages)]
            if not self._told:
                raise SourceError("no track has a text about frames of which the first shows it; there is nothing to learn from clips")

    def modules(self) -> Iterator[nn.Module]:
        """The parts that are trained."""
        yield from (self.student.perceiver, self.student.projector, self.student.llm)

    def batch(self, step: int) -> DescribeBatch:
        """The batch of one step: a function of seed and step alone."""
        rng = np.random.default_rng([*self.seed, step])
        of_tracks = self.tracks is not None and rng.random() < self.stage.clip_share
        batch = self._track_batch(rng) if of_tracks else self._region_batch(rng)
        batch.is_led = step >= self.stage.warmup_steps
        return batch

    def _region_batch(self, rng: np.random.Generator) -> DescribeBatch:
        if self.regions is None:
            raise ValueError("there are no regions to learn from")
        corpus, (image_side, tokens) = self.regions
        chosen = rng.choice(self._usable, size=self.stage.batch_size)
        kinds = rng.integers(0, len(PROMPTS), len(chosen))
        answers = []
        for index in chosen:
            keys = self._asked[index]
            numbers = rng.choice(len(keys), size=min(self.stage.tasks_per_region, len(keys)), replace=False)
            answers.append([self._answer(corpus.regions[index], keys[number]) for number in numbers])
        asked = self._guide.of_regions(chosen.tolist()) if self.stage.guide_weight else None
        return DescribeBatch(_tensor(image_side[chosen, kinds]), _tensor(tokens[chosen, kinds]), answers, asked)

    def _track_batch(self, rng: np.random.Generator) -> DescribeBatch:
        if self.tracks is None:
            raise ValueError("there are no tracks to learn from")
        _, (image_side, tokens) = self.tracks
        chosen = [self._told[number] for number in rng.integers(0, len(self._told), max(self.stage.batch_size // 4, 1))]
        frames = np.stack([_frames(told) for _, told in chosen])
        rows = frames + np.asarray([[track.masks.start] for track, _ in chosen])
        boxes = [track.boxes[frame] for (track, _), of_track in zip(chosen, frames, strict=True) for frame in of_track]
        asked = self._guide.of_frames(boxes) if self.stage.guide_weight else None
        answers = [
            [self._event(track, told, language) for language in self.stage.languages if language in told.texts] for track, told in chosen
        ]
        return DescribeBatch(_tensor(image_side[rows]), _tensor(tokens[rows]), answers, asked)

    def _answer(self, region: RegionData, key: Key) -> Answer:
        teacher = self._teachers.get("regions")
        taught = None if teacher is None else teacher.of(region.row, *key)
        return Answer(key, self._prompts[key].after, taught.ids if taught else self._ids(region.texts[key]), taught)

    def _event(self, track: TrackData, told: Told, language: str) -> Answer:
        after = self._tokenized(video_prompt(language, told.history.get(language))).after
        teacher = self._teachers.get("tracks")
        taught = None if teacher is None or told.event is None else teacher.of(track.row, told.event, language)
        return Answer(("event", language), after, taught.ids if taught else self._ids(told.texts[language]), taught)

    def _tokenized(self, text: str) -> PromptIds:
        return tokenize(text, self.student.tokenizer)

    def _ids(self, text: str) -> tuple[int, ...]:
        return (*self.student.tokenizer.encode(text, add_special_tokens=False), self.student.stop_id)

    def loss(self, batch: DescribeBatch) -> tuple[Tensor, dict[str, float]]:
        """Mean cross-entropy of the answers' tokens, where there is a teacher averaged with the divergence from it by
        `distill_weight`, and the guide's loss; and how many answers would come out right to the last token.
        """
        visual, semantic, image = self._visual(batch)
        embeds, mask, positions, targets = self._assembled(visual, batch.answers)
        hidden = self.student.llm.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        learned = targets != _NO_TARGET
        logits = self.student.llm.lm_head(hidden[learned]).float()
        each = F.cross_entropy(logits, targets[learned], reduction="none")
        right = (logits.argmax(-1) == targets[learned]).cpu()
        report = {"next_token": float(each.detach().mean()), "tokens_right": float(right.float().mean())}
        each, distance = self._distilled(each, logits, [answer for of_row in batch.answers for answer in of_row])
        if not batch.is_led:
            semantic, image = semantic.detach(), image.detach()
        guided, found = (0.0, {}) if batch.asked is None else self._guide(semantic, image, batch.asked)
        loss = each.mean() + self.stage.guide_weight * guided
        return loss, {"loss": float(loss.detach())} | report | distance | found | _exact(right.tolist(), batch.answers)

    def _distilled(self, each: Tensor, logits: Tensor, answers: Sequence[Answer]) -> tuple[Tensor, dict[str, float]]:
        """The loss of each token (N,), averaged with the divergence where it is taught, and its mean. logits: (N, V)."""
        taught = [answer.taught for answer in answers if answer.taught is not None]
        if not taught:
            return each, {}
        chosen = torch.tensor([answer.taught is not None for answer in answers for _ in answer.ids], device=each.device)
        ids, logprobs = (tensor.to(each.device) for tensor in stacked(taught))
        temperature, weight = self.stage.temperature, self.stage.distill_weight
        distance = divergence(logits[chosen], ids, logprobs, temperature)
        mixed = (1 - weight) * each[chosen] + weight * temperature**2 * distance
        return torch.cat([each[~chosen], mixed]), {"divergence": float(distance.detach().mean())}

    def _visual(self, batch: DescribeBatch) -> tuple[Tensor, Tensor, Tensor]:
        """(B, V, H), and among them the semantic (B, S, H) and image tokens (B, T, H) of regions, or of the frames of tracks the semantic
        ones (B * 16, S, H) and no image token (B * 16, 0, H).
        """
        device, projector = self.student.device, self.student.projector
        image_side, tokens = batch.image_side.to(device), batch.tokens.to(device)
        if not batch.is_clip:
            visual: Tensor = projector.regions(*self.student.perceiver(image_side, tokens))
            queries = self.student.perceiver.sem_tokens.num_embeddings
            return visual, visual[:, -1 - queries : -1], visual[:, : -2 - queries]
        count = len(image_side)
        first, sem_first = self.student.perceiver(image_side[:, 0], tokens[:, 0])
        others, sem_others = self.student.perceiver(image_side[:, 1:].flatten(0, 1), tokens[:, 1:].flatten(0, 1), coarse=True)
        others, sem_others = others.unflatten(0, (count, -1)), sem_others.unflatten(0, (count, -1))
        semantic = torch.cat([sem_first[:, None], sem_others], dim=1)
        visual = torch.stack([projector.clip(first[row], others[row], semantic[row]) for row in range(count)])
        semantic = projector.mm_projector_semT(semantic.flatten(0, 1))
        return visual, semantic, semantic[:, :0]

    def _assembled(self, visual: Tensor, answers: Sequence[Sequence[Answer]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """embeds (B, T, H), additive mask (B, 1, T, T), positions (B, T), targets (B, T)."""
        words, device = self.student.projector.embed_tokens, visual.device
        prefix = len(self._before) + visual.shape[1]
        texts = [[(*answer.after, *answer.ids) for answer in of_row] for of_row in answers]
        length = prefix + max(sum(map(len, of_row)) for of_row in texts)
        ids = torch.full((len(answers), length - prefix), self.student.stop_id)
        positions = torch.arange(length).expand(len(answers), -1).clone()
        targets = torch.full((len(answers), length), _NO_TARGET)
        group = torch.zeros(len(answers), length, dtype=torch.long)  # 0: prefix, n: the n-th text
        for row, of_row in enumerate(texts):
            bounds = np.cumsum([0, *map(len, of_row)])
            for number, (start, stop) in enumerate(pairwise(bounds)):
                ids[row, start:stop] = torch.tensor(of_row[number])
                positions[row, prefix + start : prefix + stop] = prefix + torch.arange(stop - start)
                group[row, prefix + start : prefix + stop] = number + 1
                answer = answers[row][number].ids
                targets[row, prefix + stop - len(answer) - 1 : prefix + stop - 1] = torch.tensor(answer)
            group[row, prefix + bounds[-1] :] = len(of_row) + 1
        before = words(torch.tensor(self._before, device=device)).expand(len(answers), -1, -1)
        embeds = torch.cat([before, visual, words(ids.to(device))], dim=1)
        mask = _mask(group.to(device), embeds.dtype)
        return embeds, mask, positions.to(device), targets.to(device)


def _mask(group: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, T, T) additive: 0 where a position may look, the lowest number elsewhere. group: (B, T), 0 is what all may see."""
    length = group.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=group.device).tril()
    allowed = causal & ((group[:, None, :] == 0) | (group[:, None, :] == group[:, :, None]))
    return torch.zeros(allowed.shape, dtype=dtype, device=group.device).masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def _exact(right: Sequence[bool], answers: Sequence[Sequence[Answer]]) -> dict[str, float]:
    """Share of answers right to the last token, by task and language. right: of every token, in the order of the sequences."""
    found: dict[str, list[bool]] = {}
    start = 0
    for answer in (answer for of_row in answers for answer in of_row):
        found.setdefault("exact_" + "_".join(answer.key), []).append(all(right[start : start + len(answer.ids)]))
        start += len(answer.ids)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _usable(track: TrackData, told: Told, languages: Sequence[str]) -> bool:
    """Whether something is told in any of the languages, and the object is seen in the first of the frames, where it is prompted."""
    return track.boxes[told.start] is not None and any(language in told.texts for language in languages)


def _frames(told: Told) -> NDArray[np.int64]:
    """The 16 frames of a track that the language model sees."""
    return told.start + np.asarray(selected_frames(0, told.stop - told.start))


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
