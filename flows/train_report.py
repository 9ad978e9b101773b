"""What `sparrow train` prints at its end."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.data.collate import Preparation
    from model.data.fit import TooLong
    from model.data.index import Index

SHOWN = 20
"""Samples that do not fit are listed up to this number."""


def report(out: Path, tell: Callable[[str], None]) -> None:
    """How losses and speed went, what was asked, and where the files are."""
    from model.train.log import losses_of, read

    rows = read(out / "steps.csv")
    if not rows:
        return
    part = max(1, len(rows) // 10)
    first, last = rows[:part], rows[-part:]

    def mean(some: list[dict[str, float]], name: str) -> float:
        values = [row[name] for row in some if name in row]
        return sum(values) / len(values) if values else float("nan")

    for name, parts in losses_of(rows).items():
        for line in (name, *parts):
            before, after = mean(first, line), mean(last, line)
            if math.isnan(before) and math.isnan(after):
                continue  # a family of questions that none of these steps asked
            change = f"{before:.4f} -> {after:.4f}"
            tell(f"  {line:<16} {change} (means of {part} steps)")
    for name in ("memory_gb", "mfu"):
        if any(name in row for row in last):
            tell(f"  {name:<16} {mean(last, name):.3f}")
    _report_questions(rows, tell)
    if mean(rows, "reachable") == 0:
        tell(
            "  no proposal overlapped any target: the filter has learned to say no, and nothing else (train proposer)"
        )
    tell(
        f"  {mean(last, 'samples_per_s'):.2f} samples/s, {mean(last, 'tokens_per_s'):.0f} text tokens/s"
    )
    for name in ("steps.csv", "losses.png", "tensorboard", "states"):
        tell(f"  {out / name}")


def _report_questions(rows: list[dict[str, float]], tell: Callable[[str], None]) -> None:
    """How many samples were asked which kind of question, and how many had TSF tokens."""
    from model.data.questions import FAMILIES

    sums = {name: sum(int(row.get(f"n_{name}", 0)) for row in rows) for name in (*FAMILIES, "tsf")}
    total = sum(sums[family] for family in FAMILIES)
    if total:
        asked = ", ".join(f"{family} {sums[family]:,}" for family in FAMILIES if sums[family])
        tell(f"  questions: {asked}; {sums['tsf']:,} of {total:,} samples with TSF")


def report_too_long(
    found: "list[TooLong]", index: "Index", preparation: "Preparation", tell: Callable[[str], None]
) -> None:
    """A line about all of them, and one for each of the first; nothing if there are none."""
    if not found:
        return
    total = f"{len(found):,} of {len(index):,} referents"
    tell(f"{positions_taken(preparation)}: {total} may not fit; others stand in for them")
    for one in found[:SHOWN]:
        tell(f"  {one}")
    if len(found) > SHOWN:
        tell(f"  and {len(found) - SHOWN:,} more")


def positions_taken(preparation: "Preparation") -> str:
    """How long a prompt of the host may be, in words."""
    spec = preparation.host.spec
    return f"{spec.name} takes {spec.max_len:,} positions"
