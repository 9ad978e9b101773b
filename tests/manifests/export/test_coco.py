"""COCO json of single frames, opened and read by pycocotools."""

import numpy as np
from pycocotools.coco import COCO

from manifests.export import export
from tests.manifests.made import AWAY, FRAMES, LOST


def test_pycocotools_reads_what_the_manifests_say(whole, truth, tmp_path):
    to = tmp_path / "coco"
    export(whole, to, "coco")
    seen: dict[str, set[int]] = {key: set() for key in truth}
    files = sorted((to / "annotations").iterdir())
    assert [path.suffix for path in files] == [".json"] * len(files)
    for path in files:
        coco = COCO(str(path))
        assert len(coco.getImgIds()) == FRAMES * len({i["clip_id"] for i in coco.imgs.values()})
        for image in coco.loadImgs(coco.getImgIds()):
            assert (to / "JPEGImages" / image["file_name"]).is_file()
            for one in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]])):
                row, t = truth[one["referent_id"]], image["frame"]
                seen[one["referent_id"]].add(t)
                assert one["caption"] == row["caption"]
                [category] = coco.loadCats([one["category_id"]])
                assert category["name"] == (row["category"] or "object")
                mask = coco.annToMask(one).astype(bool)
                np.testing.assert_array_equal(mask, row["masks"][t])
                assert one["area"] == mask.sum()
                ys, xs = np.nonzero(mask)
                around = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
                assert one["bbox"] == around
                x, y, w, h = one["track_bbox"]
                np.testing.assert_allclose([x, y, x + w, y + h], row["boxes"][t], atol=1e-4)
    assert {key: set(truth[key]["masks"]) for key in truth} == seen


def test_nobody_looked_is_named_and_absent_is_not(whole, tmp_path):
    export(whole, tmp_path / "to", "coco", sources=["got10k"])
    coco = COCO(str(tmp_path / "to" / "annotations" / "got10k-val.json"))
    unknown = {image["frame"]: image["unknown"] for image in coco.imgs.values()}
    assert [len(unknown[t]) for t in (*AWAY, LOST)] == [0, 0, 1]


def test_a_kept_frame_without_a_mask_has_the_tracked_box(whole, tmp_path, monkeypatch):
    from manifests.export import read

    real = read.read_clips

    def without_masks(*given):
        total, clips = real(*given)

        def stripped():
            for clip in clips:
                for target in clip.targets:
                    target.masks.clear()
                yield clip

        return total, stripped()

    monkeypatch.setattr("manifests.export.read_clips", without_masks)
    export(whole, tmp_path / "to", "coco", sources=["a2d"])
    coco = COCO(str(tmp_path / "to" / "annotations" / "a2d-test.json"))
    annotations = coco.loadAnns(coco.getAnnIds())
    assert annotations
    for one in annotations:
        assert one["bbox"] == one["track_bbox"]
        assert not coco.annToMask(one).any()
