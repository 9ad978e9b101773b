"""A real Prefect server and a real Ray: serve, run a deployment, read its run page, stop, leave nothing."""

import base64
import json
import os
import random
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows import driver
from flows.executors import Inline
from flows.jobs import make_jobs
from flows.prefect_home import known_secret, profile_of
from flows.progress import Quiet
from flows.serve import client_environment, free_port, is_up, proves_ours
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
    home: Path
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
        home, port, out = place / "home", free_port(), place / "out"
        for name, value in client_environment(home).items():
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
        one = Served(Run(*words, log=place / "log.txt"), port, out, place / "whole", home)
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


def ask(served: Served, path: str, body: dict, **headers: str) -> Any:
    """What the server answers to its owner; HTTPError for a status that is no success."""
    given = {"content-type": "application/json", "authorization": basic(known_secret(served.home))}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    address = f"http://127.0.0.1:{served.port}/api/{path}"
    request = urllib.request.Request(address, json.dumps(body).encode(), given)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def basic(secret: str) -> str:
    return f"Basic {base64.b64encode(secret.encode()).decode()}"


def deploy(*words: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """The command of the README, with the environment of a user's second terminal."""
    command = [str(BIN / "prefect"), "deployment", "run", "curate/hcstvg", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def test_every_source_is_deployed_and_parameters_are_validated_before_anything_runs(served):
    names = {d["name"] for d in ask(served, "deployments/filter", {})}
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
    assert ask(served, "flow_runs/filter", {}) == []


FOREIGN = [
    ({"Host": "evil.example"}, 421),
    ({"Host": "127.0.0.1"}, 421),
    ({"Origin": "http://other.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": "http://127.0.0.1:1"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
]


@pytest.mark.parametrize(("headers", "status"), FOREIGN, ids=str)
def test_foreign_hosts_and_origins_are_refused_with_and_without_the_secret(served, headers, status):
    """Health and readiness too; a preflight request of another page gets no permission."""
    for path, method in (
        ("health", "GET"),
        ("ready", "GET"),
        ("deployments/filter", "OPTIONS"),
        ("deployments/filter", "POST"),
    ):
        for secret in ("", basic(known_secret(served.home))):
            given = headers | ({"Authorization": secret} if secret else {})
            with httpx.Client() as client:
                answer = client.request(
                    method, f"http://127.0.0.1:{served.port}/api/{path}", headers=given
                )
            assert answer.status_code == status
            assert "access-control-allow-origin" not in answer.headers


def test_nothing_is_made_or_read_without_the_secret(served):
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}/api") as client:
        for secret in ("", basic("sparrow:wrong"), "Bearer x"):
            given = {"Authorization": secret} if secret else {}
            for path in ("deployments/filter", "flow_runs/filter", "work_pools/filter"):
                assert client.post(path, json={}, headers=given).status_code == 401
    assert profile_of(served.home).stat().st_mode & 0o777 == 0o600
    assert served.home.stat().st_mode & 0o777 == 0o700
    assert known_secret(served.home) not in served.run.text()


def test_only_a_server_with_the_secret_proves_to_be_ours(served):
    secret = known_secret(served.home)
    assert proves_ours(served.port, secret)
    assert not proves_ours(served.port, secret + "x")
    assert not proves_ours(served.port, "")
    assert not proves_ours(free_port(), secret)


def test_the_page_asks_for_the_password_once_and_lets_its_owner_in(served):
    """In a real Chromium, with the secret of the profile."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    address = f"http://127.0.0.1:{served.port}"
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.locator("input[type=password]").fill(known_secret(served.home), timeout=60_000)
        page.keyboard.press("Enter")
        page.get_by_text("Deployments").first.wait_for(timeout=60_000)
        page.goto(f"{address}/deployments")
        page.get_by_text("vid-sentence").first.wait_for(timeout=60_000)
        assert page.locator("input[type=password]").count() == 0
        browser.close()


def test_a_flow_run_cannot_change_its_command(served, tmp_path):
    """With the secret: the pool has no such variables."""
    victim = tmp_path / "victim"
    [deployment] = ask(
        served, "deployments/filter", {"deployments": {"name": {"any_": ["hcstvg"]}}}
    )
    body = {
        "job_variables": {
            "command": f"touch {victim}",
            "env": {"X": "1"},
            "working_dir": str(tmp_path),
        },
        "parameters": {"source": "none"},
        "enforce_parameter_schema": False,
        "state": {"type": "SCHEDULED"},
    }
    try:
        made = ask(served, f"deployments/{deployment['id']}/create_flow_run", body)
    except urllib.error.HTTPError as error:
        assert error.code in (409, 422)  # noqa: PT017
    else:
        until(lambda: ask_state(served, made["id"]) in ("FAILED", "CRASHED", "COMPLETED"), served)
    assert not victim.exists()


def ask_state(served: Served, flow_run: str) -> str:
    [found] = ask(served, "flow_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})
    return found["state_type"]


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
    [flow_run] = ask(served, "flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    assert flow_run["state_type"] == "COMPLETED"
    of_it = {"flow_runs": {"id": {"any_": [flow_run["id"]]}}}
    tasks = {t["name"].rsplit("-", 1)[0] for t in ask(served, "task_runs/filter", of_it)}
    assert tasks == {"plan", "run", "verify", "report"}
    artifacts = {a["key"] or a["type"]: a for a in ask(served, "artifacts/filter", of_it)}
    assert "media_missing" in artifacts["summary-hcstvg"]["data"]
    assert artifacts["progress"]["data"] == 100.0
    assert verify(served.out, deep=True).problems == []


@pytest.mark.timeout(200, func_only=True)
def test_a_killed_server_gets_a_successor_and_flow_runs_go_on(served):
    [server] = served.alive("flows.prefect_server")
    os.kill(server, signal.SIGKILL)
    until(lambda: served.alive("flows.prefect_server") - {server}, served)
    until(lambda: proves_ours(served.port, known_secret(served.home)), served)
    assert "the Prefect server has ended (exit code -9); starting another one" in served.run.text()
    # The worker finds it, and a known error of a flow run is one line in the log.
    before = len(served.run.text())
    done = deploy("-p", "data_root=/nowhere/hcstvg", "--watch")
    assert "Failed" in done.stdout
    said = served.run.text()[before:]
    assert "Traceback" not in said
    told = [line for line in said.splitlines() if "/nowhere/hcstvg" in line and "ERROR" in line]
    assert len(told) == 1, said


@pytest.mark.timeout(200, func_only=True)
def test_sparrow_shards_ends_with_one_line_where_the_plan_is_another(served, run, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{served.port}/api")
    data, out = served.out.with_name("data"), served.out.with_name("other_plan")
    shutil.copytree(served.whole, out)
    shards = run("sparrow", "shards", "--data-root", data, "--out", out, "--limit", 1)
    assert shards.wait(120) == 1
    lines = shards.text().splitlines()
    assert "Traceback" not in shards.text()
    assert [line for line in lines if "holds another plan" in line] == lines[-1:]
    assert lines[-1].startswith("error: ")


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
