"""A real Prefect server and a real Ray: serve, run a deployment, read its run page, stop, leave nothing."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from flows.serve import environment, free_port, is_up
from manifests.verify import verify
from tests.e2e.conftest import BIN


def ask(port: int, path: str, body: dict) -> list[dict]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/{path}", json.dumps(body).encode(), {"content-type": "application/json"})  # fmt: skip
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.timeout(400)
def test_a_deployment_runs_to_completed_with_progress_and_summary(demo, run, tmp_path, monkeypatch):
    port, out = free_port(), tmp_path / "out"
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    for name, value in environment(port).items():
        monkeypatch.setenv(name, value)
    serve = run("python", "-m", "flows.serve", "--data", demo / "corpus", "--out", out, "--port", port)
    deadline = time.monotonic() + 180
    while "ready:" not in serve.text():
        assert serve.process.poll() is None, serve.text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.5)

    names = {d["name"] for d in ask(port, "deployments/filter", {})}
    assert names == {"hcstvg", "vid-sentence", "a2d", "lasot", "mevis", "got10k", "refsav", "demo", "all"}

    # The command of the README, with the environment of a user's second terminal.
    done = subprocess.run(
        [str(BIN / "prefect"), "deployment", "run", "curate/refsav", "--watch"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "Completed" in done.stdout, done.stdout[-2000:] + serve.text()[-4000:]
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

    os.kill(serve.process.pid, signal.SIGTERM)
    assert serve.wait(60) == 0, serve.text()[-2000:]
    assert serve.gone() == []
    assert not is_up(port)


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
