"""Select: the few frames of a track that together show what the target looks like.

Paper, section 3.2: K-means in a joint visual-spatial feature space, the sample nearest to each centroid is kept. The
released code clusters inside the model instead, on features alone: `release_kmeans`.
"""

import math
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from schemas.config import Config
from schemas.geometry import is_box


class SelectConfig(Config):
    """k: representatives per target (paper: 4). spatial_weight: weight of the box beside the appearance, see
    `select_representatives`; 0 ignores boxes, as the released code does. max_candidates: kept frames that are cropped
    and encoded (the release's 16), or "all". crop_margin: context around the box, a share of its size on each side."""

    k: int = 4
    spatial_weight: float = 0.5
    max_candidates: Annotated[int, Field(ge=1)] | Literal["all"] = 16
    crop_margin: float = 0.0


def evenly_spaced(n: int, count: int) -> NDArray[np.int64]:
    """`count` of the indices 0 .. n-1, ends included, ascending and distinct; all of them if count >= n."""
    if count >= n:
        return np.arange(n, dtype=np.int64)
    if count <= 1:
        return np.full(count, n // 2, np.int64)
    return (2 * np.arange(count, dtype=np.int64) * (n - 1) + count - 1) // (2 * (count - 1))


def candidates(kept: NDArray[np.bool_], max_candidates: int | Literal["all"]) -> NDArray[np.int64]:
    """Frames [C] out of the kept frames [T], at most `max_candidates`, evenly spaced over them."""
    frames = np.flatnonzero(kept).astype(np.int64)
    return frames[
        evenly_spaced(frames.size, frames.size if max_candidates == "all" else max_candidates)
    ]


def crop(frame: NDArray[np.uint8], box: ArrayLike, margin: float = 0.0) -> NDArray[np.uint8]:
    """The pixels [h, w, 3] of the original frame that the box (xyxy, half-open) touches, at least one.

    margin: context on each side as a share of the box's width and height; cut at the border of the frame.
    """
    x1, y1, x2, y2 = (float(v) for v in np.asarray(box, np.float64))
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise ValueError(f"crop: box {[x1, y1, x2, y2]} is absent")
    dx, dy = margin * (x2 - x1), margin * (y2 - y1)
    left, right = _span(x1 - dx, x2 + dx, frame.shape[1])
    top, bottom = _span(y1 - dy, y2 + dy, frame.shape[0])
    return frame[top:bottom, left:right].copy()


def _span(start: float, stop: float, size: int) -> tuple[int, int]:
    first = min(max(math.floor(start), 0), size - 1)
    return first, max(min(math.ceil(stop), size), first + 1)


def load_kmeans() -> None:
    """Import and try what `select_representatives` needs: seconds that should not be charged to the first clip."""
    points = np.arange(12, dtype=np.float64).reshape(6, 2)
    boxes = np.tile(np.array([0, 0, 2, 2], np.float64), (6, 1))
    select_representatives(points, boxes, (4, 4), k=2)


def select_representatives(
    features: ArrayLike,
    boxes_xyxy: ArrayLike,
    frame_size: tuple[int, int],
    k: int = 4,
    spatial_weight: float = 0.5,
) -> NDArray[np.int64]:
    """K-means in the joint appearance-geometry space; the nearest unused sample of each centroid, in time order.

    features: [N, D], in time order; boxes_xyxy: [N, 4]; frame_size: (height, width) -> min(k, N) distinct indices,
    ascending, int64. Padding to k, where N < k, is the caller's.

    The space: features, and (cx, cy, w, h) as shares of the frame times `spatial_weight`. Both parts are first scaled
    to equal total variance over the samples, so the weight means the same for every encoder. A target that stands
    still to within a thousandth of the frame has no geometry to tell apart.
    Raises ValueError on empty input, wrong shapes, values that are not finite, boxes without area, and k < 1.
    """
    x, boxes = np.asarray(features, np.float64), np.asarray(boxes_xyxy, np.float64)
    if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(
            f"select_representatives: features must be [N, D] with N, D > 0, got shape {x.shape}"
        )
    if boxes.shape != (len(x), 4):
        raise ValueError(
            f"select_representatives: boxes must be [{len(x)}, 4] like the features, got {boxes.shape}"
        )
    if not np.isfinite(x).all():
        raise ValueError("select_representatives: features hold NaN or infinity")
    if not is_box(boxes).all():
        raise ValueError(
            f"select_representatives: no box in samples {np.flatnonzero(~is_box(boxes)).tolist()}"
        )
    if len(frame_size) != 2 or min(frame_size) <= 0:
        raise ValueError(
            f"select_representatives: frame_size must be (height, width) > 0, got {frame_size}"
        )
    if k < 1 or spatial_weight < 0:
        raise ValueError(
            f"select_representatives: k must be >= 1 and spatial_weight >= 0, got {k}, {spatial_weight}"
        )
    if len(x) <= k:
        return np.arange(len(x), dtype=np.int64)

    height, width = frame_size
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    geometry = np.concatenate([centre, size], axis=1) / np.array([width, height, width, height])
    x = x / max(
        np.abs(x).max(), np.finfo(np.float64).tiny
    )  # so that the squares of huge features stay finite
    joint = np.concatenate(
        [_unit_variance(x, 1e-6), spatial_weight * _unit_variance(geometry, 1e-3)], axis=1
    )

    from sklearn.cluster import KMeans  # seconds to import, which planning need not pay
    from threadpoolctl import threadpool_limits

    # No more clusters than there are distinct samples; the slots left over are filled evenly below.
    clusters = min(k, len(np.unique(joint, axis=0)))
    with threadpool_limits(1):  # sums in parallel depend on the number of threads
        fitted = KMeans(clusters, n_init=4, random_state=0).fit(joint)
    first = [int(np.argmax(fitted.labels_ == c)) for c in range(clusters)]
    chosen: list[int] = []
    for c in np.argsort(first, kind="stable"):
        distance = np.square(joint - fitted.cluster_centers_[c]).sum(1)
        distance[chosen] = np.inf
        chosen.append(_first_nearest(distance))
    unused = np.setdiff1d(np.arange(len(x)), chosen)
    return np.sort(
        np.concatenate([chosen, unused[evenly_spaced(unused.size, k - clusters)]])
    ).astype(np.int64)


def _unit_variance(block: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """Centred, and scaled so that the mean squared distance to the centre is 1; zeros where its root is below floor."""
    centred = block - block.mean(0)
    spread = math.sqrt(np.square(centred).sum(1).mean())
    return centred / spread if spread > floor else np.zeros_like(centred)


def _first_nearest(distance: NDArray) -> int:
    """Index of the smallest squared distance. Two members of a cluster are equally far from their midpoint and only
    rounding tells them apart: the earlier one wins."""
    return int(np.flatnonzero(distance <= distance.min() * (1 + 1e-4))[0])


def release_kmeans(features: ArrayLike, k: int = 4, iters: int = 8) -> NDArray[np.int64]:
    """The selection inside the released model: K-means on [N, D] features alone -> indices, in cluster order.

    SPARROW repository at 44f25b1: float32; the first centres are the samples at round(linspace(0, N-1, k)); an empty
    cluster keeps its centre; stops when centres move less than 1e-4. N <= k gives all indices in order. An index may
    appear twice (two centres that share a nearest sample), and the order is that of the clusters, not of time. Where
    two samples are equally near but for rounding, the earlier one is taken.
    """
    x = np.asarray(features, np.float32)
    if x.ndim != 2:
        raise ValueError(f"release_kmeans: features must be [N, D], got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("release_kmeans: features hold NaN or infinity")
    k = max(k, 1)
    if len(x) <= k:
        return np.arange(len(x), dtype=np.int64)
    centres = x[np.round(np.linspace(0, len(x) - 1, k)).astype(np.int64)]
    for _ in range(iters):
        nearest = _distances(x, centres).argmin(1)
        moved = centres.copy()
        for c in range(k):
            if (nearest == c).any():
                moved[c] = x[nearest == c].mean(0)
        settled = np.allclose(moved, centres, rtol=1e-4, atol=1e-4)
        centres = moved
        if settled:
            break
    distances = _distances(x, centres)
    return np.array([_first_nearest(distances[:, c]) for c in range(k)], np.int64)


def _distances(x: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared Euclidean distances [N, K]."""
    return np.square(x[:, None] - centres[None]).sum(-1)
