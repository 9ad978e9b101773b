"""A signal to the process group, as Slurm, Kubernetes, torchrun and a terminal send it: the training saves and ends, and
the same command resumes it to the same bytes. With workers, which the signal reaches too."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from model.interrupt import interruptible
from model.train.state import states
from tests.model.data.made import make_output
from tests.model.train.signalled import Trial, steps_done

REPO = Path(__file__).parents[3]
STEPS = 6
TRAIN = {"steps": STEPS, "batch": 2, "warmup": 1, "lr": 1e-3, "save_every": 100}
COMMON = {"size": "tiny", "workers": 2, "frames": 2, "changes": {"proposer.queries": 16}}


def request(what: str, data: Path, out: Path, **changes) -> dict:
    return {"what": what, "data": str(data), "out": str(out), **COMMON, "train": TRAIN, **changes}


def exit_codes(place: Path, *trials: Trial) -> list[int]:
    """Of trials that were done one after the other."""
    (place / "trials.json").write_text(json.dumps([asdict(one) for one in trials]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.train.signalled", str(place / "trials.json")],
        cwd=REPO,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": port},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [int(line) for line in done.stdout.splitlines() if line.lstrip("-").isdigit()]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_same(run: Path, undisturbed: Path, steps: int = STEPS) -> None:
    """The state in which a run was stopped, and that its end is that of an undisturbed one, byte for byte."""
    middle, last = sorted(states(run))
    assert int(middle.name.removeprefix("step-")) in range(2, steps)
    [whole] = states(undisturbed)
    assert content(last) == content(whole)
    assert content(run / "export") == content(undisturbed / "export")
    assert steps_done(run) == steps


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_output(tmp_path_factory.mktemp("signals") / "data", {"a": (2, 2)})


def test_a_signal_to_the_group_saves_and_the_same_command_resumes(data, tmp_path):
    names = {"term": signal.SIGTERM, "int": signal.SIGINT}
    stages = {"term": "stage1", "int": "proposer"}
    trials = [
        Trial(request(what, data, tmp_path / f"whole-{what}")) for what in ("stage1", "proposer")
    ]
    for name, number in names.items():
        one = request(stages[name], data, tmp_path / name)
        trials += [Trial(one, signals=[number], slow=1), Trial(one)]
    slow = request("stage1", data, tmp_path / "slow")
    trials.append(Trial(slow, signals=[signal.SIGTERM, signal.SIGTERM, signal.SIGINT], slow=120))
    codes = exit_codes(tmp_path, *trials)
    assert codes == [0, 0, 143, 0, 130, 0, 130]
    for name, what in stages.items():
        assert_same(tmp_path / name, tmp_path / f"whole-{what}")
    assert states(tmp_path / "slow") == []  # SIGTERM again was the same request, Ctrl-C an end


def test_torchrun_hands_a_signal_on_and_all_processes_save_the_same_step(data, tmp_path):
    """It is resumed by two processes without torchrun, whose undisturbed run it is compared with."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words += ["-m", "flows.cli", "train", "stage1", "--data", str(data), "--size", "tiny"]
    words += ["--out", str(tmp_path / "run"), "--workers", "2", "--frames", "2"]
    train = TRAIN | {"steps": 16}  # the signal must not come too late
    settings = {f"train.{name}": value for name, value in train.items()} | COMMON["changes"]
    words += [f"--set={name}={value}" for name, value in settings.items()]
    with subprocess.Popen(
        words,
        cwd=REPO,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as stopped:
        while steps_done(tmp_path / "run") < 2 and stopped.poll() is None:
            time.sleep(0.02)
        os.killpg(stopped.pid, signal.SIGTERM)
        _, said = stopped.communicate(timeout=100)
    assert len(states(tmp_path / "run")) == 1, said[-3000:]
    assert "exited unexpectedly" not in said  # what PyTorch says of a worker that died
    requests = (request("stage1", data, tmp_path / name, train=train) for name in ("run", "whole"))
    assert exit_codes(tmp_path, *(Trial(one, ranks=2) for one in requests)) == [0, 0]
    assert_same(tmp_path / "run", tmp_path / "whole", 16)


PRINTS = """
import sys, time
from model.interrupt import interruptible

with interruptible() as found:
    while not found.number:
        print("a step", flush=True)
        time.sleep(0.05)
    print("the state is saved", flush=True)
sys.exit(found.exit_code)
"""


def test_a_terminal_that_is_closed_is_no_error():
    """SIGHUP comes with it, and what is printed goes nowhere."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(REPO)
        os.execv(sys.executable, [sys.executable, "-c", PRINTS])
    assert b"a step" in os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGHUP


def test_handlers_are_put_back_and_other_threads_hear_nothing():
    before = signal.getsignal(signal.SIGTERM)
    with interruptible(announce=False) as found:
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 10
        while not found.number and time.monotonic() < deadline:
            time.sleep(0.01)
        assert found.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    heard: list[int] = []

    def listen() -> None:
        with interruptible() as quiet:
            heard.append(quiet.exit_code)

    other = threading.Thread(target=listen)
    other.start()
    other.join()
    assert heard == [0]
