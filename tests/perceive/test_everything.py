"""Segment everything, on the golden model with thresholds that its random weights can pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datagen.job import EverythingOptions, PerceiveOptions
from datagen.masks import decode_mask, mask_iou, stability_score
from datagen.pam.front_end import Decoded
from datagen.perceive.everything import find_candidates, point_grid
from datagen.perceive.pam import PamPerceiveStep

LOOSE = {
    "points_per_side": 6,
    "points_per_call": 16,
    "predicted_iou_min": 0.3,
    "stability_min": 0.3,
    "box_nms_iou": 0.999,
    "mask_iou_max": 0.98,
}


def perceive(model, image, drop_absent=False, **options):
    step = PamPerceiveStep(model, PerceiveOptions(drop_absent=drop_absent, everything=EverythingOptions(**{**LOOSE, **options})))
    step.setup()
    return step.process([image])[0]


def test_every_candidate_is_kept_or_counted(model, sample):
    found = perceive(model, sample(0))
    assert found.failure is None
    assert found.status == "ok"
    assert len(found.regions) + sum(found.dropped.values()) == 3 * 6 * 6
    assert len(found.tokens.image) == len(found.regions)


def test_regions_are_distinct_sorted_and_from_the_grid(model, sample):
    found = perceive(model, sample(0))
    ious = [region.predicted_iou for region in found.regions]
    assert ious == sorted(ious, reverse=True)
    overlap = mask_iou([region.mask for region in found.regions], [region.mask for region in found.regions])
    assert len(overlap) > 1
    assert (overlap - np.eye(len(overlap))).max() <= 0.99
    for region in found.regions:
        assert region.mask_source == "candidate"
        assert region.prompt.source == "everything"
        assert region.prompt.box == region.box_xyxy
        assert region.stability >= 0.3
        assert region.predicted_iou > 0.3


def test_the_refined_mask_is_the_answer_to_the_candidates_box(model, sample):
    candidate, refined = perceive(model, sample(0)), perceive(model, sample(0), stored_mask="refined")
    by_index = {region.region_index: region for region in candidate.regions}
    assert refined.regions
    prompted = perceive(model, sample(0, [region.prompt for region in refined.regions]))
    for region, again in zip(refined.regions, prompted.regions, strict=True):
        assert region.mask_source == "refined"
        assert region.prompt == by_index[region.region_index].prompt
        assert region.object_score == by_index[region.region_index].object_score
        assert np.count_nonzero(decode_mask(region.mask) ^ decode_mask(again.mask)) <= 4


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"predicted_iou_min": 1.0}, "predicted_iou"), ({"stability_min": 1.0, "stability_offset": 100.0}, "stability")],
)
def test_thresholds_empty_an_image(model, sample, options, reason):
    found = perceive(model, sample(0), **options)
    assert (found.status, found.tokens) == ("empty", None)
    assert found.dropped == {reason: 108}


def test_minimum_area_and_maximum_number(model, sample):
    everything = perceive(model, sample(0))
    areas = [region.area_px for region in everything.regions]
    smaller = perceive(model, sample(0), min_area_px=max(areas))
    assert [region.area_px for region in smaller.regions] == [max(areas)] * areas.count(max(areas))
    assert smaller.dropped["min_area"] == sum(area < max(areas) for area in areas)
    one = perceive(model, sample(0), max_regions=1)
    assert [region.area_px for region in one.regions] == areas[:1]
    assert one.dropped.get("max_regions", 0) == len(areas) - 1


class PaintedDecoder:
    """A front end whose grid answers are painted: which point gets which three squares, and with which scores."""

    image_size = 64

    def __init__(self, answers: list[list[tuple[tuple[int, int, int, int], float, float]]]) -> None:
        self.answers, self.next = answers, 0

    def decode(self, features, image_index, points, labels):
        part = self.answers[self.next : self.next + len(points)]
        self.next += len(points)
        logits, iou = torch.full((len(points), 4, 16, 16), -10.0), torch.zeros(len(points), 4)
        for row, masks in enumerate(part):
            for column, ((x1, y1, x2, y2), score, height) in enumerate(masks, start=1):
                logits[row, column, y1:y2, x1:x2], iou[row, column] = height, score
        return Decoded(logits, iou, torch.ones(len(points)), torch.zeros(len(points), 4, 8), torch.zeros(len(points), 8, 4, 4))


def test_each_filter_drops_what_it_should():
    answers = [
        [((0, 0, 8, 8), 0.9, 5.0), ((0, 0, 8, 7), 0.95, 5.0), ((10, 10, 14, 14), 0.5, 5.0)],
        [((8, 8, 16, 16), 0.9, 0.5), ((0, 0, 0, 0), 0.9, 5.0), ((12, 0, 14, 2), 0.85, 5.0)],
        [((0, 9, 6, 15), 0.99, 5.0), ((12, 0, 14, 2), 0.7, 5.0), ((9, 9, 15, 15), 0.81, 5.0)],
        [((0, 9, 5, 15), 0.97, 5.0), ((8, 0, 10, 2), 0.82, 5.0), ((9, 9, 15, 15), 0.2, 5.0)],
    ]
    options = EverythingOptions(points_per_side=2, points_per_call=3, box_nms_iou=0.85, mask_iou_max=0.8, min_area_px=100, max_regions=2)
    candidates, dropped = find_candidates(PaintedDecoder(answers), None, 0, 64, 64, options, points_per_call=3)
    # (0, 0, 8, 7) suppresses (0, 0, 8, 8) by box, (0, 9, 6, 15) the narrower one by mask; the 2 x 2 squares have 64 px in the image.
    assert [candidate.predicted_iou for candidate in candidates] == pytest.approx([0.99, 0.95])
    assert dropped == {"predicted_iou": 3, "stability": 1, "empty_mask": 1, "box_nms": 1, "mask_dedup": 1, "max_regions": 3}
    wider = options.model_copy(update={"max_regions": 9})
    candidates, dropped = find_candidates(PaintedDecoder(answers), None, 0, 64, 64, wider, points_per_call=3)
    assert [candidate.predicted_iou for candidate in candidates] == pytest.approx([0.99, 0.95, 0.81])
    assert dropped == {"predicted_iou": 3, "stability": 1, "empty_mask": 1, "box_nms": 1, "mask_dedup": 1, "min_area": 2}
    assert candidates[0].stability == 1


def test_the_grid_is_centred_and_runs_row_by_row():
    assert point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


def test_low_resolution_filters_agree_with_those_at_the_images_size():
    rng = torch.Generator().manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.randn(8, 1, 6, 6, generator=rng), size=(64, 64), mode="bicubic")
    fine = torch.nn.functional.interpolate(coarse, size=(300, 500), mode="bilinear")
    assert torch.allclose(stability_score(coarse[:, 0], 0.1), stability_score(fine[:, 0], 0.1), atol=0.02)
