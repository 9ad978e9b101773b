"""Masks on disk: frames in any order come back in order, and a second run leaves nothing of the first."""

import json

import numpy as np

from flows.masks import MaskWriter, read_masks
from model.grounding import FrameMasks
from model.instances import Target


def step(frame, names, size=(6, 8)):
    masks = np.zeros((len(names), *size), bool)
    for row, name in enumerate(names):
        masks[row, : frame + 1, name : name + 2] = True
    return FrameMasks(frame, names, masks, np.float32(range(len(names))))


def test_frames_come_back_in_order_whole(tmp_path):
    writer = MaskWriter(tmp_path, png=True)
    steps = {3: step(3, [0, 1]), 4: step(4, [0, 1]), 1: step(1, [0]), 0: step(0, [0])}
    for one in steps.values():
        writer.add(one)
    targets = [Target("a", 0, {3: np.float32([1, 2, 3, 4])}, {3: 0.5}), Target("a", 0)]
    writer.close({"note": "made"}, targets)
    back = dict(read_masks(tmp_path))
    assert list(back) == [0, 1, 3, 4]
    for t, masks in back.items():
        assert list(masks) == steps[t].targets
        np.testing.assert_array_equal(np.stack(list(masks.values())), steps[t].masks_nhw)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["note"] == "made"
    assert result["instances"][0]["prompted"] == {
        "3": {"box": [1.0, 2.0, 3.0, 4.0], "confidence": 0.5}
    }
    assert sorted(p.name for p in (tmp_path / "png" / "1").iterdir()) == ["00003.png", "00004.png"]


def test_lines_can_be_read_while_they_are_written(tmp_path):
    writer = MaskWriter(tmp_path)
    writer.add(step(0, [0]))
    assert [t for t, _ in read_masks(tmp_path)] == [0]
    assert not (tmp_path / "result.json").exists()
    writer.close({}, [Target("a", 0)])


def test_an_empty_mask_has_no_box(tmp_path):
    writer = MaskWriter(tmp_path)
    writer.add(FrameMasks(0, [0], np.zeros((1, 6, 8), bool), np.float32([-3])))
    writer.close({}, [Target("a", 0)])
    [one] = json.loads((tmp_path / "masks.jsonl").read_text())["instances"]
    assert (one["box"], one["object_score"]) == (None, -3.0)


def test_a_second_run_leaves_nothing_of_the_first(tmp_path):
    for names in ([0, 1], [0]):
        writer = MaskWriter(tmp_path, png=True)
        writer.add(step(2, names))
        writer.close({}, [Target("a", 0)])
    assert [p.parent.name for p in tmp_path.glob("png/*/*.png")] == ["0"]
