"""Executors: run tasks, here or on Ray. They know items, deadlines and retries, not vision.

A task is one clip or one commit. A finished task may bring follow-up tasks (the last clip of a shard brings its
commit). Whatever a task returns is small: clips travel through the staging folder, never through an object store.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from pipeline.presets import CurateConfig


@dataclass(frozen=True, slots=True)
class Task:
    """`label` names the item in messages; `payload` is what the work function gets."""

    label: str
    payload: Any
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task. `died`: its worker process ended on it `attempts` times; `deadline`: it took too long."""

    task: Task
    kind: Literal["ok", "died", "deadline"]
    value: Any = None
    message: str = ""


class RunFailed(RuntimeError):
    """The machine, not the data, failed (disk full, no Ray, a bug): the run stops, finished work stays."""


Work = Callable[[Any], Any]
Done = Callable[[Outcome], list[Task]]


class Executor(Protocol):
    """Runs `work(payload)` for each task; `done` is called in the driver, in order of completion."""

    name: str
    workers: int

    def open(self) -> None: ...

    def run(self, work: Work, tasks: Iterator[Task], done: Done) -> None: ...

    def close(self) -> None: ...


@dataclass
class Inline:
    """Everything in this process, one after the other: for debugging and tests. Deadlines are not enforced."""

    name: str = "inline"
    workers: int = 1

    def open(self) -> None:
        pass

    def run(self, work: Work, tasks: Iterator[Task], done: Done) -> None:
        follow: deque[Task] = deque()
        while True:
            task = follow.popleft() if follow else next(tasks, None)
            if task is None:
                return
            follow.extend(done(Outcome(task, "ok", work(task.payload))))

    def close(self) -> None:
        pass


@dataclass(eq=False)
class _Actor:
    """A worker process and what it is working on. alone: it has a suspect, and gets nothing beside it."""

    handle: Any
    tasks: dict[Any, tuple[Task, float]] = field(default_factory=dict)  # reference -> task, start
    alone: bool = False


_IDLE: list[tuple[tuple, list[_Actor]]] = []
"""Actors of the last run, of use to the next one while Ray lives: seven sources load their models once."""


@dataclass
class RayActors:
    """A fixed pool of Ray actors, each with `in_flight` tasks at once in threads of its own.

    address: a running cluster (default: RAY_ADDRESS), else a local Ray is started and stopped with this object
    gpus: per actor; with one, Ray gives each actor its own device
    deadline: seconds that one task may take before its actor is killed
    attempts: how often a task may be in its actor when that dies before it is given up. From the second time on it
        runs alone, so that no other task is blamed for it
    """

    workers: int = 2
    address: str | None = None
    deadline: float = 1800.0
    attempts: int = 3
    in_flight: int = 1
    gpus: float = 0
    name: str = "ray"
    _owner: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        quiet = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_DEDUP_LOGS": "1",
            # A driver under `uv run` would make every worker run uv again, and hang.
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        }
        for name, value in quiet.items():
            os.environ.setdefault(name, value)
        self.address = self.address or os.environ.get("RAY_ADDRESS")
        if self.address is None:  # a local Ray on loopback, gone with this process
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")

    def open(self) -> None:
        """Start or join Ray. Executors made while it is open share it; `close` stops what this one started."""
        import logging

        import ray

        if not ray.is_initialized():
            self._owner = True
            local: dict[str, Any] = {} if self.address else {"num_cpus": self.workers, "object_store_memory": 128 << 20}
            ray.init(
                address=self.address, include_dashboard=None if self.address else False, logging_level=logging.ERROR,
                log_to_driver=True, namespace="sparrow", **local,
            )  # fmt: skip

    def _starter(self, work: Work) -> Callable[[], _Actor]:
        import ray

        class Worker:
            def work(self, payload: Any) -> Any:
                return work(payload)

        options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0}
        options |= {"num_gpus": self.gpus} if self.gpus else {}
        chosen = {name: value for name, value in os.environ.items() if name.startswith("SPARROW_")}
        options |= {"runtime_env": {"env_vars": chosen}} if chosen else {}
        remote = ray.remote(**options)(Worker).options(max_concurrency=self.in_flight)
        return lambda: _Actor(remote.remote())

    def run(self, work: Work, tasks: Iterator[Task], done: Done) -> None:
        """See Executor. Raises RunFailed when a task fails for a reason that is not the item's own."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        self.open()
        start = self._starter(work)
        actors = self._taken(work)
        actors += [start() for _ in range(self.workers - len(actors))]
        queue = _Queue(tasks)
        finished = False
        try:
            while True:
                for actor in actors:
                    while (task := self._next(actor, actors, queue)) is not None:
                        actor.alone = task.attempt > 1
                        actor.tasks[actor.handle.work.remote(task.payload)] = task, time.monotonic()
                running = {reference: actor for actor in actors for reference in actor.tasks}
                if not running:
                    finished = True
                    return
                ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
                for reference in ready:
                    actor = running[reference]
                    if reference not in actor.tasks:  # died with a task before it in this list
                        continue
                    task, _ = actor.tasks[reference]
                    try:
                        outcome = Outcome(task, "ok", ray.get(reference))
                    except RayTaskError as error:
                        raise RunFailed(f"{task.label}: {_words(error.cause)}") from error
                    except RayActorError as error:
                        actors[actors.index(actor)] = start()
                        for suspect, _ in actor.tasks.values():
                            if suspect.attempt < self.attempts:
                                queue.suspects.append(replace(suspect, attempt=suspect.attempt + 1))
                            else:
                                queue.follow.extend(done(Outcome(suspect, "died", message=_first_line(error))))
                        actor.tasks.clear()
                        continue
                    del actor.tasks[reference]
                    actor.alone = actor.alone and bool(actor.tasks)
                    queue.follow.extend(done(outcome))
                for actor in list(actors):
                    late = [task for task, begun in actor.tasks.values() if time.monotonic() - begun > self.deadline]
                    if not late:
                        continue
                    ray.kill(actor.handle)
                    actors[actors.index(actor)] = start()
                    message = f"took longer than {self.deadline:.0f} s; its worker was stopped"
                    for task, _ in actor.tasks.values():
                        if any(task is other for other in late):
                            queue.follow.extend(done(Outcome(task, "deadline", message=message)))
                        else:  # innocent, and not suspected either
                            queue.follow.appendleft(task)
        finally:
            if finished:
                _IDLE.append((self._spec(work), actors))
            else:
                for actor in actors:
                    ray.kill(actor.handle)

    def _spec(self, work: Work) -> tuple:
        return work, self.workers, self.in_flight, self.gpus

    def _taken(self, work: Work) -> list[_Actor]:
        """The actors of the run before, with their models loaded, if they are of the same kind; others make room."""
        import ray

        while _IDLE:
            spec, actors = _IDLE.pop()
            if spec == self._spec(work):
                return actors
            for actor in actors:
                ray.kill(actor.handle)
        return []

    def _next(self, actor: _Actor, actors: list[_Actor], queue: "_Queue") -> Task | None:
        """The task that this actor should begin now. While there are suspects, the least busy actor empties for one."""
        if actor.alone or len(actor.tasks) >= self.in_flight:
            return None
        if queue.suspects:
            if not actor.tasks:
                return queue.suspects.popleft()
            if actor is min((a for a in actors if not a.alone), key=lambda a: len(a.tasks)):
                return None
        return queue.next()

    def close(self) -> None:
        import ray

        if self._owner and ray.is_initialized():
            _IDLE.clear()
            ray.shutdown()
            self._owner = False


@dataclass
class _Queue:
    """What is to be done next: tasks that others brought, then new ones. Suspects wait for an actor of their own."""

    tasks: Iterator[Task]
    follow: deque[Task] = field(default_factory=deque)
    suspects: deque[Task] = field(default_factory=deque)

    def next(self) -> Task | None:
        return self.follow.popleft() if self.follow else next(self.tasks, None)


def _words(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}"  # the repr of an OSError leaves out the file


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300]


def make_executor(
    name: str, workers: int, deadline: float = 1800.0, *, in_flight: int = 1, gpus: float = 0
) -> Executor:
    """`inline` or `ray`. in_flight, gpus: of each Ray worker."""
    if name == "inline":
        return Inline()
    if name == "ray":
        return RayActors(workers=workers, deadline=deadline, in_flight=in_flight, gpus=gpus)
    raise ValueError(f"unknown executor {name!r}: choose inline or ray")


GPU_IN_FLIGHT = 96
"""Clips that one GPU's actor works on at once: enough to fill the tracker's slots while others decode or wait."""


def executor_for(
    config: CurateConfig, name: str, workers: int, deadline: float = 1800.0, in_flight: int = 0
) -> Executor:
    """The executor that suits a preset: models on GPUs get an actor per GPU with many clips in flight, else workers get
    a clip each. in_flight: 0 chooses."""
    gpu = False
    if name == "ray" and config.needs_torch:
        from trackers.runtime import device, weights_root

        os.environ["SPARROW_WEIGHTS"] = str(weights_root().absolute())  # workers may start in another folder
        gpu = device().type == "cuda"
    return make_executor(
        name, workers, deadline, in_flight=in_flight or (GPU_IN_FLIGHT if gpu else 1), gpus=1 if gpu else 0
    )
