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


@dataclass
class RayActors:
    """A fixed pool of Ray actors, one task in flight on each.

    address: a running cluster (default: RAY_ADDRESS), else a local Ray is started and stopped with this object
    deadline: seconds that one task may take before its actor is killed
    attempts: how often a task may kill its actor before it is given up
    """

    workers: int = 2
    address: str | None = None
    deadline: float = 1800.0
    attempts: int = 3
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

    def _make_class(self, work: Work) -> Any:
        import ray

        class Worker:
            def work(self, payload: Any) -> Any:
                return work(payload)

        return ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(Worker)

    def run(self, work: Work, tasks: Iterator[Task], done: Done) -> None:
        """See Executor. Raises RunFailed when a task fails for a reason that is not the item's own."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        self.open()
        actor_class = self._make_class(work)
        idle = [actor_class.remote() for _ in range(self.workers)]
        busy: dict[Any, tuple[Any, Task, float]] = {}  # reference -> actor, task, start
        follow: deque[Task] = deque()
        exhausted = False
        try:
            while True:
                while idle:
                    task = follow.popleft() if follow else (None if exhausted else next(tasks, None))
                    if task is None:
                        exhausted = True
                        break
                    actor = idle.pop()
                    busy[actor.work.remote(task.payload)] = actor, task, time.monotonic()
                if not busy:
                    return
                ready, _ = ray.wait(list(busy), num_returns=1, timeout=1.0)
                for reference in ready:
                    actor, task, _ = busy.pop(reference)
                    try:
                        outcome = Outcome(task, "ok", ray.get(reference))
                        idle.append(actor)
                    except RayActorError as error:
                        idle.append(actor_class.remote())
                        if task.attempt < self.attempts:
                            follow.append(replace(task, attempt=task.attempt + 1))
                            continue
                        outcome = Outcome(task, "died", message=_first_line(error))
                    except RayTaskError as error:
                        raise RunFailed(f"{task.label}: {error.cause!r}") from error
                    follow.extend(done(outcome))
                for reference, (actor, task, start) in list(busy.items()):
                    if time.monotonic() - start > self.deadline:
                        busy.pop(reference)
                        ray.kill(actor)
                        idle.append(actor_class.remote())
                        message = f"took longer than {self.deadline:.0f} s; its worker was stopped"
                        follow.extend(done(Outcome(task, "deadline", message=message)))
        finally:
            for actor in [*idle, *(entry[0] for entry in busy.values())]:
                ray.kill(actor)

    def close(self) -> None:
        import ray

        if self._owner and ray.is_initialized():
            ray.shutdown()
            self._owner = False


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300]


def make_executor(name: str, workers: int, deadline: float = 1800.0) -> Executor:
    """`inline` or `ray`."""
    if name == "inline":
        return Inline()
    if name == "ray":
        return RayActors(workers=workers, deadline=deadline)
    raise ValueError(f"unknown executor {name!r}: choose inline or ray")
