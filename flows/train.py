"""`sparrow train`: the proposer, stage 1 and stage 2, by one process, by torchrun's, or by Ray Train's."""

import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from flows.progress import StepBar
from schemas.config import Config, assignment
from schemas.files import write_whole

if TYPE_CHECKING:
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
    config = _config(request)
    chosen = choose(Path(request.out), request.resume, world)
    sparrow = make_model(request, world)
    if request.start:
        load_export(sparrow, request.start)
    else:
        sparrow.adapt()
    task, loader = (
        _proposer(request, config, sparrow, world, tell)
        if request.what == "proposer"
        else _stage(request, config, sparrow, world)
    )
    if request.size == "tiny":
        tell(MADE_UP)
    out = Path(request.out)
    with writing(out):
        with StepBar(request.what, config.steps, world.first) as progress:
            trainer = Trainer(task, loader, config, out, world, progress.show, tell, chosen)
            if world.first:
                _write_request(request, config, sparrow)
            progress.begin(trainer.step)
            if trainer.step:
                tell(f"going on from {trainer.step} steps")
            outcome = trainer.run()
        _report(out, tell)
        if outcome.stopped:
            tell(
                f"stopped by SIGTERM after {outcome.steps} steps; the same command goes on from {outcome.state}"
            )
            return False
        save_export(sparrow, out / "export", request.what, outcome.steps, world, after)
        tell(f"  {out / 'export'}: what was trained, for the next stage")
        for place in world.agree(lambda: _whole(request, out) if world.first else [])[0]:
            tell(f"  {place}: the whole model, adapters merged")
    return True


def _write_request(request: Request, config: "TrainConfig", sparrow: "Sparrow") -> None:
    """<out>/config.json: what was asked, and what came of it."""
    about = {
        **request.model_dump(mode="json"),
        "settled": {
            "train": config.model_dump(mode="json"),
            "model": sparrow.config.model_dump(mode="json"),
        },
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


def _config(request: Request) -> "TrainConfig":
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
    request: Request, config: "TrainConfig", sparrow: "Sparrow", world: "World"
) -> "tuple[Task, Loader]":
    from model.corruption import Corruption
    from model.data.index import Index
    from model.data.loader import Loader as Records
    from model.data.loader import LoaderOptions
    from model.train.task import Collated, Stage, StageTask

    options = LoaderOptions(
        seed=config.seed,
        batch=config.batch * world.size,
        frames=request.frames,
        tsf=sparrow.config.tsf,
        corruption=sparrow.config.corruption,
    )
    records = Records(
        Index.open(request.data),
        options,
        rank=world.rank,
        world=world.size,
        workers=request.workers,
    )
    held_out = None
    if config.validate_every:
        others = Index.open(request.data, splits=HELD_OUT)
        clean = options.model_copy(
            update={"batch": min(config.batch, len(others)), "corruption": Corruption()}
        )

        def held_out() -> "Iterable[Any]":
            return islice(Collated(Records(others, clean), sparrow), config.validate_batches)

    stage: Stage = "stage1" if request.what == "stage1" else "stage2"
    return StageTask(sparrow, stage, held_out), Collated(records, sparrow)


def _proposer(
    request: Request,
    config: "TrainConfig",
    sparrow: "Sparrow",
    world: "World",
    tell: Callable[[str], None],
) -> "tuple[Task, Loader]":
    """Every folder of `data` that is named as one of the four datasets, or `data` itself if it is; and the shards in
    `data`, if it is a curated output, or in its folder "shards"."""
    from model.data.index import Index
    from model.proposer.data.batches import BatchConfig, Batches, once
    from model.proposer.data.corpora import BoxSet
    from model.proposer.data.readers import read
    from model.proposer.data.shards import ShardBoxes
    from model.proposer.data.transform import TransformConfig
    from model.proposer.pretrain import ProposerTask
    from pipeline.sources.base import DataRoot

    data = Path(request.data)
    places, curated = _detection_data(data)
    if sparrow.proposer is None:
        raise ValueError("this model has no proposer: box.enabled is false")
    tables = Path(request.out) / "tables"  # parsed once: the large ones take minutes

    def corpora(split: str) -> list[BoxSet]:
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

    def validation() -> "Iterable[Any]":
        return once(corpora("val"), options)

    trained = corpora("train")
    for corpus in trained:
        tell(_in_a_line(corpus))
    batches = Batches(trained, options, rank=world.rank, world=world.size)
    return ProposerTask(sparrow.host.sam, sparrow.proposer.float(), validation=validation), batches


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


def _whole(request: Request, out: Path) -> list[Path]:
    """Merged exports of a model built anew: the trained one may be in shards, and goes on being trainable."""
    import torch

    from model.train.export import load_export, save_whole
    from model.train.parallel import World

    fresh = make_model(request, World(device=torch.device("cpu")))
    load_export(fresh, out / "export")
    return save_whole(fresh, out, request.official)


def _report(out: Path, tell: Callable[[str], None]) -> None:
    from model.train.log import read

    rows = read(out / "steps.csv")
    if not rows:
        return
    part = max(1, len(rows) // 10)
    first, last = rows[:part], rows[-part:]

    def mean(some: list[dict[str, float]], name: str) -> float:
        values = [row[name] for row in some if name in row]
        return sum(values) / len(values) if values else float("nan")

    for name in rows[0]:
        if name not in (
            "step",
            "lr",
            "grad_norm",
            "skipped",
            "seconds",
            "samples_per_s",
            "tokens_per_s",
        ):
            if name in ("memory_gb", "mfu"):
                tell(f"  {name:<10} {mean(last, name):.3f}")
            else:
                tell(
                    f"  {name:<10} {mean(first, name):.4f} -> {mean(last, name):.4f} (means of {part} steps)"
                )
    if mean(rows, "reachable") == 0:
        tell(
            "  no proposal overlapped any target: the filter has learned to say no, and nothing else (train proposer)"
        )
    tell(
        f"  {mean(last, 'samples_per_s'):.2f} samples/s, {mean(last, 'tokens_per_s'):.0f} text tokens/s"
    )
    for name in ("steps.csv", "losses.png", "tensorboard", "states"):
        tell(f"  {out / name}")


def _nothing(_: str) -> None:
    pass
