"""What a training reads: curated shards for the stages, boxes of many datasets for the proposer.

It is opened before the model is built, so that what is missing or has changed is said at once.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.train_report import report_too_long

if TYPE_CHECKING:
    from flows.train_request import Request
    from model.data.index import Index
    from model.data.loader import LoaderOptions
    from model.proposer.data.batches import BatchConfig
    from model.proposer.data.corpora import BoxSet
    from model.sparrow import Sparrow
    from model.train.config import TrainConfig
    from model.train.parallel import World
    from model.train.task import Loader, Stage, Task

HELD_OUT = ("val", "valid_u")
"""Splits of a curated output that the losses of stages are validated on."""


class Shards:
    """A curated output, for stage 1 and stage 2."""

    def __init__(self, request: "Request"):
        from model.data.index import Index

        self.request = request
        self.index = Index.open(request.data)

    @property
    def inputs(self) -> dict[str, str]:
        """What was opened -> a digest of its content."""
        return {"data": self.index.fingerprint}

    def feed(
        self,
        sparrow: "Sparrow",
        config: "TrainConfig",
        world: "World",
        tell: Callable[[str], None],
    ) -> "tuple[Task, Loader]":
        """What is trained on the data, and the loader of this process."""
        from model.data.collate import Preparation
        from model.data.fit import too_long
        from model.data.loader import Loader as Records
        from model.train.task import Collated, StageTask

        request, index = self.request, self.index
        _take_noise(sparrow, index, tell)
        if request.what == "stage2":
            _compare_noise(sparrow, request.start)
        stage: Stage = "stage1" if request.what == "stage1" else "stage2"
        options = self._options(sparrow, stage, config, world)
        preparation = Preparation.of(sparrow)
        records = Records(
            index,
            options,
            rank=world.rank,
            world=world.size,
            workers=request.workers,
            prepare=preparation,
            notice=tell,
        )
        tell(
            f"an epoch: {index.n_questions:,} question-answer pairs about {len(index):,} referents"
        )
        if world.first:
            found = list(too_long(index, preparation, options.questions, request.frames))
            report_too_long(found, index, preparation, tell)
        if stage == "stage1":
            _warn_of_single_samples(options, tell)
        held_out = self._held_out(sparrow, config, options) if config.validate_every else None
        return StageTask(sparrow, stage, held_out), Collated(records, sparrow)

    def _options(
        self, sparrow: "Sparrow", stage: "Stage", config: "TrainConfig", world: "World"
    ) -> "LoaderOptions":
        from model.data.loader import LoaderOptions
        from model.data.questions import QuestionMix
        from pipeline.corrupt import Corruption

        asked, tsf = sparrow.config, sparrow.config.tsf
        return LoaderOptions(
            seed=config.seed,
            batch=config.batch * world.size,
            accumulation=config.accumulation,
            frames=self.request.frames,
            tsf=tsf,
            questions=asked.questions if stage == "stage1" else QuestionMix.host_only(),
            corruption=asked.corruption if tsf.selection == "online" else Corruption(),
        )

    def _held_out(
        self, sparrow: "Sparrow", config: "TrainConfig", options: "LoaderOptions"
    ) -> "Callable[[], Iterable[Any]]":
        """The same batches of other splits each time, without noise."""
        from model.data.collate import Preparation
        from model.data.index import Index
        from model.data.loader import Loader as Records
        from model.train.task import Collated
        from pipeline.corrupt import Corruption

        others = Index.open(self.request.data, splits=HELD_OUT)
        batch = min(config.batch, len(others))
        clean = options.model_copy(
            update={"batch": batch, "accumulation": 1, "corruption": Corruption()}
        )
        preparation = Preparation.of(sparrow)

        def held_out() -> "Iterable[Any]":
            records = Records(others, clean, prepare=preparation)
            return islice(Collated(records, sparrow), config.validate_batches)

        return held_out


class DetectionData:
    """Boxes of detection datasets and curated shards, for the proposer.

    Every folder of `data` that is named as one of the four datasets, or `data` itself if it is; and the shards in
    `data`, if it is a curated output, or in its folder "shards". ValueError if there is none of them.
    """

    def __init__(self, request: "Request"):
        self.request = request
        self.places, self.curated = _detection_places(Path(request.data))
        self.trained = self.corpora("train")

    @property
    def inputs(self) -> dict[str, str]:
        """As of `Shards`."""
        return {f"data: {corpus.name}": corpus.fingerprint for corpus in self.trained}

    def corpora(self, split: str) -> "list[BoxSet]":
        """Everything of a split: "train", or "val"."""
        from model.data.index import Index
        from model.proposer.data.readers import read
        from model.proposer.data.shards import ShardBoxes
        from pipeline.sources.base import DataRoot

        tables = Path(self.request.out) / "tables"  # parsed once: the large ones take minutes
        missing = self.request.max_missing
        found: list[BoxSet] = [
            read(name, DataRoot(place), split, keep=tables, max_missing=missing)
            for name, place in self.places.items()
        ]
        if self.curated:
            found.append(ShardBoxes(Index.open(self.curated), split))
        return found

    def options(self, config: "TrainConfig", sparrow: "Sparrow") -> "BatchConfig":
        """How boxes become batches. ValueError for a model without a proposer."""
        from model.proposer.data.batches import BatchConfig
        from model.proposer.data.transform import TransformConfig

        if sparrow.proposer is None:
            raise ValueError("this model has no proposer: box.enabled is false")
        at_inference = sparrow.config.proposals.input
        side = sparrow.host.spec.sam_size if at_inference == "shared" else at_inference
        return BatchConfig(
            batch=config.batch,
            transform=TransformConfig(side=side),
            seed=config.seed,
            workers=self.request.workers,
        )

    def feed(
        self,
        sparrow: "Sparrow",
        config: "TrainConfig",
        world: "World",
        tell: Callable[[str], None],
    ) -> "tuple[Task, Loader]":
        """As of `Shards`."""
        from model.proposer.data.batches import Batches, once
        from model.proposer.pretrain import ProposerTask

        options = self.options(config, sparrow)
        for corpus in self.trained:
            tell(_in_a_line(corpus))

        def validation() -> "Iterable[Any]":
            return once(self.corpora("val"), options)

        batches = Batches(self.trained, options, rank=world.rank, world=world.size)
        assert sparrow.proposer is not None
        proposer = sparrow.proposer.float()
        return ProposerTask(sparrow.host.sam, proposer, validation=validation), batches


def open_data(request: "Request") -> Shards | DetectionData:
    """The data of a request. ValueError if there are none, or they are not what its stage needs."""
    return DetectionData(request) if request.what == "proposer" else Shards(request)


def _take_noise(sparrow: "Sparrow", index: "Index", tell: Callable[[str], None]) -> None:
    """Put the noise that the data was curated with into the model's config, so that runs and exports state it.

    ValueError if another noise was asked for, or if crops are to be cut anew from trajectories whose noise they would
    not show.
    """
    config, noise = sparrow.config, index.noise
    if not config.tsf.wanted(training=True, draw=1.0):
        return
    if config.tsf.selection == "online":
        if noise.kind != "none":
            raise ValueError(
                f"{index.out} was curated with {noise.kind} {noise.level:g}, which tsf.selection=online does not see: "
                "train on a clean output with --set corruption.kind=…, or with tsf.selection=offline"
            )
        return
    asked = config.corruption
    if asked.kind != "none" and (asked.kind, asked.level) != (noise.kind, noise.level):
        raise ValueError(
            f"corruption.kind={asked.kind} is a step of curation, and {index.out} was curated with {noise.kind} "
            f"{noise.level:g}: curate it with --set corrupt.kind={asked.kind} --set corrupt.level={asked.level:g}, "
            "and train on that output"
        )
    if noise.kind != "none":
        seen = asked.model_copy(update={"kind": noise.kind, "level": noise.level})
        sparrow.config = config.with_(corruption=seen, corruption_achieved=noise.achieved)
        tell(str(noise))


def _compare_noise(sparrow: "Sparrow", start: str) -> None:
    """ValueError if stage 1 was trained with another noise: the result would be a row of no table."""
    from model.checkpoints import describe

    before = describe(start)["sparrow"]["corruption"]
    now = sparrow.config.corruption
    if (before["kind"], before["level"]) != (now.kind, now.level):
        raise ValueError(
            f"{start}: stage 1 was trained with noise {before['kind']} {before['level']:g} on trajectories, the data of "
            f"stage 2 has {now.kind} {now.level:g}: train both stages on the same shards"
        )


def _warn_of_single_samples(options: "LoaderOptions", tell: Callable[[str], None]) -> None:
    """With a single sample in a step, none is asked for its caption alone: every step has a mask."""
    weights = options.questions.with_tsf
    if options.batch * options.accumulation == 1 and weights.region > 0:
        tell(
            "a step has one sample and every step has a mask: `region` is asked as `region_mask` "
            "(--set train.accumulation=8 for other shares)"
        )


def _detection_places(data: Path) -> tuple[dict[str, Path], str | None]:
    """The folders of detection datasets by their names, and the curated output; ValueError if there is neither."""
    from model.proposer.data.readers import READERS

    places = (
        {data.name: data}
        if data.name in READERS
        else {n: data / n for n in READERS if (data / n).is_dir()}
    )
    curated = next(
        (str(at) for at in (data, data / "shards") if (at / "manifests" / "shards").is_dir()), None
    )
    if not places and curated is None:
        raise ValueError(
            f"{data} has none of the folders {', '.join(READERS)}, is not called so, and is no curated output either "
            "(manifests/shards is missing)"
        )
    return places, curated


def _in_a_line(corpus: "BoxSet") -> str:
    """What a corpus has, and what its reader dropped."""
    from model.proposer.data.corpora import Corpus

    return str(corpus) if isinstance(corpus, Corpus) else f"{corpus.name}: {len(corpus):,} images"
