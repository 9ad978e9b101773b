"""A pool of Ray actors at work: who has what in hand, who is blamed when one dies, what a hung one was doing.

Only an actor that has answered gets tasks. One that waits for room (its node died, and no other has a free core) is
never waited for while others are alive.
"""

import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from flows import code
from flows.code import Code
from flows.executors import Done, Outcome, RunFailed, Task, Work, error_words
from flows.stacks import Hands, taken, top
from flows.worker_log import WorkerLog

if TYPE_CHECKING:
    from flows.executors import RayActors

STARTS = 3
"""How often in a row an actor may fail to start before its place in the pool is given up."""
STARTING = 600.0
"""Seconds that a run waits for its first worker, or for another when none is left: a node that boots takes minutes."""


@dataclass(eq=False)
class Actor:
    """A worker process and what it is working on. alone: it has a suspect, and gets nothing beside it."""

    handle: Any
    hello: Any
    failed: int = 0  # starts before this one that failed, in a row
    address: tuple[str, tuple[int, int, int]] | None = (
        None  # once it has answered: node, see stacks.Hands
    )
    tasks: dict[Any, tuple[Task, float]] = field(default_factory=dict)  # reference -> task, start
    alone: bool = False


def _must_be_ours(node: str, theirs: Code) -> None:
    """RunFailed if a worker of this node runs code from another folder, or one of any node other code."""
    import ray

    mine = code.own_code()
    is_here = node == ray.get_runtime_context().get_node_id()
    if theirs.digest != mine.digest or (is_here and theirs.folder != mine.folder):
        raise RunFailed(
            f"a worker on node {node[:12]} runs the code in {theirs}, this command that in {mine}: "
            "install the same version on every node"
        )


@dataclass
class Queue:
    """What is to be done next: tasks that others brought, then new ones. Suspects wait for an actor of their own."""

    tasks: Iterator[Task]
    follow: deque[Task] = field(default_factory=deque)
    suspects: deque[Task] = field(default_factory=deque)

    def next(self) -> Task | None:
        return self.follow.popleft() if self.follow else next(self.tasks, None)

    def more(self) -> bool:
        """Whether anything is left to begin; takes one new task from `tasks` to know."""
        if not self.follow and not self.suspects and (task := next(self.tasks, None)) is not None:
            self.follow.append(task)
        return bool(self.follow or self.suspects)


IDLE: list[tuple[tuple, list[Actor]]] = []
"""Actors of the last run, of use to the next one while Ray lives: seven sources load their models once."""


class Pool:
    """One run of `RayActors`: the actors, and the loop that feeds them."""

    def __init__(self, settings: "RayActors", work: Work, queue: Queue, done: Done):
        self.settings, self.work, self.queue, self.done = settings, work, queue, done
        self.kind = (work, settings.workers, settings.in_flight, settings.gpus)
        self.remote = self._class()
        self.actors = self._taken()
        self.actors += [self._start() for _ in range(settings.workers - len(self.actors))]
        self.alive = time.monotonic()

    def run(self) -> None:
        """Until nothing is left. Raises RunFailed when a task fails for a reason that is not the item's own."""
        import ray

        finished = False
        try:
            while True:
                for actor in [a for a in self.actors if a.address]:
                    while (task := self._next(actor)) is not None:
                        self._begin(actor, task)
                running = {reference: actor for actor in self.actors for reference in actor.tasks}
                if not running and not self.queue.more():
                    finished = True
                    return
                starting = {actor.hello: actor for actor in self.actors if not actor.address}
                ready, _ = ray.wait([*running, *starting], num_returns=1, timeout=1.0)
                for reference in ready:
                    if reference in starting:
                        self._welcome(starting[reference])
                    elif (
                        reference in running[reference].tasks
                    ):  # else its actor died with a task before it in the list
                        self._end(running[reference], reference)
                for actor in list(self.actors):
                    self._stop_if_late(actor)
                self._check_alive()
        finally:
            if finished:
                IDLE.append((self.kind, [a for a in self.actors if a.address]))
            for actor in self.actors:
                if ray.is_initialized() and not (finished and actor.address):
                    ray.kill(actor.handle)

    # --- actors -----------------------------------------------------------------------------------------------------

    def _class(self) -> Any:
        import os

        import ray

        work = self.work

        class Worker:
            def __init__(self) -> None:
                self.hands = Hands()
                self.log = WorkerLog()

            def hello(self, folder: str) -> tuple[str, tuple[int, int, int], Code]:
                self.write_to(folder)
                return ray.get_runtime_context().get_node_id(), self.hands.address, code.own_code()

            def write_to(self, folder: str) -> None:
                if folder:
                    self.log.write_to(folder)

            def work(self, label: str, payload: Any) -> Any:
                with self.hands.holding(label):
                    try:
                        return work(payload)
                    finally:
                        self.log.ends(label)

        gpus = self.settings.gpus
        options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0}
        options |= {"num_gpus": gpus} if gpus else {}
        chosen = {name: value for name, value in os.environ.items() if name.startswith("SPARROW_")}
        options |= {"runtime_env": {"env_vars": chosen}} if chosen else {}
        return ray.remote(**options)(Worker).options(max_concurrency=self.settings.in_flight)

    def _start(self, failed: int = 0) -> Actor:
        handle = self.remote.remote()
        return Actor(handle, handle.hello.remote(self.settings.logs), failed)

    def _taken(self) -> list[Actor]:
        """The actors of the run before, with their models loaded, if they are of the same kind; others make room."""
        import ray

        while IDLE:
            kind, actors = IDLE.pop()
            if kind == self.kind:
                for actor in actors:
                    actor.handle.write_to.remote(self.settings.logs)
                return actors
            for actor in actors:
                ray.kill(actor.handle)
        return []

    def _welcome(self, actor: Actor) -> None:
        """An actor has answered, or could not be started. RunFailed if it runs other code than this process."""
        import ray

        try:
            node, hands, theirs = ray.get(actor.hello)
            _must_be_ours(node, theirs)
            actor.address, actor.failed = (node, hands), 0
        except ray.exceptions.RayError as error:
            self._replace(actor, actor.failed + 1)
            if not self.actors:
                raise RunFailed(f"no worker could be started: {words(error)}") from error

    def _replace(self, actor: Actor, failed: int = 0) -> None:
        """Another one in its place; none, if starting there has failed too often."""
        import ray

        ray.kill(actor.handle)  # whatever is left of it: it must not go on beside its successor
        place = self.actors.index(actor)
        self.actors[place : place + 1] = [self._start(failed)] if failed < STARTS else []

    def _check_alive(self) -> None:
        import ray

        if any(actor.address for actor in self.actors):
            self.alive = time.monotonic()
        elif time.monotonic() - self.alive > STARTING:
            has = {name: n for name, n in ray.cluster_resources().items() if name in ("CPU", "GPU")}
            needs = "a core" + (f" and {self.settings.gpus:g} GPU" if self.settings.gpus else "")
            raise RunFailed(
                f"no worker could be started in {STARTING:.0f} s: each needs {needs}, and Ray has {has or 'nothing'}. "
                "Add nodes or end what else runs there, and run the same command again"
            )

    # --- tasks ------------------------------------------------------------------------------------------------------

    def _next(self, actor: Actor) -> Task | None:
        """The task that this actor should begin now. While there are suspects, the least busy actor empties for one."""
        if actor.alone or len(actor.tasks) >= self.settings.in_flight:
            return None
        if self.queue.suspects:
            if not actor.tasks:
                return self.queue.suspects.popleft()
            others = [a for a in self.actors if a.address and not a.alone]
            if actor is min(others, key=lambda a: len(a.tasks)):
                return None
        return self.queue.next()

    def _begin(self, actor: Actor, task: Task) -> None:
        from ray.exceptions import ObjectStoreFullError, OutOfDiskError

        actor.alone = task.attempt > 1
        try:
            reference = actor.handle.work.remote(task.label, task.payload)
        except (ObjectStoreFullError, OutOfDiskError) as error:
            raise RunFailed(
                f"{task.label}: no room in Ray's object store, nor where it spills: {words(error)}"
            ) from error
        actor.tasks[reference] = task, time.monotonic()

    def _end(self, actor: Actor, reference: Any) -> None:
        import ray
        from ray import exceptions as e

        task, _ = actor.tasks[reference]
        try:
            outcome = Outcome(task, "ok", ray.get(reference))
        except e.RayTaskError as error:
            raise RunFailed(f"{task.label}: {error_words(error.cause)}") from error
        except (
            e.RayActorError,
            e.OutOfMemoryError,
            e.NodeDiedError,
            e.WorkerCrashedError,
            e.ObjectLostError,
        ) as error:
            suspects = [suspect for suspect, _ in actor.tasks.values()]
            actor.tasks.clear()
            self._replace(actor)
            for suspect in suspects:
                if suspect.attempt < self.settings.attempts:
                    self.queue.suspects.append(replace(suspect, attempt=suspect.attempt + 1))
                else:
                    self.queue.follow.extend(
                        self.done(Outcome(suspect, "died", message=words(error)))
                    )
            return
        except e.RayError as error:
            raise RunFailed(f"{task.label}: Ray failed: {words(error)}") from error
        del actor.tasks[reference]
        actor.alone = actor.alone and bool(actor.tasks)
        self.queue.follow.extend(self.done(outcome))

    def _stop_if_late(self, actor: Actor) -> None:
        deadline = self.settings.deadline
        late = {
            id(task) for task, begun in actor.tasks.values() if time.monotonic() - begun > deadline
        }
        if not late:
            return
        stacks = self._stacks(actor)
        tasks = [task for task, _ in actor.tasks.values()]
        self._replace(actor)
        for task in tasks:
            if id(task) in late:
                frames = top(stacks, task.label)
                message = f"took longer than {deadline:.0f} s; its worker was stopped"
                message += f" in {' < '.join(frames)}" if frames else ""
                self.queue.follow.extend(
                    self.done(Outcome(task, "deadline", message=message, stacks=stacks))
                )
            else:  # innocent, and not suspected either
                self.queue.follow.appendleft(task)

    def _stacks(self, actor: Actor) -> str:
        """See stacks.taken; empty if they cannot be had. On another node a small task takes them."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        assert actor.address is not None
        node, where = actor.address
        if node == ray.get_runtime_context().get_node_id():
            return taken(*where)
        there = ray.remote(num_cpus=0, max_retries=0)(taken)
        place = NodeAffinitySchedulingStrategy(node, soft=False)
        try:
            return ray.get(there.options(scheduling_strategy=place).remote(*where), timeout=30)
        except ray.exceptions.RayError:  # the node is gone, or as stuck as the worker
            return ""


def words(error: BaseException) -> str:
    """What Ray says of a death, in one line: the first one, and the one that gives the cause."""
    plain = re.sub(r"\x1b\[\d+m", "", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()] or [type(error).__name__]
    if "error raised in its creation task" in lines[0]:
        return lines[-1][:500]
    cause = [
        line
        for line in lines[1:]
        if line.startswith(("The actor is dead because", "Memory on the node"))
    ]
    return " ".join([*lines[:1], *cause[:1]]).split(" Some common causes include")[0][:500]
