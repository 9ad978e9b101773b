"""Executors: every task once, follow-ups, deaths and deadlines given up after the cap, machine errors stop the run."""

import os
import time
from pathlib import Path

import pytest

from flows.executors import Inline, Outcome, RayActors, RunFailed, Task, make_executor


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


@pytest.fixture(scope="module")
def ray():
    executor = RayActors(workers=2)
    executor.open()
    yield executor
    executor.close()


def test_ray_runs_all_on_two_processes(ray):
    def work(n):
        time.sleep(0.05)
        return n * n, os.getpid()

    outcomes = collect(RayActors(workers=2), work, [Task(str(n), n) for n in range(20)], one_follow_up)
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


def test_ray_stops_a_task_at_its_deadline_and_finishes_the_rest(ray):
    def work(n):
        time.sleep(60 if n == 1 else 0)
        return n

    start = time.monotonic()
    outcomes = collect(RayActors(workers=2, deadline=15.0), work, [Task(str(n), n) for n in range(4)])
    assert [(o.task.label, o.kind) for o in outcomes if o.kind != "ok"] == [("1", "deadline")]
    assert sorted(o.value for o in outcomes if o.kind == "ok") == [0, 2, 3]
    assert time.monotonic() - start < 50


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
    assert time.monotonic() - start < 8 * 0.5 + 2  # one after the other would be the sum, besides starting the actor


def test_ray_blames_nobody_for_a_neighbour_that_kills_the_worker(ray):
    def work(n):
        time.sleep(0.2)
        if n == 5:
            os._exit(1)
        return n

    outcomes = collect(RayActors(workers=1, in_flight=4, attempts=3), work, [Task(str(n), n) for n in range(12)])
    assert [(o.task.label, o.kind, o.task.attempt) for o in outcomes if o.kind != "ok"] == [("5", "died", 3)]
    assert sorted(o.value for o in outcomes if o.kind == "ok") == [n for n in range(12) if n != 5]


def test_ray_retries_the_neighbours_of_a_task_that_is_stopped_at_its_deadline(ray):
    def work(n):
        time.sleep(60 if n == 1 else 0.1)
        return n

    outcomes = collect(RayActors(workers=1, in_flight=3, deadline=12.0), work, [Task(str(n), n) for n in range(5)])
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
