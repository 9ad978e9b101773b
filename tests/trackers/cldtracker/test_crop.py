"""The cropper: the reference's pixels, and the same pixels for a batch."""

import json
import sys
import zlib

import numpy as np
import pytest
import torch

from trackers.cldtracker import crop_target
from trackers.cldtracker.crop import MAX_SIDE, MEAN, STD, crop_batch, crop_geometry, normalise


def arena(*images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures one after the other -> (frames, base, height, width)."""
    base = np.cumsum([0, *(image.size for image in images[:-1])])
    sizes = torch.tensor([image.shape[:2] for image in images])
    return (
        torch.from_numpy(np.concatenate([i.ravel() for i in images])),
        torch.tensor(base),
        sizes[:, 0],
        sizes[:, 1],
    )


def one_batch(images, boxes, factor, size) -> np.ndarray:
    """[B, size, size, 3]"""
    geometry = crop_geometry(torch.tensor(np.array(boxes, np.float64)), factor)
    return crop_batch(*arena(*images), *geometry, size).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden"
    sys.path.insert(0, str(folder))
    import golden_inputs

    numbers = json.loads((folder / "cldtracker/cropper.json").read_text())
    image = golden_inputs.texture(
        *(numbers["image"][k] for k in ("name", "height", "width", "cell", "salt"))
    )
    assert zlib.crc32(image.tobytes()) == numbers["image"]["crc32"]
    return image, numbers["cases"], np.load(folder / "cldtracker/cropper.npz")


def box_of(case) -> list[float]:
    return [float("nan") if v is None else v for v in case["box_xywh"]]


def test_golden_crops_are_the_reference_to_the_bit(golden):
    image, cases, arrays = golden
    usual = [c for c in cases if c["status"] == "ok" and not c["degenerate_geometry"]]
    assert len(usual) == 67
    for case in usual:
        box, size = box_of(case), case["out_size"]
        crop, factor = crop_target(image, box, case["factor"], size)
        assert factor == case["resize_factor"], case["name"]
        key = f"{case['name']}/{size}"
        if f"{key}/crop" in arrays:
            np.testing.assert_array_equal(crop, arrays[f"{key}/crop"], case["name"])
        means = crop.reshape(12, size // 12, 12, size // 12, 3).mean((1, 3))
        np.testing.assert_allclose(means, arrays[f"{key}/block_mean"], atol=1e-3)
        assert zlib.crc32(crop.tobytes()) == case["crop_crc32"], case["name"]
        geometry = crop_geometry(torch.tensor([box], dtype=torch.float64), case["factor"])
        assert [int(v) for v in geometry] == [case["x1"], case["y1"], case["side"]], case["name"]
    for size, factor in ((192, 2.0), (384, 4.0)):
        same = [c for c in usual if c["out_size"] == size]
        for case, crop in zip(
            same,
            one_batch([image] * len(same), [box_of(c) for c in same], factor, size),
            strict=True,
        ):
            assert zlib.crc32(crop.tobytes()) == case["crop_crc32"], case["name"]


def test_golden_errors(golden):
    image, cases, _ = golden
    wrong = [c for c in cases if c["status"] == "error"]
    assert len(wrong) == 8
    for case in wrong:
        with pytest.raises(ValueError, match="finite" if None in case["box_xywh"] else "too small"):
            crop_target(image, box_of(case), case["factor"], case["out_size"])


def test_a_crop_without_a_pixel_of_the_picture_is_black(golden):
    """In the reference two of nine are not: it squeezes a patch of the opposite border into them."""
    image, cases, arrays = golden
    outside = [c for c in cases if c["status"] == "ok" and c["degenerate_geometry"]]
    assert len(outside) == 9
    keys = [f"{case['name']}/{case['out_size']}" for case in outside]
    not_black = [key for key in keys if arrays[f"{key}/block_mean"].any()]
    assert not_black == ["outside_left/384", "just_outside_left/192"]
    for case in outside:
        crop, factor = crop_target(image, box_of(case), case["factor"], case["out_size"])
        assert factor == case["resize_factor"]
        assert not crop.any()
        assert not one_batch([image], [box_of(case)], case["factor"], case["out_size"]).any()


@pytest.mark.parametrize("box", [(0, 0, 1e6, 1e6), (0, 0, float("inf"), 1), (1, 2, 3)])
def test_impossible_boxes_are_refused_with_the_box_in_the_message(box):
    with pytest.raises(ValueError, match="box"):
        crop_target(np.zeros((8, 8, 3), np.uint8), box, 2.0, 64)


def test_images_of_another_kind_are_refused():
    for image in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(ValueError, match="expected uint8"):
            crop_target(image, (1, 1, 4, 4), 2.0, 64)


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_has_the_pixels_of_opencv(seed):
    """Pictures of several sizes, boxes of all sizes and places: 4 x 30 x 6 crops, equal to the bit."""
    rng = np.random.default_rng(seed)
    for turn in range(30):
        size, factor = (
            int(rng.choice([64, 128, 192, 384] if turn % 5 == 0 else [64, 128])),
            float(rng.choice([2, 4])),
        )
        images = [rng.integers(0, 256, (*rng.integers(1, 200, 2), 3), np.uint8) for _ in range(6)]
        boxes = []
        for image in images:
            h, w = np.exp(rng.uniform(np.log(0.2), np.log(250), 2))
            boxes.append((rng.uniform(-w, image.shape[1]), rng.uniform(-h, image.shape[0]), w, h))
        side = (
            size * 2.0 ** rng.integers(-1, 2) / factor
        )  # twice, the same, half: where OpenCV has ways of its own
        boxes[0] = (*rng.integers(-20, 100, 2), side, side)
        batch = one_batch(images, boxes, factor, size)
        for image, box, crop in zip(images, boxes, batch, strict=True):
            assert (crop_target(image, box, factor, size)[0] == crop).all(), (
                image.shape,
                box,
                factor,
                size,
            )


def test_boxes_that_are_none_cost_no_error():
    nan, inf = float("nan"), float("inf")
    boxes = [(nan, nan, nan, nan), (5, 5, 0, 0), (5, 5, -3, 4), (inf, -inf, inf, inf), (5, 5, 4, 4)]
    x1, y1, side = crop_geometry(torch.tensor(boxes, dtype=torch.float64), 2.0)
    assert side.min() >= 1
    assert side.max() <= MAX_SIDE
    assert (x1[4], y1[4], side[4]) == (3, 3, 8)
    image = np.full((16, 16, 3), 200, np.uint8)
    crops = crop_batch(*arena(*[image] * 5), x1, y1, side, 64)
    assert (crops[4] == 200).all()


def test_normalise():
    crops = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(normalise(crops, torch.float32), (crops / 255 - mean) / std)
    assert normalise(crops, torch.bfloat16).dtype == torch.bfloat16
