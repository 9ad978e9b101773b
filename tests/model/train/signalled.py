"""Trainings in processes of their own, each in a process group that a signal is sent to.

`python -m tests.model.train.signalled FILE`: the file is a JSON list of `Trial`s as dictionaries, done one after the
other and forked after the imports, which take longer than the trainings. Prints the exit code of each.
"""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import torch
import torch.utils.tensorboard

from flows import train as training
from model.make import make_model
from model.train.parallel import World
from model.train.trainer import Trainer


@dataclass
class Trial:
    """request: of `flows.train`. ranks: processes that train together. signals: sent to the group one after the other,
    half a second apart, when two steps are done. slow: seconds that every further step takes longer, so that the signal does not come too late."""

    request: dict[str, Any]
    ranks: int = 1
    signals: list[int] = field(default_factory=list)
    slow: float = 0.0


def steps_done(out: Path) -> int:
    """Rows of `steps.csv`."""
    table = out / "steps.csv"
    return max(0, len(table.read_text().splitlines()) - 1) if table.exists() else 0


def main() -> None:
    torch.set_num_threads(1)
    make_model("videoglamm", "tiny", fresh=True)  # imports what a model takes
    for values in json.loads(Path(sys.argv[1]).read_text()):
        print(attempt(Trial(**values)), flush=True)


def attempt(trial: Trial) -> int:
    """The exit code of a trial: of its first process."""
    leader = os.fork()
    if leader == 0:
        os.setsid()
        os._exit(train(trial))
    out = Path(trial.request["out"])
    ended = False
    if trial.signals:
        while steps_done(out) < 2 and not ended:
            ended = os.waitid(os.P_PID, leader, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            time.sleep(0.01)
    for place, number in enumerate(trial.signals):
        time.sleep(0.5 * bool(place))
        os.killpg(leader, number)
    return os.waitstatus_to_exitcode(os.waitpid(leader, 0)[1])


def train(trial: Trial) -> int:
    """In the group's first process, which forks the others."""
    if trial.slow:
        step = Trainer._step

        def slow_step(self: Trainer, *words: Any) -> Any:
            time.sleep(trial.slow * (self.step >= 2))
            return step(self, *words)

        Trainer._step = slow_step
    others = []
    for rank in range(1, trial.ranks):
        os.environ |= {"RANK": str(rank)}
        child = os.fork()
        if child == 0:
            os._exit(run(trial))
        others.append(child)
    os.environ |= {"RANK": "0"}
    code = run(trial)
    for child in others:
        os.waitpid(child, 0)
    return code


def run(trial: Trial) -> int:
    if trial.ranks > 1:
        os.environ |= {"WORLD_SIZE": str(trial.ranks), "MASTER_ADDR": "127.0.0.1"}
        World.join(torch.device("cpu"))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    return training.run(training.Request.model_validate(trial.request))


if __name__ == "__main__":
    main()
