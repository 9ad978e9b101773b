"""When states are saved and which of them stay: by time too, after finite steps only, and never all behind a fault."""

import itertools
import math
from pathlib import Path

import pytest

from model.train.config import TrainConfig
from model.train.log import read, skipped_steps
from model.train.resume import choose
from model.train.saving import StateKeeper
from model.train.state import StateError, states, step_of
from model.train.task import StageTask
from model.train.trainer import Trainer, TrainError
from tests.model.made import tiny
from tests.model.train.made_task import SMALL, ListLoader, corpus


def make(run: Path, bad=(), resume="newest", said=None, **changes) -> Trainer:
    """A trainer. bad: numbers of the samples that are not numbers; an epoch has four."""
    config = TrainConfig(**(SMALL | changes))
    sparrow = tiny("videoglamm", **{"lora.dropout": 0.0})
    samples = corpus(sparrow, 4)
    for place in bad:
        inputs = samples[place].inputs
        samples[place].inputs = {name: value * math.nan for name, value in inputs.items()}
    tell = (said if said is not None else []).append
    chosen = choose(run, resume)
    task = StageTask(sparrow, "stage1")
    return Trainer(task, ListLoader(samples), config, run, tell=tell, chosen=chosen)


def steps_of(run: Path) -> list[int]:
    return [step_of(place) for place in states(run)]


def test_states_are_saved_by_time_too(tmp_path, monkeypatch):
    """A step takes four minutes by this clock, and a state is due after ten."""
    clock = itertools.count(0, 240)
    monkeypatch.setattr("model.train.saving.time.monotonic", lambda: float(next(clock)))
    make(tmp_path / "minutes", save_every=100, save_minutes=10).run()
    found = steps_of(tmp_path / "minutes")
    assert found[0] == 6
    assert 1 < len(found) < 5
    make(tmp_path / "never", save_every=100, save_minutes=0).run()
    assert steps_of(tmp_path / "never") == [6]


def test_no_state_is_saved_after_a_step_that_was_not_finite(tmp_path):
    make(tmp_path, bad=[2], save_every=1, nan_budget=5).run()
    skipped = skipped_steps(tmp_path)
    assert skipped
    assert max(skipped) < 5  # or the last state would be one of them
    assert sorted(steps_of(tmp_path)) == [s + 1 for s in range(6) if s not in skipped]


def test_a_state_that_is_due_waits_for_a_finite_step(tmp_path):
    make(tmp_path / "every", bad=[2], save_every=1, nan_budget=5).run()
    bad = min(skipped_steps(tmp_path / "every"))
    make(tmp_path / "due", bad=[2], save_every=bad + 1, nan_budget=5).run()
    assert min(steps_of(tmp_path / "due")) == bad + 2


def keeper(run: Path, skipped=(), **changes) -> StateKeeper:
    config = TrainConfig(steps=1000, **({"keep": 2, "trusted_after": 10} | changes))
    return StateKeeper(run, config, first=True, skipped=skipped)


def save_each(run: Path, saver: StateKeeper, *steps: int) -> list[int]:
    for step in steps:
        (run / "states" / f"step-{step:08d}").mkdir(parents=True)
        saver.saved(step)
    return steps_of(run)


def test_the_newest_state_that_ten_finite_steps_followed_is_never_removed(tmp_path):
    saver = keeper(tmp_path)
    assert save_each(tmp_path, saver, 20, 40, 60) == [60, 40]  # 40 is trusted, and kept anyway
    saver.skipped |= {65, 67}
    assert save_each(tmp_path, saver, 66, 69, 72, 74) == [74, 72, 69, 40]  # 69 may become so
    assert save_each(tmp_path, saver, 77) == [77, 74, 69, 40]
    assert save_each(tmp_path, saver, 80) == [80, 77, 74, 69]
    assert save_each(tmp_path, saver, 90, 95) == [95, 90, 80]


def test_where_states_are_close_together_one_is_kept_until_it_is_trusted(tmp_path):
    saver = keeper(tmp_path)
    assert save_each(tmp_path, saver, *range(1, 8)) == [7, 6, 1]
    assert save_each(tmp_path, saver, *range(8, 31)) == [30, 29, 25, 17]


def test_the_count_of_skipped_steps_survives_a_resumption_and_a_row_cut_short(tmp_path):
    rows = ["step,loss,skipped", "0,1.0,0", "1,nan,1", "2,1.0,1", "3,nan,2", "4,1.0", "\0\0"]
    (tmp_path / "steps.csv").write_text("\n".join(rows))
    assert skipped_steps(tmp_path) == {1, 3}
    assert skipped_steps(tmp_path / "nowhere") == set()


@pytest.fixture
def diverged(tmp_path) -> Path:
    """All samples are bad from step 4 on: the state of step 4 leads nowhere, that of step 2 is no better known."""
    run = tmp_path / "run"
    trainer = make(run, save_every=2, steps=20, nan_budget=1, trusted_after=2)
    good = trainer.task.losses

    def losses(batch):
        found = good(batch)
        return {n: x * (math.nan if trainer.step >= 4 else 1) for n, x in found.items()}

    trainer.task.losses = losses
    with pytest.raises(TrainError) as error:
        trainer.run()
    assert "`--resume last-good` resumes from step 2" in str(error.value)
    return run


def test_a_training_that_diverged_resumes_from_before_with_another_rate(diverged):
    common = {"save_every": 2, "steps": 20, "trusted_after": 2}
    assert steps_of(diverged) == [4, 2]
    assert choose(diverged).place == states(diverged)[0]
    with pytest.raises(StateError, match=r"  lr: now 0\.0001, then 0\.001"):
        make(diverged, lr=1e-4, **common)
    with pytest.raises(StateError, match=r"  batch: now 2, then 1"):
        make(diverged, resume="last-good", batch=2, **common)
    said: list[str] = []
    trainer = make(diverged, resume="last-good", lr=1e-4, clip=0.5, said=said, **common)
    assert trainer.started_at == 2
    assert said == [
        f"{diverged}/states/step-00000004 was followed by step 4, which was not finite. "
        "It was set aside as step-00000004.diverged"
    ]
    trainer.run()
    rows = read(diverged / "steps.csv")
    assert [row["step"] for row in rows] == list(range(20))
    assert rows[-1]["skipped"] == 0
    assert [row["lr"] for row in rows[2:4]] == [pytest.approx(1e-4 * f) for f in (1.0, 17 / 18)]


def test_a_run_without_a_good_state_says_so(diverged):
    for place in states(diverged)[1:]:
        place.rename(place.with_name("elsewhere"))
    with pytest.raises(StateError, match=r"which was not finite\. There is no good state"):
        choose(diverged, "last-good")
