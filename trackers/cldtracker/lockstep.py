"""Lock-step tracking: many streams, one forward per tick.

A frame's crop depends on the box of the frame before, so the frames of one target cannot be batched. What can be:
targets, clips, and the two directions from a key frame. Each is a stream in a slot; every tick takes all slots one
frame further, in one forward of fixed shape, and a slot whose stream ends gets the next one. The box of a stream lives
on the device from its first frame to its last: the host only feeds frames, and reads a stream's boxes when it is over.

All slots are computed in every tick, used or not: with equal shapes every row is computed alike, whoever the
neighbours are, so that results do not depend on the load (spec/tracking.md 1.9, 3.4).
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
from trackers.cldtracker.crop import crop_batch, crop_geometry, normalise
from trackers.cldtracker.network import CLDTrackerNet, decode, hann_window
from trackers.cldtracker.state import step_state
from trackers.runtime import own_stream, settle

TEMPLATE_FACTOR, SEARCH_FACTOR = 2.0, 4.0
POLL = 16  # ticks between two looks at which streams have lost their target


@dataclass(frozen=True, slots=True)
class Stream:
    """One target in one direction of time.

    frames: [T, H, W, 3] uint8 RGB; order: the frames to visit, one after the other; box: xywh, pixels, where the
    target was before the first of them. The template is cut from `template_frame` at `template_box` and never changes.
    give_up: stop once the target is lost, because somebody will look for it (`LockStep.poor`).
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
    _board: "_Board | None" = field(default=None, repr=False)
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
                self._thread = threading.Thread(target=self._work, name=f"lockstep-{self.name}", daemon=True)
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
            self._board = _Board(self, size, length)
        self._board.grow(size, length)
        for slot, request in news:
            try:
                self._board.start(slot, request.item)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # noqa: BLE001  this stream's own: its frames cannot be read, its box is none
                request.future.set_exception(error)
                del self._active[slot]

    def _feed(self, board: "_Board") -> None:
        with board.feeding():
            for slot, entry in list(self._active.items()):
                stream = entry.request.item
                try:
                    board.put(slot, stream.frames[stream.order[entry.done]])
                except Exception as error:  # noqa: BLE001  one unreadable frame ends one stream
                    entry.request.future.set_exception(error)
                    del self._active[slot]

    def _advance(self, board: "_Board") -> None:
        lost = board.lost()
        for slot, entry in list(self._active.items()):
            entry.done += 1
            stream = entry.request.item
            ended = entry.done == len(stream.order)
            mine = entry.done > 2 * POLL  # else the counts may still be those of the slot's stream before
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
                ending.request.future.set_result(Trace(rows[:, :4].copy(), rows[:, 4].astype(np.float32)))
            else:
                frame = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
                ending.request.future.set_exception(
                    ArithmeticError(f"the tracker's network gave a number that is not finite at its frame {frame}")
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
        for request in [e.request for e in self._active.values()] + [e.request for e in self._endings]:
            request.future.set_exception(error)
        self._active.clear()
        self._endings.clear()


class _Board:
    """The device's side: one row per slot. Every tensor keeps its place in memory from tick to tick (CUDA graphs).

    arena: uint8 [2 * slots * room], two frames per slot, so that the next tick's frames travel while this one computes
    state: float64 [slots, 4] xywh; log: float64 [slots, length, 5] boxes and scores, `at` [slots] the next row of each
    """

    def __init__(self, engine: LockStep, room: int, length: int):
        self.engine, self.net, self.device, slots = engine, engine.net, engine.device, engine.slots
        config = self.net.config
        self.dtype = next(self.net.parameters()).dtype
        self.slots, self.room, self.length = slots, 0, 0
        self.cuda = self.device.type == "cuda"

        def full(*shape: int, value: float = 0, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=self.device)

        grid = config.template // config.patch
        self.template = full(slots, grid * grid, config.dim, dtype=self.dtype)
        self.state = full(slots, 4, value=16.0, dtype=torch.float64)
        self.height, self.width = full(slots, value=32), full(slots, value=32)
        self.at, self.poor, self.half = full(slots), full(slots), full(1)
        self.slot = torch.arange(slots, device=self.device)
        self.window = hann_window(config.search // config.patch).to(self.device)
        self.ticks = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.log = full(slots, 1, 5, dtype=torch.float64)
        if self.cuda:
            self.copies = torch.cuda.Stream(self.device)
            self.copied = [torch.cuda.Event() for _ in range(2)]
            self.computed = [torch.cuda.Event() for _ in range(2)]
            self.poll = torch.zeros(slots, dtype=torch.int64, pin_memory=True)
        self.polled: torch.cuda.Event | None = None
        self.grow(room, length)

    def grow(self, room: int, length: int) -> None:
        """Make room for frames of so many bytes and streams of so many frames; the graph is captured anew."""
        if room > self.room:
            self.room = -(-room // 4096) * 4096
            count = 2 * self.slots * self.room
            settle(self.device)  # rare: a larger picture than any before
            self.arena = torch.zeros(count, dtype=torch.uint8, device=self.device)
            self.staging = torch.zeros(count, dtype=torch.uint8, pin_memory=True) if self.cuda else self.arena
            self.feed = self.staging.view(2, self.slots, self.room).numpy()
            settle(self.device)  # the zeros are written before the first frames are
            self.graph = None
        if length > self.length:
            settle(self.device)  # the old graph may still be running
            self.length = max(length, 2 * self.length)
            log = torch.zeros(self.slots, self.length, 5, dtype=torch.float64, device=self.device)
            log[:, : self.log.shape[1]] = self.log
            self.log, self.graph = log, None

    def start(self, slot: int, stream: Stream) -> None:
        """Put a stream into a slot: its template's tokens, its box."""
        picture = np.ascontiguousarray(stream.frames[stream.template_frame])
        height, width = picture.shape[:2]
        frame = self._to_device(torch.from_numpy(picture.reshape(-1)))
        numbers = self._to_device(torch.tensor([stream.template_box, stream.box], dtype=torch.float64))
        shape = self._to_device(torch.tensor([[height], [width], [0]]))
        x1, y1, side = crop_geometry(numbers[:1], TEMPLATE_FACTOR)
        crop = crop_batch(frame, shape[2], shape[0], shape[1], x1, y1, side, self.net.config.template)
        self.template[slot] = self.net.embed_template(normalise(crop, self.dtype))[0]
        self.state[slot], self.height[slot], self.width[slot] = numbers[1], shape[0, 0], shape[1, 0]
        self.at[slot], self.poor[slot] = 0, 0

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.cuda else tensor

    def feeding(self) -> "_Feeding":
        return _Feeding(self)

    def put(self, slot: int, frame: NDArray[np.uint8]) -> None:
        """The next frame of a slot, into the half of the staging memory that is not in use."""
        np.copyto(self.feed[self.ticks % 2, slot, : frame.size], frame.reshape(-1))

    def tick(self) -> None:
        """All slots one frame further."""
        half = self.ticks % 2
        if not self.cuda:
            self._compute()
        else:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(self.copied[half])
            if self.engine.graph and self.graph is None and self.ticks:
                self.graph = self._capture()
            self.graph.replay() if self.graph is not None else self._compute()
            self.computed[half].record(stream)
        self.ticks += 1

    def _capture(self) -> "torch.cuda.CUDAGraph":
        """The first tick ran without a graph and warmed everything up; capturing runs nothing."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._compute()
        return graph

    def _compute(self) -> None:
        base = (self.half * self.slots + self.slot) * self.room
        x1, y1, side = crop_geometry(self.state, SEARCH_FACTOR)
        crops = crop_batch(self.arena, base, self.height, self.width, x1, y1, side, self.net.config.search)
        maps = self.net.forward_tokens(self.template, normalise(crops, self.dtype))
        boxes, score, _ = decode(maps, self.window)
        after = step_state(self.state, boxes.double(), side, self.height, self.width)
        row = torch.cat([after, score.double()[:, None]], 1)[:, None]
        self.log.scatter_(1, self.at.clamp(max=self.length - 1)[:, None, None].expand(-1, 1, 5), row)
        change = (after[:, 2] * after[:, 3]) / (self.state[:, 2] * self.state[:, 3])
        limit = self.engine.max_area_jump
        bad = (score < self.engine.lost_below) | (change > limit) | (change < 1 / limit)
        kept = self.poor >= self.engine.patience  # lost stays lost until the slot is filled anew
        self.poor.copy_(torch.where(bad | kept, self.poor + 1, 0))
        self.state.copy_(torch.where(after.isfinite().all(1, keepdim=True), after, self.state))
        self.at += 1
        self.half.copy_(1 - self.half)

    def lost(self) -> "NDArray[np.bool_] | None":
        """Which slots have lost their target, as of POLL ticks ago: asking does not stop the device."""
        if self.ticks % POLL:
            return None
        if not self.cuda:
            return (self.poor >= self.engine.patience).numpy()
        answer = None
        if self.polled is not None and self.polled.query():
            answer = self.poll.numpy() >= self.engine.patience
        self.polled = torch.cuda.Event()
        self.poll.copy_(self.poor, non_blocking=True)
        self.polled.record()
        return answer

    def rows(self, slot: int, count: int) -> "tuple[Tensor, torch.cuda.Event | None]":
        """Boxes and scores [count, 5] of a slot on the host, and the event after which they are there."""
        rows = self.log[slot, :count].clone()
        if not self.cuda:
            return rows, None
        host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
        host.copy_(rows, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return host, event


class _Feeding:
    """Around the copies of one tick: waits until the half may be overwritten, then sends it on its way."""

    def __init__(self, board: _Board):
        self.board = board

    def __enter__(self) -> None:
        if self.board.cuda:
            self.board.copied[self.board.ticks % 2].synchronize()  # of two ticks ago: never waits for the present one

    def __exit__(self, *_: object) -> None:
        board, half = self.board, self.board.ticks % 2
        if not board.cuda:
            return
        with torch.cuda.stream(board.copies):
            board.copies.wait_event(board.computed[half])
            span = slice(half * board.slots * board.room, (half + 1) * board.slots * board.room)
            board.arena[span].copy_(board.staging[span], non_blocking=True)
            board.copied[half].record(board.copies)
