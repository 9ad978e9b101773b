"""A quality figure says on how many frames it rests, and where it is drawn the eye can tell."""

import duckdb
import numpy as np
import pytest

from manifests.quality import COVERAGE, iou_words, rests_on_little
from manifests.sheet import COLOURS, FRAME, draw_tile
from pipeline.sample import TRACK_DTYPE
from schemas.geometry import rle_encode
from schemas.records import ORIGINS


def row(iou, coverage, compared, kept, rule="tracked") -> dict:
    names = ("mean_iou", "iou_coverage", "n_compared", "n_kept", "box_rule")
    return dict(zip(names, (iou, coverage, compared, kept, rule), strict=True))


@pytest.mark.parametrize(
    ("given", "words", "little"),
    [
        (row(0.989, 6 / 278, 6, 278), "IoU 0.99 on 6 of 278 frames", True),
        (row(0.9, 1.0, 1200, 1200), "IoU 0.90 on 1,200 of 1,200 frames", False),
        (row(0.4, 1.0, 300, 100), "IoU 0.40 on 100 of 100 frames and 200 dropped ones", False),
        (row(None, 0.0, 0, 50), "IoU unknown: none of 50 frames is annotated", True),
        (row(None, None, 0, 50, "masks"), "boxes of the dataset (masks)", False),
        (row(0.9, 0.2, 10, 50), "IoU 0.90 on 10 of 50 frames", False),
    ],
)
def test_words_and_badges(given, words, little):
    assert iou_words(given) == words
    assert rests_on_little(given) is little


def test_coverage_of_several_samples_is_of_their_tracked_frames():
    rows = "VALUES (6/278, 278), (1.0, 22), (NULL, 500)"
    sql = f"SELECT {COVERAGE} FROM ({rows}) AS referents(iou_coverage, n_kept)"
    [[found]] = duckdb.sql(sql).fetchall()
    assert found == pytest.approx(28 / 300)


SIDE = 90


def tile(*, fallback: bool = False, annotated: bool = False, kept: bool = True) -> np.ndarray:
    """[H, W, 3] a grey picture with a tracked box, its mask, and perhaps an annotated box elsewhere."""
    picture = np.full((SIDE, SIDE * 16 // 9, 3), 128, np.uint8)
    track = np.zeros(1, TRACK_DTYPE)
    track["x1"], track["y1"], track["x2"], track["y2"] = 20, 20, 70, 70
    for side in ("ann_x1", "ann_y1", "ann_x2", "ann_y2"):
        track[side] = np.nan
    if annotated:
        track["ann_x1"], track["ann_y1"], track["ann_x2"], track["ann_y2"] = 90, 30, 140, 80
    track["origin"], track["kept"], track["fallback"] = ORIGINS.index("tracked"), kept, fallback
    mask = np.zeros(picture.shape[:2], bool)
    mask[25:65, 25:65] = True
    return np.asarray(draw_tile(picture, track[0], rle_encode(mask), False))


def has_colour(picture: np.ndarray, name: str) -> bool:
    wanted = np.array([int(COLOURS[name][i : i + 2], 16) for i in (1, 3, 5)])
    return bool((picture == wanted).all(2).any())


def test_a_fallback_mask_is_hatched_and_a_mask_is_filled():
    scale = FRAME[1] / SIDE
    inner = slice(round(30 * scale), round(60 * scale))
    filled, hatched = tile()[inner, inner], tile(fallback=True)[inner, inner]
    tinted = (filled != 128).any(2)
    assert tinted.all()
    share = (hatched != 128).any(2).mean()
    assert 0.2 < share < 0.5
    assert len(np.unique(hatched.reshape(-1, 3), axis=0)) == 2


def test_the_annotated_box_is_drawn_beside_the_tracked_one():
    assert not has_colour(tile(), "annotation")
    both = tile(annotated=True)
    assert has_colour(both, "annotation")
    assert has_colour(both, "tracked")


def test_the_box_of_a_dropped_frame_is_dashed():
    wanted = np.array([int(COLOURS["tracked"][i : i + 2], 16) for i in (1, 3, 5)])
    lines = [(tile(kept=kept) == wanted).all(2).sum() for kept in (True, False)]
    assert lines[1] < 0.75 * lines[0]
