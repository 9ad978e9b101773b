"""Artemis records against the manifests."""

import json

import cv2
import numpy as np

from manifests.export import export
from tests.manifests.made import FRAMES, LOST


def test_records_say_what_the_manifests_say(whole, truth, tmp_path):
    to = tmp_path / "artemis"
    export(whole, to, "artemis")
    items = [
        item
        for path in sorted((to / "annotations").glob("*.json"))
        for item in json.loads(path.read_text())
    ]
    assert {item["referent_id"] for item in items} == truth.keys()
    assert len(items) == sum(row["n_qa"] for row in truth.values())
    for item in items:
        row = truth[item["referent_id"]]
        assert (item["caption"], item["question"]) == (row["caption"], "What is the <bbox> doing?")
        boxes = np.array([box or [np.nan] * 4 for box in item["track_list"]], np.float32)
        np.testing.assert_array_equal(boxes, row["boxes"])
        assert len(item["frame_id"]) == len(item["track_list"]) == FRAMES
        assert item["key_frame_id"] == item["frame_id"][row["key_frame"]]
        np.testing.assert_array_equal(
            np.float32(item["key_frame_box"]), row["boxes"][row["key_frame"]]
        )
        picture = cv2.imread(str(to / item["frame_path"] / item["frame_id"][LOST]))
        assert picture is not None
    lost = next(i for i in items if i["referent_id"] == "got10k-val-v-0")
    assert lost["track_list"][LOST] == []
