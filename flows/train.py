"""`sparrow train`: the proposer, stage 1 and stage 2, by one process, by torchrun's, or by Ray Train's."""

import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from flows.progress import StepBar
from flows.train_report import report, report_too_long
from schemas.config import Config, assignment
from schemas.files import write_whole

if TYPE_CHECKING:
    from model.config import SparrowConfig
    from model.data.index import Index
    from model.data.loader import LoaderOptions
    from model.proposer.data.batches import BatchConfig
    from model.proposer.data.corpora import BoxSet
    from model.sparrow import Sparrow
    from model.train.config import TrainConfig
    from model.train.parallel import World
    from model.train.task import Loader, Task

What = Literal["proposer", "stage1", "stage2"]
MADE_UP = "tiny: made-up weights below; what it learns means nothing, that it learns is shown"
STEPS = {"stage1": 15_000, "stage2": 4_000, "proposer": 500_000}
"""Of the released training."""
HELD_OUT = ("val", "valid_u")
"""Splits of a curated output that the losses of stages are validated on."""


class Request(Config):
    """Everything that `sparrow train` was asked; plain values, so that it can travel to other machines."""

    what: What
    data: str
    out: str
    host: str = "videoglamm"
    size: Literal["full", "tiny"] = "full"
    checkpoints: tuple[str, ...] = ()
    preset: str = "paper"
    changes: dict[str, Any] = Field(default_factory=dict)
    """Of the model's config."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Of `model.train.config.TrainConfig`."""
    start: str = ""
    """The export that training begins with."""
    resume: Literal["newest", "last-good"] = "newest"
    """What to do if the newest state is damaged: stop, or resume from the newest one that is not."""
    frames: int = Field(default=8, ge=1)
    workers: int = Field(default=2, ge=0)
    max_missing: float = Field(default=0.05, ge=0, le=1)
    """Of the annotated images of a detection dataset, the share that may be missing."""
    official: bool = False


def parse(sets: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`field=value` pairs -> changes of the model's config, and (train.field) of the training's."""
    model: dict[str, Any] = {}
    train: dict[str, Any] = {}
    for pair in sets:
        name, value = assignment(pair)
        (train if name.startswith("train.") else model)[name.removeprefix("train.")] = value
    return model, train


def run(request: Request, tell: Callable[[str], None] = print) -> bool:
    """Train in this process, beside others if torchrun or Ray started them. False if SIGTERM ended it early.

    ValueError (StateError, CheckpointError), before the model is built: a damaged state or export. OSError, in words
    for a user: the disk is full, or `out` cannot be written.
    """
    from flows.locks import writing
    from model.train.export import load_export, save_export
    from model.train.parallel import World
    from model.train.resume import choose
    from model.train.trainer import Trainer
    from trackers.runtime import device

    world = World.join(device())
    if not world.first:
        tell = _nothing
    after = _stages(request)
    config = train_config(request)
    chosen = choose(Path(request.out), request.resume, world)
    sparrow = make_model(request, world)
    if request.start:
        load_export(sparrow, request.start)
    else:
        sparrow.adapt()
    task, loader = (
        _proposer(request, config, sparrow, world, tell)
        if request.what == "proposer"
        else _stage(request, config, sparrow, world, tell)
    )
    if request.size == "tiny":
        tell(MADE_UP)
    out = Path(request.out)
    with writing(out):
        with StepBar(request.what, config.steps, world.first) as progress:
            trainer = Trainer(task, loader, config, out, world, progress.show, tell, chosen)
            if world.first:
                _write_request(request, config, sparrow, world)
            progress.begin(trainer.step)
            if trainer.step:
                tell(f"going on from {trainer.step} steps")
            outcome = trainer.run()
        report(out, tell)
        if outcome.stopped:
            tell(
                f"stopped by SIGTERM after {outcome.steps} steps; the same command goes on from {outcome.state}"
            )
            return False
        save_export(sparrow, out / "export", request.what, outcome.steps, world, after)
        tell(f"  {out / 'export'}: what was trained, for the next stage")
        for place in world.agree(
            lambda: _whole(request, out, sparrow.config) if world.first else []
        )[0]:
            tell(f"  {place}: the whole model, adapters merged")
    return True


def _write_request(
    request: Request, config: "TrainConfig", sparrow: "Sparrow", world: "World"
) -> None:
    """<out>/config.json: what was asked, what came of it, and what it runs on."""
    import torch

    on_gpu = world.device.type == "cuda"
    device = torch.cuda.get_device_name(world.device) if on_gpu else "CPU"
    about = {
        **request.model_dump(mode="json"),
        "settled": {
            "train": config.model_dump(mode="json"),
            "model": sparrow.config.model_dump(mode="json"),
        },
        "ran_on": {"device": device, "processes": world.size},
    }
    write_whole(Path(request.out) / "config.json", json.dumps(about, indent=2) + "\n")


def make_model(request: Request, world: "World") -> "Sparrow":
    """The host with its published (or, tiny, made-up) weights, and SPARROW's modules as they begin."""
    from model.make import make_model as make

    return make(
        request.host,
        request.size,
        request.preset,
        request.checkpoints,
        changes=request.changes,
        where=world.device,
        fresh=True,
        tell=_nothing,
    )[0]


def with_ray(request: Request, processes: int, tell: Callable[[str], None] = print) -> None:
    """`run` in so many processes of a Ray cluster; data, weights and `out` must be where all of them see them."""
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise ValueError(
            f"--ray needs Ray Train, which is not installed ({error}): pip install 'ray[train]', or use torchrun: "
            "torchrun --nproc-per-node N -m flows.cli train ..."
        ) from error
    import torch

    def work(values: dict[str, Any]) -> None:
        run(Request.model_validate(values))

    TorchTrainer(
        work,
        train_loop_config=request.model_dump(mode="json"),
        scaling_config=ScalingConfig(num_workers=processes, use_gpu=torch.cuda.is_available()),
        run_config=RunConfig(name="train", storage_path=str((Path(request.out) / "ray").resolve())),
    ).fit()
    tell(f"Ray Train is done: {request.out}")


def _stages(request: Request) -> list[str]:
    """What the export that training begins with has been through. ValueError: stage 2 needs one of stage 1."""
    from model.train.export import describe

    about = describe(request.start) if request.start else {"after": []}
    stages = [*about.get("after", []), *([about["stage"]] if request.start else [])]
    if request.what == "stage2" and "stage1" not in stages:
        what = f"{request.start} is the export of {stages[-1]}: " if stages else ""
        raise ValueError(
            f"{what}stage 2 starts from stage 1's export: --from RUN_OF_STAGE_1/export"
        )
    return stages


def train_config(request: Request) -> "TrainConfig":
    """The release's steps and the proposer's recipe, with the request's changes."""
    from model.proposer.pretrain import RECIPE
    from model.train.config import TrainConfig

    values = {
        "steps": STEPS[request.what],
        **(RECIPE if request.what == "proposer" else {}),
        **request.train,
    }
    if "warmup" not in request.train:
        values["warmup"] = min(100, int(values["steps"]) // 10)
    return TrainConfig(**values)


def _stage(
    request: Request,
    config: "TrainConfig",
    sparrow: "Sparrow",
    world: "World",
    tell: Callable[[str], None],
) -> "tuple[Task, Loader]":
    from model.data.collate import Preparation
    from model.data.fit import too_long
    from model.data.index import Index
    from model.data.loader import Loader as Records
    from model.data.loader import LoaderOptions
    from model.data.questions import QuestionMix
    from model.train.task import Collated, Stage, StageTask
    from pipeline.corrupt import Corruption

    index = Index.open(request.data)
    _take_noise(sparrow, index, tell)
    if request.what == "stage2":
        _compare_noise(sparrow, request.start)
    tsf = sparrow.config.tsf
    stage: Stage = "stage1" if request.what == "stage1" else "stage2"
    options = LoaderOptions(
        seed=config.seed,
        batch=config.batch * world.size,
        accumulation=config.accumulation,
        frames=request.frames,
        tsf=tsf,
        questions=sparrow.config.questions if stage == "stage1" else QuestionMix.host_only(),
        corruption=sparrow.config.corruption if tsf.selection == "online" else Corruption(),
    )
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
    tell(f"an epoch: {index.n_questions:,} question-answer pairs about {len(index):,} referents")
    if world.first:
        found = list(too_long(index, preparation, options.questions, request.frames))
        report_too_long(found, index, preparation, tell)
    if stage == "stage1":
        _warn_of_single_samples(options, tell)
    held_out = None
    if config.validate_every:
        others = Index.open(request.data, splits=HELD_OUT)
        clean = options.model_copy(
            update={
                "batch": min(config.batch, len(others)),
                "accumulation": 1,
                "corruption": Corruption(),
            }
        )

        def held_out() -> "Iterable[Any]":
            records = Records(others, clean, prepare=preparation)
            return islice(Collated(records, sparrow), config.validate_batches)

    return StageTask(sparrow, stage, held_out), Collated(records, sparrow)


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


def _proposer(
    request: Request,
    config: "TrainConfig",
    sparrow: "Sparrow",
    world: "World",
    tell: Callable[[str], None],
) -> "tuple[Task, Loader]":
    from model.proposer.data.batches import Batches, once
    from model.proposer.pretrain import ProposerTask

    corpora, options = proposer_data(request, config, sparrow)

    def validation() -> "Iterable[Any]":
        return once(corpora("val"), options)

    trained = corpora("train")
    for corpus in trained:
        tell(_in_a_line(corpus))
    batches = Batches(trained, options, rank=world.rank, world=world.size)
    assert sparrow.proposer is not None
    return ProposerTask(sparrow.host.sam, sparrow.proposer.float(), validation=validation), batches


def proposer_data(
    request: Request, config: "TrainConfig", sparrow: "Sparrow"
) -> "tuple[Callable[[str], list[BoxSet]], BatchConfig]":
    """Split -> its boxes, and how they become batches. ValueError if there is no data, or no proposer.

    Every folder of `data` that is named as one of the four datasets, or `data` itself if it is; and the shards in
    `data`, if it is a curated output, or in its folder "shards".
    """
    from model.data.index import Index
    from model.proposer.data.batches import BatchConfig
    from model.proposer.data.readers import read
    from model.proposer.data.shards import ShardBoxes
    from model.proposer.data.transform import TransformConfig
    from pipeline.sources.base import DataRoot

    places, curated = _detection_data(Path(request.data))
    if sparrow.proposer is None:
        raise ValueError("this model has no proposer: box.enabled is false")
    tables = Path(request.out) / "tables"  # parsed once: the large ones take minutes

    def corpora(split: str) -> "list[BoxSet]":
        found: list[BoxSet] = [
            read(name, DataRoot(place), split, keep=tables, max_missing=request.max_missing)
            for name, place in places.items()
        ]
        if curated:
            found.append(ShardBoxes(Index.open(curated), split))
        return found

    shared = sparrow.config.proposals.input
    side = (
        sparrow.host.spec.sam_size if shared == "shared" else shared
    )  # what it will see at inference
    options = BatchConfig(
        batch=config.batch,
        transform=TransformConfig(side=side),
        seed=config.seed,
        workers=request.workers,
    )
    return corpora, options


def _detection_data(data: Path) -> tuple[dict[str, Path], str | None]:
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


def _whole(request: Request, out: Path, config: "SparrowConfig") -> list[Path]:
    """Merged exports of a model built anew: the trained one may be in shards, and goes on being trainable."""
    import torch

    from model.train.export import load_export, save_whole
    from model.train.parallel import World

    fresh = make_model(request, World(device=torch.device("cpu")))
    fresh.config = config  # with what the data said of noise
    load_export(fresh, out / "export")
    return save_whole(fresh, out, request.official)


def _nothing(_: str) -> None:
    pass
