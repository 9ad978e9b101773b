"""Executors: every task once, follow-ups, deaths and deadlines given up after the cap, machine errors stop the run."""

import os
import re
import subprocess
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows import code, metrics, pool
from flows.code import Code
from flows.executors import STORE, Inline, Outcome, RayActors, RunFailed, Task, make_executor
from flows.worker_log import remove_empty
from tests.flows.test_metrics import OUTCOMES


def collect(executor, work, tasks, follow=None):
    outcomes: list[Outcome] = []

    def done(outcome):
        outcomes.append(outcome)
        return follow(outcome) if follow else []

    executor.run(work, iter(tasks), done)
    return outcomes


def square(n):
    return n * n


def one_follow_up(outcome):
    return [Task("follow", 10)] if outcome.task.payload == 3 else []


def test_inline_runs_all_and_follow_ups():
    outcomes = collect(Inline(), square, [Task(str(n), n) for n in range(5)], one_follow_up)
    assert sorted(o.value for o in outcomes) == [0, 1, 4, 9, 16, 100]


def test_inline_errors_of_the_machine_stop_the_run():
    with pytest.raises(ZeroDivisionError):
        collect(Inline(), lambda n: 1 / n, [Task("zero", 0)])


def test_unknown_executor_names_the_choices():
    with pytest.raises(ValueError, match="choose inline or ray"):
        make_executor("dask", 2)


def gone(process: int) -> bool:
    until = time.monotonic() + 10
    while Path(f"/proc/{process}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return not Path(f"/proc/{process}").exists()


@pytest.fixture(scope="module")
def ray():
    executor = RayActors(workers=2)
    executor.open()
    yield executor
    executor.close()


def test_a_local_ray_is_reached_from_this_machine_alone_and_by_nobody_without_its_token(ray):
    psutil = pytest.importorskip("psutil")
    collect(RayActors(workers=1), square, [Task("a", 1)])  # workers listen as well
    this = psutil.Process()
    heard: dict[str, set[str]] = {}
    for process in [this, *this.children(recursive=True)]:
        try:
            found = {
                c.laddr.ip.removeprefix("::ffff:")
                for c in process.net_connections()
                if c.status == "LISTEN"
            }
        except psutil.NoSuchProcess:
            continue
        heard.setdefault(process.name(), set()).update(found)
    assert heard["gcs_server"] == heard["raylet"] == {"127.0.0.1"}
    assert set().union(*heard.values()) <= {"127.0.0.1", "::1"}

    import ray as package

    ask = "import sys; from ray._raylet import GcsClient; print(len(GcsClient(sys.argv[1]).get_all_node_info(timeout=5)))"
    address = package.get_runtime_context().gcs_address
    join = (
        "import sys; from flows.executors import RayActors; RayActors(address=sys.argv[1]).open()"
    )
    without = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")
    }
    asked = [
        subprocess.Popen(
            [sys.executable, "-c", code, address],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for code, env in (
            (ask, dict(os.environ)),
            (ask, os.environ | {"RAY_AUTH_TOKEN": "0" * 64}),
            (join, without),
        )
    ]
    friend, stranger, refused = ((*one.communicate(timeout=60), one.returncode) for one in asked)
    assert friend[0].strip() == "1"
    assert stranger[2] != 0
    assert "AuthenticationError" in stranger[1]
    assert (
        refused[1]
        .splitlines()[-1]
        .startswith(
            f"flows.executors.RunFailed: the Ray at {address} (RAY_ADDRESS) cannot be joined: it wants a token"
        )
    )


def test_a_port_that_is_not_a_ray_head_s_is_told_after_one_try():
    join = (
        "import sys; from flows.executors import RayActors; RayActors(address=sys.argv[1]).open()"
    )
    short = {
        "RAY_gcs_rpc_server_connect_timeout_s": "1",
        "RAY_py_gcs_connect_timeout_s": "1",
    }  # else 5 and 30 s
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        words = [sys.executable, "-c", join, f"127.0.0.1:{other.server_port}"]
        refused = subprocess.run(
            words, env=os.environ | short, capture_output=True, text=True, timeout=60, check=False
        )
        other.shutdown()
    assert (
        "cannot be joined: what listens there does not answer as a Ray head"
        in refused.stderr.splitlines()[-1]
    )


def test_a_local_ray_gets_a_token_of_its_own_and_none_is_left_in_the_home_folder(tmp_path):
    start = (
        "import os, ray; from flows.executors import RayActors; RayActors(workers=1).open(); "
        "print(len(os.environ['RAY_AUTH_TOKEN']), os.environ['RAY_AUTH_MODE'])"
    )
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", start]
    said = subprocess.run(
        command, env=without | {"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=100
    )
    assert said.stdout.split() == ["64", "token"], said.stderr
    assert not (tmp_path / ".ray").exists()


def test_ray_runs_all_on_two_processes(ray):
    def work(n):
        time.sleep(0.05)
        return n * n, os.getpid()

    outcomes = collect(
        RayActors(workers=2), work, [Task(str(n), n) for n in range(20)], one_follow_up
    )
    assert sorted(o.value[0] for o in outcomes) == sorted([n * n for n in range(20)] + [100])
    assert len({o.value[1] for o in outcomes}) == 2
    assert os.getpid() not in {o.value[1] for o in outcomes}


def test_ray_gives_up_a_task_that_kills_its_worker_and_finishes_the_rest(ray, tmp_path):
    deaths = str(tmp_path / "deaths")

    def work(n):
        if n == 2:
            with open(deaths, "a") as file:
                file.write("x")
            os._exit(1)
        return n

    outcomes = collect(RayActors(workers=2, attempts=3), work, [Task(str(n), n) for n in range(6)])
    died = [o for o in outcomes if o.kind == "died"]
    assert [(o.task.label, o.task.attempt) for o in died] == [("2", 3)]
    assert Path(deaths).read_text() == "xxx"
    assert sorted(o.value for o in outcomes if o.kind == "ok") == [0, 1, 3, 4, 5]


def test_ray_stops_tasks_that_hang_says_where_and_finishes_the_rest(ray):
    def asleep():
        time.sleep(60)

    def stuck():
        re.match(r"(a+)+$", "a" * 40 + "b")  # for years, in C, with the interpreter's lock held

    def work(n):
        if n in (1, 2):
            (asleep if n == 1 else stuck)()
        return n

    start = time.monotonic()
    outcomes = collect(
        RayActors(workers=2, deadline=3.0), work, [Task(f"clip-{n}", n) for n in range(6)]
    )
    assert sorted(o.value for o in outcomes if o.kind == "ok") == [0, 3, 4, 5]
    late = {o.task.label: o for o in outcomes if o.kind != "ok"}
    assert {label: o.kind for label, o in late.items()} == {
        "clip-1": "deadline",
        "clip-2": "deadline",
    }
    for label, name in (("clip-1", "asleep"), ("clip-2", "stuck")):
        assert re.match(
            rf"took longer than 3 s; its worker was stopped in .*\b{name} \(flows/test_exec",
            late[label].message,
        )
        assert re.search(rf"^thread 0x\w+: {label}$", late[label].stacks, re.M)
        assert f"in {name}\n" in late[label].stacks
        process = int(re.match(r"process (\d+)", late[label].stacks)[1])
        assert gone(process)
    assert time.monotonic() - start < 40


def test_ray_errors_of_the_machine_stop_the_run_and_name_the_task(ray):
    def work(n):
        raise OSError(28, "No space left on device")

    with pytest.raises(RunFailed, match=r"clip-7.*No space left"):
        collect(RayActors(workers=1), work, [Task("clip-7", 7)])


def test_ray_runs_several_tasks_at_once_in_one_process(ray):
    def work(n):
        time.sleep(0.5)
        return os.getpid()

    executor = RayActors(workers=1, in_flight=4)
    collect(executor, work, [Task("warm", 0)])
    start = time.monotonic()
    outcomes = collect(executor, work, [Task(str(n), n) for n in range(8)])
    assert len({o.value for o in outcomes}) == 1
    assert (
        time.monotonic() - start < 8 * 0.5 + 2
    )  # one after the other would be the sum, besides starting the actor


def test_ray_blames_nobody_for_a_neighbour_that_kills_the_worker(ray):
    def work(n):
        time.sleep(0.2)
        if n == 5:
            os._exit(1)
        return n

    outcomes = collect(
        RayActors(workers=1, in_flight=4, attempts=3), work, [Task(str(n), n) for n in range(12)]
    )
    assert [(o.task.label, o.kind, o.task.attempt) for o in outcomes if o.kind != "ok"] == [
        ("5", "died", 3)
    ]
    assert sorted(o.value for o in outcomes if o.kind == "ok") == [n for n in range(12) if n != 5]


def test_ray_retries_the_neighbours_of_a_task_that_is_stopped_at_its_deadline(ray):
    def work(n):
        time.sleep(60 if n == 1 else 0.1)
        return n

    outcomes = collect(
        RayActors(workers=1, in_flight=3, deadline=4.0), work, [Task(str(n), n) for n in range(5)]
    )
    assert [(o.task.label, o.kind) for o in outcomes if o.kind != "ok"] == [("1", "deadline")]
    assert sorted(o.value for o in outcomes if o.kind == "ok") == [0, 2, 3, 4]


def test_ray_keeps_its_processes_for_the_next_run_of_the_same_work(ray):
    def work(n):
        return os.getpid()

    first = collect(RayActors(workers=1), work, [Task("a", 1)])
    second = collect(RayActors(workers=1), work, [Task("b", 2)])
    assert first[0].value == second[0].value
    other = collect(RayActors(workers=1, in_flight=2), work, [Task("c", 3)])
    assert other[0].value != first[0].value


def test_ray_with_nothing_to_do_starts_no_worker_and_no_ray(monkeypatch):
    monkeypatch.setattr(RayActors, "open", lambda self: pytest.fail("opened"))
    assert collect(RayActors(workers=2), square, []) == []


def test_ray_goes_on_with_the_workers_for_which_there_is_room(ray):
    outcomes = collect(
        RayActors(workers=3), square, [Task(str(n), n) for n in range(6)]
    )  # of two cores
    assert sorted(o.value for o in outcomes) == [0, 1, 4, 9, 16, 25]


def test_ray_says_so_when_there_is_room_for_no_worker(ray, monkeypatch):
    monkeypatch.setattr(pool, "STARTING", 1.0)
    with pytest.raises(
        RunFailed,
        match=r"no worker .* in 1 s: each needs a core and 1 GPU, and Ray has \{'CPU': 2.0\}",
    ):
        collect(RayActors(workers=1, gpus=1), square, [Task("a", 1)])


def test_ray_says_so_when_a_node_lacks_the_code_and_blames_no_task(ray, monkeypatch):
    module = types.ModuleType("only_here")
    exec("def work(n):\n    return n", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(
        RunFailed,
        match="no worker could be started: ModuleNotFoundError: No module named 'only_here'",
    ):
        collect(RayActors(workers=1), module.work, [Task("a", 1)])


def test_ray_workers_with_other_code_are_refused(ray, monkeypatch):
    """As of another version on a node, or of another checkout in the folder where the command was typed."""
    mine = code.own_code()
    for theirs in (Code(mine.folder, "0123456789abcdef"), Code("/elsewhere", mine.digest)):
        monkeypatch.setattr(code, "own_code", lambda theirs=theirs: theirs)
        with pytest.raises(RunFailed, match=r"a worker on node .* runs the code in /.* \(sha256 "):
            collect(RayActors(workers=1), square, [Task("a", 1)])


def speaks(words):
    """Through Python, and as a library of C does."""
    if words:
        print(words)
        os.write(2, b"a decoder's complaint\n")
    return os.getpid()


def test_ray_workers_print_into_the_folder_of_the_run(ray, tmp_path, capfd):
    for n, words in enumerate(("hello", "")):
        folder = tmp_path / str(n)
        folder.mkdir()
        executor = RayActors(workers=1, logs=str(folder))
        [outcome] = collect(executor, speaks, [Task("a clip", words)])
        [log] = folder.glob("worker-*.log")
        assert f"-{outcome.value}.log" in log.name
        remove_empty(folder)
        said = log.read_text().splitlines() if log.exists() else []
        what = ["hello", "a decoder's complaint", "^ printed up to the end of a clip"]
        assert said == (what if words else [])
    assert "complaint" not in "".join(capfd.readouterr())


def test_ray_carries_payloads_that_are_larger_than_its_store(ray):
    payload = b"x" * (STORE // 3)
    outcomes = collect(
        RayActors(workers=1, in_flight=4), len, [Task(str(n), payload) for n in range(5)]
    )
    assert [o.value for o in outcomes] == [len(payload)] * 5


def test_ray_takes_a_worker_that_its_memory_monitor_ends_for_dead(ray, monkeypatch):
    """As seen with a threshold that was always exceeded; this is neither an error of a task nor of an actor."""
    import ray as package

    get, said = (
        package.get,
        "1 worker(s) were killed due to low memory.\nMemory on the node was 9GB used / 9GB limit\nTop",
    )

    def starved(reference, **options):
        value = get(reference, **options)
        if value == 4:
            raise package.exceptions.OutOfMemoryError(said)
        return value

    monkeypatch.setattr(package, "get", starved)
    outcomes = collect(
        RayActors(workers=1, attempts=1), square, [Task(str(n), n) for n in range(4)]
    )
    assert [(o.task.label, o.kind) for o in outcomes if o.kind != "ok"] == [("2", "died")]
    [message] = [o.message for o in outcomes if o.kind == "died"]
    assert (
        message
        == "1 worker(s) were killed due to low memory. Memory on the node was 9GB used / 9GB limit"
    )
    assert sorted(o.value for o in outcomes if o.kind == "ok") == [0, 1, 9]


def test_plain_ray_takes_our_counters_and_is_not_disturbed(ray, capfd):
    for outcome in OUTCOMES:
        metrics.count(outcome)
    start = time.perf_counter()
    for _ in range(100):
        metrics.count(OUTCOMES[0])
    assert time.perf_counter() - start < 1
    assert [o.value for o in collect(RayActors(workers=1), square, [Task("a", 3)])] == [9]
    assert "sparrow" not in capfd.readouterr().err
