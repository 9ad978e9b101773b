"""YouTube-VIS json against the manifests, masks decoded by pycocotools."""

import json

import numpy as np
from pycocotools import mask as coco

from manifests.export import export
from tests.manifests.made import AWAY, FRAMES, LOST


def test_annotations_say_what_the_manifests_say(whole, truth, tmp_path):
    to = tmp_path / "ytvis"
    export(whole, to, "ytvis")
    seen = set()
    for path in sorted((to / "annotations").glob("*.json")):
        data = json.loads(path.read_text())
        videos, categories = (
            {one["id"]: one for one in data[key]} for key in ("videos", "categories")
        )
        assert data["licenses"][0]["name"] == f"terms of {path.stem.split('-')[0]}"
        for one in data["annotations"]:
            row, video = truth[one["referent_id"]], videos[one["video_id"]]
            seen.add(one["referent_id"])
            assert categories[one["category_id"]]["name"] == (row["category"] or "object")
            assert (
                video["length"] == len(video["file_names"]) == len(one["segmentations"]) == FRAMES
            )
            assert all((to / "JPEGImages" / name).is_file() for name in video["file_names"])
            assert one["caption"] == row["caption"]
            for t in range(FRAMES):
                rle, box = one["segmentations"][t], one["bboxes"][t]
                assert one["known"][t] == (t in row["masks"] or t in row["absent"])
                assert (rle is not None) == (t in row["masks"])
                if rle is None:
                    assert one["areas"][t] is None
                    continue
                np.testing.assert_array_equal(coco.decode(rle).astype(bool), row["masks"][t])
                assert rle["size"] == [video["height"], video["width"]]
                assert one["areas"][t] == row["masks"][t].sum()
                x, y, w, h = box
                np.testing.assert_allclose([x, y, x + w, y + h], row["boxes"][t], atol=1e-4)
                assert one["mask_bboxes"][t] == coco.toBbox(rle).tolist()
    assert seen == truth.keys()


def test_nobody_looked_is_not_absent(whole, tmp_path):
    export(whole, tmp_path / "to", "ytvis", sources=["got10k"])
    data = json.loads((tmp_path / "to" / "annotations" / "got10k-val.json").read_text())
    one = next(a for a in data["annotations"] if a["referent_id"].endswith("-0"))
    assert [one["known"][t] for t in (*AWAY, LOST)] == [True, True, False]
    assert one["bboxes"][LOST] is None
