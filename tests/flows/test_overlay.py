"""What is drawn is where it is."""

import numpy as np
from PIL import Image

from flows.overlay import COLOURS, draw, write_overlay
from model.instances import Target
from model.video import Video


class Grey:
    def __init__(self, length, height=90, width=160):
        self.length, self.height, self.width, self.fps = length, height, width, 8.0

    def __call__(self, t):
        return np.full((self.height, self.width, 3), 100, np.uint8)


def mask(height=90, width=160):
    found = np.zeros((height, width), bool)
    found[40:60, 30:80] = True
    return found


def test_a_mask_is_tinted_in_its_colour_and_nothing_else_is():
    picture = draw(Grey(1)(0), 7, {1: mask()}, [Target("a", 0), Target("a dog", 0)])
    expected = (0.55 * 100 + 0.45 * np.array(COLOURS[1])).astype(np.uint8)
    np.testing.assert_array_equal(picture[50, 50], expected)
    np.testing.assert_array_equal(picture[40, 35], COLOURS[1])  # its outline
    np.testing.assert_array_equal(picture[50, 120], [100] * 3)


def test_boxes_are_drawn_where_they_were_prompted():
    target = Target("a", 0, {7: np.float32([100, 20, 140, 60])}, {7: 1.0})
    np.testing.assert_array_equal(draw(Grey(1)(0), 7, {}, [target])[20, 120], COLOURS[0])
    np.testing.assert_array_equal(draw(Grey(1)(0), 8, {}, [target])[20, 120], [100] * 3)


def test_large_frames_are_drawn_smaller():
    picture = draw(np.zeros((1440, 2560, 3), np.uint8), 0, {0: mask(1440, 2560)}, [Target("a", 0)])
    assert picture.shape == (720, 1280, 3)
    assert picture[25, 30].any()


def test_every_frame_is_in_the_film_and_the_prompted_ones_in_the_picture(tmp_path):
    target = Target("a", 0, {6: np.float32([1, 1, 9, 9])}, {6: 1.0})
    masks = ((t, {0: mask()}) for t in range(3, 20))
    film, picture = write_overlay(Video(Grey(20)), masks, [target], tmp_path, "a note")
    video = Video.open(film)
    assert video.shape == (20, 90, 160, 3)
    assert video.fps == 8.0
    assert abs(video[2][50, 50].astype(int) - 100).max() < 12  # before it was found
    assert video[3][50, 50].astype(int)[0] > 130
    with Image.open(picture) as sheet:
        assert sheet.size == (4 * 160, 20 + 3 * 94)  # eight frames and the prompted one
