"""One model of the grid: stage 1, stage 2, and its scores in every way it is asked."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model.losses import oracle_recall
from model.sparrow import Sparrow
from model.study.base import load_base, train
from model.study.config import StudyConfig
from model.study.feed import training_batches
from model.study.grid import SEG, TRAININGS, asked_of
from model.study.measure import evaluate
from model.study.world import make_clip
from model.train.config import TrainConfig
from model.train.log import read
from model.train.task import StageTask

TESTED, TAUGHT = 1_000_000, 2_000
"""Worlds (seeds of `make_clip`) of the clips that scores are of, and that the stages are trained on."""


def run_base_score(config: StudyConfig, base: int, folder: Path, out: Path, device: torch.device) -> None:
    """The host as its base left it, before any stage: the level that stage 1 starts from. And the proposer's recall."""
    sparrow = load_base(config, base, folder / "base.safetensors", device)
    sparrow.config = sparrow.config.with_(**SEG, **{"tsf.infer": False})
    clips = _clips(config, TESTED, config.tested)
    recall = _recall(sparrow, config)
    _write(out, {"scores": [_row({}, evaluate(sparrow, clips))], "recall": recall})


def run_cell(
    config: StudyConfig, base: int, seed: int, training: str, folder: Path, run: Path, out: Path, device: torch.device,
    tell: Callable[[str], None] = lambda text: None,
) -> None:  # fmt: skip
    """Train `TRAININGS[training]` on base `base` and score it; `out` is the JSON with every clip's scores.

    folder: of the base. run: where the trainings leave their logs.
    """
    start = time.process_time()
    sparrow = load_base(config, base, folder / "base.safetensors", device, **TRAININGS[training])
    clips = _clips(config, TAUGHT + seed, config.stage_clips)
    losses = {}
    for stage, steps in (("stage1", config.stage1), ("stage2", config.stage2)):
        task = StageTask(sparrow, stage)  # type: ignore[arg-type]
        feed = training_batches(sparrow, clips, config.shown, config.batch, seed, tsf=stage == "stage1")
        options = TrainConfig(steps=steps, batch=config.batch, lr=1e-3, warmup=min(10, steps - 1), save_every=steps,
                              seed=1000 * base + seed, keep=1)  # fmt: skip
        train(task, feed, options, run / stage, tell)
        rows = read(run / stage / "steps.csv")
        losses[stage] = [
            sum(r["loss"] for r in part) / len(part) for part in (rows[: len(rows) // 5 + 1], rows[-len(rows) // 5 :])
        ]
    tested = _clips(config, TESTED, config.tested)
    trained, scores = sparrow.config, []
    for asked in asked_of(config, training):
        sparrow.config = trained.with_(**asked)
        sparrow.tsf.config = sparrow.config.tsf
        scores.append(_row(asked, evaluate(sparrow, tested)))
    _write(out, {"scores": scores, "losses": losses, "cpu_seconds": time.process_time() - start})


def _clips(config: StudyConfig, world: int, count: int) -> list[Any]:
    return [make_clip(world, i, config.frames, config.side) for i in range(count)]


def _row(asked: dict[str, Any], scores: list[Any]) -> dict[str, Any]:
    return {"asked": asked, "clips": [{"kind": s.kind, "J": s.j, "F": s.f, "right": s.right} for s in scores]}


@torch.no_grad()
def _recall(sparrow: Sparrow, config: StudyConfig) -> dict[str, float]:
    """Of the proposals that the filter is given, on first frames not seen in training (Table 12's measure)."""
    clips = _clips(config, TESTED, config.tested)
    proposals = [
        sparrow.propose(sparrow.host.sam_features(clip.frames_thw3[:1]), clip.frames_thw3[0]).boxes_xyxy.cpu()
        for clip in clips
    ]
    targets = [torch.from_numpy(clip.boxes_nt4[:, 0] / config.side) for clip in clips]
    return {str(k): v for k, v in oracle_recall(proposals, targets).items()}


def _write(path: Path, value: dict[str, Any]) -> None:
    """A file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(value) + "\n")
    os.replace(fresh, path)
