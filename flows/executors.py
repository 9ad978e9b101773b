"""Executors: run tasks, here or on Ray. They know items, deadlines and retries, not vision.

A task is one clip or one commit. A finished task may bring follow-up tasks (the last clip of a shard brings its
commit). Whatever a task returns is small: clips travel through the staging folder, never through an object store.
"""

import contextlib
import os
import re
import secrets
import socket
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from flows.code import ROOT
from flows.text import say
from pipeline.presets import CurateConfig


@dataclass(frozen=True, slots=True)
class Task:
    """`label` names the item in messages; `payload` is what the work function gets."""

    label: str
    payload: Any
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task. `died`: its worker process ended on it `attempts` times; `deadline`: it took too long.

    stacks: of a worker that was stopped at the deadline, what each of its threads was doing; empty if unknown
    """

    task: Task
    kind: Literal["ok", "died", "deadline"]
    value: Any = None
    message: str = ""
    stacks: str = ""


class RunFailed(RuntimeError):
    """The machine, not the data, failed (disk full, no Ray, a bug): the run stops, finished work stays."""


def error_words(error: BaseException | None) -> str:
    """An error in words that name its class; the repr of an OSError leaves out the file."""
    return f"{type(error).__name__}: {error}"


def _refusal(error: str) -> str:
    """Why Ray was not joined, in one line: what it says may hold a traceback, with the reason at its end."""
    if "InvalidAuthToken" in error:
        return (
            "it wants a token, and this process has none or another one. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN "
            "to that of the cluster (docs/cluster.md); one in ~/.ray/auth_token is found without it"
        )
    if "connect to GCS" in error:
        return (
            "what listens there does not answer as a Ray head. Its port is that of `ray start --head --port` (6379 "
            "unless it was given), not the dashboard's (8265) nor the client's (10001)"
        )
    if "AF_UNIX path length" in error:
        return (
            f"the path of its folder for temporary files, {tempfile.gettempdir()}, is too long for the names of "
            "sockets: set TMPDIR to a shorter one"
        )
    first, *rest = [line.strip() for line in error.splitlines() if line.strip()]
    return " ... ".join([first.removesuffix(" Traceback (most recent call last):"), *rest[-1:]])[
        :500
    ]


INLINE = ". Without Ray: `--executor inline`, everything in this process"
SLOW = 60.0
"""Seconds after which a Ray that is still starting is spoken of; it takes a few."""


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """Processes that are started meanwhile do not inherit this variable."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


Work = Callable[[Any], Any]
Done = Callable[[Outcome], list[Task]]


class Executor(Protocol):
    """Runs `work(payload)` for each task; `done` is called in the driver, in order of completion.

    logs: a folder for what worker processes print; empty: it goes where they print by themselves.
    """

    name: str
    workers: int
    logs: str

    def open(self) -> None: ...

    def run(self, work: Work, tasks: Iterator[Task], done: Done) -> None: ...

    def close(self) -> None: ...


@dataclass
class Inline:
    """Everything in this process, one after the other: for debugging and tests. Deadlines are not enforced."""

    name: str = "inline"
    workers: int = 1
    logs: str = ""

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


STORE = 75 << 20
"""Bytes of a local Ray's object store: the least that Ray allows. Tasks and results are small, clips never pass it."""

PATIENCE = "RAY_gcs_server_port_wait_time_s"
"""How often Ray tries to join, half a minute each time: twenty times by itself, much for a mistyped port."""


@dataclass
class RayActors:
    """A fixed pool of Ray actors, each with `in_flight` tasks at once in threads of its own.

    address: a running cluster (default: RAY_ADDRESS), else a local Ray is started and stopped with this object
    gpus: per actor; with one, Ray gives each actor its own device
    deadline: seconds that one task may take before its actor is killed; the stacks of its threads are kept
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
    logs: str = ""
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
        self.address = self.address or os.environ.get("RAY_ADDRESS") or None
        if self.address is None:
            self._keep_to_this_machine()

    @staticmethod
    def _keep_to_this_machine() -> None:
        """A local Ray listens on 127.0.0.1 alone, and wants a token that only this process's children have.

        The name of the first speaks of other systems, but Ray looks at it on Linux too: with "0" a node's address is
        the loopback one, and its servers bind to the node's address. Ray reads it, and whether there is a token at all,
        as it is imported. Where somebody has imported it already, the first is mended; a token it wants by itself.
        """
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        if "ray" in sys.modules:
            from ray._private import ray_constants

            ray_constants.ENABLE_RAY_CLUSTER = (
                os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] != "0"
            )
        else:
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        if (
            os.environ.get("RAY_AUTH_MODE", "token") == "token"
        ):  # else Ray would make one, and leave it in ~/.ray
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

    def open(self) -> None:
        """Start or join Ray. Executors made while it is open share it; `close` stops what this one started. RunFailed
        if that cannot be done."""
        import logging

        where = (
            f"the Ray at {self.address} (RAY_ADDRESS) cannot be joined"
            if self.address
            else "Ray does not start"
        )
        try:
            if self.address and re.fullmatch(r"[^/]+:\d+", self.address):
                host, port = self.address.rsplit(":", 1)
                socket.create_connection(
                    (host.strip("[]"), int(port)), 10
                ).close()  # Ray itself would try for minutes
        except OSError as error:
            raise RunFailed(f"{where}: {error_words(error)}{INLINE}") from error
        import ray

        if ray.is_initialized():
            return
        self._owner = True
        local: dict[str, Any] = (
            {} if self.address else {"num_cpus": self.workers, "object_store_memory": STORE}
        )
        patience = os.environ.get(PATIENCE)
        if self.address:
            os.environ.setdefault(PATIENCE, "1")
        slow = threading.Timer(SLOW, say, [f"Ray is still starting{INLINE}"], {"file": sys.stderr})
        slow.daemon = True
        slow.start()
        try:
            # Ray puts the working folder before all else on its workers' path. Theirs is to be this code.
            with contextlib.chdir(ROOT), _without("PYTHONOPTIMIZE"):
                ray.init(
                    address=self.address or "local",
                    include_dashboard=None if self.address else False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,  # it is in the run's folder: flows.worker_log
                    namespace="sparrow",
                    **local,
                )
        except Exception as error:  # Ray raises plain ones too
            raise RunFailed(
                f"{where}: {_refusal(error_words(error.__cause__ or error))}{INLINE}"
            ) from error
        finally:
            slow.cancel()
            if patience is None:
                os.environ.pop(PATIENCE, None)

    def run(self, work: Work, tasks: Iterator[Task], done: Done) -> None:
        """See Executor. Raises RunFailed when a task fails for a reason that is not the item's own."""
        from flows.pool import Pool, Queue

        queue = Queue(tasks)
        if queue.more():  # else a resume that finds everything done does not wait for Ray
            self.open()
            Pool(self, work, queue, done).run()

    def close(self) -> None:
        """Stop the Ray that `open` started; one that was there before stays."""
        if not self._owner:
            return
        import ray

        from flows.pool import IDLE

        IDLE.clear()
        ray.shutdown()
        self._owner = False


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

        os.environ["SPARROW_WEIGHTS"] = str(
            weights_root().absolute()
        )  # workers may start in another folder
        gpu = device().type == "cuda"
    return make_executor(
        name,
        workers,
        deadline,
        in_flight=in_flight or (GPU_IN_FLIGHT if gpu else 1),
        gpus=1 if gpu else 0,
    )
