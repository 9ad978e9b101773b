"""A video of any length, indexed like an array of its frames and decoded when they are asked for.

Hosts sample a few frames, SAM2 visits all of them in order: neither needs the whole video in memory.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from schemas.video.errors import VideoError
from schemas.video.file import VideoFile
from schemas.video.order import in_picture_order
from schemas.video.pictures import decode_picture, picture_size

Picture = NDArray[np.uint8]
"""[H, W, 3] RGB."""
FOLDER_FPS = 24.0
"""Of pictures, which do not say."""
BACK = 16
"""Frames decoded at once where a video is read backwards."""
KEPT_BYTES = 256 << 20
"""Of those frames, where a file can only be entered far before them: going back is then a decode of all between."""


class Reader(Protocol):
    length: int
    height: int
    width: int
    fps: float

    def __call__(self, t: int) -> Picture:
        """Frame t. ValueError if it cannot be decoded."""
        ...

    def decoded_from(self, t: int) -> int:
        """The first frame that has to be decoded to get to frame t from anywhere."""
        ...


class Video:
    """[T, H, W, 3] uint8 RGB, to be read like an array: an index gives a frame, a slice a part that is read later, a
    list or array of indices those frames. Few frames are kept (`BACK`, `KEPT_BYTES`), and whoever asks next gets the
    same ones: do not write into them. Threads may share one."""

    ndim, dtype = 4, np.dtype(np.uint8)

    def __init__(self, reader: Reader, index: range | None = None, most: int | None = None):
        self._reader, self._index = reader, (index or range(reader.length))[:most]
        self.shape = (len(self._index), reader.height, reader.width, 3)
        self.size, self.fps = int(np.prod(self.shape)), reader.fps

    @classmethod
    def open(cls, path: str | Path, most: int | None = None) -> "Video":
        """A video file, or a folder of pictures by the numbers in their names; at most the first `most` frames.

        Frame i is picture i of `schemas.video.file.VideoFile`, as for curation. Opening a file decodes it once, to
        count. ValueError if it is neither, has no picture in it, or pictures of different sizes.
        """
        path = Path(path)
        with _named(path):
            if not path.exists():
                raise VideoError("no such video or folder")
            if not (
                path.is_dir() or path.is_file()
            ):  # a pipe would keep its reader waiting for ever
                raise VideoError("neither a file nor a folder")
            reader: Reader = _Folder(path) if path.is_dir() else _File(path, most)
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
        self._budget = max(2, KEPT_BYTES // (3 * reader.height * reader.width))
        self._latest: dict[int, Picture] = {}
        self._before: dict[int, Picture] = {}

    def __call__(self, t: int) -> Picture:
        with self._lock:
            for kept in (self._latest, self._before):
                if t in kept:
                    self._last = t
                    return kept[t]
            if t < self._last:
                first = max(0, t - self._how_many(t) + 1)
                self._before = {i: self._reader(i) for i in range(first, t + 1)}
            else:
                self._latest = {t: self._reader(t)}
            self._last = t
            return (self._latest | self._before)[t]

    def decoded_from(self, t: int) -> int:
        return self._reader.decoded_from(t)

    def _how_many(self, t: int) -> int:
        """Frames to keep when going back to frame t: more where it takes a long decode to get there."""
        decoded = t - self._reader.decoded_from(t) + 1
        return min(BACK if decoded <= 4 * BACK else decoded, self._budget)


class _Folder:
    fps = FOLDER_FPS

    def __init__(self, path: Path):
        self._path = path
        names = [file.name for file in path.iterdir()]
        self._files = [path / name for name in in_picture_order(names)]
        if not self._files:
            raise VideoError("no .jpg or .png in it")
        sizes = [self._read(file, picture_size) for file in self._files]  # of the headers alone
        for size, file in zip(sizes, self._files, strict=True):
            if size != sizes[0]:
                shown = f"{file.name} is {size[1]}x{size[0]}, not {sizes[0][1]}x{sizes[0][0]}"
                raise VideoError(f"pictures of different sizes: {shown}")
        (self.height, self.width), self.length = sizes[0], len(self._files)

    def __call__(self, t: int) -> Picture:
        with _named(self._path):
            picture = self._read(self._files[t], decode_picture)
            if picture.shape[:2] != (self.height, self.width):
                raise VideoError(f"{self._files[t].name} has another size than when it was opened")
            return picture

    def decoded_from(self, t: int) -> int:
        return t

    @staticmethod
    def _read(file: Path, how: Callable[[bytes], Any]) -> Any:
        if not file.is_file():  # a pipe would keep a reader waiting for ever
            raise VideoError(f"{file.name} is not a regular file")
        try:
            return how(file.read_bytes())
        except VideoError as error:
            raise VideoError(f"{file.name} cannot be read as a picture: {error}") from error


class _File:
    def __init__(self, path: Path, most: int | None):
        self._path, self._file = path, VideoFile(path)
        self._index = self._file.index(most)
        self.length, self.height, self.width = (
            self._index.count,
            self._index.height,
            self._index.width,
        )
        self.fps = self._index.fps or FOLDER_FPS

    def __call__(self, t: int) -> Picture:
        with _named(self._path):
            return self._file.picture(t)

    def decoded_from(self, t: int) -> int:
        point = self._index.before(t)
        return point.picture if point else 0


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of reading a video say which one."""
    try:
        yield
    except (VideoError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: cannot be read as a video: {reason}") from error


def as_frames(frames: Any) -> Any:
    """What grounding reads from: a path is opened, an array or `Video` [T, H, W, 3] uint8 stays. ValueError if it has
    another shape or type."""
    found: Any = Video.open(frames) if isinstance(frames, str | Path) else frames
    shape: tuple[int, ...] = getattr(found, "shape", ())
    dtype = getattr(found, "dtype", None)
    if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8:
        raise ValueError(f"frames must be [T, H, W, 3] uint8, not {list(shape)} {dtype}")
    return found
