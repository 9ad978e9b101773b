"""The study's world: what its expressions promise is so in the pixels."""

import numpy as np
import pytest

from model.study.world import COLOURS, make_clip


@pytest.mark.parametrize("index", range(12))
def test_a_clip_is_the_same_every_time_and_its_boxes_are_those_of_its_masks(index):
    clip, again = make_clip(3, index), make_clip(3, index)
    assert (clip.frames_thw3 == again.frames_thw3).all()
    assert (make_clip(4, index).frames_thw3 != clip.frames_thw3).any()
    assert not (clip.masks_nthw.sum(0) > 1).any()  # a pixel is of one object
    for n, t in np.ndindex(*clip.masks_nthw.shape[:2]):
        rows, columns = np.nonzero(clip.masks_nthw[n, t])
        if len(rows):
            assert clip.boxes_nt4[n, t].tolist() == [
                columns.min(),
                rows.min(),
                columns.max() + 1,
                rows.max() + 1,
            ]
        else:
            assert np.isnan(clip.boxes_nt4[n, t]).all()


@pytest.mark.parametrize("index", range(12))
def test_all_objects_are_seen_whole_at_the_start(index):
    clip = make_clip(0, index)
    areas = clip.masks_nthw.sum((2, 3))
    assert (areas[:, 0] > 60).all()
    x1, y1, x2, y2 = clip.boxes_nt4[:, 0].T
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert x2[a] <= x1[b] or x2[b] <= x1[a] or y2[a] <= y1[b] or y2[b] <= y1[a]


def test_words_of_appearance_fit_one_object_and_words_of_motion_need_time():
    for index in range(60):
        clip = make_clip(1, index)
        colour, shape, *_ = clip.phrase.split()
        alike = clip.looks.count(f"{colour} {shape}")
        assert clip.looks[0] == f"{colour} {shape}"
        assert alike == (1 if clip.kind == "appearance" else 2)
        assert (clip.looks[1] == clip.looks[0]) == (clip.kind != "appearance")


def test_what_moves_left_moves_left_and_its_look_alike_the_other_way():
    seen = set()
    for index in range(1, 120, 3):
        clip = make_clip(2, index)
        direction = clip.phrase.split()[-1]
        seen.add(direction)
        axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}[direction]
        for n, way in ((0, sign), (1, -sign)):
            there = np.flatnonzero(~np.isnan(clip.boxes_nt4[n, :, 0]))
            first, last = clip.boxes_nt4[n, there[0], axis], clip.boxes_nt4[n, there[-1], axis]
            assert (last - first) * way > 10
    assert seen == {"left", "right", "up", "down"}


def test_the_first_frame_does_not_say_who_moves_where():
    """Who starts on the left and moves left exists, and who starts on the right."""
    sides = []
    for index in range(1, 300, 3):
        clip = make_clip(5, index)
        if clip.phrase.endswith("left"):
            sides.append(clip.boxes_nt4[0, 0, 0] < clip.boxes_nt4[1, 0, 0])
    assert 0 < np.mean(sides) < 1


def test_what_leaves_is_gone_in_the_middle_and_back_at_the_end():
    for index in range(2, 90, 3):
        clip = make_clip(6, index)
        gone = 0 if clip.phrase.endswith("leaves") else 1
        area = clip.masks_nthw[gone].sum((1, 2))
        assert area[len(area) // 2] < 0.35 * area[0]


def test_lessons_have_fewer_objects():
    assert make_clip(0, 1, objects=1).masks_nthw.shape[0] == 1
    two = make_clip(0, 1, objects=2)
    assert two.looks[0] != two.looks[1]


def test_colours_are_what_words_say():
    clip = make_clip(7, 0)
    colour = np.median(clip.frames_thw3[0][clip.masks_nthw[0, 0]], 0)
    assert np.allclose(colour, COLOURS[clip.phrase.split()[0]])
