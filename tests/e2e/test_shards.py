"""`sparrow shards` with a Prefect server of its own: the server cannot stop curation, and does not outlive it."""

import os
import signal
import time
from pathlib import Path

import pytest

from flows import driver
from flows.executors import Inline
from flows.jobs import make_jobs
from flows.progress import Quiet
from flows.serve import free_port
from manifests.verify import verify
from pipeline.presets import configure
from tests.chaos.world import differing, make_corpus, tree
from tests.e2e.conftest import Run

GONE = "Prefect's server does not answer any more"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("shards")
    make_corpus(place / "data" / "hcstvg", 4, 8)
    return place / "data"


@pytest.fixture
def begun(data, run, tmp_path, monkeypatch) -> Run:
    """A run whose flow has begun, and whose server can be killed. State is kept in a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    one = run("sparrow", "shards", "--data-root", data, "--out", tmp_path / "out")
    until(lambda: "sources: hcstvg" in one.text(), one)
    return one


def until(holds, one: Run, seconds: float = 120) -> float:
    """Seconds until it holds. AssertionError, with what was printed, if it does not."""
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < seconds, one.text()[-3000:]
        time.sleep(0.1)
    return time.monotonic() - start


def servers(one: Run) -> list[int]:
    return [int(line.split()[0]) for line in one.descendants() if "flows.prefect_server" in line]


def test_curation_goes_on_when_the_server_is_killed(data, begun, tmp_path):
    [server] = servers(begun)
    os.kill(server, signal.SIGKILL)
    assert (
        until(lambda: GONE in begun.text(), begun) < 20
    )  # with nothing else to do: under a second
    assert begun.wait(200) == 0, begun.text()[-3000:]
    assert "Traceback" not in begun.text()
    after = begun.text().split(GONE)
    assert len(after) == 2, "said more than once"
    assert "ERROR" not in after[1]
    jobs = make_jobs("hcstvg", data / "hcstvg", tmp_path / "whole", configure("lite"))
    driver.run(jobs, Inline(), Quiet())
    assert differing(tmp_path / "out", tree(tmp_path / "whole")) == []
    assert verify(tmp_path / "out", deep=True).problems == []


def test_killed_it_leaves_no_server_behind(begun):
    assert len(servers(begun)) == 1
    begun.process.kill()
    until(lambda: not servers(begun), begun, 40)


def test_serve_that_is_stopped_while_it_starts_is_quiet(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    words = ("--data", tmp_path, "--out", tmp_path / "out", "--port", free_port())
    one = run("python", "-m", "flows.serve", *words)
    until(lambda: servers(one), one)
    os.killpg(one.process.pid, signal.SIGINT)  # as Ctrl-C on a terminal
    assert one.wait(60) == 0, one.text()
    said = [line for line in one.text().splitlines() if line]
    assert [line.split()[0] for line in said] == ["starting", "stopping"], said
    assert one.gone(within=20) == []
