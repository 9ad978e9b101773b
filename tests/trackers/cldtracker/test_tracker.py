"""CLDTracker as a stage: whole runs equal the reference's, both directions, lost, found again, cut."""

import json
import sys

import numpy as np
import pytest
import torch

from schemas.records import Quarantined
from trackers.cldtracker import CLDTracker, CLDTrackerConfig, CLDTrackerNet
from trackers.cldtracker.config import CLDTrackerStageConfig
from trackers.cldtracker.gate import GateConfig
from trackers.cldtracker.lockstep import LockStep, Stream
from trackers.cldtracker.tracker import build
from trackers.seeded import seed_module


@pytest.fixture(scope="module")
def tiny() -> CLDTrackerNet:
    net = CLDTrackerNet(CLDTrackerConfig.tiny())
    seed_module(net, extra=False)
    return net.eval()


def tracker(net, **gate) -> CLDTracker:
    """Score thresholds that a network without knowledge passes, unless the test says otherwise."""
    always = {"lost_below": 0.0, "max_area_jump": 1e9, "cut_above": 0.0}
    config = CLDTrackerStageConfig(dtype="float32", slots=4, gate=GateConfig(**(always | gate)))
    return CLDTracker(net, "cpu", config)


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 90, 120, 3), dtype=np.uint8)


BOX = np.array([[30, 25, 62, 58]], np.float32)


def test_whole_runs_equal_the_reference(shared):
    """Free running from frame 0, three clips in lock-step: boxes to 0.01 px, scores to 5e-5, no flip of any decision."""
    folder = shared / "golden" / "cldtracker"
    sys.path.insert(0, str(shared / "golden"))
    try:
        from golden_inputs import moving_square
    finally:
        sys.path.pop(0)
    about = json.loads((folder / "tracking.json").read_text())
    net = CLDTrackerNet(CLDTrackerConfig())
    seed_module(net, about["salt"], extra=False)
    engine = LockStep(net.eval(), torch.device("cpu"), slots=3)
    requests = {}
    for name, s in about["sequences"].items():
        frames = moving_square(
            s["name"],
            s["frames"],
            s["height"],
            s["width"],
            s["obj_h"],
            s["obj_w"],
            s["x0"],
            s["y0"],
            s["dx"],
            s["dy"],
            about["salt"],
        )
        box = tuple(s["init_box_xywh"])
        requests[name] = engine.submit(Stream(frames, range(1, len(frames)), box, 0, box))
    for name, request in requests.items():
        trace, golden = request.result(), np.load(folder / f"track_{name}_uniform.npz")
        np.testing.assert_allclose(trace.boxes, golden["box_xywh"], rtol=0, atol=1e-2, err_msg=name)
        np.testing.assert_allclose(
            trace.scores, golden["score"].reshape(-1), rtol=0, atol=5e-5, err_msg=name
        )
    engine.close()


def test_both_ways_from_the_key_frame(tiny):
    frames = noise(9)
    [track] = tracker(tiny).track(frames, BOX, 4)
    assert track.visible.all()
    assert track.origin == ["tracked"] * 4 + ["detected"] + ["tracked"] * 4
    assert (track.boxes[4] == BOX[0]).all()
    assert track.score[4] == 1
    [forward] = tracker(tiny).track(frames[4:], BOX)
    [backward] = tracker(tiny).track(frames[4::-1], BOX)
    np.testing.assert_array_equal(track.boxes[4:], forward.boxes)
    np.testing.assert_array_equal(track.boxes[4::-1], backward.boxes)
    assert (track.boxes[:, :2] >= 0).all()
    assert (track.boxes[:, 2:] <= (120, 90)).all()


def test_many_targets_are_the_targets_one_by_one(tiny):
    frames, boxes = noise(6), np.concatenate([BOX, BOX + 12, BOX - 9])
    together = tracker(tiny).track(frames, boxes, 2)
    for i, track in enumerate(together):
        [alone] = tracker(tiny).track(frames, boxes[i : i + 1], 2)
        np.testing.assert_array_equal(track.boxes, alone.boxes)


def test_a_lost_target_has_no_boxes_but_keeps_its_scores(tiny):
    [track] = tracker(tiny, lost_below=1.1, patience=3, found_above=2.0).track(noise(9), BOX)
    assert track.visible.tolist() == [True] + [False] * 8
    assert track.origin[1:] == ["none"] * 8
    assert np.isfinite(track.score).all()


def test_the_detector_is_asked_until_it_finds_the_target_again(tiny):
    asked = []

    def redetect(frame):
        asked.append(int(frame[0, 0, 0]))
        return (BOX[0] + 7, 0.6) if len(asked) == 3 else None

    frames = noise(40)
    frames[:, 0, 0, 0] = np.arange(40)
    [track] = tracker(tiny, lost_below=1.1, patience=4, redetect_every=5).track(
        frames, BOX, redetect=redetect
    )
    assert asked[:3] == [4, 9, 14]  # lost when frames 1-4 were poor
    assert track.origin[14] == "detected"
    assert track.score[14] == np.float32(0.6)
    assert (track.boxes[14] == BOX[0] + 7).all()
    assert not track.visible[1:14].any()
    assert asked[3:] == [18, 23, 28, 33, 38]  # lost again four frames later, and nobody finds it


@pytest.mark.parametrize("key", [0, 11])
def test_behind_a_cut_the_detector_is_asked_at_once(tiny, key):
    frames = np.concatenate(
        [np.full((6, 90, 120, 3), 40, np.uint8), np.full((6, 90, 120, 3), 200, np.uint8)]
    )
    asked = []

    def redetect(frame):
        asked.append(int(frame[0, 0, 0]))
        return BOX[0] + 5, 0.7

    [track] = tracker(tiny, cut_above=28.0).track(frames, BOX, key, redetect=redetect)
    behind = 6 if key == 0 else 5
    assert asked == [200 if key == 0 else 40]
    assert track.origin.count("detected") == 2
    assert track.origin[behind] == "detected"
    assert track.visible.all()


def test_without_a_detector_a_cut_needs_a_good_score(tiny):
    frames = np.concatenate(
        [np.full((4, 90, 120, 3), 40, np.uint8), np.full((4, 90, 120, 3), 200, np.uint8)]
    )
    [track] = tracker(tiny, cut_above=28.0, found_above=2.0).track(frames, BOX)
    assert track.visible.tolist() == [True] * 4 + [False] * 4


@pytest.mark.parametrize("box", [[5, 5, 9, 12], [200, 10, 240, 60], [10, 10, 10, 40], [np.nan] * 4])
def test_a_key_box_that_cannot_be_tracked_is_quarantined(tiny, box):
    with pytest.raises(Quarantined, match="longer side must have 10 pixels"):
        tracker(tiny).track(noise(3), np.array([box], np.float32))


def test_wrong_arguments_are_named(tiny):
    with pytest.raises(ValueError, match="key_frame 5 is not one of 3 frames"):
        tracker(tiny).track(noise(3), BOX, 5)
    with pytest.raises(ValueError, match="redetect looks for one target, 2 boxes"):
        tracker(tiny).track(noise(3), np.concatenate([BOX, BOX]), redetect=lambda frame: None)
    assert tracker(tiny).track(noise(3), np.zeros((0, 4), np.float32)) == []


def test_parity_mode_reads_the_descriptions():
    """The text branch with name-seeded weights: other words, other boxes (with trained ones hardly: docs/weights.md)."""
    net = CLDTrackerNet(CLDTrackerConfig.tiny(text="parity"))
    seed_module(net, extra=False)
    config = CLDTrackerStageConfig(
        network=net.config, dtype="float32", slots=1, gate=GateConfig(lost_below=0.0)
    )
    stage = CLDTracker(net, "cpu", config)
    [dog] = stage.track(noise(4), BOX, descriptions=["the dog", "dog"])
    [again] = stage.track(noise(4), BOX, descriptions=["the dog", "dog"])
    [bus] = stage.track(noise(4), BOX, descriptions=["a red bus on a road"])
    np.testing.assert_array_equal(dog.boxes, again.boxes)
    assert not np.array_equal(dog.score, bus.score)


def test_the_stage_is_built_from_its_config_and_says_that_it_is_seeded(monkeypatch):
    monkeypatch.setenv("SPARROW_DEVICE", "cpu")
    network = CLDTrackerConfig.tiny()
    stage = build(
        CLDTrackerStageConfig(weights="seeded:s0:", network=network, dtype="float32", slots=2)
    )
    assert (stage.name, stage.version) == ("cldtracker", "1+seeded")
    assert len(stage.track(noise(3), BOX)[0].origin) == 3


def test_a_missing_file_is_an_error_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARROW_WEIGHTS", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"cldtracker\.safetensors is not there\. `sparrow weights list`"
    ):
        build(CLDTrackerStageConfig())


def test_without_a_config_it_is_the_published_tracker(tiny):
    """Every box believed whatever its score, across cuts too, and no more streams computed than there are."""
    frames = np.concatenate([noise(4), np.full((5, 90, 120, 3), 200, np.uint8)])
    stage = CLDTracker(tiny, "cpu")
    [track] = stage.track(frames, BOX)
    assert track.visible.all()
    assert stage.engine.slots == 1
    [small] = stage.track(frames, np.array([[10, 10, 14, 15]], np.float32))
    assert small.visible.all()
    two = CLDTracker(tiny, "cpu")
    two.track(frames, np.concatenate([BOX, BOX + 5]), 4)
    assert two.engine.slots == 4
