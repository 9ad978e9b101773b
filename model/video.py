"""A video of any length, indexed like an array of its frames and decoded when they are asked for.

Hosts sample a few frames, SAM2 visits all of them in order: neither needs the whole video in memory.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from schemas.geometry import MAX_PIXELS

Picture = NDArray[np.uint8]
"""[H, W, 3] RGB."""
PICTURES = (".jpg", ".jpeg", ".png")
FOLDER_FPS = 24.0
"""Of pictures, which do not say."""
BACK = 16
"""Frames decoded at once where a video is read backwards."""


class Reader(Protocol):
    length: int
    height: int
    width: int
    fps: float

    def __call__(self, t: int) -> Picture:
        """Frame t. ValueError if it cannot be decoded."""
        ...


class Video:
    """[T, H, W, 3] uint8 RGB, to be read like an array: an index gives a frame, a slice a part that is read later, a
    list or array of indices those frames. At most `BACK` + 1 frames are kept, and whoever asks next gets the same
    ones: do not write into them. Threads may share one."""

    ndim, dtype = 4, np.dtype(np.uint8)

    def __init__(self, reader: Reader, index: range | None = None, most: int | None = None):
        self._reader, self._index = reader, (index or range(reader.length))[:most]
        self.shape = (len(self._index), reader.height, reader.width, 3)
        self.size, self.fps = int(np.prod(self.shape)), reader.fps

    @classmethod
    def open(cls, path: str | Path, most: int | None = None) -> "Video":
        """A video file, or a folder of pictures in the order of their names; at most the first `most` frames.

        ValueError if it is neither, has no picture in it, or pictures of different sizes.
        """
        path = Path(path)
        if not path.exists():
            raise ValueError(f"{path}: no such video or folder")
        reader: Reader = _Folder(path) if path.is_dir() else _File(path)
        return cls(_Kept(reader), most=most)

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, wanted: slice) -> "Video": ...
    @overload
    def __getitem__(self, wanted: int | Sequence[int] | NDArray[np.integer]) -> Picture: ...
    def __getitem__(self, wanted: Any) -> Any:
        if isinstance(wanted, slice):
            return Video(self._reader, self._index[wanted])
        if isinstance(wanted, int | np.integer):
            return self._reader(self._index[wanted])
        return np.stack([self._reader(self._index[int(t)]) for t in wanted])

    def __iter__(self) -> Iterator[Picture]:
        return map(self._reader, self._index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        return np.asarray(
            np.stack(list(self)) if len(self) else np.empty(self.shape, np.uint8), dtype
        )


class _Kept:
    """A reader that keeps its latest frame, and the frames before the one that was last asked for by going back: so
    reading backwards, or both ways in turns, decodes nothing for every frame."""

    def __init__(self, reader: Reader):
        self.length, self.height, self.width, self.fps = (
            reader.length,
            reader.height,
            reader.width,
            reader.fps,
        )
        self._reader, self._lock, self._last = reader, Lock(), -1
        self._latest: dict[int, Picture] = {}
        self._before: dict[int, Picture] = {}

    def __call__(self, t: int) -> Picture:
        with self._lock:
            for kept in (self._latest, self._before):
                if t in kept:
                    self._last = t
                    return kept[t]
            if t < self._last:
                self._before = {i: self._reader(i) for i in range(max(0, t - BACK + 1), t + 1)}
            else:
                self._latest = {t: self._reader(t)}
            self._last = t
            return (self._latest | self._before)[t]


class _Folder:
    fps = FOLDER_FPS

    def __init__(self, path: Path):
        self._files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        if not self._files:
            raise ValueError(f"{path}: no .jpg or .png in it")
        sizes = [(self._header(file), file) for file in self._files]
        for size, file in sizes:  # of the headers alone
            if size != sizes[0][0]:
                raise ValueError(
                    f"{path}: pictures of different sizes: {file.name} is {size}, not {sizes[0][0]}"
                )
        (self.width, self.height), self.length = sizes[0][0], len(self._files)
        _check_size(path, self.height, self.width)

    def _header(self, file: Path) -> tuple[int, int]:
        try:
            with Image.open(file) as picture:
                return picture.size
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
            raise ValueError(f"{file}: cannot be read as a picture: {error}") from error

    def __call__(self, t: int) -> Picture:
        try:
            with Image.open(self._files[t]) as picture:
                return np.array(picture.convert("RGB"))
        except OSError as error:
            raise ValueError(f"{self._files[t]}: cannot be read as a picture: {error}") from error


class _File:
    """Frames by PyAV. The file is demuxed once, without decoding, for the time of every frame and which are key frames;
    going forward decodes on, going elsewhere seeks to the key frame before. Pictures are turned as players turn them.
    """

    def __init__(self, path: Path):
        self.path, self._next = path, 0
        try:
            self._open()
            stream = self._container.streams.video[0]
            _check_size(path, stream.height, stream.width)
            packets = [p for p in self._container.demux(stream) if p.size and not p.is_discard]
            timed = all(p.pts is not None for p in packets) and len(
                {p.pts for p in packets}
            ) == len(packets)
            self._times = sorted(p.pts for p in packets if p.pts is not None) if timed else []
            self._keys = (
                sorted(p.pts for p in packets if p.is_keyframe and p.pts is not None)
                if timed
                else []
            )
            self._open()
            self.length = (
                len(packets) if timed else sum(1 for _ in self._decoded)
            )  # old containers: by decoding all
            self._open()
            first = self._picture(next(self._decoded))
        except (self._errors(), IndexError, StopIteration) as error:
            raise ValueError(
                f"{path}: cannot be read as a video: {error or 'no picture in it'}"
            ) from error
        self.height, self.width = first.shape[:2]
        rate = self._container.streams.video[0].average_rate
        self.fps = float(rate) if rate else FOLDER_FPS
        self._open()

    @staticmethod
    def _errors() -> type[Exception]:
        from av.error import FFmpegError

        return FFmpegError

    def _open(self) -> None:
        import av

        self._container = av.open(str(self.path))
        self._container.streams.video[0].thread_type = "AUTO"
        self._decoded, self._next = self._container.decode(video=0), 0

    def __call__(self, t: int) -> Picture:
        try:
            self._go(t)
            for frame in self._decoded:
                here = self._index(frame.pts) if self._times else self._next
                self._next = here + 1
                if here >= t:
                    return self._picture(frame)
        except self._errors() as error:
            raise ValueError(f"{self.path}: frame {t} cannot be decoded: {error}") from error
        raise ValueError(
            f"{self.path}: has only {self._next} frames that can be decoded, not {self.length}"
        )

    def _go(self, t: int) -> None:
        """Stand at or before frame t, no further back than its key frame unless already between the two."""
        key = self._key_before(t)
        if key <= self._next <= t:
            return
        if not self._times or key == 0:
            self._open()
            return
        self._container.seek(self._times[key], stream=self._container.streams.video[0])
        self._decoded, self._next = self._container.decode(video=0), key

    def _key_before(self, t: int) -> int:
        if not self._times:
            return 0
        place = bisect_right(self._keys, self._times[t])
        return bisect_left(self._times, self._keys[place - 1]) if place else 0

    def _index(self, pts: int | None) -> int:
        return self._next if pts is None else bisect_left(self._times, pts)

    def _picture(self, frame: Any) -> Picture:
        return np.ascontiguousarray(
            np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
        )


def _check_size(path: Path, height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"{path}: {width}x{height} is over {MAX_PIXELS} pixels")


def as_frames(frames: Any) -> Any:
    """What grounding reads from: a path is opened, an array or `Video` [T, H, W, 3] uint8 stays. ValueError if it has
    another shape or type."""
    found: Any = Video.open(frames) if isinstance(frames, str | Path) else frames
    shape: tuple[int, ...] = getattr(found, "shape", ())
    dtype = getattr(found, "dtype", None)
    if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8:
        raise ValueError(f"frames must be [T, H, W, 3] uint8, not {list(shape)} {dtype}")
    return found
