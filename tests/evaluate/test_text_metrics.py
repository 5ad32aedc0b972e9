"""Text metrics against values worked out by hand, published, or computed once with the reference implementation."""

import numpy as np
import pytest

from datagen.errors import JobError
from datagen.evaluate.text_metrics import cider_d, exact_match, load_embedder, meteor, semantic_iou, semantic_similarity, words


def test_words_are_lower_case_runs_and_single_chinese_characters():
    assert words("It's 红色圆形, A-b! x2") == ["it's", "红", "色", "圆", "形", "a", "b", "x2"]


@pytest.mark.parametrize(
    ("text", "references", "expected"),
    [
        ("red circle", ["Red Circle "], 1),
        ("red circle", ["blue ring", "red circle"], 1),
        ("red circles", ["red circle"], 0),
        ("", ["a"], 0),
    ],
)
def test_exact_match_ignores_case_and_outer_space_only(text, references, expected):
    assert exact_match(text, references) == expected


@pytest.mark.parametrize(
    ("text", "references", "expected"),
    [
        ("red circle", ["red ring"], 1 / 3),  # {red} of {red, circle, ring}
        ("red circle", ["blue ring", "a red circle"], 2 / 3),  # the better of the two
        ("红色圆形", ["红色圆环"], 3 / 5),  # 红 色 圆 of 红 色 圆 形 环
        ("", [""], 0),
    ],
)
def test_semantic_iou_is_the_overlap_of_word_sets(text, references, expected):
    assert semantic_iou(text, references) == pytest.approx(expected)


def test_cider_d_gives_the_values_of_coco_caption():
    texts = ["a small red circle at the top", "a blue star at the right right right", "a green heart", "a dog runs"]
    references = [
        ["a small red circle at the top left", "a red circle in the corner"],
        ["a large blue star", "the big blue star at the right"],
        ["a green heart below a black ring"],
        ["two birds sit on a wire"],
    ]
    # pycocoevalcap 1.2, Cider().compute_score on the same words.
    assert cider_d(texts, references) == pytest.approx([5.34773652, 2.97224851, 3.31709352, 0.0], abs=1e-7)


def test_cider_d_of_a_copy_is_ten_when_its_words_tell_it_from_others():
    assert cider_d(["one two three four", "five six"], [["one two three four"], ["seven eight nine ten"]])[0] == pytest.approx(10)


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        # The worked examples of the METEOR article in Wikipedia, after Banerjee and Lavie 2005.
        ("on the mat sat the cat", "the cat sat on the mat", 0.5),
        ("the cat sat on the mat", "the cat sat on the mat", 0.9977),
        ("the cat was sat on the mat", "the cat sat on the mat", 0.9654),
        # A stem is a match: precision and recall 1, one chunk of two words: 1 - 0.5 / 8.
        ("red circles", "red circle", 0.9375),
    ],
)
def test_meteor_gives_published_values(text, reference, expected):
    assert meteor([text], [[reference]])[0] == pytest.approx(expected, abs=1e-4)


class FakeEmbedder:
    """Two-dimensional vectors for known sentences; counts how many it was asked for."""

    def __init__(self):
        self.asked = []
        self.vectors = {"cat": (1.0, 0.0), "kitten": (0.6, 0.8), "car": (0.0, 1.0)}

    def encode(self, sentences, **options):
        assert options == {"normalize_embeddings": True}
        self.asked += sentences
        return np.asarray([self.vectors[sentence] for sentence in sentences])


def test_semantic_similarity_is_the_best_cosine_and_embeds_each_sentence_once():
    embedder = FakeEmbedder()
    assert semantic_similarity(["cat", "cat"], [["car", "kitten"], ["cat"]], embedder) == pytest.approx([0.6, 1.0])
    assert embedder.asked == ["car", "cat", "kitten"]


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(JobError, match="pip install sentence-transformers"):
        load_embedder("sentence-transformers/all-MiniLM-L6-v2")
