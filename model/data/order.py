"""Order: the sequence of an epoch, a function of (rows, seed, epoch) and of nothing else.

Blocks of neighbouring samples are shuffled, then the samples within a window of blocks: reads stay near each other,
and a batch still mixes shards. Ranks take turns in the one global sequence, so that a step of 1, 2 or 4 ranks sees
the same samples, and where an epoch stands is one number.
"""

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def epoch_order(
    sources: Mapping[str, Rows],
    tar_of_row: NDArray[np.integer],
    seed: int,
    epoch: int,
    *,
    counts: Mapping[str, int],
    block: int,
    window: int,
) -> Rows:
    """Rows of an epoch. counts: how many of each source.

    A source goes through all of its rows before any comes again, across epochs: epoch e takes the numbers
    e * count .. (e + 1) * count of its endless stream of passes, each pass in an order of its own.
    """
    parts, labels = [], []
    for place, name in enumerate(sorted(counts)):
        rows, count = sources[name], counts[name]
        parts.append(
            _stream(
                rows,
                tar_of_row,
                (seed, zlib.crc32(name.encode())),
                epoch * count,
                count,
                block,
                window,
            )
        )
        labels.append(np.full(count, place))
    if len(parts) == 1:
        return parts[0]
    turns = np.random.default_rng([seed, epoch]).permutation(np.concatenate(labels))
    order = np.empty(len(turns), np.int64)
    for place, part in enumerate(parts):
        order[turns == place] = part
    return order


def shares(
    sources: Mapping[str, Rows], weights: Mapping[str, float] | None, length: int | None
) -> dict[str, int]:
    """Samples of each source in an epoch, together exactly `length` (by default as many as there are).

    weights: of sources; None is their sizes. Exact up to rounding, largest remainders first. ValueError for sources
    that are not there, and for weights that are negative or all 0.
    """
    sizes = {name: len(rows) for name, rows in sources.items()}
    length = sum(sizes.values()) if length is None else length
    used = (
        dict(weights)
        if weights is not None
        else {name: float(size) for name, size in sizes.items()}
    )
    if unknown := used.keys() - sizes.keys():
        raise ValueError(
            f"weights name {', '.join(sorted(unknown))}; the index has {', '.join(sorted(sizes))}"
        )
    total = sum(used.values())
    if min(used.values(), default=-1.0) < 0 or not 0 < total < float("inf"):
        raise ValueError(f"weights {used} must be finite, not negative, and not all 0")
    exact = {name: length * weight / total for name, weight in sorted(used.items())}
    counts = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[
        : length - sum(counts.values())
    ]:
        counts[name] += 1
    return {name: count for name, count in counts.items() if count}


def _stream(
    rows: Rows,
    tar_of_row: NDArray[np.integer],
    key: tuple[int, int],
    start: int,
    count: int,
    block: int,
    window: int,
) -> Rows:
    first, last = start // len(rows), (start + count - 1) // len(rows)
    passes = [
        _shuffled(rows, tar_of_row, np.random.default_rng([*key, n]), block, window)
        for n in range(first, last + 1)
    ]
    begin = start - first * len(rows)
    return np.concatenate(passes)[begin : begin + count]


def _shuffled(
    rows: Rows, tar_of_row: NDArray[np.integer], rng: np.random.Generator, block: int, window: int
) -> Rows:
    """One pass: a block never spans two tars."""
    tars = tar_of_row[rows]
    new_tar = np.flatnonzero(np.diff(tars, prepend=-1))
    within = np.arange(len(rows)) - np.repeat(new_tar, np.diff(new_tar, append=len(rows)))
    starts = np.flatnonzero(within % block == 0)
    blocks = np.split(rows, starts[1:])
    mixed = [blocks[i] for i in rng.permutation(len(blocks))]
    return np.concatenate(
        [
            rng.permutation(np.concatenate(mixed[i : i + window]))
            for i in range(0, len(mixed), window)
        ]
    )
