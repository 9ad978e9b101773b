"""Table 8 as a rule: each scenario, planted, decides for its own reason."""

import numpy as np
import pytest

from model.tsf_inference import Extractor
from model.tsf_rule import RuleConfig, decide
from schemas.records import Detection

SIZE = (120, 200)


def film(n=16, side=40, step=0.0, seed=0):
    """A textured square on a flat ground that moves `step` pixels per frame; and its boxes."""
    rng = np.random.default_rng(seed)
    square = np.repeat(
        np.repeat(rng.integers(0, 255, (5, 5, 3)), side // 5, 0), side // 5, 1
    ).astype(np.uint8)
    frames, boxes = [], []
    for t in range(n):
        x, y = 20 + round(step * t) % (SIZE[1] - side - 40), 30
        frame = np.full((*SIZE, 3), 90, np.uint8)
        frame[y : y + side, x : x + side] = square
        frames.append(frame)
        boxes.append([x, y, x + side, y + side])
    return np.stack(frames), np.float32(boxes)


class Looks:
    """What a detector would say of each frame, planted."""

    def __init__(self, boxes, missing=(), margin=0.4):
        self.boxes, self.missing, self.margin = boxes, missing, margin
        self.clock = Extractor("lite").clock

    def look(self, frames, phrase, wanted):
        [t] = wanted
        return (
            None
            if t in self.missing
            else Detection(t, self.boxes[t], "fake", True, 0.6, self.margin)
        )


def test_a_simple_clip_keeps_it_off():
    frames, boxes = film()
    decision = decide(Looks(boxes), frames, "the square")
    assert not decision.on
    assert "found in 8 of 8 frames" in str(decision)
    assert "keep TSF off" in str(decision)


@pytest.mark.parametrize(
    ("planted", "reason"),
    [
        ({"missing": (4, 6)}, "missing in 2 of 8 frames looked at, and back"),
        ({"side": 10}, "small target"),
        ({"step": 8.0}, "fast motion"),
        ({"margin": 0.05}, "similar distractors"),
    ],
)
def test_each_scenario_of_the_table_turns_it_on(planted, reason):
    frames, boxes = film(side=planted.get("side", 40), step=planted.get("step", 0.0))
    looks = Looks(boxes, planted.get("missing", ()), planted.get("margin", 0.4))
    decision = decide(looks, frames, "the square")
    assert decision.on
    assert len(decision.reasons) == 1
    assert reason in str(decision)


def test_leaving_is_no_occlusion_and_nowhere_is_nothing_to_track():
    frames, boxes = film()
    gone = decide(Looks(boxes, missing=range(9, 16)), frames, "the square")
    assert not gone.on
    nowhere = decide(Looks(boxes, missing=range(16)), frames, "the square")
    assert not nowhere.on
    assert "nothing to track" in str(nowhere)


def test_a_given_box_says_what_was_not_looked_for():
    frames, boxes = film()
    decision = decide(Looks(boxes), frames, "the square", 0, boxes[0])
    assert not decision.on
    assert "neither occlusion nor distractors were looked for" in str(decision)
    assert decide(Looks(boxes), frames, "x", 0, boxes[0], RuleConfig(small=0.5)).on


def test_a_still_picture_has_no_motion():
    frames, boxes = film(1)
    assert not decide(Looks(boxes), frames, "the square").on
