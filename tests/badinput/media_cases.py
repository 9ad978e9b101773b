"""Pictures and videos: headers that lie, streams without frames, other kinds of files, wrong counts and rates."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
import numpy as np

from schemas.video.pictures import encode_jpeg
from schemas.video.stored import encode_mp4
from tests.badinput.corpora import FRAMES, SIZE, Files
from tests.badinput.spoil import KINDS, Case, become, gone, kind

VIDEOS = {
    "hcstvg": "video/part_1/1_b11d59350ca.mp4",
    "a2d": "Release/clips320H/f10ba829F9c.mp4",
    "refsav": "sam_v_full/sav_train/sav_000/sav_000026.mp4",
}
IMAGES = {
    "vid_sentence": "data/ILSVRC/Data/VID/train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000006/000003.JPEG",
    "lasot": "cat/cat-2/img/00000004.jpg",
    "mevis": "train/JPEGImages/afdd3c5da858/00003.jpg",
    "got10k": "train/GOT-10k_Train_000022/00000004.jpg",
}
GREY = np.full((*SIZE, 3), 90, np.uint8)


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header says `width` x `height`, whatever `data` holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def resized(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header says another size."""
    at = next(i for i in range(len(jpeg)) if jpeg[i : i + 2] in (b"\xff\xc0", b"\xff\xc2"))
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def muxed(
    form: str,
    codec: str,
    frames: int,
    *,
    rate: int = 24,
    gap: Callable[[int], int] = int,
    audio: bool = False,
    size: tuple[int, int] = SIZE,
) -> bytes:
    """A video of `frames` grey pictures in container `form`; `gap(t)` gives the time of frame t in frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        if audio:
            sound = container.add_stream("aac", rate=8000, layout="mono")
        stream = container.add_stream(codec, rate=rate) if frames or not audio else None
        if stream is not None:
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p" if codec != "mjpeg" else "yuvj420p"
            stream.thread_count = 1
        if audio:
            for start in range(0, 8000, 1024):
                tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                tone.sample_rate, tone.pts = 8000, start
                container.mux(sound.encode(tone))
            container.mux(sound.encode(None))
        for t in range(frames):
            assert stream is not None
            picture = av.VideoFrame.from_ndarray(
                np.full((*size, 3), 20 * t % 255, np.uint8), "rgb24"
            ).reformat(format=stream.pix_fmt)
            picture.pts, picture.time_base = gap(t), Fraction(1, rate)
            container.mux(stream.encode(picture))
        if stream is not None and frames:
            container.mux(stream.encode(None))
    return buffer.getvalue()


def videos() -> dict[str, Callable[[bytes], bytes]]:
    def flip(share: float, count: int) -> Callable[[bytes], bytes]:
        def change(data: bytes) -> bytes:
            out, rng = bytearray(data), np.random.default_rng(int(100 * share))
            for at in rng.integers(int(share * len(data)), len(data), count):
                out[at] ^= 0xFF
            return bytes(out)

        return change

    return {
        "empty": lambda d: b"",
        "one byte": lambda d: b"\0",
        "html": lambda d: b"<html>404",
        "zeros": lambda d: bytes(len(d)),
        "cut at 10%": lambda d: d[: len(d) // 10],
        "cut at half": lambda d: d[: len(d) // 2],
        "cut at 90%": lambda d: d[: len(d) * 9 // 10],
        "no head": lambda d: d[len(d) // 2 :],
        "head alone": lambda d: d[:48],
        "tail": lambda d: d + bytes(999),
        "flipped at the end": flip(0.8, 5),
        "flipped all over": flip(0.0, 50),
        "a picture": lambda d: encode_jpeg(GREY),
        "a png of 10^9 x 10^9": lambda d: png(10**9, 10**9),
        "text": lambda d: "čeština\n".encode() * 999,
        "playlist": lambda d: b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        "concat list": lambda d: b"ffconcat version 1.0\nfile /etc/passwd\n",
        "audio alone": lambda d: muxed("mp4", "", 0, audio=True),
        "with audio": lambda d: muxed("mp4", "libx264", FRAMES, audio=True),
        "no frames": lambda d: muxed("mp4", "libx264", 0),
        "one frame": lambda d: muxed("mp4", "libx264", 1),
        "a frame less": lambda d: muxed("mp4", "libx264", FRAMES - 1),
        "half the frames": lambda d: muxed("mp4", "libx264", FRAMES // 2),
        "twice the frames": lambda d: muxed("mp4", "libx264", 2 * FRAMES),
        "variable rate": lambda d: muxed("mp4", "libx264", FRAMES, gap=lambda t: t * t),
        "long pause": lambda d: muxed("mp4", "libx264", FRAMES, gap=lambda t: t + 10_000 * (t > 5)),
        "late start": lambda d: muxed("mp4", "libx264", FRAMES, gap=lambda t: t + 500),
        "rate of 1000": lambda d: muxed("mp4", "libx264", FRAMES, rate=1000),
        "matroska": lambda d: muxed("matroska", "libx264", FRAMES),
        "avi mpeg4": lambda d: muxed("avi", "mpeg4", FRAMES),
        "motion jpeg": lambda d: muxed("mov", "mjpeg", FRAMES),
        "transport stream": lambda d: muxed("mpegts", "libx264", FRAMES),
        "motion jpeg of 16000 x 16000": lambda d: _huge(muxed("mov", "mjpeg", FRAMES)),
        "another size": lambda d: muxed("mp4", "libx264", FRAMES, size=(48, 64)),
        "2 x 2": lambda d: muxed("mp4", "libx264", FRAMES, size=(2, 2)),
        "brands of mp4 alone": lambda d: d.replace(b"moov", b"free"),
        "no sample table": lambda d: d.replace(b"stsz", b"free"),
        "sample count 2^32": lambda d: _patched(d, b"stsz", 12, 2**32 - 1),
        "timescale 0": lambda d: _patched(d, b"mdhd", 12, 0),
        "size in the header 2^16": lambda d: _patched(d, b"avc1", 24, 2**32 - 1),
    }


def _patched(mp4: bytes, box: bytes, offset: int, value: int) -> bytes:
    """32 bits of a box, counted from behind its name, become another number."""
    at = mp4.index(box) + 4 + offset
    return mp4[:at] + struct.pack(">I", value) + mp4[at + 4 :]


def _huge(movie: bytes) -> bytes:
    """Every picture of a motion JPEG says that it is 16000 x 16000."""
    return movie.replace(struct.pack(">HH", *SIZE), struct.pack(">HH", 16_000, 16_000))


def images() -> dict[str, Callable[[bytes], bytes]]:
    bmp = b"BM" + struct.pack(
        "<IIIIiiHHIIiiII", 54, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0
    )
    return {
        "empty": lambda d: b"",
        "one byte": lambda d: b"\xff",
        "html": lambda d: b"<html>404",
        "zeros": lambda d: bytes(len(d)),
        "head alone": lambda d: d[:30],
        "cut at half": lambda d: d[: len(d) // 2],
        "without the end": lambda d: d[:-2],
        "tail": lambda d: d + bytes(99),
        "jpeg of 65535 x 65535": lambda d: resized(d, 65535, 65535),
        "jpeg of 9000 x 9000": lambda d: resized(d, 9000, 9000),
        "jpeg of 0 x 0": lambda d: resized(d, 0, 0),
        "png of 10^9 x 10^9": lambda d: png(10**9, 10**9),
        "png of 31623 x 31623": lambda d: png(31623, 31623),
        "png of 8000 x 8000": lambda d: png(8000, 8000, bytes(99)),
        "png of 0": lambda d: png(0, 0),
        "png": lambda d: png(96, 72, bytes(72 * (1 + 3 * 96))),
        "bomb": lambda d: png(20_000, 20_000, bytes(20_000)),
        "bmp of 30000 x 30000": lambda d: bmp,
        "gif": lambda d: b"GIF89a\xff\xff\xff\xff\0\0\0;",
        "svg": lambda d: b'<svg width="1e9" height="1e9"/>',
        "tiff": lambda d: b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 99,
        "webp": lambda d: b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 40,
        "a video": lambda d: encode_mp4(np.stack([GREY] * 3), 24),
        "another size": lambda d: encode_jpeg(GREY[:40, :50]),
        "1 x 1": lambda d: encode_jpeg(GREY[:1, :1]),
        "flipped": lambda d: d[:300] + bytes(b ^ 0xFF for b in d[300:600]) + d[600:],
        "eps": lambda d: (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 999999 999999\n(/etc/passwd) run\n"
        ),
    }


def all_cases() -> list[Case]:
    def made() -> Iterator[Case]:
        for places, ways, group in ((VIDEOS, videos(), "video"), (IMAGES, images(), "image")):
            for source, file in places.items():
                yield from (
                    Case(source, group, name, become(file, way)) for name, way in ways.items()
                )
                yield Case(source, group, "not there", gone(file))
                yield from (Case(source, f"{group} is a", what, kind(file, what)) for what in KINDS)
                yield from (
                    Case(source, f"{group} is a", f"{what}, --follow-links", kind(file, what), True)
                    for what in ("link out", "link loop")
                )

    return [*made(), Case("hcstvg", "links", "two up the tree, --follow-links", _up_the_tree, True)]


def _up_the_tree(files: Files) -> None:
    for name in ("a", "b"):
        files[f"video/{name}"] = lambda path, outside: path.symlink_to("..")
