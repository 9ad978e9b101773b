"""One model of the grid: stage 1, stage 2, and its scores in every way it is asked.

Stage 2 trains the filter and the [BOX] adapter over a model that no longer changes, on samples that come again and
again: what it reads of each is computed once (`FilterTask`), and its losses are those of `StageTask`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor

from model.hosts.base import PromptState
from model.losses import oracle_recall, proposal_labels
from model.proposer import Proposals
from model.sam import Features
from model.sample import Sample
from model.sparrow import Sparrow
from model.stage_losses import proposal_losses, states_of
from model.study.base import load_base, train
from model.study.config import StudyConfig
from model.study.feed import training_batches
from model.study.grid import SEG, TRAININGS, asked_of, asks_questions
from model.study.measure import evaluate, picture, region_answers
from model.study.world import make_clip
from model.train.config import TrainConfig
from model.train.log import read
from model.train.task import StageTask
from schemas.files import write_whole

TESTED, TAUGHT = 1_000_000, 2_000
"""Worlds (seeds of `make_clip`) of the clips that scores are of, and that the stages are trained on."""


@dataclass(frozen=True)
class Seen:
    """What stage 2 reads of a sample."""

    sample: Sample
    state: PromptState
    features: Features
    proposals: Proposals


class FilterTask(StageTask):
    """Stage 2 on what was computed before; batches are of `Seen`."""

    def __init__(self, sparrow: Sparrow):
        super().__init__(sparrow, "stage2")
        if self.stage.losses != ("proposals",):
            raise ValueError("only a stage of proposal losses has a model that never changes")

    @torch.no_grad()
    def read(self, sample: Sample) -> Seen:
        self.sparrow.eval()
        state, features = (
            states_of(self.sparrow, [sample])[0],
            self.sparrow.host.sam.features(sample.sam_frames_f3ss[:1]),
        )
        return Seen(
            sample, state, features, self.sparrow.propose(features, sample.frame, sample.text)
        )

    def losses(self, batch: Any) -> dict[str, Tensor]:
        self._boxes.clear()
        found = [
            proposal_losses(self.sparrow, s.sample, s.state, s.features, s.proposals)
            for s in batch.samples
        ]
        labels = [
            proposal_labels(
                s.proposals.boxes_xyxy, s.sample.boxes_n4, self.sparrow.config.loss.filter
            )
            for s in batch.samples
        ]
        reachable = torch.cat([(label == 1).any(1) for label in labels]).float().mean()
        return {
            "proposals": torch.stack([one["proposals"] for one in found]).mean(),
            "reachable": reachable,
        }

    def counts(self, batch: Any) -> dict[str, float]:
        return dict.fromkeys(self.weights, float(len(batch.samples)))

    def size(self, batch: Any) -> tuple[int, int]:
        return len(batch.samples), 0


def run_base_score(
    config: StudyConfig, base: int, folder: Path, out: Path, device: torch.device
) -> None:
    """The host as its base left it, before any stage: the level that stage 1 starts from, the proposer's recall, and
    `examples.jpg` beside `out`."""
    sparrow = load_base(config, base, folder / "base.safetensors", device)
    sparrow.config = sparrow.config.with_(**SEG, **{"tsf.infer": False})
    clips = _clips(config, TESTED, config.tested)
    recall = _recall(sparrow, config)
    cv2.imwrite(str(out.with_name("examples.jpg")), picture(sparrow, clips[:6])[..., ::-1])
    _write(out, {"scores": [_row({}, evaluate(sparrow, clips))], "recall": recall})


def run_cell(
    config: StudyConfig,
    base: int,
    seed: int,
    training: str,
    folder: Path,
    run: Path,
    out: Path,
    device: torch.device,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Train `TRAININGS[training]` on base `base` and score it; `out` is the JSON with every clip's scores.

    folder: of the base. run: where the trainings leave their logs.
    """
    start = time.process_time()
    sparrow = load_base(config, base, folder / "base.safetensors", device, **TRAININGS[training])
    clips = _clips(config, TAUGHT + seed, config.stage_clips)
    losses = {}
    for stage, steps in (("stage1", config.stage1), ("stage2", config.stage2)):
        feed = training_batches(
            sparrow, clips, config.shown, config.stage_batch, seed, tsf=stage == "stage1"
        )
        task = StageTask(sparrow, "stage1") if stage == "stage1" else FilterTask(sparrow)
        if isinstance(task, FilterTask):
            feed.items = [(key, task.read(sample)) for key, sample in feed.items]
        options = TrainConfig(
            steps=steps,
            batch=config.stage_batch,
            lr=1e-3,
            warmup=min(10, steps - 1),
            save_every=steps,
            seed=1000 * base + seed,
            keep=1,
        )
        train(task, feed, options, run / stage, tell)
        rows = [row["loss"] for row in read(run / stage / "steps.csv")]
        part = max(1, len(rows) // 5)
        losses[stage] = [sum(rows[:part]) / part, sum(rows[-part:]) / part]
    tested = _clips(config, TESTED, config.tested)
    trained, scores = sparrow.config, []
    for asked in asked_of(config, training):
        sparrow.config = trained.with_(**asked)
        sparrow.tsf.config = sparrow.config.tsf
        scores.append(_row(asked, evaluate(sparrow, tested)))
    sparrow.config = trained
    sparrow.tsf.config = trained.tsf
    answers = {}
    if asks_questions(config, training):
        answers = region_answers(sparrow, tested, config.shown)
    seconds = time.process_time() - start
    _write(out, {"scores": scores, "losses": losses, "answers": answers, "cpu_seconds": seconds})


def _clips(config: StudyConfig, world: int, count: int) -> list[Any]:
    return [make_clip(world, i, config.frames, config.side) for i in range(count)]


def _row(asked: dict[str, Any], scores: list[Any]) -> dict[str, Any]:
    return {
        "asked": asked,
        "clips": [{"kind": s.kind, "J": s.j, "F": s.f, "right": s.right} for s in scores],
    }


@torch.no_grad()
def _recall(sparrow: Sparrow, config: StudyConfig) -> dict[str, float]:
    """Of the proposals that the filter is given, on first frames not seen in training (Table 12's measure)."""
    clips = _clips(config, TESTED, config.tested)
    proposals = [
        sparrow.propose(
            sparrow.host.sam_features(clip.frames_thw3[:1]), clip.frames_thw3[0]
        ).boxes_xyxy.cpu()
        for clip in clips
    ]
    targets = [torch.from_numpy(clip.boxes_nt4[:, 0] / config.side) for clip in clips]
    return {str(k): v for k, v in oracle_recall(proposals, targets).items()}


def _write(path: Path, value: dict[str, Any]) -> None:
    """A file that is there is whole."""
    write_whole(path, json.dumps(value) + "\n")
