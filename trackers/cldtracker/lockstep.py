"""Lock-step tracking: many streams, one forward per tick.

A frame's crop depends on the box of the frame before, so the frames of one target cannot be batched. What can be:
targets, clips, and the two directions from a key frame. Each is a stream in a slot; every tick takes all slots one
frame further, in one forward of fixed shape, and a slot whose stream ends gets the next one. The box of a stream lives
on the device from its first frame to its last: the host only feeds frames, and reads a stream's boxes when it is over.

All slots are computed in every tick, used or not: shapes never change, so that results should not depend on the load
(spec/tracking.md 1.9, 3.4). Tested to the bit with the small network on a CPU; not known of a GPU.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trackers.batching import MemoryEvent, Request, out_of_memory
from trackers.cldtracker.board import POLL, Board
from trackers.cldtracker.network import CLDTrackerNet
from trackers.runtime import own_stream


@dataclass(frozen=True, slots=True)
class Stream:
    """One target in one direction of time.

    frames: [T, H, W, 3] uint8 RGB; order: the frames to visit, one after the other; box: xywh, pixels, where the
    target was before the first of them. The template is cut from `template_frame` at `template_box` and never changes.
    give_up: stop once the target is lost, because somebody will look for it (`Board.lost`).
    """

    frames: NDArray[np.uint8]
    order: Sequence[int]
    box: tuple[float, float, float, float]
    template_frame: int
    template_box: tuple[float, float, float, float]
    give_up: bool = False


@dataclass(frozen=True, slots=True)
class Trace:
    """What a stream gave: boxes [n, 4] xywh float64 pixels, scores [n], for the first n frames of its order."""

    boxes: NDArray[np.float64]
    scores: NDArray[np.float32]


@dataclass(slots=True)
class _Slot:
    request: Request[Stream, Trace]
    done: int = 0


@dataclass(slots=True)
class _Ending:
    """A finished stream whose boxes are on their way to the host."""

    request: Request[Stream, Trace]
    rows: Tensor
    event: "torch.cuda.Event | None"


@dataclass
class LockStep:
    """The engine. `submit` from any thread; one thread of its own does the work.

    net: on `device`, in eval mode, in the dtype to compute in; slots: streams per tick (halved when memory runs out)
    lost_below, patience, max_area_jump: a stream with `give_up` ends about POLL ticks after `patience` frames in a row
    whose score was below, or whose area changed by more than this factor (`trackers.cldtracker.gate` decides exactly)
    graph: replay each tick as a CUDA graph
    """

    net: CLDTrackerNet
    device: torch.device
    slots: int
    lost_below: float = 0.25
    patience: int = 10
    max_area_jump: float = 4.0
    graph: bool = True
    name: str = "cldtracker"
    _queue: "deque[Request[Stream, Trace]]" = field(default_factory=deque, repr=False)
    _active: "dict[int, _Slot]" = field(default_factory=dict, repr=False)
    _endings: "deque[_Ending]" = field(default_factory=deque, repr=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)
    _board: Board | None = field(default=None, repr=False)
    _closed: bool = field(default=False, repr=False)

    def submit(self, stream: Stream) -> Request[Stream, Trace]:
        """Queue a stream. `.result()` blocks until its Trace is there, or raises what went wrong with this stream."""
        request: Request[Stream, Trace] = Request(stream, None)
        if not len(stream.order):
            request.future.set_result(Trace(np.zeros((0, 4)), np.zeros(0, np.float32)))
            return request
        with self._changed:
            if self._closed:
                raise RuntimeError("this tracker is closed")
            self._queue.append(request)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name=f"lockstep-{self.name}", daemon=True
                )
                self._thread.start()
            self._changed.notify()
        return request

    def close(self) -> None:
        """Finish what is queued, end the thread and free the buffers."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    # --- the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            with torch.inference_mode(), own_stream(self.device):
                while self._wait():
                    try:
                        self._step()
                    except Exception as error:  # noqa: BLE001  of the device, not of a stream: goes to all who wait
                        self._board = None
                        self._shrink(error) if out_of_memory(error) else self._fail(error)
        except Exception as error:  # noqa: BLE001  the thread ends: nobody may wait for it
            with self._changed:
                self._closed = True
                for request in self._queue:
                    request.future.set_exception(error)

    def _wait(self) -> bool:
        """Until there is something to do; false when there never will be."""
        with self._changed:
            while not (self._queue or self._active or self._endings or self._closed):
                self._changed.wait()
            if self._queue or self._active or self._endings:
                return True
            self._board = None
            return False

    def _step(self) -> None:
        """One tick: fill free slots, feed frames, compute, take out what has ended."""
        self._fill()
        if self._active:
            assert self._board is not None
            self._feed(self._board)
        if self._active:
            assert self._board is not None
            self._board.tick()
            self._advance(self._board)
        self._collect(wait=not self._active)

    def _fill(self) -> None:
        with self._changed:
            free = [slot for slot in range(self.slots) if slot not in self._active]
            news = [(slot, self._queue.popleft()) for slot in free if self._queue]
        for slot, request in news:
            self._active[slot] = _Slot(request)
        if not news:
            return
        streams = [entry.request.item for entry in self._active.values()]
        size = max(int(np.prod(s.frames.shape[1:])) for s in streams)
        length = max(len(s.order) for s in streams)
        if self._board is None:
            self._board = Board(self, size, length)
        self._board.grow(size, length)
        for slot, request in news:
            try:
                self._board.start(slot, request.item)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # noqa: BLE001  this stream's own: its frames cannot be read, its box is none
                request.future.set_exception(error)
                del self._active[slot]

    def _feed(self, board: "Board") -> None:
        with board.feeding():
            for slot, entry in list(self._active.items()):
                stream = entry.request.item
                try:
                    board.put(slot, stream.frames[stream.order[entry.done]])
                except Exception as error:  # noqa: BLE001  one unreadable frame ends one stream
                    entry.request.future.set_exception(error)
                    del self._active[slot]

    def _advance(self, board: "Board") -> None:
        lost = board.lost()
        for slot, entry in list(self._active.items()):
            entry.done += 1
            stream = entry.request.item
            ended = entry.done == len(stream.order)
            mine = (
                entry.done > 2 * POLL
            )  # else the counts may still be those of the slot's stream before
            if ended or (stream.give_up and mine and lost is not None and lost[slot]):
                self._endings.append(_Ending(entry.request, *board.rows(slot, entry.done)))
                del self._active[slot]

    def _collect(self, wait: bool) -> None:
        while self._endings:
            ending = self._endings[0]
            if ending.event is not None:
                if wait:
                    ending.event.synchronize()
                elif not ending.event.query():
                    return
            self._endings.popleft()
            rows = ending.rows.numpy()
            if np.isfinite(rows).all():
                ending.request.future.set_result(
                    Trace(rows[:, :4].copy(), rows[:, 4].astype(np.float32))
                )
            else:
                frame = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
                ending.request.future.set_exception(
                    ArithmeticError(
                        f"the tracker's network gave a number that is not finite at its frame {frame}"
                    )
                )

    def _shrink(self, error: Exception) -> None:
        """Out of memory: half the slots, and everyone who was in one starts again."""
        self._collect(wait=True)
        waiting = [entry.request for _, entry in sorted(self._active.items())]
        self._active.clear()
        if self.slots == 1:
            for request in waiting:
                request.future.set_exception(error)
            return
        self.slots //= 2
        for request in waiting:
            request.events.append(MemoryEvent(self.name, self.slots))
        with self._changed:
            self._queue.extendleft(reversed(waiting))

    def _fail(self, error: Exception) -> None:
        for request in [e.request for e in self._active.values()] + [
            e.request for e in self._endings
        ]:
            request.future.set_exception(error)
        self._active.clear()
        self._endings.clear()
