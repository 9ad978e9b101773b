"""Picture files.

One rule for all readers: alpha is dropped, 16 bits become 8 by their upper byte, EXIF orientation is not applied (boxes
and masks of the datasets are in the pixels as they are stored), and a picture of more than MAX_PIXELS is refused by its
header.
"""

import io

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from schemas.geometry import MAX_PIXELS
from schemas.video.errors import TooLargeError, VideoError
from schemas.video.file import RGBPicture

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
"""Kinds of pictures that are read, by their content."""

cv2.setNumThreads(1)  # one clip per process; OpenCV's own threads cost determinism and gain nothing


def decode_picture(data: bytes) -> RGBPicture:
    """The bytes of a picture file -> [H, W, 3] uint8 RGB. VideoError if they are none, or not a whole one."""
    picture_size(data)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise VideoError(str(error)) from error
    if bgr is None:
        raise VideoError("not a complete image")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def picture_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the header alone. VideoError if it is no picture, TooLargeError if it is too large."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            width, height = header.size
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"its header states more than {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise VideoError(f"not a picture of a kind that is read ({', '.join(FORMATS)})") from error
    except (OSError, ValueError) as error:
        raise VideoError(str(error)) from error
    if height * width > MAX_PIXELS:
        raise TooLargeError(f"{width}x{height} is over {MAX_PIXELS} pixels")
    return height, width


def encode_jpeg(picture: RGBPicture, quality: int = 92) -> bytes:
    """[H, W, 3] RGB -> JPEG."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"cannot encode a picture of shape {picture.shape} as JPEG")
    return data.tobytes()
