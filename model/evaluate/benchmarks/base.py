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
from pipeline.sources.base import DataRoot, clean, locate
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


def checked(value: object, shape: Any, where: str) -> Any:
    """`value` as pydantic reads the type `shape`; ValueError with the first fault."""
    try:
        return TypeAdapter(shape).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = " > ".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}{', at ' * bool(place)}{place}: {first['msg']}") from error


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
        "unscored": "",
        **scores,
    }


def unscored(
    video: Video, query: Query, prediction: Prediction | None, reason: object, *columns: str
) -> Row:
    """The row of a query whose annotation is at fault: nothing in these columns, and the reason."""
    scores = dict.fromkeys(columns)
    error = "" if query.fault or prediction is None else prediction.error
    return row(video, query, prediction, **scores) | {"error": error, "unscored": str(reason)}


def scored_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that have a score."""
    return [one for one in rows if not one.get("unscored")]


def expression_of(key: str, video: str, entry: object, file: str, **more: Any) -> Query:
    """The query of an entry `{"exp": text}`; with a fault, and not asked, where it has no text. more: of `Query`."""
    given = entry.get("exp") if isinstance(entry, Mapping) else None
    text = clean(given) if isinstance(given, str) else ""
    fault = "" if text else f"{file}: {video}/{key} has no `exp`"
    return Query(key, video, text, fault=fault, **more)


def object_id_of(key: str, video: str, entry: object, file: str) -> int:
    """The `obj_id` of an entry. ValueError where it has none, or one that is no number."""
    given = entry.get("obj_id") if isinstance(entry, Mapping) else None
    if type(given) is int or (isinstance(given, str) and given.isdecimal() and len(given) < 9):
        return int(given)
    raise ValueError(f"{file}: {video}/{key} has no `obj_id` that is a number: {given!r:.40}")


def expression_rows(
    video: Video,
    queries: Sequence[Query],
    predictions: Mapping[str, Prediction],
    truth: Callable[[Video, Query, tuple[int, int]], NDArray[np.bool_]],
) -> list[Row]:
    """J, F and J&F of each expression, means over frames; 0 without an answer.

    truth: (video, query, size of the prediction) -> masks [T, H, W]. An expression without target has a truth that is
    empty in every frame: an answer without mask scores 1, any other 0. target, answered: whether the truth and the
    answer have a mask at all.
    """
    rows = []
    for query in queries:
        prediction = predictions.get(query.id)
        size = (0, 0) if prediction is None else prediction.masks_nthw.shape[-2:]
        try:
            if query.fault:
                raise ValueError(query.fault)
            truth_thw = truth(video, query, size)
        except ValueError as error:
            columns = ("J", "F", "J&F", "target", "answered")
            rows.append(unscored(video, query, prediction, error, *columns))
            continue
        target, answered, j, f = bool(truth_thw.any()), False, 0.0, 0.0
        mask_thw = one_mask(prediction, video, query, truth_thw.shape[1:])
        if mask_thw is not None:
            answered = bool(mask_thw.any())
            j, f = _expression_score(mask_thw, truth_thw)
        scores = {"J": j, "F": f, "J&F": (j + f) / 2, "target": target, "answered": answered}
        rows.append(row(video, query, prediction, **scores))
    return rows


def _expression_score(
    mask_thw: NDArray[np.bool_], truth_thw: NDArray[np.bool_]
) -> tuple[float, float]:
    """J and F; of an expression without target 1 or 0 as a whole."""
    if not truth_thw.any():
        return (0.0, 0.0) if mask_thw.any() else (1.0, 1.0)
    score = expression_score(mask_thw, truth_thw)
    return score["J"], score["F"]


def target_accuracies(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """N-acc, T-acc: shares of the expressions without and with a target that are answered so. Nothing where every
    expression has a target, as in the first MeViS."""
    known = [one for one in scored_rows(rows) if one.get("target") is not None]
    without = [one for one in known if not one["target"]]
    having = [one for one in known if one["target"]]
    if not without:
        return {}
    accuracies = {"N-acc": float(np.mean([not one["answered"] for one in without]))}
    if having:
        accuracies["T-acc"] = float(np.mean([bool(one["answered"]) for one in having]))
    return accuracies


def mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    known = scored_rows(rows)
    if not known:
        raise ValueError("rows: no query to average over")
    return float(np.mean([one[key] for one in known]))


def interval(
    rows: Sequence[Mapping[str, Any]], key: str, weights: str | None = None, by: str = "video"
) -> Interval:
    """`bootstrap` of a column, or of the ratio of two; `by`: the column that says which rows belong together."""
    known = scored_rows(rows)
    return bootstrap(
        [one[key] for one in known],
        None if weights is None else [one[weights] for one in known],
        [str(one[by]) for one in known],
    )
