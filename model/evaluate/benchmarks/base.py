"""What the benchmarks share: roots that are nearly right, palette PNGs, one mask per query, means and their bounds."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import TypeAdapter, ValidationError

from model.evaluate.task import Prediction, Query, Row, Video
from model.metrics import Interval, bootstrap, expression_score
from pipeline.sources.base import DataRoot, locate
from schemas.geometry import MAX_PIXELS
from schemas.records import Quarantined


def base_folder(root: DataRoot, folders: Sequence[str], probe: str, expected: str) -> str:
    """Which of `folders` ("" or ending in a slash) below the root holds `probe`; ValueError if none does.

    The message shows what was expected, and what lies there instead.
    """
    base = locate(root, folders, [probe])
    if not root.has(base + probe):
        found = [
            f"  {path.name}/" if path.is_dir() else f"  {path.name}"
            for path in sorted(root.path.iterdir())
        ]
        lies = (
            "\n".join(found[:12]) + ("\n  ..." if len(found) > 12 else "") if found else "  nothing"
        )
        raise ValueError(f"{probe} is not under {root.path}. Expected:\n{expected}\nFound:\n{lies}")
    return base


def read_json(root: DataRoot, relative: str, shape: Any) -> Any:
    """An annotation file as pydantic reads the type `shape`; ValueError with file and place of the first fault.

    One damaged entry stops the benchmark: a score over the others would not be the benchmark's.
    """
    try:
        return TypeAdapter(shape).validate_python(root.read_json(relative))
    except Quarantined as problem:
        raise ValueError(f"{problem.message} (under {root.path})") from problem
    except ValidationError as error:
        first = error.errors()[0]
        place = " > ".join(str(part) for part in first["loc"])
        raise ValueError(
            f"{relative} (under {root.path}), at {place}: {first['msg']}; the annotation file is damaged "
            "or not the official one"
        ) from error


def read_index_mask(
    root: DataRoot, relative: str, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """A palette or grey PNG -> its indices [H, W]. ValueError if it is not there, colourful, or not of `size`."""
    try:
        with Image.open(io.BytesIO(root.read_bytes(relative))) as picture:
            if picture.height * picture.width > MAX_PIXELS:
                raise ValueError(
                    f"{relative}: {picture.width}x{picture.height} is over {MAX_PIXELS} pixels"
                )
            if picture.mode not in ("P", "L", "1"):
                raise ValueError(
                    f"{relative}: a mask is a palette or grey image, this one's mode is {picture.mode}"
                )
            mask_hw = np.asarray(picture).astype(np.uint8)
    except Quarantined as problem:
        raise ValueError(f"{problem.message} (under {root.path})") from problem
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise ValueError(f"{relative} (under {root.path}): {error}") from error
    if size is not None and mask_hw.shape != size:
        raise ValueError(
            f"{relative}: {mask_hw.shape[0]}x{mask_hw.shape[1]}, other frames {size[0]}x{size[1]}"
        )
    return mask_hw


def read_index_masks(root: DataRoot, files: Iterable[str]) -> NDArray[np.uint8]:
    """The PNGs of one video -> [T, H, W]. Raises ValueError as `read_index_mask`."""
    masks: list[NDArray[np.uint8]] = []
    for file in files:
        masks.append(read_index_mask(root, file, masks[0].shape if masks else None))
    if not masks:
        raise ValueError(f"no masks under {root.path}")
    return np.stack(masks)


def tracks(
    prediction: Prediction, video: Video, query: Query, size: tuple[int, int]
) -> NDArray[np.bool_]:
    """The prediction's masks [N, T, H, W] after a check of their shape; ValueError if it is another one."""
    masks_nthw = prediction.masks_nthw
    if masks_nthw.ndim != 4 or (len(masks_nthw) and masks_nthw.shape[1:] != (len(video), *size)):
        raise ValueError(
            f"{video.id}/{query.id}: prediction {list(masks_nthw.shape)}, needed are [N, T, H, W] tracks "
            f"with T={len(video)}, H={size[0]}, W={size[1]}"
        )
    return masks_nthw.astype(bool) if len(masks_nthw) else np.zeros((0, len(video), *size), bool)


def one_mask(
    prediction: Prediction | None, video: Video, query: Query, size: tuple[int, int]
) -> NDArray[np.bool_] | None:
    """[T, H, W]: all tracks of a prediction together, empty if there are none; None if it is missing or failed."""
    if prediction is None or prediction.error:
        return None
    return np.asarray(tracks(prediction, video, query, size).any(0), bool)


def row(video: Video, query: Query, prediction: Prediction | None, **scores: Any) -> Row:
    error = "no prediction" if prediction is None else prediction.error
    return {
        "video": video.id,
        "query": query.id,
        "group": query.group,
        "kind": query.kind,
        "error": error,
        **scores,
    }


def expression_rows(
    video: Video,
    queries: Sequence[Query],
    predictions: Mapping[str, Prediction],
    truth: Callable[[Video, Query, tuple[int, int]], NDArray[np.bool_]],
) -> list[Row]:
    """J, F and J&F of each expression, means over frames; 0 without an answer.

    truth: (video, query, size of the prediction) -> masks [T, H, W].
    """
    rows = []
    for query in queries:
        prediction, j, f = predictions.get(query.id), 0.0, 0.0
        if prediction is not None and not prediction.error:
            truth_thw = truth(video, query, prediction.masks_nthw.shape[-2:])
            score = expression_score(
                one_mask(prediction, video, query, truth_thw.shape[1:]), truth_thw
            )
            j, f = score["J"], score["F"]
        rows.append(row(video, query, prediction, J=j, F=f, **{"J&F": (j + f) / 2}))
    return rows


def mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    if not rows:
        raise ValueError("rows: no query to average over")
    return float(np.mean([one[key] for one in rows]))


def interval(
    rows: Sequence[Mapping[str, Any]], key: str, weights: str | None = None, by: str = "video"
) -> Interval:
    """`bootstrap` of a column, or of the ratio of two; `by`: the column that says which rows belong together."""
    return bootstrap(
        [one[key] for one in rows],
        None if weights is None else [one[weights] for one in rows],
        [str(one[by]) for one in rows],
    )
