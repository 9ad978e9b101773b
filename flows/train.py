"""`sparrow train`: the proposer, stage 1 and stage 2, by one process, by torchrun's, or by Ray Train's."""

import json
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.locks import training_lock, writing
from flows.progress import StepBar
from flows.train_report import report
from flows.train_request import Request as Request
from flows.train_request import parse as parse
from flows.train_request import train_config
from schemas.files import write_whole

if TYPE_CHECKING:
    from model.config import SparrowConfig
    from model.sparrow import Sparrow
    from model.train.config import TrainConfig
    from model.train.parallel import World

MADE_UP = "tiny: made-up weights below; what it learns means nothing, that it learns is shown"


def run(request: Request, tell: Callable[[str], None] = print) -> int:
    """Train in this process, beside others if torchrun or Ray started them. Returns the exit code: 0, or 128 + the
    signal that ended it early.

    ValueError (StateError, CheckpointError), before the model is built: a damaged state or export, a folder of another
    training or one in which another process trains. OSError, in words for a user: the disk is full, or `out` cannot be
    written.
    """
    from model.train.parallel import World
    from trackers.runtime import device

    world = World.join(device())
    if not world.first:
        tell = _nothing
    out = Path(request.out)
    with ExitStack() as stack:
        world.agree(lambda: _lock(stack, out) if world.first else None)
        return _run(request, world, tell)


def _lock(stack: ExitStack, out: Path) -> None:
    with writing(out):
        stack.enter_context(training_lock(out))


def _run(request: Request, world: "World", tell: Callable[[str], None]) -> int:
    from flows.train_data import open_data
    from flows.train_record import exports_of, record_of, refuse_other_training
    from model.make import require_weights
    from model.train.export import load_export, save_export
    from model.train.record import RECORD
    from model.train.resume import choose
    from model.train.trainer import Trainer

    out, config = Path(request.out), train_config(request)
    stages_before = _stages(request)
    chosen = choose(out, request.resume, world)
    require_weights(request.size, request.checkpoints)
    data = open_data(request)
    records = world.agree(lambda: record_of(request, config, data.inputs) if world.first else None)
    record = records[0]
    assert record is not None
    world.agree(lambda: refuse_other_training(out, chosen, record) if world.first else None)
    done = world.agree(lambda: exports_of(request, config, record) if world.first else [])[0]
    if done:
        tell(f"{out} is finished: {config.steps} steps are trained, and nothing is changed")
        for place in done:
            tell(f"  {place}")
        return 0
    sparrow = make_model(request, world)
    if request.start:
        load_export(sparrow, request.start)
    else:
        sparrow.adapt()
    task, loader = data.feed(sparrow, config, world, tell)
    if request.size == "tiny":
        tell(MADE_UP)
    about = {RECORD: record.model_dump(mode="json")}
    with writing(out):
        with StepBar(request.what, config.steps, world.first) as progress:
            trainer = Trainer(task, loader, config, out, world, progress.show, tell, chosen, about)
            if world.first:
                _write_request(request, config, sparrow, world)
            progress.begin(trainer.step)
            if trainer.step:
                tell(f"resumes after {trainer.step} steps")
            outcome = trainer.run()
        report(out, tell)
        if outcome.stopped:
            name = signal.Signals(outcome.stopped).name
            tell(
                f"stopped by {name} after {outcome.steps} steps; the same command resumes from there"
            )
            tell(f"  {outcome.state}")
            return outcome.exit_code
        save_export(
            sparrow, out / "export", request.what, outcome.steps, world, stages_before, about
        )
        tell(f"  {out / 'export'}: what was trained, for the next stage")
        whole = world.agree(lambda: _whole(request, out, sparrow.config) if world.first else [])[0]
        for place in whole:
            tell(f"  {place}: the whole model, adapters merged")
    return 0


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
