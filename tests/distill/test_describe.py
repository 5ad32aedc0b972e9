"""The describe stage trains on exactly what the describe step will ask."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from distill_student import STUDENT

from datagen.distill.config import DescribeStage, StudentOptions
from datagen.distill.corpus import load_corpus
from datagen.distill.describe import DescribeTask
from datagen.distill.guide import Guide, as_square
from datagen.distill.segment import cell_loss
from datagen.distill.student import new_student
from datagen.distill.tasks import trainable
from datagen.distill.words import Words
from datagen.pam.prompts import image_prompt, tokenize
from datagen.pam.semantic_perceiver import _space_to_depth
from datagen.scenes.check import stated


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
        visual, _, _ = task._visual(batch)
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


def test_the_guide_asks_for_the_region_and_for_the_one_that_its_description_calls_near(task):
    regions = task.regions[0].regions
    asked = task._guide.of_regions(range(len(regions)))
    names = Words(task.regions[0]).names
    for row, region in enumerate(regions):
        said = stated(region.texts["description", "en"], "en")
        assert asked.boxes[row].tolist() == pytest.approx(region.box)
        assert {names[word] for word in asked.words[row].nonzero()[:, 0]} == {said["size"], said["color"], said["shape"]}
        assert asked.near[row] == ("alone" not in said)
        if "neighbour" in said:
            assert set(said["neighbour"].split()) <= {names[word] for word in asked.near_words[row].nonzero()[:, 0]}
            other = next(number for number in range(len(regions)) if asked.near_boxes[row].tolist() == pytest.approx(regions[number].box))
            assert regions[other].image == region.image
            assert regions[other].texts["label", "en"] == said["neighbour"]


def test_the_guide_learns_to_read_what_the_tokens_hold(task):
    torch.manual_seed(0)
    guide = Guide(3, 32, task.regions[0])
    asked = guide.of_regions(range(8))
    tokens, image = torch.randn(8, 3, 32), torch.randn(8, 16, 32)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.03)
    before = guide(tokens, image, asked)[1]
    for _ in range(300):
        optimizer.zero_grad()
        guide(tokens, image, asked)[0].backward()
        optimizer.step()
    after = guide(tokens, image, asked)[1]
    assert after["words_right"] == after["near_words_right"] == 1
    assert after["guide"] < before["guide"] / 2


def test_a_frame_that_does_not_show_the_object_asks_for_no_box(task):
    box = (0.1, 0.2, 0.5, 0.6)
    asked, others = (task._guide.of_frames([box, second]) for second in (None, (0.5, 0.5, 0.9, 0.9)))
    assert asked.seen.tolist() == [1, 0]
    tokens = torch.zeros(2, 16, task.student.projector.hidden_size)
    image = tokens[:, :0]
    error = [float((0.5 - torch.tensor(given)).abs().sum()) for given in (box, (0.5, 0.5, 0.9, 0.9))]
    for layer in task._guide.layers.values():
        torch.nn.init.zeros_(layer.bias)
    seen = float(torch.tensor(2.0).log())  # a logit of 0 knows nothing
    assert task._guide(tokens, image, asked)[0].item() == pytest.approx(seen + error[0], rel=1e-5)
    assert task._guide(tokens, image, others)[0].item() == pytest.approx(seen + sum(error) / 2, rel=1e-5)


def test_a_new_guide_learns_to_read_before_anybody_follows_it(task):
    trainable(task)
    tokens = task.student.perceiver.sem_tokens.weight
    for step, is_led in ((task.stage.warmup_steps - 1, False), (task.stage.warmup_steps, True)):
        batch = task.batch(step)
        guided, alone = (torch.autograd.grad(task.loss(each)[0], tokens)[0] for each in (batch, replace(batch, asked=None)))
        assert torch.equal(guided, alone) != is_led
        (reads,) = torch.autograd.grad(task.loss(batch)[0], task._guide.layers["box"].weight)
        assert reads.any()
    task.student.eval()


def test_cells_lie_where_the_image_tokens_are():
    corner = torch.zeros(1, 1, 32, 32)
    corner[:, :, :8, 16:] = 1  # the top quarter of the right half
    covered = torch.nn.functional.adaptive_avg_pool2d(corner, 8).movedim(1, -1)
    tokens = _space_to_depth(covered, 2)  # (1, 16, 4), as the perceiver orders them
    logits = 40 * tokens.mean(-1, keepdim=True) - 20
    assert cell_loss(as_square(logits), corner).item() == pytest.approx(0, abs=1e-3)
    assert cell_loss(as_square(logits), corner.transpose(2, 3)).item() > 1
