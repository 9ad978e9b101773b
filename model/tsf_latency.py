"""What TSF at inference costs, component by component, beside the paper's Table 7 (A100)."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.tsf_inference import Extractor
from trackers.runtime import settle

if TYPE_CHECKING:
    from model.sparrow import Sparrow


@dataclass(frozen=True)
class Cost:
    """One component. per_unit: milliseconds. paper: Table 7's text."""

    name: str
    unit: str
    count: int
    seconds: float
    paper: str

    @property
    def per_unit(self) -> float:
        return 1e3 * self.seconds / self.count if self.count else 0.0


PAPER = {
    "rule": ("detector, for --tsf auto", "frame", "-"),
    "detect": ("detector", "frame", "90 ms"),
    "track": ("tracker", "frame and target", "18 ms"),
    "encode": ("crop encoder", "crop", "2 ms"),
    "select": ("K-means", "target", "(lost in our text)"),
    "features": ("the host's own crop features", "crop", "(in the 2 ms)"),
    "project": ("V->L projection", "token", "0.1 ms"),
    "llm": ("longer prompt", "token", "0.5-1 ms"),
}
"""Component -> what it is here, what it is counted in, and Table 7's latency of one."""


def paper_total(targets: int, frames: int) -> float:
    """Seconds by the paper's latency model, fitted to its A100: 90 ms, and 20 ms per target and frame (D.1)."""
    return 0.090 + 0.020 * targets * frames


def costs(extractor: Extractor, tokens: Sequence[Cost] = ()) -> list[Cost]:
    """Of everything that an extractor has done, and of `token_costs`."""
    rows = extractor.clock.rows
    return [
        *(_cost(stage, rows[stage][1], rows[stage][0]) for stage in PAPER if stage in rows),
        *tokens,
    ]


def _cost(stage: str, count: int, seconds: float) -> Cost:
    name, unit, paper = PAPER[stage]
    return Cost(name, unit, count, seconds, paper)


@torch.no_grad()
def token_costs(
    sparrow: "Sparrow",
    frames: Any,
    phrase: str,
    crops: Sequence[NDArray[np.uint8]],
    targets: int = 1,
) -> list[Cost]:
    """Features and projection of one target's crops, and what the prompt's TSF slots add to the language model's pass
    over it, as the difference of two medians of three (noise can exceed it). Counted for so many `targets`."""
    host = sparrow.host
    where = host.llm.device

    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            settle(where)
            start = time.perf_counter()
            work()
            settle(where)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    dtype = host.llm.dtype
    with torch.autocast(where.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16)):
        features = host.crop_features(crops)
        tokens = sparrow.tsf_tokens(features)
        crop_features = seconds(lambda: host.crop_features(crops))
        projection = seconds(lambda: sparrow.tsf_tokens(features))
        inputs = host.prepare(frames)
        packed = []
        for tsf in (None, tokens):
            ids, _ = host.conversation(host.question(phrase), None, 0 if tsf is None else len(tsf))
            packed.append(host.pack([ids], [inputs], tsf=[tsf]))
        without, beside = (seconds(lambda one=one: host.lm(one)) for one in packed)  # type: ignore[misc]
    return [
        _cost("features", targets * len(crops), targets * crop_features),
        _cost("project", targets * len(tokens), targets * projection),
        _cost("llm", targets * len(tokens), targets * (beside - without)),
    ]


def table(found: Sequence[Cost], targets: int, frames: int, label: str) -> str:
    """Lines of text. label: device and preset, which decide what the figures mean."""
    lines = [
        f"TSF at inference, {label}",
        f"  {'component':<40}{'count':>7}  {'ms each':>9}  {'seconds':>8}  Table 7 (A100)",
    ]
    for one in found:
        each = f"{one.per_unit:9.2f}" if one.seconds > 0 or not one.count else "  < noise"
        lines.append(
            f"  {one.name:<40}{one.count:>7}  {each}  {one.seconds:8.3f}  {one.paper} / {one.unit}"
        )
    total = sum(one.seconds for one in found)
    per_frame = 1e3 * total / max(1, targets * frames)
    lines.append(
        f"  {'total':<40}{'':>7}  {'':>9}  {total:8.3f}  {paper_total(targets, frames):.3f} s by the paper's model; "
        f"{per_frame:.2f} ms / frame and target, paper 20"
    )
    lines.append(
        "  the paper encodes a crop of every frame; as in curation, here at most 16 of a target"
    )
    return "\n".join(lines)
