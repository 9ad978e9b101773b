"""The display matrix: how a file asks for its pictures to be turned or mirrored.

One rule for all containers, codecs and readers: the 3x3 matrix that libav attaches to a decoded frame (from the
container's track header, or from the bitstream) is applied if it stands for one of the eight ways to lay a picture
down. Its scale and its offset are ignored, as players ignore them. Any other matrix is refused: boxes on a picture that
is turned by 30 degrees would mean nothing. PyAV's `frame.rotation` is not used: it says -180 for a mirrored picture.
"""

import struct
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from numpy.typing import NDArray

from schemas.video.errors import VideoError

Turn = tuple[int, int, int, int]
"""(a, b, c, d), each -1, 0 or 1: pixel (x, y) is shown at (a x + c y, b x + d y), up to an offset."""

UPRIGHT: Turn = (1, 0, 0, 1)
TURN_NAMES: dict[Turn, str] = {
    UPRIGHT: "upright",
    (0, 1, -1, 0): "turned 90",
    (-1, 0, 0, -1): "turned 180",
    (0, -1, 1, 0): "turned 270",
    (-1, 0, 0, 1): "mirrored",
    (1, 0, 0, -1): "mirrored, turned 180",
    (0, 1, 1, 0): "mirrored, turned 270",
    (0, -1, -1, 0): "mirrored, turned 90",
}
"""What is done to a stored picture: mirrored left to right first, then turned clockwise by so many degrees."""

_TOLERANCE = 0.01
"""Of the largest number of a matrix: what may stand where a zero is expected."""


def turn_of(frame: av.VideoFrame) -> Turn:
    """How a decoded frame asks to be turned. VideoError if it is by no multiple of a right angle.

    Not for every frame of a video: PyAV's view of side data keeps its frame in memory until the next full garbage
    collection. `frame.rotation` shows whether later frames are turned otherwise.
    """
    try:
        side_data: Any = frame.side_data
        if Type.DISPLAYMATRIX not in side_data:
            return UPRIGHT
    except ValueError as error:  # PyAV does not know every kind that libav attaches, such as EXIF
        if frame.rotation:
            raise VideoError("its display matrix cannot be read") from error
        return UPRIGHT
    return parse_matrix(struct.unpack("=9i", bytes(side_data[Type.DISPLAYMATRIX])[:36]))


def parse_matrix(numbers: tuple[int, ...]) -> Turn:
    """The turn of nine numbers a b u c d v x y w; a matrix of zeros says nothing and is taken as upright."""
    a, b, _, c, d = numbers[:5]
    largest = max(abs(n) for n in (a, b, c, d))
    if not largest:
        return UPRIGHT
    signs = [0 if abs(n) <= _TOLERANCE * largest else 1 if n > 0 else -1 for n in (a, b, c, d)]
    turn = (signs[0], signs[1], signs[2], signs[3])
    if turn not in TURN_NAMES:
        shown = " ".join(f"{n / 65536:g}" for n in (a, b, c, d))
        raise VideoError(f"its display matrix ({shown}) turns pictures by no right angle")
    return turn


def turned(picture: NDArray[np.uint8], turn: Turn) -> NDArray[np.uint8]:
    """[H, W, 3] as it is to be shown; height and width change places for a quarter turn."""
    a, b, c, d = turn
    if turn == UPRIGHT:
        return picture
    rows, columns = (d, a)
    if not a:
        picture = picture.transpose(1, 0, 2)
        rows, columns = (b, c)
    return np.ascontiguousarray(picture[::rows, ::columns])
