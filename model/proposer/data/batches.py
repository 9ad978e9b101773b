"""An order of batches, each from one corpus, that ranks share and a stopped run takes up again."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model.interrupt import leave_signals_to_parent, signals_held
from model.proposer.config import Head
from model.proposer.data.corpora import BoxSet
from model.proposer.data.transform import TransformConfig, transform
from schemas.config import Config, digest
from schemas.records import Quarantined

STATE = 1
"""Version of the resume state."""
TRIES = 20
"""Unusable images in a row that are stepped over."""
Place = tuple[int, int, int]
"""(epoch, corpus, index in the corpus)"""


class BatchConfig(Config):
    """batch: images of one step and rank. per_corpus: images of each corpus in an epoch, other ones in each epoch's
    order; None: all (the release took 20,000). workers: processes that decode. bad_share: of an epoch's images,
    how many may be unusable before the run stops."""

    batch: int = Field(default=64, ge=1)
    per_corpus: int | None = Field(default=None, ge=1)
    transform: TransformConfig = TransformConfig()
    seed: int = Field(default=0, ge=0)
    workers: int = Field(default=0, ge=0)
    bad_share: float = Field(default=0.01, ge=0, le=1)


@dataclass
class Batch:
    """B images of one corpus."""

    pictures_bss3: Tensor
    """RGB uint8, squares."""
    targets: list[Tensor]
    """[n, 4] per image: xyxy in [0, 1]."""
    head: Head
    keys: list[str]
    augmented: bool
    bad: list[str]
    """Images that could not be used, and why."""

    def __len__(self) -> int:
        return len(self.keys)


class _Examples(Dataset):
    """(epoch, corpus, index) -> key, picture, boxes, and what is wrong with images that could not be used.

    replace: the next usable image of the corpus stands in for one that is not, so that batches keep their size.
    """

    def __init__(self, corpora: Sequence[BoxSet], config: BatchConfig, *, replace: bool):
        self.corpora, self.config, self.replace = corpora, config, replace

    def __getitem__(self, place: Place) -> tuple[str, Tensor | None, Tensor | None, list[str]]:
        epoch, which, index = place
        corpus, bad = self.corpora[which], []
        for attempt in range(TRIES if self.replace else 1):
            now = (index + attempt) % len(corpus)
            try:
                image, boxes_n4 = corpus.load(now)
            except Quarantined as error:
                bad.append(f"{error.reason}: {corpus.key(now)}: {error.message}")
                continue
            rng = np.random.default_rng(_seeds(self.config.seed, epoch, corpus.name, now))
            picture, seen_n4 = transform(image, boxes_n4, self.config.transform, rng)
            return corpus.key(now), torch.from_numpy(picture), torch.from_numpy(seen_n4), bad
        if self.replace:
            raise ValueError(f"{TRIES} unusable images in a row: {bad[0]} ... {bad[-1]}")
        return corpus.key(index), None, None, bad

    def loader(self, places: list[list[Place]]) -> Iterator["Batch"]:
        own = torch.Generator()  # or starting workers would move the run's own random numbers on
        pieces: DataLoader = DataLoader(
            self,
            batch_sampler=places,
            num_workers=self.config.workers,
            collate_fn=list,
            worker_init_fn=_begin_worker,
            generator=own,
        )
        with signals_held():
            found = iter(pieces)  # starts the workers
        for place, items in zip(places, found, strict=True):
            bad = [line for item in items for line in item[3]]
            used = [item for item in items if item[1] is not None]
            side = self.config.transform.side
            yield Batch(
                torch.stack([item[1] for item in used])
                if used
                else torch.zeros(0, side, side, 3, dtype=torch.uint8),
                [item[2] for item in used],
                self.corpora[place[0][1]].head,
                [item[0] for item in used],
                self.config.transform.augment,
                bad,
            )


class Batches:
    """One epoch per iteration, each in an order of its own that only (seed, epoch) decide; the next one goes on.

    An epoch deals each corpus into whole batches of world * batch images (a remainder smaller than that is left to
    other epochs) and shuffles these; rank r takes the r-th part of each, so the ranks' union is the same whatever
    their number while world * batch is, and all ranks train the same objectness head at the same time. What is done
    with an image depends on (seed, epoch, corpus, index), not on who does it.
    """

    def __init__(
        self,
        corpora: Sequence[BoxSet],
        config: BatchConfig | None = None,
        *,
        rank: int = 0,
        world: int = 1,
    ):
        self.corpora, self.config, self.rank, self.world = (
            list(corpora),
            config or BatchConfig(),
            rank,
            world,
        )
        self.epoch, self.step = 0, 0
        self.bad: Counter[str] = Counter()
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} must be in 0..{world - 1}")
        if len({corpus.name for corpus in self.corpora}) < len(self.corpora):
            raise ValueError("two corpora have one name: their images could not be told apart")
        if len(self) == 0:
            sizes = ", ".join(f"{c.name} {len(c)}" for c in self.corpora) or "no corpus"
            raise ValueError(
                f"no whole batch of {world * self.config.batch} images in {sizes}: use a smaller batch"
            )

    def __len__(self) -> int:
        """Batches of an epoch."""
        return sum(self._take(corpus) for corpus in self.corpora)

    def __iter__(self) -> Iterator[Batch]:
        epoch, places = self.epoch, self.order(self.epoch)
        examples = _Examples(self.corpora, self.config, replace=True)
        for batch in examples.loader(places[self.step :]):
            self._count(batch)
            self.step += 1
            if self.step == len(places):
                self.epoch, self.step = epoch + 1, 0
                self.bad.clear()
            yield batch

    def order(self, epoch: int) -> list[list[Place]]:
        """This rank's batches of an epoch."""
        whole, batches = self.config.batch * self.world, []
        for which, corpus in enumerate(self.corpora):
            rng = np.random.default_rng(_seeds(self.config.seed, epoch, corpus.name))
            indices = rng.permutation(len(corpus))[: self._take(corpus) * whole]
            batches += [
                [(epoch, which, int(i)) for i in part] for part in indices.reshape(-1, whole)
            ]
        places = np.random.default_rng(_seeds(self.config.seed, epoch, "")).permutation(
            len(batches)
        )
        mine = slice(self.rank * self.config.batch, (self.rank + 1) * self.config.batch)
        return [batches[i][mine] for i in places]

    def state_dict(self) -> dict[str, Any]:
        """Plain values. The batches that were yielded are behind it, those that workers have prepared are not."""
        return {"version": STATE, "epoch": self.epoch, "step": self.step, "of": self._of()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the last yielded batch. ValueError if the state is of other data or another order."""
        if state.get("version") != STATE:
            raise ValueError(
                f"loader state of version {state.get('version')}, this code reads {STATE}: start anew"
            )
        ours = self._of()
        if wrong := [name for name in ours if state["of"].get(name) != ours[name]]:
            rows = ", ".join(f"{name} {state['of'].get(name)} (now {ours[name]})" for name in wrong)
            raise ValueError(
                f"the loader state belongs to other training data: {rows}; restore them or start anew"
            )
        self.epoch, self.step = state["epoch"], state["step"]

    def _of(self) -> dict[str, Any]:
        order = self.config.model_dump(mode="json", exclude={"workers", "bad_share", "batch"})
        return {
            "corpora": {corpus.name: len(corpus) for corpus in self.corpora},
            "config": digest(order),
            "images_per_step": self.config.batch * self.world,
        }

    def _take(self, corpus: BoxSet) -> int:
        images = min(len(corpus), self.config.per_corpus or len(corpus))
        return images // (self.config.batch * self.world)

    def _count(self, batch: Batch) -> None:
        self.bad.update(line.split(": ")[0] for line in batch.bad)
        allowed = self.config.bad_share * len(self) * self.config.batch
        if self.bad.total() > allowed:
            raise ValueError(
                f"{self.bad.total()} unusable images in epoch {self.epoch} ({dict(self.bad)}), more than the "
                f"{self.config.bad_share:.1%} allowed by bad_share; the last: {batch.bad[-1]}"
            )


def once(corpora: Sequence[BoxSet], config: BatchConfig) -> Iterator[Batch]:
    """Every image once, in order, without augmentation: for validation."""
    config = config.model_copy(
        update={"transform": config.transform.model_copy(update={"augment": False})}
    )
    places: list[list[Place]] = []
    for which, corpus in enumerate(corpora):
        images = min(len(corpus), config.per_corpus or len(corpus))
        starts = range(0, images, config.batch)
        places += [[(0, which, i) for i in range(s, min(s + config.batch, images))] for s in starts]
    yield from (
        batch for batch in _Examples(corpora, config, replace=False).loader(places) if len(batch)
    )


def _begin_worker(_: int) -> None:
    leave_signals_to_parent()


def _seeds(seed: int, epoch: int, name: str, index: int = 0) -> list[int]:
    return [seed, epoch, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"), index]
