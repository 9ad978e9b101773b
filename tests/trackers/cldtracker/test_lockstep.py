"""Lock-step: B streams in one forward are the same B streams run alone, whatever happens to their neighbours."""

import threading

import numpy as np
import pytest
import torch

from trackers.cldtracker.lockstep import LockStep, Stream
from trackers.cldtracker.network import CLDTrackerConfig, CLDTrackerNet
from trackers.cldtracker.reference import track_one
from trackers.seeded import seed_module

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def net() -> CLDTrackerNet:
    net = CLDTrackerNet(CLDTrackerConfig.tiny())
    seed_module(net, extra=False)
    return net.eval()


def clip(n: int, seed: int, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    """[n, H, W, 3] of noise that drifts: every crop is different, so that a mix-up would show."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (size[0], size[1] + n, 3), dtype=np.uint8)
    return np.stack([base[:, t : t + size[1]] for t in range(n)])


def streams() -> list[Stream]:
    """Different lengths, directions, sizes of picture and box; more than there are slots."""
    out = []
    for i in range(7):
        frames = clip(6 + 2 * i, i, (90 + 6 * i, 120 + 4 * i))
        key = i % 3 + 1
        box = (20.3 + i, 15.7 + 2 * i, 24.5 + 3 * i, 30.2)
        order = range(key + 1, len(frames)) if i % 2 else range(key - 1, -1, -1)
        out.append(Stream(frames, order, box, key, box))
    return out


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_a_batch_equals_single_runs(net, slots):
    engine = LockStep(net, CPU, slots)
    requests = [engine.submit(stream) for stream in streams()]
    for stream, request in zip(streams(), requests, strict=True):
        boxes, scores = track_one(
            net, stream.frames, stream.order, stream.box, stream.template_frame, stream.template_box
        )
        trace = request.result()
        np.testing.assert_allclose(
            trace.boxes, boxes, rtol=0, atol=1e-4
        )  # pixels, after up to 16 frames
        np.testing.assert_allclose(trace.scores, scores, rtol=0, atol=1e-5)
    engine.close()


def test_results_do_not_depend_on_the_company(net):
    """Not one bit: shapes are the same whoever is there."""
    engine = LockStep(net, CPU, 4)
    alone = [engine.submit(stream).result() for stream in streams()]
    together = [
        request.result() for request in [engine.submit(stream) for stream in reversed(streams())]
    ]
    for one, other in zip(alone, reversed(together), strict=True):
        assert (one.boxes == other.boxes).all()
        assert (one.scores == other.scores).all()
    engine.close()


class Torn:
    """Frames of which one cannot be read."""

    def __init__(self, frames, broken):
        self.frames, self.broken, self.shape = frames, broken, frames.shape

    def __getitem__(self, t):
        if t == self.broken:
            raise OSError("the disk is gone")
        return self.frames[t]


def test_a_failing_stream_does_not_disturb_the_others(net):
    engine = LockStep(net, CPU, 4)
    good, *others = streams()
    torn = Stream(Torn(clip(9, 50), 5), range(1, 9), (20, 20, 30, 30), 0, (20, 20, 30, 30))  # type: ignore[arg-type]
    unreadable = Stream(Torn(clip(9, 50), 0), range(1, 9), (20, 20, 30, 30), 0, (20, 20, 30, 30))  # type: ignore[arg-type]
    expected = engine.submit(good).result()
    requests = [engine.submit(s) for s in (others[0], torn, good, unreadable, others[1])]
    assert (requests[2].result().boxes == expected.boxes).all()
    for bad in (requests[1], requests[3]):
        with pytest.raises(OSError, match="the disk is gone"):
            bad.result()
    assert len(requests[0].result().scores) == len(others[0].order)
    assert len(requests[4].result().scores) == len(others[1].order)
    engine.close()


def test_numbers_that_are_not_finite_fail_their_stream_alone(net):
    engine = LockStep(net, CPU, 2)
    good = streams()[2]
    expected = engine.submit(good).result()
    nan = float("nan")
    requests = [
        engine.submit(Stream(good.frames, good.order, (nan,) * 4, 1, good.template_box)),
        engine.submit(good),
    ]
    with pytest.raises(ArithmeticError, match="not finite at its frame 0"):
        requests[0].result()
    assert (requests[1].result().boxes == expected.boxes).all()
    engine.close()


def test_out_of_memory_halves_the_slots_and_says_so(net, monkeypatch):
    from trackers.batching import memory_events
    from trackers.cldtracker import lockstep

    forward = CLDTrackerNet.forward_tokens

    def small_memory(self, template, search, text=None):
        if len(search) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return forward(self, template, search, text)

    expected = [LockStep(net, CPU, 2).submit(s).result() for s in streams()[:3]]
    monkeypatch.setattr(lockstep.CLDTrackerNet, "forward_tokens", small_memory)
    engine = LockStep(net, CPU, 8)
    requests = [engine.submit(s) for s in streams()[:3]]
    with memory_events() as events:
        traces = [r.result() for r in requests]
    assert engine.slots == 2
    assert {(e.model, e.batch) for e in events} == {("cldtracker", 4), ("cldtracker", 2)}
    for trace, want in zip(traces, expected, strict=True):
        assert (trace.boxes == want.boxes).all()
    monkeypatch.setattr(
        lockstep.CLDTrackerNet,
        "forward_tokens",
        lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all")),
    )
    with pytest.raises(torch.OutOfMemoryError):
        LockStep(net, CPU, 2).submit(streams()[0]).result()


def test_a_lost_stream_with_somebody_to_ask_ends_early(net):
    frames = clip(90, 3)
    stream = Stream(frames, range(1, 90), (30, 30, 30, 30), 0, (30, 30, 30, 30), give_up=True)
    engine = LockStep(net, CPU, 2, lost_below=1.1, patience=5)  # a score is never above 1
    trace = engine.submit(stream).result()
    assert 5 < len(trace.scores) < 60
    patient = engine.submit(Stream(frames, range(1, 90), (30, 30, 30, 30), 0, (30, 30, 30, 30)))
    assert len(patient.result().scores) == 89
    engine.close()


def test_many_threads_may_ask(net):
    engine = LockStep(net, CPU, 4)
    expected = [engine.submit(s).result() for s in streams()]
    found: dict[int, object] = {}

    def ask(i):
        found[i] = engine.submit(streams()[i]).result()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((found[i].boxes == expected[i].boxes).all() for i in range(7))  # type: ignore[attr-defined]
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(streams()[0])


def test_a_stream_of_no_frames_is_no_work(net):
    engine = LockStep(net, CPU, 2)
    assert (
        len(
            engine.submit(Stream(clip(3, 0), range(1, 1), (5, 5, 9, 9), 0, (5, 5, 9, 9)))
            .result()
            .scores
        )
        == 0
    )
