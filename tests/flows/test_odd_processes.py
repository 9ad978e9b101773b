"""Commands in processes that were started oddly: closed streams, no working folder, without docstrings and asserts."""

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flows import driver
from flows.executors import Inline, RayActors, RunFailed
from flows.jobs import make_jobs
from flows.progress import Quiet
from pipeline.presets import configure
from tests.chaos.world import differing, tree

SPARROW = Path(sys.executable).with_name("sparrow")


@pytest.fixture(scope="module")
def out(tiny_root, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("odd") / "out"
    driver.run(make_jobs("hcstvg", tiny_root, place, configure("lite")), Inline(), Quiet())
    return place


def shell(command: str, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, **more
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_stop_nothing(out, closed):
    (out / "catalog.duckdb").unlink(missing_ok=True)
    before = tree(out)
    done = shell(f"{SPARROW} report {shlex.quote(str(out))} {closed}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert tree(out) == before


def test_a_working_folder_that_is_gone_is_one_line(out, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = shell(f"rmdir {gone}; {SPARROW} verify {shlex.quote(str(out))}", cwd=gone)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "the working folder is no longer there" in done.stderr


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_without_asserts_and_docstrings_all_is_the_same(out, tiny_root, tmp_path, executor):
    again = tmp_path / "again"
    words = ["curate", "hcstvg", "--data-root", tiny_root, "--out", again, "--executor", executor]
    done = subprocess.run(
        [SPARROW, *map(str, words)],
        env=os.environ | {"PYTHONOPTIMIZE": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "rror" not in done.stderr
    assert differing(again, tree(out)) == []


def test_ray_that_cannot_start_is_one_line_that_names_a_way_without(tmp_path):
    """In a process of its own: a folder for temporary files whose path is too long for the names of sockets."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    start = "from flows.executors import RayActors; RayActors().open()"
    done = subprocess.run(
        [sys.executable, "-c", start],
        env=os.environ | {"TMPDIR": str(long)},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert "Ray does not start" in last
    assert "set TMPDIR to a shorter one" in last
    assert "--executor inline" in last


def test_a_cluster_that_is_not_there_is_named_at_once():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(
            RunFailed, match=rf"the Ray at {address} \(RAY_ADDRESS\) cannot be joined: Connection"
        ):
            RayActors(address=address).open()
