"""The whole clip function beside the sum of its bare models ("pipeline efficiency"), many clips in flight.

A TSF clip without masks, as in the paper's cost model: 300 frames of 640x360, one target, one key frame, 16 crops
(paper: 300 crops, 6.1 s on an A100). Then fewer of the same clips with a mask on every frame, the default of curation.
Decoding is part of the clip; the bare models get frames in memory. Random weights: the thresholds that would throw
nonsense out are off, so that every clip runs to its end.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Busy, Peak, Row, Setting, moving_clip, synchronise
from benchmarks.tracker import BOX
from flows.jobs import make_jobs
from pipeline.detect.grounding_dino import GroundingDINODetector
from pipeline.encode.clip import CLIPEncoder
from pipeline.fused import Fused
from pipeline.plan import Job, plan_items
from pipeline.presets import CurateConfig, configure
from schemas.records import Annotation, Planned
from schemas.video.stored import encode_mp4
from trackers.cldtracker.lockstep import Stream
from trackers.cldtracker.tracker import CLDTracker


def run(setting: Setting) -> Iterator[Row]:
    clips, frames, in_flight = size(setting)
    with tempfile.TemporaryDirectory() as folder, on_device(setting):
        job = corpus(Path(folder), clips, frames, config(setting))
        items = [item for item in plan_items(job) if isinstance(item, Planned)]
        fused = Fused(job.config)
        list(fused.map(job, items[:2], 2))  # models built, kernels chosen
        bare = bare_seconds(fused, setting, frames, in_flight)
        busy, peak = Busy(setting.device), Peak(setting.device)
        start = time.perf_counter()
        with busy.watching(), peak.watching():
            results = list(fused.map(job, items, in_flight))
        took = (time.perf_counter() - start) / clips
    made = sum(len(r.samples) for r in results)
    yield Row(
        "bare models, frames in memory",
        bare * 1e3,
        "ms/clip",
        note=f"{job.config.preset}: {frames} frames, 1 key frame, 16 crops",
    )
    yield Row(
        "whole clip, no masks",
        took * 1e3,
        "ms/clip",
        "the sum of its bare models",
        bare / took,
        note=f"{in_flight} in flight, {made} of {clips} clips became samples",
    )
    stages: dict[str, float] = {}
    for row in (row for result in results for row in result.timings):
        stages[row["stage"]] = stages.get(row["stage"], 0.0) + row["seconds"] / clips
    for stage, seconds in sorted(stages.items(), key=lambda item: -item[1]):
        yield Row(
            f"  of it {stage}",
            seconds * 1e3,
            "ms/clip",
            note="latency in its thread, waiting included",
        )
    if busy.share is not None:
        yield Row("GPU busy", busy.share * 100, "%", note="share of samples with a kernel running")
    yield Row("peak memory, host", peak.host, "MiB")
    yield Row("peak memory, device", peak.on_device, "MiB")
    yield dense_clips(setting, took)


def dense_clips(setting: Setting, without_masks: float) -> Row:
    """The same clips with a mask on every frame. without_masks: seconds a clip."""
    clips, frames, in_flight = size(setting)
    clips = max(2, clips // 8)

    settings = config(setting)
    segment = settings.segment.model_copy(update={"masks": "all"})
    settings = settings.model_copy(update={"segment": segment})

    with tempfile.TemporaryDirectory() as folder, on_device(setting):
        job = corpus(Path(folder), clips, frames, settings)
        planned = plan_items(job)
        items = [item for item in planned if isinstance(item, Planned)]
        fused = Fused(job.config)

        # The models are built before the clock starts.
        list(fused.map(job, items[:1], 1))

        start = time.perf_counter()
        results = list(fused.map(job, items, in_flight))
        took = (time.perf_counter() - start) / clips
    timings = (row for result in results for row in result.timings)
    masked = sum(row["frames"] for row in timings if row["stage"] == "segment")
    return Row(
        "whole clip, a mask on every frame",
        took * 1e3,
        "ms/clip",
        "the clip without masks",
        without_masks / took,
        note=f"{masked} frames with a box in {clips} clips",
    )


def size(setting: Setting) -> tuple[int, int, int]:
    """(clips, frames, in flight)"""
    if setting.device.type == "cuda" and not setting.quick:
        return 192, 300, 96
    return 12, 40, 4


def config(setting: Setting) -> CurateConfig:
    preset = "full" if setting.device.type == "cuda" and not setting.quick else "full-tiny"
    sets = [
        "media.media=none",
        "segment.masks=none",
        "track.gate.lost_below=0",
        "track.gate.max_area_jump=1e9",
        "detect.box_threshold=0",
        "detect.text_threshold=0",
    ]
    if preset == "full":
        sets += [f"{part}.weights=seeded:s0:" for part in ("detect", "track", "segment", "encode")]
    return configure(preset, sets)


def corpus(folder: Path, clips: int, frames: int, settings: CurateConfig) -> Job:
    """HC-STVG with one video under many names; every clip is decoded by itself all the same."""
    (folder / "anno_v2").mkdir()
    (folder / "part_1").mkdir()
    video = folder / "part_1" / "video.mp4"
    video.write_bytes(encode_mp4(moving_clip(frames), 30.0))
    x, y, w, h = BOX
    rows = {}
    for n in range(clips):
        os.link(video, folder / "part_1" / f"{n}_video.mp4")
        rows[f"{n}_video.mp4"] = {
            "bbox": [[x, y, w, h]] * frames,
            "st_frame": 1,
            "st_time": 0.0,
            "ed_time": frames / 30,
            "img_num": frames,
            "img_size": [360, 640, 3],
            "English": "The block moves to the right.",
            "Chinese": "",
        }
    (folder / "anno_v2" / "train_v2.json").write_text(json.dumps(rows))
    rules = ["rules.min_iou=null", "rules.key_frames=1"]
    return make_jobs(
        "hcstvg", folder, folder / "out", settings, splits=["train"], source_sets=rules
    )[0]


def bare_seconds(fused: Fused, setting: Setting, frames: int, in_flight: int) -> float:
    """What the models of one clip take by themselves, `in_flight` clips at once, per clip."""
    import numpy as np

    clip = moving_clip(frames)
    detector, tracker, encoder = fused.stages.detector, fused.stages.tracker, fused.stages.encoder
    assert isinstance(detector, GroundingDINODetector)
    assert isinstance(tracker, CLDTracker)
    assert isinstance(encoder, CLIPEncoder)
    key, total = frames // 2, 0.0
    x, y, w, h = BOX
    boxes = np.tile(np.array([x, y, x + w, y + h], np.float32), (frames, 1))
    annotation = Annotation(boxes, np.ones(frames, bool))
    crops = [clip[0, 100:200, 150:250]] * 16

    def timed(call: Callable[[], object]) -> float:
        call()
        synchronise(setting.device)
        start = time.perf_counter()
        call()
        synchronise(setting.device)
        return (time.perf_counter() - start) / in_flight

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(in_flight) as threads:
        work = range(in_flight)
        total += timed(
            lambda: list(
                threads.map(lambda _: detector.detect(clip, "the block.", annotation), work)
            )
        )
        total += timed(lambda: list(threads.map(lambda _: encoder.encode(crops), work)))

    def track() -> None:
        orders = (range(key + 1, frames), range(key - 1, -1, -1))
        streams = [Stream(clip, order, BOX, key, BOX) for _ in range(in_flight) for order in orders]
        for request in [tracker.engine.submit(stream) for stream in streams]:
            request.result()

    return total + timed(track)


@contextmanager
def on_device(setting: Setting) -> Iterator[None]:
    """The stages ask the environment where to run."""
    before = os.environ.get("SPARROW_DEVICE")
    os.environ["SPARROW_DEVICE"] = str(setting.device)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SPARROW_DEVICE"]
        else:
            os.environ["SPARROW_DEVICE"] = before
