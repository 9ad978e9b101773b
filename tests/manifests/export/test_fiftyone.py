"""FiftyOne's JSON, read as its importer does, against the manifests."""

import base64
import io
import json
import re
import zlib

import av
import numpy as np

from manifests.catalog import query
from manifests.export import export
from tests.manifests.made import AWAY, FRAMES, LOST


def unpacked(mask: dict) -> np.ndarray:
    """As fiftyone.core.utils.deserialize_numpy_array."""
    data = base64.b64decode(mask["$binary"]["base64"], validate=True)
    return np.load(io.BytesIO(zlib.decompress(data)), allow_pickle=False)


def pixels(detection: dict, video: dict) -> np.ndarray:
    x, y, w, h = detection["bounding_box"]
    return np.array([x, y, x + w, y + h]) * ([video["frame_width"], video["frame_height"]] * 2)


def read(to) -> tuple[list[dict], list[dict], dict]:
    samples, frames, about = (
        json.loads((to / f"{name}.json").read_text()) for name in ("samples", "frames", "metadata")
    )
    return samples["samples"], frames["frames"], about


def test_every_box_and_every_pixel_comes_back(whole, truth, tmp_path):
    export(whole, tmp_path / "to", "fiftyone")
    samples, frames, _ = read(tmp_path / "to")
    by_id = {sample["_id"]["$oid"]: sample for sample in samples}
    boxes = {key: np.full((FRAMES, 4), np.nan) for key in truth}
    masks = {key: {} for key in truth}
    absent = {key: set() for key in truth}
    for frame in frames:
        sample, t = by_id[frame["_sample_id"]["$oid"]], frame["frame_number"] - 1
        for one in frame["targets"]["detections"] + frame["masks"]["detections"]:
            row = truth[one["referent_id"]]
            assert sample["referent_ids"][one["index"] - 1] == one["referent_id"]
            assert sample["captions"][one["index"] - 1] == one["caption"] == row["caption"]
            assert one["label"] == (row["category"] or "object")
        for one in frame["targets"]["detections"]:
            boxes[one["referent_id"]][t] = pixels(one, sample["metadata"])
        for one in frame["masks"]["detections"]:
            x1, y1, x2, y2 = np.round(pixels(one, sample["metadata"])).astype(int)
            full = np.zeros_like(next(iter(truth[one["referent_id"]]["masks"].values())))
            assert full[y1:y2, x1:x2].shape == unpacked(one["mask"]).shape
            full[y1:y2, x1:x2] = unpacked(one["mask"])
            masks[one["referent_id"]][t] = full
        for i in frame["absent"]:
            absent[sample["referent_ids"][i - 1]].add(t)
    for key, row in truth.items():
        np.testing.assert_allclose(boxes[key], row["boxes"], atol=1e-4)
        assert masks[key].keys() == row["masks"].keys()
        assert all(np.array_equal(masks[key][t], row["masks"][t]) for t in row["masks"])
        assert absent[key] == row["absent"]


def test_videos_have_the_size_and_length_that_is_told(whole, tmp_path):
    to = tmp_path / "to"
    export(whole, to, "fiftyone", sources=["hcstvg", "a2d"])
    samples, frames, _ = read(to)
    assert {sample["source"]: sample["licence"] for sample in samples} == {
        s: f"terms of {s}" for s in ("a2d", "hcstvg")
    }
    for sample in samples:
        about = sample["metadata"]
        with av.open(str(to / sample["filepath"])) as video:
            pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert len(pictures) == about["total_frame_count"] == FRAMES
        assert pictures[0].shape == (about["frame_height"], about["frame_width"], 3) == (98, 162, 3)
        # The red target of frame 3 is where its box says.
        frame = next(
            f for f in frames if f["_sample_id"] == sample["_id"] and f["frame_number"] == 4
        )
        x1, y1, x2, y2 = np.round(pixels(frame["targets"]["detections"][0], about)).astype(int)
        red, _, blue = pictures[3][y1 + 4 : y2 - 4, x1 + 4 : x2 - 4].reshape(-1, 3).mean(0)
        assert red > 180 > 80 > blue
    stored = query(
        whole, "SELECT size FROM members WHERE name = 'mp4' AND referent_id = 'hcstvg-train-v-0'"
    )[0]["size"]
    assert (to / "data" / "hcstvg-train-v.mp4").stat().st_size == stored, (
        "a stored video is not encoded again"
    )


def test_nobody_looked_is_not_absent(whole, tmp_path):
    export(whole, tmp_path / "to", "fiftyone", sources=["got10k"])
    frames = read(tmp_path / "to")[1]
    first = {frame["frame_number"] - 1: frame for frame in frames}
    assert [first[t]["absent"] for t in (*AWAY, LOST)] == [[1], [1], []]
    assert [first[t]["unknown"] for t in (*AWAY, LOST)] == [[], [], [1]]


def test_every_field_is_declared_and_ids_are_the_same_each_time(whole, tmp_path):
    """A field that metadata.json does not declare is invisible in FiftyOne."""
    for name in ("a", "b"):
        export(whole, tmp_path / name, "fiftyone", sources=["lasot"])
    assert all(
        (tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes()
        for n in ("samples.json", "frames.json", "metadata.json")
    )
    samples, frames, about = read(tmp_path / "a")
    assert about["media_type"] == "video"
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"]), (
        "without it FiftyOne takes the export for its oldest layout"
    )
    private = {"_sample_id", "_media_type", "_rand"}
    for rows, fields in ((samples, about["sample_fields"]), (frames, about["frame_fields"])):
        declared = {field["db_field"] for field in fields}
        assert all(row.keys() - private <= declared for row in rows)
    ids = [row["_id"]["$oid"] for row in samples + frames]
    ids += [
        one["_id"]["$oid"]
        for frame in frames
        for name in ("targets", "masks")
        for one in frame[name]["detections"]
    ]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch("[0-9a-f]{24}", one) for one in ids)
    [detections] = next(f for f in about["frame_fields"] if f["name"] == "masks")["fields"]
    one = next(frame["masks"]["detections"][0] for frame in frames if frame["masks"]["detections"])
    assert one.keys() - {"_cls", "attributes"} <= {
        field["db_field"] for field in detections["fields"]
    }
