"""The SAM2 stage: which frames get a mask, which masks are believed, and the same answer whoever else is asking."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.segment.sam2 import SAM2Config, SAM2Segmenter, choose, judge
from schemas.geometry import absent, iou, rle_area, rle_box, rle_check, rle_encode, rle_iou
from tests.made import moving_square
from trackers.checkpoints import CheckpointError


def clip(seed=0, frames=12):
    pictures, boxes = moving_square(seed, frames)
    boxes = np.asarray(boxes, np.float32)
    return pictures, np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def tiny(**changes):
    return SAM2Config.tiny().model_copy(update=changes)


@pytest.fixture(scope="module")
def segmenter():
    return SAM2Segmenter(tiny(masks="all"))


# --- which frames --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ("none", []),
        ("all", [2, 3, 4, 6, 7, 9]),
        ("every:1", [2, 3, 4, 6, 7, 9]),
        ("every:4", [2, 7]),
        ("keyframes:1", [2]),
        ("keyframes:3", [2, 4, 9]),
        ("keyframes:8", [2, 3, 4, 6, 7, 9]),
    ],
)
def test_masks_are_made_for_the_frames_asked_for(masks, expected):
    boxes = absent(10)
    boxes[[2, 3, 4, 6, 7, 9]] = (0, 0, 5, 5)
    assert choose(boxes, masks) == expected


def test_key_frames_are_evenly_spaced():
    assert choose(np.tile(np.float32([0, 0, 5, 5]), (300, 1)), "keyframes:8") == [
        0,
        43,
        85,
        128,
        171,
        214,
        256,
        299,
    ]


@pytest.mark.parametrize(
    "masks", ["", "some", "keyframes", "keyframes:0", "every:-1", "every:2.5", "all:3"]
)
def test_other_words_for_frames_are_refused(masks):
    with pytest.raises(ValidationError, match="masks"):
        SAM2Config(masks=masks)


def test_frames_and_boxes_must_pair_up(segmenter):
    with pytest.raises(ValueError, match="3 frames, but 2 boxes"):
        segmenter.segment(np.zeros((3, 8, 8, 3), np.uint8), absent(2))


def test_without_a_wanted_frame_no_model_is_loaded():
    stage = SAM2Segmenter(tiny(masks="none"))
    pictures, boxes = clip()
    assert stage.segment(pictures, boxes) == [None] * 12
    assert SAM2Segmenter(tiny()).segment(pictures, absent(12)) == [None] * 12
    assert stage._loaded is None


# --- which masks ---------------------------------------------------------------------------------------------------


def block(x1, y1, x2, y2):
    mask = np.zeros((100, 100), bool)
    mask[y1:y2, x1:x2] = True
    return rle_encode(mask)


@pytest.mark.parametrize(
    ("mask", "score", "fault"),
    [
        (block(10, 10, 50, 50), 3.0, ""),
        (block(12, 12, 48, 48), 0.01, ""),
        (block(10, 10, 50, 50), 0.0, "absent"),
        (block(0, 0, 0, 0), 3.0, "absent"),
        (block(0, 0, 100, 100), 3.0, "area"),
        (block(10, 10, 20, 20), 3.0, "area"),
        (block(40, 10, 80, 50), 3.0, "box_disagrees"),
    ],
)
def test_a_mask_is_judged_by_its_box(mask, score, fault):
    assert judge(mask, np.float32([10, 10, 50, 50]), score, SAM2Config()) == fault


def test_a_seeded_model_fails_small_targets_and_passes_large_ones(segmenter):
    pictures, _ = clip(frames=2)
    large, small = segmenter.segment(pictures, np.float32([[20, 10, 120, 80], [20, 10, 40, 30]]))
    assert (large.dropped, small.dropped) == ("", "area")


def test_masks_say_how_good_they_are(segmenter):
    pictures, boxes = clip(frames=3)
    for segment, box in zip(segmenter.segment(pictures, boxes), boxes, strict=True):
        assert segment.origin == "sam2"
        assert 0 < segment.score < 1
        assert segment.box_iou == pytest.approx(float(iou(rle_box(segment.mask), box)))
        rle_check(segment.mask, pictures.shape[1:3])


def test_a_box_outside_the_frame_is_no_box(segmenter):
    pictures, _ = clip(frames=2)
    assert segmenter.segment(pictures, np.float32([[300, 300, 400, 400], [np.nan] * 4])) == [
        None,
        None,
    ]


# --- many at once --------------------------------------------------------------------------------------------------


def test_a_mask_does_not_depend_on_its_neighbours(segmenter):
    pictures, boxes = clip(frames=5)
    together = segmenter.segment(pictures, boxes)
    for t in (0, 1, 4):
        assert segmenter.segment(pictures[t : t + 1], boxes[t : t + 1]) == [together[t]]


def test_batches_answer_as_single_pictures_do(segmenter):
    """On a CPU up to rounding: matrix products of different sizes add up in different orders."""
    pictures, boxes = clip(frames=5)
    batched = SAM2Segmenter(tiny(masks="all", batch=3)).segment(pictures, boxes)
    for one, other in zip(segmenter.segment(pictures, boxes), batched, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert rle_iou(one.mask, other.mask) > 0.999


def test_threads_with_clips_of_different_sizes_share_one_model(segmenter):
    clips = [clip(seed, 4) for seed in range(4)]
    clips = [(np.ascontiguousarray(p[:, :, : 160 - 12 * i]), b) for i, (p, b) in enumerate(clips)]
    expected = [segmenter.segment(*one) for one in clips]
    stage = SAM2Segmenter(tiny(masks="all"))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda one: stage.segment(*one), clips)) == expected


@pytest.mark.parametrize("mode", ["image", "video"])
def test_bfloat16_changes_few_pixels(mode):
    pictures, boxes = clip(frames=3)
    exact, rough = (
        SAM2Segmenter(tiny(masks="all", mode=mode, dtype=dtype)).segment(pictures, boxes)
        for dtype in ("float32", "bfloat16")
    )
    for one, other in zip(exact, rough, strict=True):
        assert rle_iou(one.mask, other.mask) > 0.98
        assert one.score == pytest.approx(other.score, abs=5e-3)


# --- video ---------------------------------------------------------------------------------------------------------


def test_video_mode_follows_between_its_prompts():
    pictures, boxes = clip(frames=9)
    boxes[[0, 8]] = np.nan
    found = SAM2Segmenter(tiny(mode="video", masks="every:2", prompts=2)).segment(pictures, boxes)
    assert [t for t, segment in enumerate(found) if segment] == [1, 3, 5, 7]
    assert {segment.origin for segment in found if segment} == {"sam2"}
    again = SAM2Segmenter(tiny(mode="video", masks="every:2", prompts=2)).segment(pictures, boxes)
    assert found == again


def test_the_best_prompted_frame_is_the_same_in_both_modes(segmenter):
    """A prompted frame does not look at memory: its mask is the picture's own."""
    pictures, boxes = clip(frames=3)
    alone = segmenter.segment(pictures, boxes)
    found = SAM2Segmenter(tiny(mode="video", masks="all", prompts=1)).segment(pictures, boxes)
    best = max(range(3), key=lambda t: alone[t].score)
    assert found[best].score == pytest.approx(alone[best].score, abs=1e-4)
    assert rle_area(found[best].mask) == pytest.approx(rle_area(alone[best].mask), abs=5)


def test_video_mode_without_a_frame_worth_prompting():
    pictures, boxes = clip(frames=4)
    found = SAM2Segmenter(tiny(mode="video", min_box_iou=0.9)).segment(pictures, boxes)
    assert [segment.dropped for segment in found] == ["no_prompt"] * 4


# --- weights -------------------------------------------------------------------------------------------------------


def test_a_version_costs_no_torch():
    code = "import sys, pipeline.segment.sam2 as s; s.SAM2Segmenter(s.SAM2Config.tiny()); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_missing_weights_are_noticed_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARROW_WEIGHTS", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"SAM2: .*sam2\.1_hiera_large\.pt is not there"):
        SAM2Segmenter()


def test_the_version_names_the_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARROW_WEIGHTS", str(tmp_path))
    torch.save({}, tmp_path / "sam2.1_hiera_large.pt")
    digest = hashlib.sha256((tmp_path / "sam2.1_hiera_large.pt").read_bytes()).hexdigest()
    assert SAM2Segmenter().version == f"1+{digest[:12]}"
    assert SAM2Segmenter(tiny()).version == "1+seeded"
