"""Picture files: one decoder for all."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from schemas.video.errors import TooLargeError, VideoError
from schemas.video.pictures import decode_picture, encode_jpeg
from tests.schemas.video.made import number, numbered

RAMP = np.linspace(0, 65535, 64 * 96).astype(np.uint16).reshape(64, 96)


def saved(picture: np.ndarray | Image.Image, form: str, **options) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_16_bits_become_8_by_their_upper_byte():
    grey = saved(RAMP, "PNG")
    assert np.array_equal(decode_picture(grey), np.repeat((RAMP >> 8)[..., None], 3, 2))
    colour = np.stack([RAMP, RAMP[::-1], RAMP // 2], -1)
    done, data = cv2.imencode(".png", colour[..., ::-1])
    assert done
    assert np.array_equal(decode_picture(data.tobytes()), colour >> 8)


def test_alpha_is_dropped_and_not_blended():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, 3
    assert (decode_picture(saved(rgba, "PNG")) == (200, 0, 0)).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "CMYK"])
def test_every_kind_of_pixel_becomes_rgb(mode):
    image = Image.fromarray(numbered(30)[29]).convert(mode)
    form = "JPEG" if mode == "CMYK" else "PNG"
    picture = decode_picture(saved(image, form))
    assert (picture.shape, picture.dtype) == ((64, 96, 3), np.uint8)
    assert number(picture) == 29


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(numbered(6)[5], "JPEG", exif=exif)
    assert decode_picture(turned).shape == (64, 96, 3)
    assert number(decode_picture(turned)) == 5


def test_a_header_that_promises_too_much_is_refused_before_pixels_are_allocated():
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(TooLargeError, match="more than"):
        decode_picture(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end)


def test_a_cut_picture_is_refused():
    rng = np.random.default_rng(0)
    whole = encode_jpeg(rng.integers(0, 255, (64, 96, 3), np.uint8))
    for share in (0, 0.01, 0.3, 0.9):
        with pytest.raises(VideoError):
            decode_picture(whole[: int(share * len(whole))])


def test_jpeg_there_and_back():
    picture = numbered(6)[5]
    assert number(decode_picture(encode_jpeg(picture))) == 5
    assert encode_jpeg(picture) == encode_jpeg(picture)
