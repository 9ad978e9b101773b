"""The loop: accumulation is exact, resuming changes nothing, faults are named, two processes are one training."""

import csv
import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.train.config import TrainConfig
from model.train.log import FIGURES, read
from model.train.parallel import World
from model.train.state import StateError, check, states
from model.train.task import Batch, StageTask
from model.train.trainer import Trainer, TrainError
from tests.model.made import tiny
from tests.model.train.made_task import SMALL, ListLoader, corpus, train

ROOT = Path(__file__).parents[3]


def losses(run: Path) -> list[dict[str, str]]:
    """The rows of a run, to the last digit, without those that are about speed."""
    with (run / "steps.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in FIGURES} for row in csv.DictReader(file)]


def make(
    host="videoglamm",
    stage="stage1",
    count=4,
    run=Path("unused"),
    tell=lambda text: None,
    **changes,
):
    """A trainer that has not begun, without LoRA's dropout."""
    config = TrainConfig(**(SMALL | changes))
    sparrow = tiny(host, **{"lora.dropout": 0.0})
    loader = ListLoader(corpus(sparrow, count), config.batch)
    return Trainer(StageTask(sparrow, stage), loader, config, run, tell=tell)


@pytest.mark.parametrize("host", ["videoglamm", "glus"])
def test_accumulated_parts_are_one_batch(host, tmp_path):
    """Samples of different lengths: a mean of means would not do. Compared after one step, in which clipping acts."""
    found = []
    for accumulation, batch in ((1, 4), (2, 2), (4, 1)):
        trainer = make(host, batch=batch, accumulation=accumulation, clip=0.5, weight_decay=0.0)
        before = {
            n: p.detach().clone() for n, p in trainer.module.named_parameters() if p.requires_grad
        }
        trainer.optimizer = torch.optim.SGD(trainer.optimizer.param_groups, lr=1.0)
        samples = trainer.loader.samples
        parts = [samples[i : i + batch] for i in range(0, 4, batch)]
        row = trainer._step([Batch(part, ["x"] * batch) for part in parts]).row
        moved = {
            n: p.detach() - before[n] for n, p in trainer.module.named_parameters() if n in before
        }
        found.append((row, moved))
    assert len({len(s.ids) - s.answer_begins for s in samples}) > 1
    for row, moved in found[1:]:
        for name in ("loss", "ce", "bce", "dice", "grad_norm"):
            assert row[name] == pytest.approx(found[0][0][name], rel=1e-5), name
        for name, value in moved.items():
            torch.testing.assert_close(value, found[0][1][name], atol=1e-6, rtol=1e-3)
    assert found[0][0]["grad_norm"] > 0.5


@pytest.mark.parametrize(("host", "stage"), [("videoglamm", "stage1"), ("unipixel", "stage2")])
def test_resuming_changes_no_digit(host, stage, tmp_path):
    short = {"steps": 4, "save_every": 2}
    train(tmp_path / "whole", host, stage, **short)
    (tmp_path / "parts").mkdir()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert [p.name for p in sorted((whole / "states").iterdir())] == [
        "step-00000002",
        "step-00000004",
    ]
    (parts / "states").mkdir()
    (whole / "states" / "step-00000002").rename(parts / "states" / "step-00000002")
    outcome = train(parts, host, stage, **short)
    assert (outcome.steps, outcome.stopped) == (4, 0)
    assert losses(parts) == losses(whole)[2:]
    one, other = (states(run)[0] for run in (whole, parts))
    for name in ("model.safetensors", "optimizer.safetensors", "rank-0.safetensors", "rank-0.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_sigterm_saves_and_ends_in_good_order(tmp_path):
    trainer = make(run=tmp_path, save_every=100)
    trainer._show = lambda row: os.kill(os.getpid(), signal.SIGTERM) if row["step"] == 1 else None
    handler = signal.getsignal(signal.SIGTERM)
    outcome = trainer.run()
    assert outcome.stopped == signal.SIGTERM
    assert outcome.exit_code == 143
    assert outcome.state is not None
    assert outcome.steps == 3  # the step under way when it came is finished
    assert signal.getsignal(signal.SIGTERM) is handler
    rest = make(run=tmp_path, save_every=100)
    assert rest.run().steps == 6
    assert [row["step"] for row in read(tmp_path / "steps.csv")] == list(range(6))
    assert (tmp_path / "losses.png").stat().st_size > 1000
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_bad_sample_is_skipped_named_and_then_an_error(tmp_path):
    said: list[str] = []
    trainer = make(run=tmp_path, nan_budget=1, tell=said.append, save_every=1)
    trainer.loader.samples[2].inputs = {
        n: x * math.nan for n, x in trainer.loader.samples[2].inputs.items()
    }
    before = {n: p.detach().clone() for n, p in trainer.module.named_parameters()}
    row = trainer._step([Batch([trainer.loader.samples[2]], ["sample-2"])]).row
    assert row["skipped"] == 1
    assert "step 0" in said[0]
    assert "sample-2" in said[0]
    assert all(torch.equal(p, before[n]) for n, p in trainer.module.named_parameters())
    with pytest.raises(TrainError, match=r"(?s)sample-2.*nan_budget"):
        trainer.run()


def test_another_stage_config_or_company_is_refused(tmp_path):
    train(tmp_path, "videoglamm", "stage1", steps=3)
    with pytest.raises(StateError, match=r"state of stage1.*--from"):
        train(tmp_path, "videoglamm", "stage2", steps=3)
    with pytest.raises(StateError, match=r"lr: now 0\.1, then 0\.001"):
        train(tmp_path, "videoglamm", "stage1", steps=3, lr=0.1)
    config = TrainConfig(**(SMALL | {"steps": 3}))
    with pytest.raises(StateError, match="1 processes, now there are 2"):
        check(states(tmp_path)[0], "stage1", torch.nn.Linear(1, 1), config, World(0, 2))
    assert train(tmp_path, "videoglamm", "stage1", steps=3, keep=1).steps == 3


def test_old_states_go_and_unfinished_ones_are_never_taken(tmp_path):
    train(tmp_path, "videoglamm", "stage1", save_every=1, keep=2, trusted_after=1)
    folder = tmp_path / "states"
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000005", "step-00000006"]
    (folder / ".step-00000007.unfinished").mkdir()
    assert states(tmp_path)[0].name == "step-00000006"
    assert not list(folder.rglob("*.p*t*")), "nothing is pickled"


def test_gradient_checkpointing_and_bf16_train(tmp_path):
    plain, checked, half = (
        make(**changes) for changes in ({}, {"gradient_checkpointing": True}, {"precision": "bf16"})
    )
    rows = []
    for trainer in (plain, checked, half):
        trainer.module.train()
        rows.append(trainer._step([Batch(trainer.loader.samples[:1], ["x"])]).row)
    assert checked.module.host.llm.is_gradient_checkpointing
    for name in ("loss", "grad_norm"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-6)
        assert rows[2][name] == pytest.approx(rows[0][name], rel=0.05)
        assert rows[2][name] != rows[0][name]


def test_learning_rates_are_the_schedules():
    config = TrainConfig(steps=10, warmup=4)
    assert [config.factor(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [round(config.factor(s), 3) for s in (4, 7, 9)] == [1.0, 0.5, 0.167]
    assert TrainConfig(steps=10, warmup=0, schedule="cosine").factor(5) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="warmup 100 must be below steps 50"):
        TrainConfig(steps=50)


def together(tmp_path: Path, host: str, stage: str, *runs: dict) -> None:
    """Two processes do all these trainings, one after the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        sys.executable,
        "-m",
        "tests.model.train.made_task",
        str(tmp_path),
        host,
        stage,
        json.dumps(runs),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": port},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_are_one_training_and_resume_to_the_digit(tmp_path):
    """DDP and FSDP2 give the losses of one process with twice the batch; stopped and resumed, exactly their own."""
    common = {"steps": 2, "warmup": 1, "save_every": 1}
    runs = [{"run": how, "parallel": how, **common} for how in ("ddp", "fsdp")]
    again = [
        one | {"run": f"{one['run']}-again", "state": f"{one['run']}/states/step-00000001"}
        for one in runs
    ]
    damaged = {"run": "ddp-again", **common}
    more = [
        damaged | {"missing": "rank-1.json", "fails": True},
        damaged | {"resume": "last-good"},
        damaged | {"run": "full", "full": 1, "fails": True},
    ]
    together(tmp_path, "videoglamm", "stage1", *runs, *again, *more)
    for name in ("ddp", "fsdp"):
        assert losses(tmp_path / f"{name}-again") == losses(tmp_path / name)[1:]
    ddp, fsdp = (
        load_file(tmp_path / name / "export" / "model.safetensors") for name in ("ddp", "fsdp")
    )
    assert ddp.keys() == fsdp.keys()
    for name, value in ddp.items():
        torch.testing.assert_close(fsdp[name], value, atol=1e-3, rtol=1e-3)
    train(tmp_path / "alone", "videoglamm", "stage1", batch=2, **common)
    # LoRA's dropout draws other numbers in other processes
    for one, ddp, fsdp in zip(
        *(read(tmp_path / name / "steps.csv") for name in ("alone", "ddp", "fsdp")), strict=True
    ):
        for name in ("loss", "ce", "bce", "dice"):
            assert ddp[name] == pytest.approx(fsdp[name], rel=1e-4)
            assert ddp[name] == pytest.approx(one[name], rel=2e-3)
    # a file of one rank is missing: both stop, and both resume from the same state
    words = [(tmp_path / "ddp-again" / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert words[0] == words[1]
    assert "step-00000002 is damaged: rank-1.json is missing" in words[0]
    names = [path.name for path in sorted((tmp_path / "ddp-again" / "states").iterdir())]
    assert names == ["step-00000001", "step-00000002", "step-00000002.damaged"]
    # the disk is full for one rank: no other waits for it, and no part of a state stays
    words = [(tmp_path / "full" / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert words[0] == words[1]
    assert words[0].startswith("OSError: [Errno 28] No space left on device")
    assert list((tmp_path / "full" / "states").iterdir()) == []
