"""A real Prefect server and a real Ray: serve, run a deployment, read its run page, stop, leave nothing."""

import json
import os
import random
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
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
    """`make serve` on the demo's corpus."""

    run: Run
    port: int
    out: Path


@pytest.fixture(scope="module")
def served(demo, tmp_path_factory):
    place = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(place / "home"))
        port, out = free_port(), place / "out"
        for name, value in environment(port).items():
            patch.setenv(name, value)
        words = ("python", "-m", "flows.serve", "--data", demo / "corpus", "--out", out, "--port", port)
        one = Served(Run(*words, log=place / "log.txt"), port, out)
        try:
            until(lambda: "ready:" in one.run.text(), one, 180)
            yield one
        finally:
            for line in one.run.descendants():
                subprocess.run(["kill", "-9", line.split()[0]], check=False, capture_output=True)


def until(holds: Callable[[], object], served: Served, seconds: float = 120) -> None:
    """Wait for it. AssertionError, with what the server said, if it does not come to be, or if the server is gone."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert served.run.process.poll() is None, served.run.text()[-3000:]
        assert time.monotonic() < deadline, served.run.text()[-3000:]
        time.sleep(0.2)


def ask(port: int, path: str, body: dict) -> list[dict]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/{path}", json.dumps(body).encode(), {"content-type": "application/json"})  # fmt: skip
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.timeout(300, func_only=True)
def test_a_deployment_runs_to_completed_with_progress_and_summary(served):
    port, out = served.port, served.out
    names = {d["name"] for d in ask(port, "deployments/filter", {})}
    assert names == {"hcstvg", "vid-sentence", "a2d", "lasot", "mevis", "got10k", "refsav", "demo", "all"}

    # The command of the README, with the environment of a user's second terminal.
    done = subprocess.run(
        [str(BIN / "prefect"), "deployment", "run", "curate/refsav", "--watch"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "Completed" in done.stdout, done.stdout[-2000:] + served.run.text()[-4000:]
    (flow_run,) = ask(port, "flow_runs/filter", {})
    assert flow_run["state_type"] == "COMPLETED"
    assert {t["name"].rsplit("-", 1)[0] for t in ask(port, "task_runs/filter", {})} == {
        "plan",
        "run",
        "verify",
        "report",
    }
    artifacts = {a["key"] or a["type"]: a for a in ask(port, "artifacts/filter", {})}
    assert "annotation_invalid" in artifacts["summary-refsav"]["data"]
    assert artifacts["progress"]["data"] == 100.0
    assert verify(out, deep=True).problems == []

    # Parameters are validated before anything runs.
    bad = subprocess.run(
        [str(BIN / "prefect"), "deployment", "run", "curate/refsav", "-p", "workers=many"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert bad.returncode != 0
    assert "workers" in bad.stdout + bad.stderr


@pytest.mark.timeout(max(300, 120 * PREFECT_KILLS), func_only=True)
def test_a_killed_prefect_worker_costs_nothing(served, tmp_path):
    """SIGKILL of the worker, and every other time of its flow run too. Another worker comes; the flow run ends, sooner or
    later, for want of somebody to read its output; run again, the bytes are those of an undisturbed run."""
    rng = random.Random(SEED)
    corpus = make_corpus(tmp_path / "corpus", 10, 16)
    [job] = make_jobs("hcstvg", corpus, tmp_path / "undisturbed", configure("lite"))
    driver.run([job], Inline(), Quiet())
    whole, rows = tree(Path(job.out)), counts(Path(job.out))

    def alive(what: str) -> list[int]:
        return [int(line.split()[0]) for line in served.run.descendants() if what in line]

    for n in range(PREFECT_KILLS):
        out = tmp_path / f"out{n}"
        words = ["deployment", "run", "curate/hcstvg", "-p", f"data_root={corpus}", "-p", f"out={out}"]
        subprocess.run([BIN / "prefect", *words], check=True, capture_output=True, timeout=60)
        clips = rng.randint(1, 4)
        until(lambda: len(list(out.glob(".staging/*/*.clip"))) >= clips, served)  # noqa: B023
        [worker], [flow] = alive("worker start"), alive("prefect.engine")
        os.kill(worker, signal.SIGKILL)
        if n % 2 == 0:
            os.kill(flow, signal.SIGKILL)
        until(lambda: served.run.text().count("starting another one") == n + 1, served)  # noqa: B023
        until(lambda: not alive("prefect.engine"), served)
        again = subprocess.run([BIN / "prefect", *words, "--watch"], capture_output=True, text=True, timeout=240)
        assert "Completed" in again.stdout, again.stdout[-2000:] + served.run.text()[-4000:]
        assert differing(out, whole) == [], served.run.text()[-4000:]
        assert counts(out) == rows
        assert leftovers(out) == []
    print(
        json.dumps({"Prefect workers killed": PREFECT_KILLS, "with their flow run": (PREFECT_KILLS + 1) // 2}),
        flush=True,
    )


@pytest.mark.timeout(100)
def test_serve_stops_and_leaves_nothing(served):
    os.kill(served.run.process.pid, signal.SIGTERM)
    assert served.run.wait(60) == 0, served.run.text()[-2000:]
    assert served.run.gone() == []
    assert not is_up(served.port)


@pytest.mark.timeout(300)
def test_the_parent_flow_curates_every_source_under_a_folder(demo, run, tmp_path, monkeypatch):
    """`make shards` without a server: it brings one of its own, and the log has nothing to worry about."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    data = tmp_path / "data"
    data.mkdir()
    for source in ("refsav", "got10k"):
        (data / source).symlink_to(demo / "corpus" / source)
    one = run("sparrow", "shards", "--data-root", data, "--out", tmp_path / "out", "--limit", "1")
    assert one.wait() == 0, one.text()[-4000:]
    assert one.gone() == []
    assert "Traceback" not in one.text()
    assert "ERROR   |" not in one.text()
    assert "leaked" not in one.text()
    assert "Error logging to API" not in one.text()
    report = verify(tmp_path / "out", deep=True)
    assert report.problems == []
    assert {p.parts[-4] for p in Path(tmp_path / "out").glob("*/*/shards/*.tar")} == {"refsav", "got10k"}
