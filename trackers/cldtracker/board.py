"""The device's side of lock-step tracking: what lives there, and what one tick does with it.

Nothing in a tick asks the device anything: frames are sent ahead on a stream of copies, boxes stay where they are
computed, and the host hears of lost targets some ticks late.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trackers.cldtracker.crop import crop_batch, crop_geometry, normalise
from trackers.cldtracker.network import decode, hann_window
from trackers.cldtracker.state import step_state
from trackers.runtime import settle

if TYPE_CHECKING:
    from trackers.cldtracker.lockstep import LockStep, Stream

TEMPLATE_FACTOR, SEARCH_FACTOR = 2.0, 4.0
POLL = 16  # ticks between two looks at which streams have lost their target


class Board:
    """The device's side: one row per slot. Every tensor keeps its place in memory from tick to tick (CUDA graphs).

    arena: uint8 [2 * slots * room], two frames per slot, so that the next tick's frames travel while this one computes
    state: float64 [slots, 4] xywh; log: float64 [slots, length, 5] boxes and scores, `at` [slots] the next row of each
    """

    def __init__(self, engine: "LockStep", room: int, length: int):
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
            self.staging = (
                torch.zeros(count, dtype=torch.uint8, pin_memory=True) if self.cuda else self.arena
            )
            self.feed = self.staging.view(2, self.slots, self.room).numpy()
            settle(self.device)  # the zeros are written before the first frames are
            self.graph = None
        if length > self.length:
            settle(self.device)  # the old graph may still be running
            self.length = max(length, 2 * self.length)
            log = torch.zeros(self.slots, self.length, 5, dtype=torch.float64, device=self.device)
            log[:, : self.log.shape[1]] = self.log
            self.log, self.graph = log, None

    def start(self, slot: int, stream: "Stream") -> None:
        """Put a stream into a slot: its template's tokens, its box."""
        picture = np.ascontiguousarray(stream.frames[stream.template_frame])
        height, width = picture.shape[:2]
        frame = self._to_device(torch.from_numpy(picture.reshape(-1)))
        numbers = self._to_device(
            torch.tensor([stream.template_box, stream.box], dtype=torch.float64)
        )
        shape = self._to_device(torch.tensor([[height], [width], [0]]))
        x1, y1, side = crop_geometry(numbers[:1], TEMPLATE_FACTOR)
        crop = crop_batch(
            frame, shape[2], shape[0], shape[1], x1, y1, side, self.net.config.template
        )
        self.template[slot] = self.net.embed_template(normalise(crop, self.dtype))[0]
        self.state[slot], self.height[slot], self.width[slot] = numbers[1], shape[0, 0], shape[1, 0]
        self.at[slot], self.poor[slot] = 0, 0

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.cuda else tensor

    def feeding(self) -> "Feeding":
        return Feeding(self)

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
        crops = crop_batch(
            self.arena, base, self.height, self.width, x1, y1, side, self.net.config.search
        )
        maps = self.net.forward_tokens(self.template, normalise(crops, self.dtype))
        boxes, score, _ = decode(maps, self.window)
        after = step_state(self.state, boxes.double(), side, self.height, self.width)
        row = torch.cat([after, score.double()[:, None]], 1)[:, None]
        self.log.scatter_(
            1, self.at.clamp(max=self.length - 1)[:, None, None].expand(-1, 1, 5), row
        )
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


class Feeding:
    """Around the copies of one tick: waits until the half may be overwritten, then sends it on its way."""

    def __init__(self, board: Board):
        self.board = board

    def __enter__(self) -> None:
        if self.board.cuda:
            self.board.copied[
                self.board.ticks % 2
            ].synchronize()  # of two ticks ago: never waits for the present one

    def __exit__(self, *_: object) -> None:
        board, half = self.board, self.board.ticks % 2
        if not board.cuda:
            return
        with torch.cuda.stream(board.copies):
            board.copies.wait_event(board.computed[half])
            span = slice(half * board.slots * board.room, (half + 1) * board.slots * board.room)
            board.arena[span].copy_(board.staging[span], non_blocking=True)
            board.copied[half].record(board.copies)
