"""Archives for the evaluation servers and the official toolkit, and a check of them.

| benchmark | entries | image |
|---|---|---|
| mevis | `<video>/<expression>/<frame>.png`, videos at the top of the zip | grey, 0 or 255 |
| ref-ytvos | `Annotations/<video>/<expression>/<frame>.png` | grey, 0 or 255 |
| ref-davis17 | `anno_<0..3>/<video>/<frame>.png`, all objects of an annotator in one | palette, index = object |

Nothing is left out: what failed or was never asked is blank. The same predictions give the same bytes.
"""

import io
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from model.evaluate.benchmarks.base import one_mask
from model.evaluate.benchmarks.ref_davis import RefDAVIS17
from model.evaluate.task import Benchmark, Prediction, Video
from schemas.files import replacing
from schemas.geometry import MAX_PIXELS
from schemas.records import Quarantined

_PREFIX = {"mevis": "", "ref-ytvos": "Annotations/"}
_SHOWN = 5
"""Examples per kind of problem."""


def write_archive(
    benchmark: Benchmark, predictions: Iterable[tuple[str, Mapping[str, Prediction]]], out: Path
) -> list[str]:
    """Writes a zip of (video id, predictions by query id), one video in memory at a time, in any order.

    Videos that do not come are written blank. Returns those that could not be, as nothing tells their size: neither a
    prediction nor an image. Raises ValueError for a benchmark without archives, an unknown video or one that comes
    twice; then there is no file.
    """
    _need_layout(benchmark)
    videos = {video.id: video for video in benchmark.videos()}
    left, unknown_size = dict(videos), []
    stored = zipfile.ZIP_STORED  # PNGs do not shrink
    with replacing(out) as part, zipfile.ZipFile(part, "w", stored) as archive:

        def add(video: Video, answers: Mapping[str, Prediction]) -> None:
            size = _size_of(video, answers)
            if size is None:
                unknown_size.append(video.id)
                return
            for path, image in _images(benchmark, video, answers, size):
                archive.writestr(_entry(path), _png(image))

        for name, answers in predictions:
            if name not in left:
                raise ValueError(
                    f"{benchmark.name} {benchmark.split} has no video {name!r}, or it came twice"
                )
            add(left.pop(name), answers)
        for video in left.values():
            add(video, {})
    return unknown_size


def check_archive(benchmark: Benchmark, path: Path) -> list[str]:
    """What a server would refuse or misread, in words; empty if nothing: entries that are missing, extra, double, of
    another size than the video's frames, no PNG, or with colours or values that mean nothing."""
    _need_layout(benchmark)
    try:
        with zipfile.ZipFile(path) as archive:
            return _problems(benchmark, archive)
    except (zipfile.BadZipFile, OSError) as error:
        return [f"{path} is not a zip file: {error}"]


def _need_layout(benchmark: Benchmark) -> None:
    if benchmark.name not in _PREFIX and not isinstance(benchmark, RefDAVIS17):
        raise ValueError(
            f"{benchmark.name} has no evaluation server: archives are for {', '.join(_PREFIX)} and "
            f"{RefDAVIS17.name}"
        )


def _folders(benchmark: Benchmark, video: Video) -> dict[str, str]:
    """Folder in the archive -> id of its query (or of its annotator)."""
    if isinstance(benchmark, RefDAVIS17):
        return {
            f"{group}/{video.id}": group
            for group in sorted({one.group for one in benchmark.queries(video)})
        }
    return {
        f"{_PREFIX[benchmark.name]}{video.id}/{one.id}": one.id for one in benchmark.queries(video)
    }


def _images(
    benchmark: Benchmark, video: Video, answers: Mapping[str, Prediction], size: tuple[int, int]
) -> Iterator[tuple[str, Image.Image]]:
    queries = {query.id: query for query in benchmark.queries(video)}
    for folder, key in _folders(benchmark, video).items():
        if isinstance(benchmark, RefDAVIS17):
            values_thw = benchmark.merged(video, key, answers, size)
        else:
            mask_thw = one_mask(answers.get(key), video, queries[key], size)
            values_thw = (
                np.zeros((len(video), *size), np.uint8)
                if mask_thw is None
                else mask_thw * np.uint8(255)
            )
        for frame, values_hw in zip(video.frames, values_thw, strict=True):
            image = Image.fromarray(values_hw)
            if isinstance(benchmark, RefDAVIS17):
                image.putpalette(davis_palette())
            yield f"{folder}/{frame}.png", image


def _size_of(video: Video, answers: Mapping[str, Prediction]) -> tuple[int, int] | None:
    """(height, width) of the images, else of the predictions."""
    try:
        data = video.root.read_bytes(video.media.image(0)) if video.frames else b""
        with Image.open(io.BytesIO(data)) as header:
            return header.height, header.width
    except (Quarantined, UnidentifiedImageError, Image.DecompressionBombError, OSError):
        sizes = [
            one.masks_nthw.shape[2:]
            for one in answers.values()
            if not one.error and len(one.masks_nthw)
        ]
        return sizes[0] if sizes else None


def davis_palette() -> list[int]:
    """DAVIS's 256 colours, as R, G, B, R, ...: of an index below 22, bits 0 to 2 give 128 and bits 3 to 5 give 64 to a
    channel each (63 where both do), other indices are grey (davis-2017, data/palette.txt)."""
    index = np.arange(256)[:, None] * np.ones(3, int)
    high, low = (index >> np.arange(3)) & 1, (index >> np.arange(3, 6)) & 1
    return np.where(index < 22, 128 * high + 64 * low - (high & low), index).ravel().tolist()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _entry(path: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
    info.external_attr = 0o644 << 16
    return info


def _problems(benchmark: Benchmark, archive: zipfile.ZipFile) -> list[str]:
    found: dict[str, list[str]] = defaultdict(list)
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    left = set(names)
    found["twice in the archive"] = sorted(
        name for name, times in Counter(names).items() if times > 1
    )
    for video in benchmark.videos():
        size = _size_of(video, {})
        for folder in _folders(benchmark, video):
            for frame in video.frames:
                path = f"{folder}/{frame}.png"
                if path not in left:
                    found["missing"].append(path)
                    continue
                left.remove(path)
                problem, image_size = _image_problem(benchmark, archive, path)
                size = size or image_size
                if problem is None and image_size != size:
                    problem = (
                        f"not of the video's size, which is {size[0]}x{size[1]}"
                        if size
                        else "of no size"
                    )
                if problem:
                    found[problem].append(path)
    found["not expected"] += sorted(left)
    problems = [_words(kind, paths) for kind, paths in found.items() if paths]
    if (hint := _shifted(found["missing"], left)) is not None:
        problems.append(
            f"all entries lie one folder too deep: zip the contents of {hint}/, not the folder"
        )
    return problems


def _image_problem(
    benchmark: Benchmark, archive: zipfile.ZipFile, path: str
) -> tuple[str | None, tuple[int, int] | None]:
    info = archive.getinfo(path)
    if info.file_size > MAX_PIXELS:
        return "larger than any mask", None
    try:
        with Image.open(io.BytesIO(archive.read(info))) as image:
            size = image.height, image.width
            if size[0] * size[1] > MAX_PIXELS:
                return f"over {MAX_PIXELS} pixels", size
            if image.format != "PNG" or image.mode not in ("P", "L", "1"):
                return f"{image.format} of mode {image.mode}, not a grey or palette PNG", size
            values = np.flatnonzero(image.histogram()[:256])
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        zipfile.BadZipFile,
        OSError,
    ) as error:
        return f"unreadable ({type(error).__name__})", None
    if isinstance(benchmark, RefDAVIS17):
        if len(values) and values[-1] > 20:
            return "with an index above 20, which the official tool refuses", size
    elif len(values[values > 0]) > 1:
        return "with more than one value beside 0: any of them counts as the object", size
    return None, size


def _words(kind: str, paths: list[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return f"{kind}: {', '.join(paths[:_SHOWN])}{more}"


def _shifted(missing: list[str], extra: set[str]) -> str | None:
    """The folder that all extra entries lie in, if without it they were the missing ones."""
    tops = {path.partition("/")[0] for path in extra}
    if len(tops) == 1 and missing and {path.partition("/")[2] for path in extra} >= set(missing):
        return tops.pop()
    return None
