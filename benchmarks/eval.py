"""What evaluation costs: asking hosts about a benchmark's video, in time and memory, and scoring their masks.

Hosts have random weights at the official sizes (tiny ones on a CPU), answers are forced, and a video is asked about by
several expressions, as in the benchmarks: they are asked together and share the image encoder's features, against asking
and encoding for each. J and F are compared with the official tool's formula written down plainly, in the same run.
"""

import gc
from collections.abc import Iterator
from math import ceil, hypot
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.morphology import disk

from benchmarks.measure import Peak, Row, Setting, moving_clip, seconds
from benchmarks.model import make_random
from model.evaluate.features import Kept
from model.evaluate.protocols import Asking
from model.evaluate.run import predict
from model.evaluate.task import Query
from model.evaluate.together import AskedTogether
from model.hosts import HOSTS
from model.metrics import boundary_accuracy, region_similarity
from model.metrics.masks import DAVIS_TOLERANCE
from schemas.geometry import rle_encode

EXPRESSIONS = 4
"""Of a video; MeViS has 16 on average, Ref-DAVIS17 and Ref-YTVOS about 8 and 4."""


def run(setting: Setting) -> Iterator[Row]:
    for name in HOSTS:
        yield from _host(setting, name)
        gc.collect()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
    yield from _scoring(setting)


def _host(setting: Setting, name: str) -> Iterator[Row]:
    small = setting.quick or setting.device.type == "cpu"
    size = "tiny, a CPU cannot hold more" if small else "official size, random weights"
    frames = moving_clip(
        6 if setting.quick else 8 if small else 64, *(() if not small else (96, 160))
    )
    asking = Asking(name="bench", answer="force")
    queries = [Query(str(n), "clip", f"block {n}") for n in range(EXPRESSIONS)]
    with Peak(setting.device).watching() as peak:
        sparrow = make_random(name, setting, small)

        def ask(share: bool) -> None:
            kept = Kept(sparrow.host, frames, {0}) if share else None
            together = AskedTogether(sparrow, frames, queries, asking, None) if share else None
            for query in queries:
                found = predict(sparrow, frames, query, asking, kept=kept, together=together)
                if found.error:
                    raise RuntimeError(f"{name}: {found.error}")

        repeat = 1 if setting.quick else 3
        apart = seconds(lambda: ask(False), setting.device, repeat=repeat)
        shared = seconds(lambda: ask(True), setting.device, repeat=repeat)
    yield Row(
        f"{name}: {EXPRESSIONS} expressions of a video",
        shared,
        "s/video",
        "each on its own",
        apart / shared,
        note=f"{len(frames)} frames, {size}",
    )
    yield Row(f"{name}: frames asked about", EXPRESSIONS * len(frames) / shared, "frames/s")
    yield Row(
        f"{name}: peak memory",
        peak.on_device or peak.host,
        "MiB",
        note="device" if peak.on_device else "host",
    )


def _scoring(setting: Setting) -> Iterator[Row]:
    """An object that moves and grows, and a prediction some pixels beside it, at DAVIS's 480p."""
    truth = _blobs(16 if setting.quick else 64, 0)
    pred = _blobs(len(truth), 6)
    cpu = torch.device("cpu")

    def ours() -> tuple[Any, Any]:
        return region_similarity(pred, truth), boundary_accuracy(pred, truth)

    for mine, official in zip(ours(), _official(pred, truth), strict=True):
        if not np.array_equal(mine, official):
            raise RuntimeError("our J or F is not the official formula's")
    took = seconds(ours, cpu, repeat=3)
    plain = seconds(lambda: _official(pred, truth), cpu, repeat=3)
    yield Row(
        "J and F of masks, 854 x 480",
        len(truth) / took,
        "frames/s",
        "official formula",
        plain / took,
        note="equal to the last digit; one thread of the CPU",
    )
    encode = seconds(lambda: [rle_encode(mask) for mask in pred], cpu, repeat=3)
    yield Row("masks to RLE, 854 x 480", len(pred) / encode, "frames/s")


def _blobs(count: int, shift: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[:480, :854]
    return np.stack(
        [
            ((x - 200 - 5 * t - shift) / (90 + t)) ** 2 + ((y - 240 - shift) / (60 + t)) ** 2 < 1
            for t in range(count)
        ]
    )


def _official(pred: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[list[float], list[float]]:
    """J and F frame by frame: contours by comparing neighbours, dilated by a disk (davis2017-evaluation's way)."""
    element = disk(ceil(DAVIS_TOLERANCE * hypot(*truth.shape[1:]))).astype(np.uint8)
    j, f = [], []
    for a, b in zip(pred, truth, strict=True):
        union = np.count_nonzero(a | b)
        j.append(np.count_nonzero(a & b) / union if union else 1.0)
        (edge_a, near_a), (edge_b, near_b) = (
            (edge, np.asarray(cv2.dilate(edge, element), np.uint8))
            for edge in map(_contour, (a, b))
        )
        n_a, n_b = np.count_nonzero(edge_a), np.count_nonzero(edge_b)
        precision = np.count_nonzero(edge_a & near_b) / n_a if n_a else 1.0
        recall = np.count_nonzero(edge_b & near_a) / n_b if n_b else 1.0
        f.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return j, f


def _contour(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pixels that differ from the one to the right, below, or right below; in the last row and column fewer count."""
    east, south, corner = (np.zeros_like(mask) for _ in range(3))
    east[:, :-1], south[:-1], corner[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edge = (mask ^ east) | (mask ^ south) | (mask ^ corner)
    edge[-1], edge[:, -1] = mask[-1] ^ east[-1], mask[:, -1] ^ south[:, -1]
    edge[-1, -1] = False
    return edge.astype(np.uint8)
