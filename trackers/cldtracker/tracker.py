"""CLDTracker as a stage: both ways from the key frame, lost and found, across cuts.

CLDTracker (Alansari et al., Information Fusion 2025; spec/tracking.md section 1) is a one-stream tracker of the
OSTrack family whose language branch, as released, adds a near-constant (section 0): `text="uniform"` keeps that
constant and leaves the branch out, `text="parity"` runs it. Identity is decided by the box that starts a track.
"""

import threading
from collections.abc import Callable, Generator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.geometry import Boxes, clip_boxes, is_box
from schemas.records import Quarantined, Reason, Track
from trackers import runtime
from trackers.base import Redetect
from trackers.cldtracker.checkpoint import make_net
from trackers.cldtracker.config import CLDTrackerStageConfig
from trackers.cldtracker.gate import judge, scene_cuts
from trackers.cldtracker.lockstep import LockStep, Stream, Trace
from trackers.cldtracker.network import CLDTrackerNet
from trackers.cldtracker.reference import track_one
from trackers.runtime import CheckpointError

Following = Generator[Stream, Trace, None]
"""One target in one direction: yields the streams it needs, is sent what they gave."""


class CLDTracker:
    """Many targets in lock-step (`trackers.base.Tracker`). Thread-safe: all callers share one engine.

    net: the network, or a function that makes it when it is first needed; it is moved to `device`.
    config: without one the tracker is the published one: every box is believed, nothing looks for cuts or losses.
    """

    def __init__(
        self,
        net: CLDTrackerNet | Callable[[], CLDTrackerNet],
        device: torch.device | str = "cpu",
        config: CLDTrackerStageConfig | None = None,
        version: str = "1",
    ):
        self.config = config or CLDTrackerStageConfig.bare()
        self.device, self.version = torch.device(device), version
        self.name = "ostrack" if self.config.network.text == "none" else "cldtracker"
        self._net, self._lock = net, threading.Lock()
        self._engine: LockStep | None = None

    @property
    def engine(self) -> LockStep:
        """The network on its device, built once."""
        return self._start(1)

    def _start(self, streams: int) -> LockStep:
        with self._lock:
            if self._engine is None:
                net = self._net if isinstance(self._net, CLDTrackerNet) else self._net()
                if net.config.text != self.config.network.text and not isinstance(
                    self._net, CLDTrackerNet
                ):
                    raise CheckpointError(
                        f"{self.config.weights} is an OSTrack file, trained without the channel mean: to track with "
                        "it, say so with --set track.network.text=none (rows will name the tracker ostrack)"
                    )
                net = net.to(self.device, getattr(torch, self.config.dtype)).eval()
                runtime.settle(self.device)
                if self.config.compile:
                    net.forward_tokens = torch.compile(net.forward_tokens, dynamic=False)  # type: ignore[method-assign]
                gate = self.config.gate
                self._engine = LockStep(
                    net,
                    self.device,
                    self.config.slots or min(streams, 64),
                    gate.lost_below,
                    gate.patience,
                    gate.max_area_jump,
                    self.config.graph,
                )
            return self._engine

    def load(self) -> None:
        """Build the network now. CheckpointError if its file does not fit."""
        _ = self.engine

    def track(
        self,
        frames: NDArray[np.uint8],
        boxes: Boxes,
        key_frame: int = 0,
        *,
        redetect: Redetect | None = None,
        descriptions: Sequence[str] = (),
    ) -> list[Track]:
        """frames: [T, H, W, 3] RGB; boxes: [N, 4] xyxy in frame `key_frame` -> N tracks of T frames.

        The key frame keeps its box (origin "detected", score 1), found again ones are "detected" too with the
        detector's score, other boxes are "tracked" with the tracker's score (the classification map at the chosen
        place, before the window), cut to the frame; where the target is lost there is no box, and the score stays.
        descriptions: the bag of texts of `text="parity"`.
        Raises Quarantined(no_target) for a key box that holds too little of the frame.
        """
        if not 0 <= key_frame < len(frames):
            raise ValueError(f"key_frame {key_frame} is not one of {len(frames)} frames")
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        if redetect is not None and len(boxes) != 1:
            raise ValueError(f"redetect looks for one target, {len(boxes)} boxes were given")
        for box in boxes:
            self._check(box, frames, key_frame)
        cuts = scene_cuts(frames, self.config.gate.cut_above)
        tracks, followings = [], []
        for box in boxes:
            track = Track.empty(len(frames))
            track.boxes[key_frame], track.score[key_frame], track.origin[key_frame] = (
                box,
                1.0,
                "detected",
            )
            tracks.append(track)
            for order in (range(key_frame + 1, len(frames)), range(key_frame - 1, -1, -1)):
                followings.append(self._follow(track, frames, key_frame, order, cuts, redetect))
        self._run(followings, descriptions)
        return tracks

    def _check(self, box: Boxes, frames: NDArray[np.uint8], key_frame: int) -> None:
        height, width = frames.shape[1:3]
        inside = clip_boxes(box, height, width)
        if (
            not is_box(inside)
            or min(sides := inside[2:] - inside[:2]) < 1
            or max(sides) < self.config.min_box
        ):
            raise Quarantined(
                Reason.NO_TARGET,
                f"key box {box.tolist()} is too small to track in the {width}x{height} frame {key_frame}: its longer "
                f"side must have {self.config.min_box:g} pixels",
                stage="track",
            )

    def _run(self, followings: list[Following], descriptions: Sequence[str]) -> None:
        """All targets and directions at once, in lock-step."""
        if self.config.network.text == "parity":
            for following in followings:
                self._run_alone(following, descriptions)
            return
        begun = [(f, s) for f in followings if (s := next(f, None)) is not None]
        engine = self._start(len(begun)) if begun else None
        waiting = [(following, engine.submit(stream)) for following, stream in begun if engine]
        while waiting and engine:
            following, request = waiting.pop(0)
            try:
                waiting.append((following, engine.submit(following.send(request.result()))))
            except StopIteration:
                continue

    def _run_alone(self, following: Following, descriptions: Sequence[str]) -> None:
        from trackers.cldtracker.text import TextState

        net, stream = self.engine.net, next(following, None)
        while stream is not None:
            key = stream.frames[stream.template_frame], stream.template_box
            text = TextState(net.category_embedding, descriptions, *key)
            seen = (
                stream.frames,
                stream.order,
                stream.box,
                stream.template_frame,
                stream.template_box,
            )
            trace = Trace(*track_one(net, *seen, text))
            try:
                stream = following.send(trace)
            except StopIteration:
                return

    def _follow(
        self,
        track: Track,
        frames: NDArray[np.uint8],
        key_frame: int,
        order: range,
        cuts: NDArray[np.bool_],
        redetect: Redetect | None,
    ) -> Following:
        """Fill one direction of a track. With a detector to ask, a stream ends at a cut or when the target is lost,
        and the next one starts where the target is found again; without, the tracker must find it by itself."""
        height, width = frames.shape[1:3]
        template = _xywh(track.boxes[key_frame])
        box, i = template, 0
        cut = np.array([cuts[t] if order.step > 0 else cuts[t + 1] for t in order], bool)
        while i < len(order):
            stop = len(order)
            if redetect is not None and cut[i:].any():
                stop = i + int(np.argmax(cut[i:]))
            lost = stop if stop < len(order) else None
            if stop > i:
                trace = yield Stream(
                    frames, order[i:stop], box, key_frame, template, redetect is not None
                )
                n = len(trace.scores)
                verdict = judge(
                    trace.boxes, trace.scores, cut[i : i + n], np.array(box), self.config.gate
                )
                if redetect is not None and verdict.lost_at is not None:
                    n = verdict.lost_at + 1
                    lost = i + verdict.lost_at
                for j, t in enumerate(order[i : i + n]):
                    track.score[t] = trace.scores[j]
                    if verdict.visible[j]:
                        track.boxes[t], track.origin[t] = (
                            _xyxy(trace.boxes[j], height, width),
                            "tracked",
                        )
            if redetect is None or lost is None:
                return
            for k in range(lost, len(order), self.config.gate.redetect_every):
                answer = redetect(frames[order[k]])
                if answer is not None:
                    break
            else:
                return
            t, (found, score) = order[k], answer
            track.boxes[t], track.score[t], track.origin[t] = found, score, "detected"
            box, i = _xywh(found), k + 1


def build(config: CLDTrackerStageConfig) -> CLDTracker:
    """The stage of a preset. Cheap: the file is looked for and hashed, the network is made when it is first needed."""
    version = f"1+{runtime.identity(config.weights, 'CLDTracker')}"
    return CLDTracker(
        lambda: make_net(config.weights, config.network), runtime.device(), config, version
    )


def _xywh(box: Boxes) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(v) for v in box)
    return x1, y1, x2 - x1, y2 - y1


def _xyxy(box: NDArray[np.float64], height: int, width: int) -> Boxes:
    return clip_boxes(np.r_[box[:2], box[:2] + box[2:]].astype(np.float32), height, width)
