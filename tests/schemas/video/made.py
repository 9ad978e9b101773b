"""Small videos for the tests of reading them: numbered pictures, encoded and packed as real files are."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

HEIGHT, WIDTH, RATE = 64, 96, 25


def numbered(n: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """[n, H, W, 3] pictures that carry their number as eight black or white blocks along the top."""
    frames = np.full((n, height, width, 3), 90, np.uint8)
    for t in range(n):
        for bit in range(8):
            left, right = bit * width // 8, (bit + 1) * width // 8
            frames[t, : height // 2, left:right] = 255 * (t >> bit & 1)
    return frames


def number(picture: np.ndarray) -> int:
    height, width = picture.shape[:2]
    blocks = [picture[height // 4, (2 * bit + 1) * width // 16].mean() > 128 for bit in range(8)]
    return sum(int(block) << bit for bit, block in enumerate(blocks))


def encode(
    path: Path,
    codec: str = "libx264",
    *,
    frames: np.ndarray | None = None,
    pixels: str = "yuv420p",
    gop: int = 12,
    times: Callable[[int], int] = int,
    container: str | None = None,
    prepare: Callable[[av.VideoStream], None] = lambda stream: None,
    **options: str,
) -> Path:
    """Pictures in a file. times: number -> time in units of 1/RATE. prepare: settings of the stream."""
    pictures = numbered(40) if frames is None else frames
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=RATE)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = pixels
        stream.options = {"g": str(gop), **options}
        prepare(stream)
        for t, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = times(t), Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def forward(path: Path) -> list[np.ndarray]:
    """Every picture in the order of output, by PyAV alone."""
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def packed(path: Path, *sources: Path, default: Iterable[int] = ()) -> Path:
    """The video streams of several files in one; those of the numbers `default` have that disposition."""
    with av.open(str(path), "w") as target:
        opened = [av.open(str(source)) for source in sources]
        streams = [target.add_stream_from_template(one.streams.video[0]) for one in opened]
        for n, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if n in default else 0
        for one, stream in zip(opened, streams, strict=True):
            for packet in one.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
            one.close()
    return path
