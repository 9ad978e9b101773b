"""Scores against the exact truth: planted perfect, shifted and empty tracks give the numbers they must."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.demo.score import OVERALL, score
from schemas import tables
from schemas.geometry import rle_encode

SIZE, LENGTH = (40, 60), 10
BOX = [10.0, 10.0, 30.0, 20.0]


def mask(x1: int, y1: int, x2: int, y2: int) -> dict:
    pixels = np.zeros(SIZE, bool)
    pixels[y1:y2, x1:x2] = True
    return dict(rle_encode(pixels))


class Planted:
    """A corpus with one kind of truth, and manifests of shards written by hand."""

    def __init__(self, tmp_path: Path):
        self.out, self.corpus = tmp_path / "out", tmp_path / "corpus"
        (self.corpus / "truth").mkdir(parents=True)
        (self.corpus / "corpus.json").write_text("{}")

    def truth(self, source: str, key: str, texts: list[str], absent: tuple[int, ...] = ()) -> None:
        counts = mask(10, 10, 30, 20)["counts"]
        entries = [
            {
                "expression": text,
                "size": list(SIZE),
                "boxes": [None if t in absent else BOX for t in range(LENGTH)],
                "masks": [None if t in absent else counts for t in range(LENGTH)],
            }
            for text in texts
        ]
        path = self.corpus / "truth" / f"{source}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, key: entries}))

    def shard(
        self,
        name: str,
        source: str,
        boxes: list,
        *,
        caption: str = "the cat",
        rule: str = "tracked",
        start: int = 0,
        kept: list[bool] | None = None,
        masks: dict[int, dict] | None = None,
        committed: bool = True,
    ) -> None:
        """One referent of video `v` of split train; boxes: one or None per frame; the first is the key frame."""
        ids = {"referent_id": f"{name}-r", "clip_id": f"{name}-c"}
        place = {"source": source, "split": "train", "video_id": "v"}
        kept = kept or [box is not None for box in boxes]
        tracks = []
        for t, box in enumerate(boxes):
            columns = dict(zip(("x1", "y1", "x2", "y2"), box or [None] * 4, strict=True))
            origin = (
                "none" if box is None else "annotation" if t == 0 and rule == "tracked" else rule
            )
            tracks.append(
                {
                    **ids,
                    "frame": t,
                    "source_frame": start + t,
                    **columns,
                    "origin": origin,
                    "kept": kept[t],
                }
            )
        found = [
            {
                **ids,
                "frame": t,
                "source_frame": start + t,
                "origin": "grabcut",
                "height": SIZE[0],
                "width": SIZE[1],
                "counts": rle["counts"],
            }
            for t, rle in (masks or {}).items()
        ]
        referent = {**ids, **place, "raw_caption": caption, "key_frame": 0, "box_rule": rule}
        self.write("referents", name, [referent])
        self.write("clips", name, [{"clip_id": ids["clip_id"], **place}])
        self.write("tracks", name, tracks)
        self.write("masks", name, found)
        if committed:
            self.write(
                "shards", name, [{"path": f"{name}.tar", "source": source, "split": "train"}]
            )

    def write(self, table: str, name: str, rows: list[dict]) -> None:
        columns = tables.schema(table).names
        folder = self.out / "manifests" / table
        folder.mkdir(parents=True, exist_ok=True)
        tables.write(
            folder / f"{name}.parquet",
            table,
            [{c: r.get(c) for c in columns} | {"shard": name} for r in rows],
        )

    def scores(self) -> dict[str, dict]:
        return {row["source"]: row for row in score(self.out, self.corpus)}


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


def test_perfect_tracks(planted: Planted) -> None:
    planted.truth("hcstvg", "train/v", ["the cat"])
    exact = {t: mask(10, 10, 30, 20) for t in range(LENGTH)}
    planted.shard("hcstvg-train-000000", "hcstvg", [BOX] * LENGTH, masks=exact)
    row = planted.scores()["hcstvg"]
    assert row["synthetic"] is True
    assert (row["iou"], row["success"], row["iou_tracked"], row["iou_kept"], row["mask_j"]) == (
        1,
        1,
        1,
        1,
        1,
    )
    assert (
        row["n_frames"] == row["n_tracked"] == row["n_kept"] == LENGTH - 1
    )  # the key frame is given
    assert row["n_masks"] == LENGTH
    assert (row["mask_origin"], row["box_rule"]) == ("grabcut", "tracked")
    assert row["absent_with_box"] is None


def test_shifted_tracks(planted: Planted) -> None:
    """Shifted by half its width, a 20 x 10 box overlaps 100 of 300 pixels."""
    planted.truth("hcstvg", "train/v", ["the cat"])
    shifted = [BOX] + [[20.0, 10.0, 40.0, 20.0]] * (LENGTH - 1)
    planted.shard(
        "hcstvg-train-000000",
        "hcstvg",
        shifted,
        masks={t: mask(20, 10, 40, 20) for t in range(LENGTH)},
    )
    row = planted.scores()["hcstvg"]
    assert row["iou"] == pytest.approx(1 / 3, abs=1e-3)
    assert row["success"] == 0
    assert row["mask_j"] == pytest.approx(1 / 3, abs=1e-3)


def test_missing_boxes_and_masks_count_as_zero(planted: Planted) -> None:
    planted.truth("hcstvg", "train/v", ["the cat"])
    boxes = [BOX] * 4 + [None] * 6
    planted.shard("hcstvg-train-000000", "hcstvg", boxes, masks={0: mask(10, 10, 30, 20)})
    row = planted.scores()["hcstvg"]
    assert row["iou"] == row["success"] == pytest.approx(3 / 9, abs=1e-3)
    assert (row["iou_tracked"], row["n_tracked"]) == (1, 3)
    assert (row["mask_j"], row["mask_origin"]) == (0.25, "none 3, grabcut 1")


def test_an_empty_track_scores_zero(planted: Planted) -> None:
    planted.truth("hcstvg", "train/v", ["the cat"])
    planted.shard("hcstvg-train-000000", "hcstvg", [None] * LENGTH)
    row = planted.scores()["hcstvg"]
    assert (row["iou"], row["success"], row["n_frames"]) == (0, 0, LENGTH - 1)
    assert row["iou_tracked"] is row["iou_kept"] is row["mask_j"] is None


def test_dropped_boxes_count_in_the_headline_and_not_in_kept(planted: Planted) -> None:
    planted.truth("hcstvg", "train/v", ["the cat"])
    boxes = [BOX] * 5 + [[40.0, 30.0, 60.0, 40.0]] * 5
    planted.shard("hcstvg-train-000000", "hcstvg", boxes, kept=[True] * 5 + [False] * 5)
    row = planted.scores()["hcstvg"]
    assert row["iou"] == pytest.approx(4 / 9, abs=1e-3)
    assert (row["iou_kept"], row["n_kept"]) == (1, 4)


def test_boxes_on_absent_frames(planted: Planted) -> None:
    planted.truth("hcstvg", "train/v", ["the cat"], absent=(6, 7, 8, 9))
    planted.shard("hcstvg-train-000000", "hcstvg", [BOX] * 7 + [None] * 3)
    row = planted.scores()["hcstvg"]
    assert (row["n_absent"], row["absent_with_box"]) == (4, 0.25)
    assert (row["n_frames"], row["iou"]) == (5, 1)


def test_captions_find_their_truth(planted: Planted) -> None:
    planted.truth("a2d", "train/v", ["the cat", "the  dog"])
    planted.shard("a2d-train-000000", "a2d", [BOX] * LENGTH, caption=" the dog")
    planted.shard("a2d-train-000001", "a2d", [BOX] * LENGTH, caption="the horse")
    row = planted.scores()["a2d"]
    assert (row["n_referents"], row["n_unmatched"]) == (1, 1)


def test_source_frames_index_the_truth(planted: Planted) -> None:
    planted.truth("lasot", "train/v", ["the cat"], absent=(0, 1, 2, 3, 4))
    planted.shard("lasot-train-000000", "lasot", [BOX] * 5, start=5)
    row = planted.scores()["lasot"]
    assert (row["n_frames"], row["n_absent"]) == (4, 0)
    planted.shard("lasot-train-000001", "lasot", [BOX] * 5, start=7)
    with pytest.raises(ValueError, match="frame 10 of a video of 10 frames"):
        planted.scores()


def test_only_tracked_sources_make_the_overall_row(planted: Planted) -> None:
    for source, rule in (("hcstvg", "tracked"), ("got10k", "annotation"), ("mevis", "masks")):
        planted.truth(source, "train/v", ["the cat"])
        boxes = [BOX] * LENGTH if source != "hcstvg" else [BOX] + [None] * 9
        planted.shard(f"{source}-train-000000", source, boxes, rule=rule)
    rows = planted.scores()
    assert rows[OVERALL]["iou"] == 0
    assert rows[OVERALL]["n_frames"] == 9
    assert (
        rows["got10k"]["n_frames"] == LENGTH
    )  # no key frame was given there: all boxes are the dataset's
    assert rows["got10k"]["box_rule"] == "annotation"


def test_uncommitted_shards_do_not_count(planted: Planted) -> None:
    planted.truth("hcstvg", "train/v", ["the cat"])
    planted.shard("hcstvg-train-000000", "hcstvg", [BOX] * LENGTH, committed=False)
    assert planted.scores() == {}


def test_a_folder_that_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a finished synthetic corpus"):
        score(tmp_path, tmp_path)
