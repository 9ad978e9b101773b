"""CLDTracker: frames x targets per second in lock-step, against one target and one frame after the other.

Paper (Table 7): 18 ms per frame and target on an A100. Floor at half of an H200's bf16 peak: 0.27 ms (108.2 GFLOP).
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.measure import Row, Setting, flops, matmul_ceiling, moving_clip, seconds
from trackers.cldtracker import CLDTrackerConfig, CLDTrackerNet
from trackers.cldtracker.lockstep import LockStep, Stream
from trackers.cldtracker.reference import track_one

BOX = (200.0, 120.0, 90.0, 80.0)
BASELINE = "the naive loop in the same dtype (trackers/cldtracker/reference.py)"


def run(setting: Setting) -> Iterator[Row]:
    """Random weights: their values do not change what is computed."""
    cuda = setting.device.type == "cuda"
    config = CLDTrackerConfig.tiny() if setting.quick else CLDTrackerConfig()
    torch.manual_seed(0)
    net = CLDTrackerNet(config).to(setting.device).eval()
    frames = moving_clip(301 if cuda and not setting.quick else 7)
    alone = range(1, min(len(frames), 31))
    inputs = [
        torch.zeros(1, 3, side, side, device=setting.device)
        for side in (config.template, config.search)
    ]
    with torch.inference_mode():
        work = flops(lambda: net(*inputs))
    first = None
    for dtype in (setting.dtype,) if cuda else (torch.float32, torch.bfloat16):
        net, name = net.to(dtype), str(dtype).removeprefix("torch.")
        ceiling = matmul_ceiling(setting.device, dtype, setting.quick)
        yield Row(f"matmul ceiling of this device, {name}", ceiling, "TFLOP/s")
        loop = partial(track_one, net, frames, alone, BOX, 0, BOX)
        naive = seconds(loop, setting.device, repeat=3) / len(alone)
        rate, first = work / naive / 1e12, first or naive
        note = f"{work / 1e9:.1f} GFLOP per frame"
        yield Row(
            f"tracker, naive loop, {name}",
            naive * 1e3,
            "ms/frame/target",
            "",
            None,
            rate,
            rate / ceiling,
            note,
        )
        for slots in (1, 8, 32, 64, 128) if cuda else (1, 4):
            for compiled in (False, True) if cuda and slots >= 64 else (False,):
                each = lockstep_seconds(net, setting, frames, slots, compiled)
                rate = work / each / 1e12
                what = f"tracker, lock-step, B = {slots}, {name}" + (
                    ", compiled" if compiled else ""
                )
                note = f"{1 / each:.1f} frames x targets/s"
                if naive != first:
                    note += f", {first / each:.2f}x the naive loop in float32"
                yield Row(
                    what,
                    each * 1e3,
                    "ms/frame/target",
                    BASELINE,
                    naive / each,
                    rate,
                    rate / ceiling,
                    note,
                )


def lockstep_seconds(
    net: CLDTrackerNet, setting: Setting, frames: Any, slots: int, compiled: bool = False
) -> float:
    """Per frame and target, `slots` streams of equal length, uploads of every frame included."""
    if compiled:
        net.forward_tokens = torch.compile(net.forward_tokens, dynamic=False)  # type: ignore[method-assign]
    engine = LockStep(net, setting.device, slots)
    order = range(1, len(frames))

    def all_streams() -> None:
        requests = [engine.submit(Stream(frames, order, BOX, 0, BOX)) for _ in range(slots)]
        for request in requests:
            request.result()

    took = seconds(all_streams, setting.device, repeat=3)
    engine.close()
    if compiled:
        del net.forward_tokens  # the class's own again
    return took / slots / len(order)
