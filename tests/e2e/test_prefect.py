"""A real Prefect server and a real Ray: serve, run a deployment, read its run page, stop, leave nothing."""

import json
import os
import random
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flows import driver
from flows.executors import Inline
from flows.jobs import make_jobs
from flows.progress import Quiet
from flows.serve import environment, free_port, is_up
from manifests.verify import verify
from pipeline.presets import configure
from tests.chaos.world import counts, differing, leftovers, make_corpus, tree
from tests.e2e.conftest import BIN, Run

KILLS, SEED = int(os.environ.get("KILLS", "2")), int(os.environ.get("SEED", "0"))
PREFECT_KILLS = max(1, KILLS // 10)
"""`make chaos` kills so many Prefect workers beside its KILLS of Ray runs: a flow run takes half a minute."""


@dataclass
class Served:
    """`make serve`: its process, what it was given, what it wrote, and the undisturbed output of its corpus."""

    run: Run
    port: int
    out: Path
    whole: Path
    orphans: set[int] = field(default_factory=set)

    def alive(self, what: str = "") -> set[int]:
        """Processes of it whose command says so."""
        return {int(line.split()[0]) for line in self.run.descendants() if what in line}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    place = tmp_path_factory.mktemp("prefect")
    corpus = make_corpus(place / "data" / "hcstvg", 10, 16)
    driver.run(make_jobs("hcstvg", corpus, place / "whole", configure("lite")), Inline(), Quiet())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(place / "home"))
        port, out = free_port(), place / "out"
        for name, value in environment(port).items():
            patch.setenv(name, value)
        words = (
            "python",
            "-m",
            "flows.serve",
            "--data",
            place / "data",
            "--out",
            out,
            "--port",
            port,
        )
        one = Served(Run(*words, log=place / "log.txt"), port, out, place / "whole")
        try:
            until(lambda: "ready:" in one.run.text(), one, 180)
            yield one
        finally:
            for pid in one.alive():
                subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)


def until(holds: Callable[[], object], served: Served, seconds: float = 120) -> None:
    """Wait for it. AssertionError, with what the server said, if it does not come to be, or if the server is gone."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert served.run.process.poll() is None, served.run.text()[-3000:]
        assert time.monotonic() < deadline, served.run.text()[-3000:]
        time.sleep(0.2)


def ask(port: int, path: str, body: dict) -> list[dict]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/{path}",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def deploy(*words: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """The command of the README, with the environment of a user's second terminal."""
    command = [str(BIN / "prefect"), "deployment", "run", "curate/hcstvg", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def test_every_source_is_deployed_and_parameters_are_validated_before_anything_runs(served):
    names = {d["name"] for d in ask(served.port, "deployments/filter", {})}
    assert names == {
        "hcstvg",
        "vid-sentence",
        "a2d",
        "lasot",
        "mevis",
        "got10k",
        "refsav",
        "demo",
        "all",
    }
    bad = deploy("-p", "workers=many")
    assert bad.returncode != 0
    assert "workers" in bad.stdout + bad.stderr
    assert ask(served.port, "flow_runs/filter", {}) == []


@pytest.mark.timeout(max(300, 120 * PREFECT_KILLS), func_only=True)
def test_a_killed_prefect_worker_costs_nothing(served):
    """SIGKILL of the worker, and every other time of its flow run too. Another worker comes; the flow run ends, sooner or
    later, for want of somebody to read its output; run again, the bytes are those of an undisturbed run."""
    rng = random.Random(SEED)
    whole, rows = tree(served.whole), counts(served.whole)
    for n in range(PREFECT_KILLS):
        out = served.out.with_name(f"out{n}") if n else served.out
        words = ("-p", f"out={out}") if n else ()
        assert deploy(*words).returncode == 0
        clips = rng.randint(1, 4)
        until(lambda: len(list(out.glob(".staging/*/*.clip"))) >= clips, served)  # noqa: B023
        [worker], [flow] = served.alive("worker start"), served.alive("prefect.engine")
        os.kill(worker, signal.SIGKILL)
        if n % 2 == 0:
            served.orphans |= served.alive(
                "Agent"
            )  # of a Ray that nobody will be left to stop: they last a minute
            os.kill(flow, signal.SIGKILL)
        until(lambda: served.run.text().count("starting another one") == n + 1, served)  # noqa: B023
        until(lambda: not served.alive("prefect.engine"), served)
        again = deploy(*words, "--watch")
        assert "Completed" in again.stdout, again.stdout[-2000:] + served.run.text()[-4000:]
        assert differing(out, whole) == [], served.run.text()[-4000:]
        assert counts(out) == rows
        assert leftovers(out) == []
    print(
        json.dumps(
            {
                "Prefect workers killed": PREFECT_KILLS,
                "with their flow run": (PREFECT_KILLS + 1) // 2,
            }
        ),
        flush=True,
    )


def test_a_run_that_completed_shows_progress_and_summary_on_its_page(served):
    """The last one of the test before this."""
    [flow_run] = ask(served.port, "flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    assert flow_run["state_type"] == "COMPLETED"
    of_it = {"flow_runs": {"id": {"any_": [flow_run["id"]]}}}
    tasks = {t["name"].rsplit("-", 1)[0] for t in ask(served.port, "task_runs/filter", of_it)}
    assert tasks == {"plan", "run", "verify", "report"}
    artifacts = {a["key"] or a["type"]: a for a in ask(served.port, "artifacts/filter", of_it)}
    assert "media_missing" in artifacts["summary-hcstvg"]["data"]
    assert artifacts["progress"]["data"] == 100.0
    assert verify(served.out, deep=True).problems == []


@pytest.mark.timeout(100)
def test_serve_stops_and_leaves_nothing(served):
    os.kill(served.run.process.pid, signal.SIGTERM)
    assert served.run.wait(60) == 0, served.run.text()[-2000:]
    deadline = time.monotonic() + 30
    while left := served.alive() - served.orphans:
        assert time.monotonic() < deadline, [
            line for line in served.run.descendants() if int(line.split()[0]) in left
        ]
        time.sleep(0.3)
    assert not is_up(served.port)
