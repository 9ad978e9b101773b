"""SIGKILL at seeded random moments: the driver, a worker, Ray itself. The bytes are those of an undisturbed run.

Short here; `make chaos KILLS=200 SEED=0` runs it for long.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from flows import driver
from flows.executors import Inline
from flows.progress import Quiet
from manifests.verify import verify
from tests.chaos.world import counts, differing, leftovers, make_corpus, make_job, tree
from tests.e2e.conftest import Run

KILLS, SEED = int(os.environ.get("KILLS", "2")), int(os.environ.get("SEED", "0"))
LONG = "KILLS" in os.environ
CLIPS, FRAMES, REFERENTS, WORKERS = (40, 8, 2, 2) if LONG else (5, 8, 2, 2)
CHILD = Path(__file__).with_name("child.py")
HEADLESS = "10"
"""Seconds that a driver looks for a head that is gone before it ends; Ray's own number is 60."""

pytestmark = pytest.mark.timeout(max(300, 120 * KILLS))


class Prey:
    """A run that is killed and begun again, on one output."""

    def __init__(self, job, place: Path):
        place.mkdir()
        self.job, self.out, self.place = job, Path(job.out), place
        (place / "job.json").write_text(job.model_dump_json())
        self.diary = place / "diary"
        self.diary.touch()
        self.start()

    def start(self) -> None:
        self.run = Run(
            "python", CHILD, self.place / "job.json", self.diary, WORKERS, log=self.place / "log"
        )

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.diary.read_text().splitlines()]

    def await_lines(self, count: int) -> bool:
        """Until workers have begun so many clips; False if the run ended before."""
        while len(self.lines()) < count and self.run.process.poll() is None:
            time.sleep(0.02)
        return self.run.process.poll() is None

    def kill(self, what: str, rng: random.Random) -> bool:
        """Whether there was such a process; when the driver is gone, the next run begins at once, beside its orphans."""
        if what == "driver":
            self.run.process.kill()
        elif what == "worker":
            alive = sorted(
                {int(pid) for pid, _ in self.lines()[-WORKERS:]}
                & {int(p) for p in os.listdir("/proc") if p.isdigit()}
            )
            if not alive:
                return False
            os.kill(rng.choice(alive), signal.SIGKILL)
        else:
            [pid] = [
                int(d.split()[0]) for d in self.run.descendants() if "gcs_server" in d.split()[1]
            ] or [0]
            if not pid:
                return False
            os.kill(pid, signal.SIGKILL)
        if what != "worker":
            try:
                self.run.wait(90)
            except subprocess.TimeoutExpired:  # without its head, a driver may go on waiting for it
                self.run.process.kill()
            self.start()
        return True

    def clean(self) -> None:
        for line in self.run.descendants():
            try:
                os.kill(int(line.split()[0]), signal.SIGKILL)
            except ProcessLookupError:
                continue


def test_killed_at_random_it_ends_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", HEADLESS)
    rng = random.Random(SEED)
    kinds = ["worker", "driver", "worker"] + (
        ["worker", "head", "worker", "driver"] if LONG else []
    )
    job = make_job(
        make_corpus(tmp_path / "corpus", CLIPS, FRAMES), tmp_path / "undisturbed", REFERENTS
    )
    driver.run([job], Inline(), Quiet())
    whole, rows = tree(Path(job.out)), counts(Path(job.out))
    done: list[str] = []
    rounds = twice = 0
    while len(done) < KILLS:
        rounds += 1
        mine = job.model_copy(update={"out": str(tmp_path / f"out{rounds}")})
        prey = Prey(mine, tmp_path / f"round{rounds}")
        killed = 0
        try:
            while len(done) < KILLS:
                if not prey.await_lines(len(prey.lines()) + rng.randint(1, 4)):
                    break
                time.sleep(rng.random())
                what = kinds[len(done) % len(kinds)]
                if prey.run.process.poll() is None and prey.kill(what, rng):
                    killed += 1
                    done.append(what)
            assert prey.run.wait(300) == 0, prey.run.text()[-3000:]
            assert differing(prey.out, whole) == []
            assert counts(prey.out) == rows
            assert leftovers(prey.out) == []
            assert verify(prey.out, deep=True).problems == []
            begun = len(prey.lines())
            assert (
                begun - CLIPS <= killed * WORKERS
            )  # at most the clip that each worker had in hand
            twice += begun - CLIPS
            report = {k: sum(d == k for d in done) for k in dict.fromkeys(kinds)}
            line = {
                "seed": SEED,
                "kills": len(done),
                **report,
                "rounds": rounds,
                "clips begun twice": twice,
            }
            print(json.dumps(line), flush=True)
        finally:
            prey.clean()
        shutil.rmtree(prey.out)
