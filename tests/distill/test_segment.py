"""The losses of the segment stage, by number."""

import math

import numpy as np
import pytest
import torch
from distill_student import STUDENT, pocket

from datagen.distill.config import StudentOptions
from datagen.distill.corpus import load_corpus
from datagen.distill.segment import SegmentTask, _boxes, cell_loss, mask_losses
from datagen.distill.student import new_student

LN2 = math.log(2)


def test_mask_losses_are_five_times_the_cross_entropy_and_dice():
    whole, half = torch.ones(1, 2, 2), torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    unsure = torch.zeros(1, 1, 2, 2)
    # dice of shares of 1/2: 1 - (2 * sum of both + 1) / (sum of one + sum of the other + 1)
    loss, iou = mask_losses(unsure, whole)
    assert loss.item() == pytest.approx(5 * LN2 + 1 - (2 * 2 + 1) / (2 + 4 + 1))
    assert iou.item() == 0
    loss, _ = mask_losses(unsure, half)
    assert loss.item() == pytest.approx(5 * LN2 + 1 - (2 * 1 + 1) / (2 + 2 + 1))
    sure = torch.stack([torch.full((2, 2), 20.0), torch.tensor([[20.0, -20.0], [20.0, -20.0]])])[None]
    loss, iou = mask_losses(sure, half)
    assert iou[0].tolist() == pytest.approx([2 / 4, 1 / 3])
    # Two of four cells are wrong by 20.
    assert loss[0].tolist() == pytest.approx([5 * 10 + 1 - (2 * 2 + 1) / (4 + 2 + 1), 5 * 10 + 1 - (2 * 1 + 1) / (2 + 2 + 1)], rel=1e-5)


def test_cells_are_counted_per_covered_cell_and_boxes_by_their_sides():
    mask = torch.zeros(1, 1, 4, 4)
    mask[0, 0, :2, 2:] = 1
    assert cell_loss(torch.zeros(1, 1, 2, 2), mask).item() == pytest.approx(4 * LN2)
    mask[0, 0, 2:, 2:] = 1
    assert cell_loss(torch.zeros(1, 1, 2, 2), mask).item() == pytest.approx(4 * LN2 / 2)
    assert _boxes(mask[:, 0]).tolist() == [[0.5, 0, 1, 1]]
    assert _boxes(torch.zeros(1, 4, 4)).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("best", [1.0, 0.25])
def test_the_loss_of_a_batch_is_the_sum_of_its_parts(scenes, tmp_path, best):
    corpus = load_corpus(scenes, tmp_path / "cache", 64)
    texts = [text for region in corpus.regions for text in region.texts.values()]
    student = new_student(StudentOptions(**STUDENT), tmp_path / "tokenizer", texts, seed=1)
    options = {"kind": "segment", "steps": 1, "batch_size": 3, "box_share": 0.0, "background_share": 0.5, "best_of_three": best}
    stage = pocket({**options, "guide_weight": 0.7, "words_weight": 0.3}).stages[0]
    torch.manual_seed(0)
    task = SegmentTask(stage, student, corpus, (1, 2))
    batch = next(batch for batch in map(task.batch, range(20)) if 0 < batch.present.sum() < len(batch.present))

    with torch.no_grad():
        total, report = task.loss(batch)
        front_end = student.front_end(training=True)
        decoded = front_end.decode(front_end.encode(batch.pixels), batch.image, batch.points, batch.labels)
        each, iou = (tensor.numpy() for tensor in mask_losses(decoded.logits, batch.masks))

    there = batch.present.numpy() > 0
    three = each[:, 1:]
    mask = each[:, 0] + best * three.min(axis=1) + (1 - best) * three.mean(axis=1)
    score = decoded.object_score.numpy().reshape(-1)
    entropy = np.where(there, np.log1p(np.exp(-score)), np.log1p(np.exp(score)))
    error = np.abs(decoded.predicted_iou.numpy() - np.where(there[:, None], iou, 0))
    assert report["mask"] == pytest.approx(mask[there].mean(), rel=1e-4)
    assert report["score"] == pytest.approx(entropy.mean(), rel=1e-4)
    assert report["iou_error"] == pytest.approx(error.mean(), rel=1e-4)
    assert report["iou"] == report["iou_point"] == pytest.approx(iou[there, 0].mean(), abs=1e-6)
    assert report["iou_of_three"] == pytest.approx(iou[there, 1:].max(axis=1).mean(), abs=1e-6)
    parts = report["mask"] + report["score"] + report["iou_error"] + 0.7 * report["guide"]
    words = (float(total) - parts) / 0.3
    assert report["loss"] == pytest.approx(float(total), rel=1e-6)
    assert words == pytest.approx(report["words"], rel=1e-3)
    assert report["words"] > 0
