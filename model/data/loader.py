"""Loader: batches of records for one rank, in the order of `model.data.order`, resumable after any step.

The order is computed, not replayed, so resuming costs nothing, and neither the number of workers nor of ranks changes
what a step sees. Workers read and decode; at most `prefetch` samples each wait ahead.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from pydantic import Field, model_validator
from torch.utils.data import DataLoader, Dataset, Sampler

from model.data.index import Index
from model.data.order import Rows, epoch_order, shares
from model.data.questions import Drawn, QuestionMix, ask, draw_families
from model.data.read import Corrupt, Reader, Unfit
from model.data.record import Record, make_record
from model.interrupt import leave_signals_to_parent, signals_held
from model.tsf import TSFConfig
from pipeline.corrupt import Corruption
from schemas.config import Config

STATE_VERSION = 2
_SPARES = 3
"""How many samples after a corrupt one are tried in its place."""


class LoaderOptions(Config):
    """What a step sees. batch: samples of a pass, of all ranks together. frames: mask frames of a sample.

    accumulation: passes of a step. weights: of sources (None: their sizes). samples: of an epoch (None: as many as
    there are curated question-answer pairs). What does not fill a pass at the end of an epoch, fewer than `batch`, is
    dropped. block, window: of the shuffle, in samples and blocks. tsf: its dropout is met exactly, up to one sample of
    an epoch. questions: the families that samples are asked; every step has one with a mask. max_corrupt: the share of
    an epoch's samples of a rank that may be corrupt before the run fails; max_unfit: the same of those that the host
    cannot take. verify: compare sha256 of every member that is read.
    """

    seed: int = Field(default=0, ge=0)
    batch: int = Field(default=8, ge=1)
    accumulation: int = Field(default=1, ge=1)
    frames: int = Field(default=8, ge=1)
    samples: int | None = Field(default=None, ge=1)
    weights: dict[str, float] | None = None
    block: int = Field(default=32, ge=1)
    window: int = Field(default=64, ge=1)
    tsf: TSFConfig = TSFConfig()
    questions: QuestionMix = QuestionMix()
    corruption: Corruption = Corruption()
    max_corrupt: float = Field(default=0.01, ge=0, le=1)
    max_unfit: float = Field(default=0.1, ge=0, le=1)
    verify: bool = False
    prefetch: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _noise_is_seen(self) -> "LoaderOptions":
        kind = self.corruption.kind
        if kind != "none" and not self.tsf.wanted(training=True):
            raise ValueError(
                f"corruption.kind {kind} changes nothing without TSF in training: set tsf.train and "
                'tsf.path, or corruption.kind "none"'
            )
        if kind != "none" and self.tsf.selection != "online":
            raise ValueError(
                f"corruption.kind {kind} needs tsf.selection=online here: stored crops get their noise when they are "
                f"made, `sparrow curate … --set corrupt.kind={kind} --set corrupt.level={self.corruption.level:g}`"
            )
        return self


@dataclass(frozen=True, slots=True)
class Task:
    """A position of an epoch, and the question that belongs there; the others stand in if it is corrupt."""

    epoch: int
    position: int
    questions: tuple[int, ...]
    tsf: bool
    drawn: Drawn


@dataclass
class Loaded:
    """A record, or what was prepared of it, and what was skipped on the way to it."""

    record: Any
    skipped: list[str]
    unfit: list[str]
    pixels: tuple[torch.Tensor, ...] = ()
    """Frames and masks of a record, on their way from a worker: `_send`."""

    def pin_memory(self) -> "Loaded":
        """What DataLoader calls on each thing that it hands out, where there is a GPU."""
        if hasattr(self.record, "pin_memory"):
            self.record = self.record.pin_memory()
        return self


class Loader:
    """`for batch in loader` runs from where the loader stands to the end of the epoch, then stands at the next one.

    Each batch is a list of `options.batch // world` records, or of what `prepare` makes of each in the workers.
    notice: called with a line for each sample that another one stands in for.
    ValueError where the batch cannot be shared by the ranks, an epoch has no full step, or (while iterating) more than
    `max_corrupt` of the samples are corrupt, or more than `max_unfit` do not fit the host.
    """

    def __init__(
        self,
        index: Index,
        options: LoaderOptions | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        prepare: Callable[[Record], Any] | None = None,
        notice: Callable[[str], None] = lambda text: None,
    ):
        self.index, self.options = index, options or LoaderOptions()
        self.rank, self.world, self.workers = rank, world, workers
        self._prepare, self._notice = prepare, notice
        self.epoch, self.step = 0, 0
        self.skipped: list[str] = []
        """What was corrupt in this epoch, on this rank: one text each."""
        self.unfit: list[str] = []
        """The same of samples that the host cannot take (`model.data.read.Unfit`)."""
        self.uncorrupted = 0
        """Samples with TSF of this epoch, on this rank, that the loader's own noise left as they are."""
        batch = self.options.batch
        if not 0 <= rank < world or batch % world:
            raise ValueError(
                f"batch {batch} must be a multiple of world {world}, and rank {rank} below it"
            )
        self.counts = shares(index.sources, self.options.weights, self.options.samples)
        self._steps = sum(self.counts.values()) // batch
        if not self._steps:
            raise ValueError(
                f"an epoch of {sum(self.counts.values())} samples has no step of {batch}: lower the batch"
            )
        self._tasks = _Tasks()
        self._reads: DataLoader | None = None

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self._steps

    def order(self, epoch: int) -> Rows:
        """Numbers of the questions of an epoch in order, of all ranks; whole passes only."""
        options = self.options
        return epoch_order(
            self.index.sources,
            self.index.tar_of_question,
            options.seed,
            epoch,
            counts=self.counts,
            block=options.block,
            window=options.window,
        )[: self._steps * options.batch]

    def __iter__(self) -> Iterator[list[Any]]:
        if self._reads is None:
            workers: dict[str, Any] = {}
            if self.workers:
                workers = {"prefetch_factor": self.options.prefetch, "persistent_workers": True}
            self._reads = DataLoader(
                _Reads(self.index, self.options, self._prepare),
                batch_size=None,
                sampler=self._tasks,
                num_workers=self.workers,
                collate_fn=_send,
                worker_init_fn=_begin_worker,
                generator=torch.Generator(),
                pin_memory=torch.cuda.is_available(),
                **workers,
            )
        order, options = self.order(self.epoch), self.options
        positions = range(self.step * options.batch + self.rank, len(order), self.world)
        self._tasks.todo = _todo(order, options, self.epoch, positions)
        share = options.batch // self.world
        batch: list[Any] = []
        with signals_held():
            reads = iter(self._reads)  # starts the workers
        for loaded in map(_receive, reads):
            batch.append(self._count(loaded))
            if len(batch) == share:
                self.step += 1
                yield batch
                batch = []
        self.epoch, self.step, self.uncorrupted = self.epoch + 1, 0, 0
        self.skipped, self.unfit = [], []

    def _count(self, loaded: Loaded) -> Any:
        self.skipped += loaded.skipped
        self.unfit += loaded.unfit
        for text in (*loaded.skipped, *loaded.unfit):
            self._notice(f"another sample stands in for {text}")
        options = self.options
        share = self._steps * options.batch / self.world
        found = f"in epoch {self.epoch}"
        allowed = int(options.max_unfit * share)
        if len(self.unfit) > allowed or (loaded.record is None and loaded.unfit):
            raise ValueError(
                f"{len(self.unfit)} samples that the host cannot take {found}, {allowed} are allowed (max_unfit "
                f"{options.max_unfit}); `sparrow train check` lists them all. The last: {'; '.join(self.unfit[-5:])}"
            )
        allowed = int(options.max_corrupt * share)
        if len(self.skipped) > allowed or loaded.record is None:
            raise ValueError(
                f"{len(self.skipped)} corrupt samples {found}, {allowed} are allowed (max_corrupt "
                f"{options.max_corrupt}); `sparrow verify` finds them all. The last: {'; '.join(self.skipped[-5:])}"
            )
        record, noise = loaded.record, self.options.corruption.kind != "none"
        self.uncorrupted += noise and record.crops is not None and record.noise[0] == 0
        return record

    # --- where it stands ---

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and text: where the loader stands, and what it must be given to go on from there."""
        return {
            "version": STATE_VERSION,
            **self._identity(),
            "epoch": self.epoch,
            "step": self.step,
            "skipped": list(self.skipped),
            "unfit": list(self.unfit),
            "uncorrupted": self.uncorrupted,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader stood. ValueError says what is not the same: data, options, or ranks."""
        expected = {"version": STATE_VERSION, **self._identity()}
        if wrong := [
            f"{name} was {state.get(name)!r}, is {value!r}"
            for name, value in expected.items()
            if state.get(name) != value
        ]:
            raise ValueError(
                f"the loader cannot go on from this state: {'; '.join(wrong)}. Resume with the same output, options "
                "and ranks, or start a new run"
            )
        self.epoch, self.step = state["epoch"], state["step"]
        self.skipped, self.unfit = list(state["skipped"]), list(state["unfit"])
        self.uncorrupted = state["uncorrupted"]

    def _identity(self) -> dict[str, Any]:
        """What decides which sample comes when; `rank` is left out, as rank 0 may save for all."""
        options = self.options
        fixed = options.model_dump(
            mode="json", exclude={"seed", "batch", "max_corrupt", "max_unfit", "verify", "prefetch"}
        )
        return {
            "manifest": self.index.fingerprint,
            "seed": options.seed,
            "batch": options.batch,
            "world": self.world,
            "options": fixed,
        }


class _Tasks(Sampler[Task]):
    """What `DataLoader` goes through next. It must not know the loader: workers of a cycle of objects end late."""

    def __init__(self) -> None:
        self.todo: Iterator[Task] = iter(())

    def __iter__(self) -> Iterator[Task]:
        return self.todo


def _todo(order: Rows, options: LoaderOptions, epoch: int, positions: range) -> Iterator[Task]:
    """The tasks at some positions of an epoch."""
    # The share of TSF-free samples is met by drawing without replacement: (place in a shuffle + 1/2) / length.
    shuffled = np.random.default_rng([options.seed, epoch, 1]).permutation(len(order))
    draws = (shuffled + 0.5) / len(order)
    has_tsf = [options.tsf.wanted(training=True, draw=float(draw)) for draw in draws]
    step = options.batch * options.accumulation
    families = draw_families(options.questions, has_tsf, (options.seed, epoch, 2), step)
    spares = min(_SPARES + 1, len(order))
    for position in positions:
        questions = tuple(int(order[(position + i) % len(order)]) for i in range(spares))
        family, otherwise = families[position]
        drawn = Drawn(family, otherwise, f"{options.seed}/{epoch}")
        yield Task(epoch, position, questions, has_tsf[position], drawn)


class _Reads(Dataset[Loaded]):
    def __init__(
        self, index: Index, options: LoaderOptions, prepare: Callable[[Record], Any] | None
    ):
        self.index, self.options, self.prepare = index, options, prepare
        self.reader: Reader | None = None

    def __getitem__(self, task: Task) -> Loaded:
        self.reader = self.reader or Reader(self.index.out, verify=self.options.verify)
        skipped: list[str] = []
        unfit: list[str] = []
        for number in task.questions:
            try:
                record = self._record(self.reader, number, task)
                found = record if self.prepare is None else self.prepare(record)
                return Loaded(found, skipped, unfit)
            except Unfit as error:
                unfit.append(str(error))
            except Corrupt as error:
                skipped.append(str(error))
        return Loaded(None, skipped, unfit)

    def _record(self, reader: Reader, number: int, task: Task) -> Record:
        question, options = self.index.question(number), self.options
        row = question.row
        entry = self.index.entry(row)

        def others() -> list[bytes]:
            return [
                reader.members(self.index.entry(i), "track.npy")["track.npy"]
                for i in self.index.others(row)
            ]

        record = make_record(
            entry,
            reader.members(entry),
            np.random.default_rng([options.seed, task.epoch, task.position]),
            frames=options.frames,
            tsf=options.tsf if task.tsf else None,
            corruption=options.corruption,
            others=others,
        )
        record.asked = ask(
            task.drawn,
            self.index.templates(row),
            entry.key,
            question.ordinal,
            record.answer(question.ordinal),
            has_tsf=record.crops is not None,
        )
        return record


def _send(loaded: Any) -> Any:
    """Tensors go from a worker through shared memory, arrays byte by byte through a pipe: slower than decoding them."""
    if isinstance(record := loaded.record, Record):
        loaded.pixels = torch.from_numpy(record.frames_fhw3), torch.from_numpy(record.masks_fhw)
        record.frames_fhw3, record.masks_fhw = record.frames_fhw3[:0], record.masks_fhw[:0]
    return loaded


def _receive(loaded: Loaded) -> Loaded:
    if isinstance(record := loaded.record, Record):
        record.frames_fhw3, record.masks_fhw = (pixels.numpy() for pixels in loaded.pixels)
    return loaded


def _begin_worker(_: int) -> None:
    cv2.setNumThreads(0)
    leave_signals_to_parent()
