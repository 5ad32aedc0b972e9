"""Scenes are the same for the same seed, and what they say of themselves is what is drawn."""

import math

import numpy as np
import pytest

from datagen.scenes import random_clip, random_scene, render, render_clip, scene_seed, write_scenes
from datagen.scenes.check import attributes_right, right_attributes, stated
from datagen.scenes.compose import neighbour_of, place_of, texts_of
from datagen.scenes.draw import full_area
from datagen.scenes.words import ACTIONS, COLORS, PLACES, SHAPES, SIDES, SIZES

SEEDS = [scene_seed(9, "image", number) for number in range(24)]


@pytest.fixture(scope="module")
def pictures():
    return [(scene, render(scene)) for scene in map(random_scene, SEEDS)]


def test_there_are_as_many_shapes_colours_and_sizes_as_promised():
    assert len(SHAPES) >= 8
    assert len(COLORS) >= 8
    assert len(SIZES) == 3


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(pictures):
    again = render(random_scene(SEEDS[0]))
    assert np.array_equal(again.pixels, pictures[0][1].pixels)
    assert np.array_equal(again.masks, pictures[0][1].masks)
    assert len({picture.pixels.tobytes() for _, picture in pictures}) == len(pictures)


def test_sizes_and_backgrounds_differ(pictures):
    assert len({(scene.width, scene.height) for scene, _ in pictures}) > 4
    assert len({scene.background for scene, _ in pictures}) > 3


def test_masks_do_not_overlap_and_lie_where_the_shape_is(pictures):
    for scene, picture in pictures:
        assert picture.masks.sum(axis=0).max() <= 1
        for shape, mask in zip(scene.shapes, picture.masks, strict=True):
            rows, columns = np.nonzero(mask)
            reach = np.hypot(columns + 0.5 - shape.center[0], rows + 0.5 - shape.center[1]).max()
            assert reach <= shape.radius + 1


def test_a_mask_has_the_colour_of_its_shape(pictures):
    for scene, picture in pictures:
        for shape, mask in zip(scene.shapes, picture.masks, strict=True):
            mean = picture.pixels[mask].mean(axis=0)
            nearest = min(COLORS, key=lambda color: math.dist(mean, COLORS[color][0]))
            assert nearest == shape.color


def test_what_is_hidden_is_measured_against_the_whole_shape(pictures):
    overlapped = 0
    for scene, picture in pictures:
        for shape, mask, visible in zip(scene.shapes, picture.masks, picture.visible, strict=True):
            assert visible == pytest.approx(min(mask.sum() / full_area(shape), 1), abs=1e-9)
            assert visible >= 0.55  # 60 % of what is drawn, which an edge of the raster may make a little less
            overlapped += visible < 0.9
    assert overlapped > 2


def test_labels_of_one_picture_are_distinct(pictures):
    for scene, _ in pictures:
        assert len({shape.label["en"] for shape in scene.shapes}) == len(scene.shapes)


def test_descriptions_state_what_is_true(pictures):
    for scene, picture in pictures:
        for index, shape in enumerate(scene.shapes):
            texts = texts_of(scene, picture, index)
            said = stated(texts["description"]["en"], "en")
            assert (said["size"], said["color"], said["shape"]) == (shape.size, shape.color, shape.kind)
            row, column = divmod([en for en, _ in PLACES].index(said["place"]), 3)
            assert column == int(3 * shape.center[0] / scene.width)
            assert row == int(3 * shape.center[1] / scene.height)
            assert ("hidden" in said) == (picture.visible[index] < 0.92)
            if len(scene.shapes) == 1:
                assert said["alone"]
            else:
                other = next(other for other in scene.shapes if other.label["en"] == said["neighbour"])
                dx, dy = shape.center[0] - other.center[0], shape.center[1] - other.center[1]
                assert {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}[said["side"]]


def test_chinese_states_the_same_as_english(pictures):
    to_en = {zh: en for en, (_, zh) in (*COLORS.items(), *SIZES.items())} | {zh: en for en, (zh, _) in SHAPES.items()}
    to_en |= {zh: en for en, zh in (*PLACES, *SIDES.values())}
    for scene, picture in pictures:
        for index in range(len(scene.shapes)):
            texts = texts_of(scene, picture, index)["description"]
            en, zh = stated(texts["en"], "en"), stated(texts["zh"], "zh")
            assert en.keys() == zh.keys()
            for name in ("size", "color", "shape", "place", "side"):
                assert name not in zh or to_en[zh[name]] == en[name]


def test_wrong_attributes_are_counted_one_by_one():
    truth = "A small red circle at the top left. It is left of a blue star."
    assert right_attributes(truth, truth, "en") == (6, 6)
    assert right_attributes("A large red ring at the top left. It is left of a blue star.", truth, "en") == (4, 6)
    assert right_attributes("A small red circle at the top left. It is partly hidden. It is left of a blue star.", truth, "en") == (6, 7)
    assert right_attributes("nonsense", truth, "en") == (0, 6)


def test_a_relation_may_be_that_to_any_shape_of_the_picture_if_so_asked(tmp_path):
    truth, sides = "A small red circle at the top left. It is left of a blue star.", {"blue star": "left of", "red ring": "above"}
    for relation, right in (("above a red ring", 6), ("below a red ring", 5), ("left of a green ring", 5), ("left of a blue star", 6)):
        said = f"A small red circle at the top left. It is {relation}."
        assert right_attributes(said, truth, "en", sides) == (right, 6)
    write_scenes(tmp_path, num_images=8, seed=9)
    for language in ("en", "zh"):
        assert attributes_right(tmp_path, tmp_path, language) == 1
        assert attributes_right(tmp_path, tmp_path, language, any_neighbour=True) > 0.95  # where most of a shape is hidden, sides differ


def test_place_and_side_at_their_borders():
    assert place_of((0, 0), 90, 60) == 0
    assert place_of((30, 20), 90, 60) == 4
    assert place_of((89.9, 59.9), 90, 60) == 8
    assert neighbour_of(random_scene(SEEDS[2]).shapes[:1], 0) is None


def test_clips_do_what_they_say():
    seen = set()
    for number in range(40):
        clip = random_clip(scene_seed(0, "clip", number))
        assert 16 <= clip.num_frames <= 24
        for actor in clip.actors:
            assert actor.phases[0].start == 0
            assert actor.phases[-1].stop == clip.num_frames
            for phase in actor.phases:
                seen.add(phase.action)
                before, after = actor.at(max(phase.start - 1, 0)).center, actor.at(phase.stop - 1).center
                dx, dy = after[0] - before[0], after[1] - before[1]
                way = phase.action.split()[-1]
                told = {"left": dx < -abs(dy), "right": dx > abs(dy), "up": dy < -abs(dx), "down": dy > abs(dx)}
                assert told.get(way, True)
                if phase.action in ("still", "stop"):
                    assert math.hypot(dx, dy) < 1e-9
    assert {"still", "stop", "leave", "return"} <= seen
    assert seen <= ACTIONS.keys()


def test_what_leaves_is_gone_for_some_frames_and_comes_back():
    clips = (random_clip(scene_seed(0, "clip", number)) for number in range(200))
    clip, index = next((c, i) for c in clips for i, actor in enumerate(c.actors) if actor.phases[0].action == "leave")
    visible = [bool(frame.masks[index].any()) for frame in render_clip(clip)]
    assert visible[0]
    assert visible[-1]
    assert not all(visible)
    assert clip.actors[index].caption["en"].endswith("leaves the picture, then comes back.")
