"""Pictures as one video file, where a format asks for that."""

import io
from collections.abc import Sequence

import av
import cv2
import numpy as np

from schemas.video.pictures import decode_picture
from schemas.video.stored import state_colours


def encode_video(
    pictures: Sequence[bytes], size: tuple[int, int], fps: float, *, repeat: int = 1
) -> bytes:
    """JPEGs of (height, width) -> an h264 mp4 with each `repeat` times in a row; odd sizes are padded by a pixel.

    ValueError for bytes that are no picture.
    """
    height, width = size
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(fps))
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        stream.height, stream.width = height + height % 2, width + width % 2
        state_colours(stream.codec_context)
        stream.options = {"crf": "18", "bf": "0", "preset": "veryfast"}
        for data in pictures:
            picture = decode_picture(data)
            even = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
            yuv = np.asarray(cv2.cvtColor(even, cv2.COLOR_RGB2YUV_I420), np.uint8)
            for _ in range(repeat):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(yuv, format="yuv420p")))
        container.mux(stream.encode())
    return buffer.getvalue()
