"""A display matrix lays a picture down as players do, in one of eight ways, or is refused."""

import struct

import numpy as np
import pytest

from schemas.video.errors import VideoError
from schemas.video.file import VideoFile
from schemas.video.orientation import TURN_NAMES, UPRIGHT, parse_matrix, turned
from tests.schemas.video.made import encode, number

PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


@pytest.mark.parametrize("turn", TURN_NAMES)
def test_a_pixel_lands_where_the_matrix_sends_it(turn):
    """Pixel (x, y) is shown at (a x + c y, b x + d y), moved so that nothing is negative."""
    a, b, c, d = turn
    height, width = PICTURE.shape[:2]
    shown = turned(PICTURE, turn)
    assert shown.flags.c_contiguous
    corners = [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)]
    left = min(a * x + c * y for x, y in corners)
    top = min(b * x + d * y for x, y in corners)
    for y in range(height):
        for x in range(width):
            to_x = a * x + c * y - left
            to_y = b * x + d * y - top
            assert np.array_equal(shown[to_y, to_x], PICTURE[y, x])


@pytest.mark.parametrize(("turn", "name"), TURN_NAMES.items())
def test_a_turn_is_named_for_what_is_done(turn, name):
    expected = PICTURE[:, ::-1] if name.startswith("mirrored") else PICTURE
    degrees = int(name.split()[-1]) if name[-1] == "0" else 0
    assert np.array_equal(turned(PICTURE, turn), np.rot90(expected, -degrees // 90))


ONE = 1 << 16


@pytest.mark.parametrize(
    ("numbers", "turn"),
    [
        ((ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30), UPRIGHT),
        ((0, ONE, 0, -ONE, 0, 0, 480 * ONE, 0, 1 << 30), (0, 1, -1, 0)),  # a phone, with offset
        ((2 * ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30), UPRIGHT),  # scale is not our business
        ((-ONE, 300, 0, 0, ONE, 0, 0, 0, 1 << 30), (-1, 0, 0, 1)),  # rounding of a tool
        ((0,) * 9, UPRIGHT),
    ],
)
def test_scale_offset_and_rounding_change_nothing(numbers, turn):
    assert parse_matrix(numbers) == turn


@pytest.mark.parametrize(
    "numbers",
    [
        (46341, 46341, 0, -46341, 46341),  # 45 degrees
        (ONE, 0, 0, ONE, ONE),  # sheared
        (ONE, 0, 0, 0, 0),  # flat
    ],
)
def test_a_matrix_of_no_right_angle_is_refused(numbers):
    with pytest.raises(VideoError, match="no right angle"):
        parse_matrix((*numbers, 0, 0, 0, 1 << 30))


def with_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An mp4 whose track header has another matrix."""
    header = data.index(b"tkhd") + 4
    place = header + (52 if data[header] else 40)
    matrix = struct.pack(">9i", a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)
    return data[:place] + matrix + data[place + 36 :]


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "mpeg4", "mjpeg"])
@pytest.mark.parametrize("turn", [t for t in TURN_NAMES if t != UPRIGHT])
def test_all_codecs_are_turned_alike(tmp_path, codec, turn):
    quiet = {"libx265": {"x265-params": "log-level=none"}}.get(codec, {})
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = encode(tmp_path / "v.mp4", codec, pixels=pixels, **quiet)
    with VideoFile(path) as upright, VideoFile(with_matrix(path.read_bytes(), *turn)) as video:
        shown = video.picture(21)
        assert np.array_equal(shown, turned(upright.picture(21), turn))
        assert number(upright.picture(21)) == 21
        assert video.index().turn == turn
        assert shown.shape[:2] == (video.index().height, video.index().width)
