"""The describe stage trains on exactly what the describe step will ask."""

import numpy as np
import pytest
import torch
from distill_student import STUDENT

from datagen.distill.config import DescribeStage, StudentOptions
from datagen.distill.corpus import load_corpus
from datagen.distill.describe import DescribeTask
from datagen.distill.student import new_student
from datagen.pam.prompts import image_prompt, tokenize


@pytest.fixture(scope="module")
def task(scenes, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    corpus = load_corpus(scenes, work / "cache", 64)
    texts = [text for region in corpus.regions for text in region.texts.values()]
    student = new_student(StudentOptions(**STUDENT), work / "tokenizer", texts, seed=1)
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(len(corpus.regions), 2, 64, 4, 4)), rng.normal(size=(len(corpus.regions), 2, 2, 64)))
    stage = DescribeStage(kind="describe", steps=1, batch_size=3, tasks_per_region=5)
    return DescribeTask(stage, student, (0, 0), (corpus, features), None)


def test_texts_that_share_a_sequence_have_the_logits_of_texts_asked_alone(task):
    batch = task.batch(0)
    student = task.student
    with torch.no_grad():
        visual = task._visual(batch)
        embeds, mask, positions, targets = task._assembled(visual, batch.answers)
        hidden = student.llm.model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).last_hidden_state
        for row, answers in enumerate(batch.answers):
            together = student.llm.lm_head(hidden[row][targets[row] != -100])
            alone = []
            for answer in answers:
                prompt = tokenize(image_prompt(*answer.key), student.tokenizer)
                ids = torch.tensor(answer.ids[:-1], dtype=torch.long)
                whole = torch.cat([student.projector.prompt(visual[row], prompt), student.projector.embed_tokens(ids)])
                logits = student.llm(inputs_embeds=whole[None]).logits[0]
                alone.append(logits[-len(answer.ids) :])
            assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def test_answers_end_with_the_end_of_the_turn(task):
    for answer in (answer for of_row in task.batch(1).answers for answer in of_row):
        assert answer.ids[-1] == task.student.stop_id
        text = task.student.tokenizer.decode(answer.ids[:-1])
        assert any(region.texts.get(answer.key) == text for region in task.regions[0].regions)


def test_a_definition_is_answered_with_its_label(task):
    texts = task.regions[0].regions[0].texts
    assert texts["definition", "en"].startswith(texts["label", "en"] + ": ")
    assert texts["definition", "zh"].startswith(texts["label", "zh"] + "：")


def test_batches_are_functions_of_seed_and_step(task):
    one, again, other = task.batch(5), task.batch(5), task.batch(6)
    assert one.answers == again.answers != other.answers
    assert torch.equal(one.image_side, again.image_side)
