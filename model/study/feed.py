"""Clips of the study's world as what a host trains on, by the same steps as curated data.

A clip becomes a `Record`: crops are cut along its (corrupted) trajectory at frames that curation's own K-means chose,
and `model.data.collate.to_sample` does the rest. Everything is made once and stays in memory.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from model.data.collate import to_sample
from model.data.questions import Drawn, ask, draw_families
from model.data.record import Record, choose_frames
from model.sparrow import Sparrow
from model.study.world import StudyClip
from model.train.task import Batch
from model.tsf import TSFConfig
from pipeline.corrupt import Corruption, corrupt
from pipeline.encode.handcrafted import HandcraftedEncoder
from pipeline.select import crop, evenly_spaced, select_representatives
from schemas.questions import TEMPLATES


class InMemory:
    """Batches of fixed items, in an order that (seed, epoch) decides. A `model.train.task.Loader`."""

    def __init__(self, items: Sequence[Any], batch: int, seed: int, collate: Any = list):
        if len(items) < batch:
            raise ValueError(f"{len(items)} items make no batch of {batch}")
        self.items, self.batch, self.seed, self.collate = items, batch, seed, collate
        self.epoch, self.done = 0, 0

    def __iter__(self) -> Iterator[Any]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.items))
        while (self.done + 1) * self.batch <= len(order):
            self.done += 1
            yield self.collate(
                [
                    self.items[i]
                    for i in order[(self.done - 1) * self.batch : self.done * self.batch]
                ]
            )
        self.epoch, self.done = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.done = state["epoch"], state["done"]


def to_record(
    clip: StudyClip, index: int, frames: int, tsf: TSFConfig | None, corruption: Corruption
) -> Record:
    """A clip as the loader of curated shards would give it. tsf: None for a sample that goes without crops."""
    rng = np.random.default_rng([index, 1])
    masks, boxes_t4 = clip.masks_nthw[0], clip.boxes_nt4[0]
    length, height, width = masks.shape
    times = choose_frames(
        np.flatnonzero(masks.any((1, 2))), ~masks.any((1, 2)), length, frames, rng
    )
    times[0] = (
        0  # scores are of prompts on the first frame, and pointers say where something is on that one
    )
    crops = None
    if tsf is not None:
        trajectory = corrupt(boxes_t4, corruption, (clip.boxes_nt4[1],), key=index)
        crops = representatives(clip, trajectory, tsf.k)
    return Record(
        clip.key,
        "study",
        clip.phrase,
        [],
        times,
        clip.frames_thw3[times],
        masks[times].astype(np.int8),
        boxes_t4 / np.array([width, height] * 2, np.float32),
        crops,
    )


def representatives(clip: StudyClip, trajectory_t4: np.ndarray, k: int) -> list[np.ndarray]:
    """k crops along a trajectory [T, 4] (pixels, NaN where it has no box), chosen as curation does (section 3.2)."""
    there = np.flatnonzero(~np.isnan(trajectory_t4).any(1))
    if not len(there):
        there, trajectory_t4 = np.arange(1), clip.boxes_nt4[0]
    crops = [crop(clip.frames_thw3[t], trajectory_t4[t]) for t in there]
    size = clip.frames_thw3.shape[1:3]
    chosen = select_representatives(
        HandcraftedEncoder().encode(crops), trajectory_t4[there], size, k
    )
    picks = sorted(int(i) for i in chosen)
    picks = [picks[i] for i in evenly_spaced(len(picks), min(k, len(picks)))]
    return [crops[i] for i in picks + picks[-1:] * (k - len(picks))]


class Asking(InMemory):
    """Records, asked anew in each epoch, as samples for `StageTask`. A `model.train.task.Loader`.

    The families are drawn as the loader of curated shards draws them, from the mix of the model's config.
    """

    def __init__(self, records: Sequence[Record], sparrow: Sparrow, batch: int, seed: int):
        super().__init__(records, batch, seed, self._samples)
        self.sparrow = sparrow

    def _samples(self, records: Sequence[Record]) -> Batch:
        has_tsf = [record.crops is not None for record in records]
        mix = self.sparrow.config.questions
        # `done` counts from 1 here: each batch of an epoch has a draw of its own
        seed = (self.seed, self.epoch, self.done)
        families = draw_families(mix, has_tsf, seed, len(records))
        for record, (family, otherwise) in zip(records, families, strict=True):
            drawn = Drawn(family, otherwise, f"{self.seed}/{self.epoch}")
            has_crops = record.crops is not None
            record.asked = ask(drawn, TEMPLATES, record.key, 0, record.caption, has_tsf=has_crops)
        samples = [to_sample(record, self.sparrow) for record in records]
        return Batch(samples, [record.key for record in records])


def training_batches(
    sparrow: Sparrow, clips: Sequence[StudyClip], frames: int, batch: int, seed: int, *, tsf: bool
) -> InMemory:
    """Batches for `StageTask`. tsf: whether the stage trains with TSF, in the share that `tsf.dropout` leaves, and with
    questions of the configured mix; else every clip is asked the host's own question."""
    config = sparrow.config
    draws = np.random.default_rng([seed, 2]).random(len(clips))
    records = []
    for index, (clip, draw) in enumerate(zip(clips, draws, strict=True)):
        wanted = tsf and config.tsf.wanted(training=True, draw=float(draw))
        noise = config.corruption
        records.append(to_record(clip, index, frames, config.tsf if wanted else None, noise))
    if tsf:
        return Asking(records, sparrow, batch, seed)
    samples = [(record.key, to_sample(record, sparrow)) for record in records]
    return InMemory(
        samples, batch, seed, lambda pairs: Batch([s for _, s in pairs], [key for key, _ in pairs])
    )
