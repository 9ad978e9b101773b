"""Numbers for the inline SVG of the pages: histograms and the timeline of a track."""

from collections import Counter

LENGTH_BINS = 20


def iou_histogram(rows: list[dict], *, links: bool = False) -> list[dict]:
    """Ten bins of 0.1; rows have `iou_from` and `n`. links: to the samples between the two limits."""
    counts: Counter[int] = Counter()
    for row in rows:
        counts[round(row["iou_from"] * 10)] += row["n"]
    if not counts:
        return []
    limits = [(f"{i / 10:.1f}", f"{(i + 1) / 10:.1f}") for i in range(10)]
    asked = [f"min_iou={low}&max_iou={high}" if links else "" for low, high in limits]
    return bars([(f"{low} to {high}", counts[i], asked[i]) for i, (low, high) in enumerate(limits)])


def length_histogram(lengths: list[dict]) -> list[dict]:
    """At most 20 bins of equal width over clip lengths in frames; rows have `n_frames` and `n`."""
    lengths = [row for row in lengths if row["n_frames"]]
    if not lengths:
        return []
    width = -(-max(row["n_frames"] for row in lengths) // LENGTH_BINS)
    counts: Counter[int] = Counter()
    for row in lengths:
        counts[(row["n_frames"] - 1) // width] += row["n"]
    limits = [(i * width + 1, (i + 1) * width) for i in range(max(counts) + 1)]
    words = [
        f"{low} to {high} frames" if low < high else f"{low} frame{'s' * (low > 1)}"
        for low, high in limits
    ]
    links = [f"min_frames={low}&max_frames={high}" for low, high in limits]
    return bars([(words[i], counts[i], links[i]) for i in range(len(limits))])


def bars(counts: list[tuple[str, int, str]]) -> list[dict]:
    """Bars in a box of 100 x 100: label, n, link (a query of the gallery), x, y, width, height."""
    most = max(n for _, n, _ in counts) or 1
    step = 100 / len(counts)
    return [
        {
            "label": label,
            "n": n,
            "link": link,
            "x": round(i * step, 3),
            "width": round(step * 0.9, 3),
            "y": round(100 - 100 * n / most, 3),
            "height": round(100 * n / most, 3),
        }
        for i, (label, n, link) in enumerate(counts)
    ]


def line(values: list[float | None]) -> list[str]:
    """SVG polylines of a value in 0..1 per frame, in a box as wide as there are frames and 100 high; a gap where there
    is none."""
    lines: list[list[str]] = [[]]
    for t, value in enumerate(values):
        if value is None:
            lines.append([])
        else:
            y = round(100 - 100 * min(1.0, max(0.0, value)), 2)
            lines[-1] += [f"{t},{y}", f"{t + 1},{y}"]
    return [" ".join(points) for points in lines if points]


def spans(kept: list[bool], reasons: list[str | None]) -> list[dict]:
    """Runs of frames that were dropped for the same reason: start, n, reason."""
    found: list[dict] = []
    for t, (good, reason) in enumerate(zip(kept, reasons, strict=True)):
        if good:
            continue
        if (
            found
            and found[-1]["start"] + found[-1]["n"] == t
            and found[-1]["reason"] == (reason or "dropped")
        ):
            found[-1]["n"] += 1
        else:
            found.append({"start": t, "n": 1, "reason": reason or "dropped"})
    return found
