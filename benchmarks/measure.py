"""How benchmarks measure: medians of synchronised runs, FLOPs counted by torch, the device's own ceiling beside."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. ratio: how many times better than `baseline`, which was measured in the same run."""

    what: str
    value: float
    unit: str
    baseline: str = ""
    ratio: float | None = None
    tflops: float | None = None
    of_ceiling: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Setting:
    """quick: small models and few frames, to see that a benchmark runs; its figures say nothing about real models."""

    device: torch.device
    dtype: torch.dtype
    quick: bool = False

    @property
    def words(self) -> str:
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        else:
            name = f"CPU, {torch.get_num_threads()} threads"
        return f"{name}, {str(self.dtype).removeprefix('torch.')}, torch {torch.__version__}"


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    run: Callable[[], Any], device: torch.device, *, repeat: int = 5, warm: int = 1
) -> float:
    """Median wall time of `run`, the device included."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeat):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def flops(run: Callable[[], Any]) -> float:
    """Floating-point operations of one call, a multiply-accumulate counted as two."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            FlopCounterMode(display=False) as counter,
            sdpa_kernel(SDPBackend.MATH),
        ):  # fused ops are not counted
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return float(counter.get_total_flops())


SLOW = 0.03
"""Seconds of a matrix product after which no larger one is tried."""


@lru_cache(maxsize=4)
def matmul_ceiling(device: torch.device, dtype: torch.dtype, quick: bool = False) -> float:
    """The most TFLOP/s that plain square matrix products reach on this device, in this process."""
    best = 0.0
    for n in (256, 1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        took = seconds(partial(torch.matmul, a, b), device, repeat=3 if quick else 7, warm=2)
        best = max(best, 2 * n**3 / took / 1e12)
        if (
            took > SLOW
        ):  # bfloat16 on a CPU without it: a larger product takes minutes, and reaches no more
            break
    return best


class Peak:
    """Peak host memory of this process (RSS) and of the device, in MiB, sampled every 20 ms."""

    def __init__(self, device: torch.device):
        self.device, self.host = device, 0.0
        self._stop = threading.Event()

    @staticmethod
    def rss() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 / 2**20

    @property
    def on_device(self) -> float:
        return (
            torch.cuda.max_memory_allocated(self.device) / 2**20
            if self.device.type == "cuda"
            else 0.0
        )

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.host = max(self.host, self.rss())

    @contextmanager
    def watching(self) -> Iterator["Peak"]:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.host = self.rss()
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()
            self._stop.clear()


class Busy:
    """Share of the time in which the GPU was executing something, asked of the driver every 50 ms; None on a CPU."""

    def __init__(self, device: torch.device):
        self.device, self.samples = device, list[int]()
        self._stop = threading.Event()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            try:
                self.samples.append(torch.cuda.utilization(self.device))
            except (RuntimeError, ModuleNotFoundError):  # no NVML for Python on this machine
                return

    @contextmanager
    def watching(self) -> Iterator["Busy"]:
        thread = (
            threading.Thread(target=self._watch, daemon=True)
            if self.device.type == "cuda"
            else None
        )
        if thread:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            if thread:
                thread.join()

    @property
    def share(self) -> float | None:
        return statistics.mean(self.samples) / 100 if self.samples else None


def moving_clip(n: int, height: int = 360, width: int = 640, seed: int = 0) -> Any:
    """[n, H, W, 3] uint8: a textured block over a textured ground; what is in it does not matter for speed."""
    import numpy as np

    rng = np.random.default_rng(seed)
    ground = np.repeat(
        np.repeat(rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8), 8, 0),
        8,
        1,
    )
    block = rng.integers(0, 256, (height // 4, width // 6, 3), dtype=np.uint8)
    frames = np.repeat(ground[None, :height, :width], n, 0)
    for t in range(n):
        x, y = (width // 4 + 2 * t) % (width - width // 6), height // 3
        frames[t, y : y + height // 4, x : x + width // 6] = block
    return frames
