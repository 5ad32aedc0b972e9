"""Metrics of generated texts. Words are runs of letters and digits in lower case; each Chinese character is a word of its own."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from datagen.errors import JobError

_WORD = re.compile(r"[㐀-䶿一-鿿豈-﫿]|[^\W_㐀-䶿一-鿿豈-﫿]+(?:['’][^\W_]+)?")
_MAX_NGRAM = 4
_SIGMA = 6.0


def words(text: str) -> list[str]:
    """The words of a text."""
    return _WORD.findall(text.lower())


def exact_match(text: str, references: Sequence[str]) -> float:
    """1 when the text is one of the references, but for case and space around it."""
    return float(any(text.strip().casefold() == reference.strip().casefold() for reference in references))


def semantic_iou(text: str, references: Sequence[str]) -> float:
    """Overlap of the sets of words, intersection over union, with the best reference; 0 where both are empty.

    Source: Yuan et al., "Osprey: Pixel Understanding with Visual Instruction Tuning", 2024, whose LVIS and PACO tables PAM's follow.
    """
    found = set(words(text))
    best = 0.0
    for reference in references:
        there = set(words(reference))
        best = max(best, len(found & there) / max(len(found | there), 1))
    return best


def cider_d(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each text against its references, 0 to 10: TF-IDF weighted n-grams (1 to 4) with clipping and a length penalty.

    Document frequencies are those of the references given, one document per text. Source: Vedantam et al., "CIDEr: Consensus-based
    Image Description Evaluation", 2015, section 4 and the appendix, with sigma 6; as in coco-caption, length is counted in bigrams.
    """
    documents = [[_ngrams(words(reference)) for reference in of_text] for of_text in references]
    frequency = Counter(ngram for of_text in documents for ngram in {ngram for counts in of_text for ngram in counts})
    log_count = math.log(max(len(documents), 1))

    def vectors(counts: Mapping[tuple[str, ...], int]) -> list[dict[tuple[str, ...], float]]:
        weighted: list[dict[tuple[str, ...], float]] = [{} for _ in range(_MAX_NGRAM)]
        for ngram, count in counts.items():
            weighted[len(ngram) - 1][ngram] = count * (log_count - math.log(max(frequency[ngram], 1)))
        return weighted

    scores = []
    for text, of_text in zip(texts, documents, strict=True):
        counts = _ngrams(words(text))
        similar = [_similarity(vectors(counts), vectors(other), _length(counts) - _length(other)) for other in of_text]
        scores.append(10 * sum(similar) / max(len(similar), 1))
    return scores


def _ngrams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + n]) for n in range(1, _MAX_NGRAM + 1) for start in range(len(tokens) - n + 1))


def _length(counts: Mapping[tuple[str, ...], int]) -> int:
    return sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _similarity(first: Sequence[Mapping[tuple[str, ...], float]], second: Sequence[Mapping[tuple[str, ...], float]], delta: int) -> float:
    """Mean over n of the clipped cosine of two TF-IDF vectors, times the length penalty."""
    total = 0.0
    for found, there in zip(first, second, strict=True):
        norms = math.sqrt(sum(value**2 for value in found.values())) * math.sqrt(sum(value**2 for value in there.values()))
        overlap = sum(min(value, there[ngram]) * there[ngram] for ngram, value in found.items() if ngram in there)
        total += overlap / norms if norms else 0.0
    return total / _MAX_NGRAM * math.exp(-(delta**2) / (2 * _SIGMA**2))


class _NoSynonyms:
    """In WordNet's place: METEOR with its exact and stem modules only, which need no download."""

    def synsets(self, _word: str) -> list[Any]:
        return []


def meteor(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """METEOR of each text against its best reference, 0 to 1, exact and Porter-stem matches, from NLTK.

    Source: Banerjee and Lavie, "METEOR: An Automatic Metric for MT Evaluation", 2005, with NLTK's parameters (0.9, 3, 0.5); the
    synonym module is left out, so that values are a little lower than those of the Java tool. Raises JobError without NLTK.
    """
    if not has_meteor():
        raise JobError("METEOR needs NLTK: pip install nltk")
    from nltk.translate.meteor_score import meteor_score

    pairs = zip(texts, references, strict=True)
    return [float(meteor_score([words(one) for one in of_text], words(text), wordnet=_NoSynonyms())) for text, of_text in pairs]


def has_meteor() -> bool:
    """Whether NLTK is installed."""
    from importlib.util import find_spec

    return find_spec("nltk") is not None


class Embedder(Protocol):
    """What turns sentences into vectors, as a SentenceTransformer does."""

    def encode(self, sentences: list[str], **options: Any) -> Any:
        """(N, D) vectors, normalised where `normalize_embeddings` is asked for."""


def load_embedder(name: str) -> Embedder:
    """A sentence embedding model by folder or hub id, such as `sentence-transformers/all-MiniLM-L6-v2`, which Osprey and PAM use.

    Raises JobError when sentence-transformers is not installed, the model is not at hand, or it brings code of its own.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise JobError("semantic similarity needs sentence-transformers: pip install sentence-transformers") from error
    _refuse_code(Path(name))
    try:
        model: Embedder = SentenceTransformer(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise JobError(f"cannot load the sentence embedding model {name}: {error}") from error
    return model


def _refuse_code(folder: Path) -> None:
    """sentence-transformers runs the code that a folder on this machine brings, whatever it is told about trust."""
    brought = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py")) if folder.is_dir() else []
    if brought:
        raise JobError(f"the sentence embedding model {folder} brings code ({', '.join(brought[:3])}), which would be run; use one without")


def semantic_similarity(texts: Sequence[str], references: Sequence[Sequence[str]], embedder: Embedder) -> list[float]:
    """Cosine of the sentence embeddings of each text and its best reference. Each distinct sentence is embedded once.

    Source: Reimers and Gurevych, "Sentence-BERT", 2019.
    """
    distinct = sorted({*texts, *(one for of_text in references for one in of_text)})
    rows = dict(zip(distinct, embedder.encode(distinct, normalize_embeddings=True), strict=True))
    pairs = zip(texts, references, strict=True)
    return [max(float((rows[text] * rows[one]).sum()) for one in of_text) for text, of_text in pairs]
