"""Peak host and device memory over 100 clips: flat, or the pipeline leaks."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.measure import Peak, Row, Setting
from benchmarks.pipeline import config, corpus, on_device
from pipeline.fused import Fused
from pipeline.plan import plan_items
from schemas.records import Planned


def run(setting: Setting) -> Iterator[Row]:
    """Memory after the first quarter of the clips against memory after all of them. Masks are on."""
    clips, frames = (100, 300) if setting.device.type == "cuda" and not setting.quick else (100, 16)
    if setting.quick:
        clips = 12
    settings = config(setting)
    settings = settings.model_copy(
        update={"segment": settings.segment.model_copy(update={"masks": "keyframes:2"})}
    )
    with tempfile.TemporaryDirectory() as folder, on_device(setting):
        job = corpus(Path(folder), clips, frames, settings)
        items = [item for item in plan_items(job) if isinstance(item, Planned)]
        fused, peak = Fused(job.config), Peak(setting.device)
        after: list[tuple[float, float]] = []
        with peak.watching():
            for i, _ in enumerate(fused.map(job, items, min(16, 2 * (os.cpu_count() or 1)))):
                if i + 1 in (clips // 4, clips):
                    on_device_now = (
                        torch.cuda.memory_allocated(setting.device) / 2**20
                        if peak.on_device
                        else 0.0
                    )
                    after.append((Peak.rss(), on_device_now))
    (host, device), (host_end, device_end) = after
    yield Row(
        f"host memory after {clips} clips",
        host_end,
        "MiB",
        f"after {clips // 4} clips",
        host_end / host,
        note=f"preset {settings.preset}, {frames} frames a clip",
    )
    if device:
        yield Row(
            f"device memory after {clips} clips",
            device_end,
            "MiB",
            f"after {clips // 4}",
            device_end / device,
        )
    yield Row("peak host memory", peak.host, "MiB")
    yield Row("peak device memory", peak.on_device, "MiB")
