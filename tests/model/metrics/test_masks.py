"""J and F: the official tool's numbers on 50 pairs, and a straightforward implementation on random masks."""

import json
import time

import cv2
import numpy as np
import pytest
from skimage.morphology import disk

from model.metrics import boundary_accuracy, region_similarity
from model.metrics.masks import outline, tolerance


@pytest.fixture(scope="module")
def pairs(shared):
    folder = shared / "golden/metrics"
    arrays = np.load(folder / "pairs.npz")

    def mask(case, part):
        size = case["height"], case["width"]
        return (
            np.unpackbits(arrays[f"{case['name']}/{part}"], count=size[0] * size[1])
            .reshape(1, *size)
            .astype(bool)
        )

    return [
        (
            case,
            mask(case, "pred"),
            mask(case, "gt"),
            mask(case, "void") if case["has_void"] else None,
        )
        for case in json.loads((folder / "pairs.json").read_text())
    ]


def test_official_numbers(pairs):
    assert len(pairs) == 50
    for case, pred, gt, void in pairs:
        name = case["name"]
        assert region_similarity(pred, gt, void) == pytest.approx([case["J"]], abs=1e-9), name
        for key, bound_th in (("F", 0.008), ("F_bound_0.02", 0.02), ("F_bound_3px", 3)):
            assert boundary_accuracy(pred, gt, void, bound_th) == pytest.approx(
                [case[key]], abs=1e-9
            ), (name, key)
        radius = tolerance(gt.shape[1:])
        assert radius == case["tolerance_px_at_0.008"], name
        for part, mask in (("gt", gt), ("pred", pred)):
            assert outline(mask, radius, void).length_t == case[f"{part}_boundary_pixels"], (
                name,
                part,
            )


def plain_j(a, b):
    union = (a | b).sum()
    return (a & b).sum() / union if union else 1.0


def plain_f(a, b, radius):
    """Over whole frames, as the measure is defined."""
    contours = []
    for mask in (a, b):
        padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
        contours.append(
            (mask != padded[1:, :-1]) | (mask != padded[:-1, 1:]) | (mask != padded[1:, 1:])
        )
    reach = [cv2.dilate(c.astype(np.uint8), disk(radius).astype(np.uint8)) for c in contours]
    if not contours[0].any() or not contours[1].any():
        return float(contours[0].any() == contours[1].any())
    precision = (contours[0] & (reach[1] > 0)).sum() / contours[0].sum()
    recall = (contours[1] & (reach[0] > 0)).sum() / contours[1].sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def ellipses(frames, height, width, seed):
    rng = np.random.default_rng(seed)
    masks = np.zeros((frames, height, width), np.uint8)
    for mask in masks:
        centre = int(rng.integers(-5, width + 5)), int(rng.integers(-5, height + 5))
        axes = int(rng.integers(1, width // 4)), int(rng.integers(1, height // 4))
        cv2.ellipse(mask, centre, axes, float(rng.integers(180)), 0, 360, 1, -1)
    return masks.astype(bool)


@pytest.mark.parametrize(("height", "width"), [(40, 64), (61, 33), (120, 200), (30, 129)])
@pytest.mark.parametrize("bound_th", [0.008, 0.03, 0, 5, 90])
def test_equal_to_the_plain_definition_everywhere(height, width, bound_th):
    """Objects at and over the frame's edges and wide tolerances are where packing could go wrong."""
    pred, gt = ellipses(25, height, width, 1), ellipses(25, height, width, 2)
    pred[:8] = np.roll(gt[:8], (1, 2), axis=(1, 2))
    radius = tolerance((height, width), bound_th)
    expected = [plain_f(a, b, radius) for a, b in zip(pred, gt, strict=True)]
    np.testing.assert_allclose(boundary_accuracy(pred, gt, bound_th=bound_th), expected, atol=1e-12)
    np.testing.assert_allclose(
        region_similarity(pred, gt), [plain_j(a, b) for a, b in zip(pred, gt, strict=True)]
    )


def test_faster_than_whole_frames():
    """The benchmark states the factor; here only that the packing has not been lost."""
    gt = ellipses(12, 480, 854, 3)
    pred = np.roll(gt, 3, axis=2)

    def plain():
        return [(plain_j(a, b), plain_f(a, b, 8)) for a, b in zip(pred, gt, strict=True)]

    def ours():
        return region_similarity(pred, gt), boundary_accuracy(pred, gt)

    assert 2 * min(_seconds(ours) for _ in range(3)) < min(_seconds(plain) for _ in range(2))


def _seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def test_integers_are_masks_too():
    gt = ellipses(3, 40, 60, 4)
    np.testing.assert_array_equal(
        region_similarity(gt.astype(np.uint8), gt.astype(float)), [1, 1, 1]
    )
    np.testing.assert_array_equal(
        boundary_accuracy(gt.astype(np.uint8), np.asfortranarray(gt)), [1, 1, 1]
    )


MASKS = np.zeros((3, 8, 9), bool)


@pytest.mark.parametrize("measure", [region_similarity, boundary_accuracy])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MASKS[0], MASKS[0]), r"pred: needs axes \[T, H, W\], got shape \(8, 9\)"),
        ((MASKS, MASKS[:2]), r"pred \(3, 8, 9\) and gt \(2, 8, 9\)"),
        ((MASKS, MASKS, MASKS[:, :4]), r"void \(3, 4, 9\)"),
        ((MASKS + 255, MASKS), "values 255 to 255"),
    ],
)
def test_what_is_refused(measure, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(*arguments)


@pytest.mark.parametrize("bound_th", [-1, 2.5, float("nan")])
def test_bad_tolerances(bound_th):
    with pytest.raises(ValueError, match="bound_th"):
        boundary_accuracy(MASKS, MASKS, bound_th=bound_th)
