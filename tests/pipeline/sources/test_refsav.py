import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources.base import DataRoot
from pipeline.sources.refsav import RefSAV
from schemas.geometry import area, rle_area, rle_box
from schemas.records import KEY, Quarantined, Reason

VIDEO = "sav_999999"
FOLDER = "sam_v_full/sav_train/sav_000"
MANUAL = f"{FOLDER}/{VIDEO}_manual.json"


def text(objects: dict | None = None, prefix: str = "sav_000/sav_train/sav_000") -> dict:
    objects = objects or {
        "0": {
            "obj_id": 0,
            "video_id": VIDEO,
            "formated": "The child  in blue ...\n",
            "short_caps": ["x"],
        }
    }
    return {
        VIDEO: {
            "video_path": f"{prefix}/{VIDEO}.mp4",
            "anno_path": f"{prefix}/{VIDEO}_manual.json",
            "objects": objects,
        }
    }


@pytest.fixture
def masklet(square):
    """masklet(10): a masklet file of a video of 10 frames, with objects 0 (always there) and 1 (only in label 0)."""

    def make(count: float, labels: int | None = None) -> dict:
        labels = -(-int(count) // 4) if labels is None else labels
        frames = [
            [square(20, 30, 2 + k, 3, 6 + k, 8), square(20, 30, *([1, 1, 3, 3] if k == 0 else []))]
            for k in range(labels)
        ]
        header = {"video_id": VIDEO, "video_duration": 20.1, "video_frame_count": float(count)}
        return {
            **header,
            "video_height": 20.0,
            "video_width": 30.0,
            "masklet": frames,
            "masklet_id": [0, 1],
        }

    return make


def test_label_k_is_video_frame_4k(make_root, split_plan, masklet):
    root = make_root({"Ref-SAV.json": text(), MANUAL: masklet(10)})
    [item], _ = split_plan(RefSAV(), root, "train")
    assert list(item.clip.source_frames) == [0, 4, 8]
    assert (item.clip.step, item.clip.fps, item.clip.height, item.clip.width) == (4, 24.0, 20, 30)
    annotation = RefSAV().annotate(root, item.clip, item.referents[0])
    assert annotation.boxes.tolist() == [[2, 3, 6, 8], [3, 3, 7, 8], [4, 3, 8, 8]]
    assert annotation.known.all()


@pytest.mark.parametrize("count", [481.0, 482.0, 483.0, 484.0])
def test_float_counts_give_a_tolerance_that_keeps_the_number_of_labels(
    make_root, split_plan, masklet, count: float
):
    [item], _ = split_plan(
        RefSAV(), make_root({"Ref-SAV.json": text(), MANUAL: masklet(count)}), "train"
    )
    clip = item.clip
    assert len(clip) == 121
    accepted = range(
        clip.frame_count - clip.frame_tolerance, clip.frame_count + clip.frame_tolerance + 1
    )
    assert int(count) in accepted
    assert {-(-found // 4) for found in accepted} == {121}
    assert clip.source_frames[-1] < min(accepted)


def test_an_rle_without_foreground_is_absent_and_known(make_root, split_plan, masklet):
    root = make_root({"Ref-SAV.json": text({"1": {"formated": "A ball."}}), MANUAL: masklet(10)})
    [item], _ = split_plan(RefSAV(), root, "train")
    annotation = RefSAV().annotate(root, item.clip, item.referents[0])
    assert annotation.known.all()
    assert annotation.visible.tolist() == [True, False, False]
    assert [mask is None for mask in annotation.masks] == [False, True, True]


@pytest.mark.parametrize("prefix", ["sav_000/sav_train/sav_000", "sav_train/sav_000", "sav_000"])
def test_the_repeated_directory_is_removed_from_paths(make_root, split_plan, masklet, prefix: str):
    name = FOLDER if prefix != "sav_000" else "sam_v_full/sav_000"
    root = make_root(
        {
            "Ref-SAV.json": text(prefix=prefix),
            f"{name}/{VIDEO}_manual.json": masklet(10),
            f"{name}/{VIDEO}.mp4": b"",
        }
    )
    [item], _ = split_plan(RefSAV(), root, "train")
    assert item.clip.media.path == f"{name}/{VIDEO}.mp4"
    assert len(item.clip) == 3
    assert RefSAV().annotation_files(root, "train") == [
        "Ref-SAV.json",
        f"{name}/{VIDEO}_manual.json",
    ]


def test_an_object_index_out_of_range_is_invalid_not_the_last_object(
    make_root, split_plan, masklet
):
    root = make_root({"Ref-SAV.json": text({"2": {"formated": "A ball."}}), MANUAL: masklet(10)})
    [item], _ = split_plan(RefSAV(), root, "train")
    with pytest.raises(Quarantined, match="object 2 of 2") as caught:
        RefSAV().annotate(root, item.clip, item.referents[0])
    assert caught.value.reason is Reason.ANNOTATION_INVALID


def test_another_number_of_labels_than_the_frame_count_gives_is_a_mismatch(
    make_root, split_plan, masklet
):
    root = make_root({"Ref-SAV.json": text(), MANUAL: masklet(10, labels=4)})
    [item], _ = split_plan(RefSAV(), root, "train")
    with pytest.raises(Quarantined) as caught:
        RefSAV().annotate(root, item.clip, item.referents[0])
    assert caught.value.reason is Reason.FRAME_MISMATCH


def test_one_clip_per_video_with_all_its_objects(make_root, split_plan, masklet):
    objects = {
        "0": {"formated": "The child  in\nblue."},
        "1": {"formated": "A ball."},
        "x": {"formated": "?"},
        "3": {},
    }
    root = make_root({"sam_v_final_v3.json": text(objects), MANUAL: masklet(10)})
    [item], rejected = split_plan(RefSAV(), root, "train")
    assert [r.caption for r in item.referents] == ["The child in blue.", "A ball."]
    assert item.referents[0].raw_caption == "The child  in\nblue."
    assert all(KEY.fullmatch(r.referent_id) for r in item.referents)
    assert [(r.item, r.reason) for r in rejected] == [
        (f"{VIDEO}/x", Reason.MALFORMED_ROW),
        (f"{VIDEO}/3", Reason.MALFORMED_ROW),
    ]


def test_a_header_behind_the_masks_is_found_too(make_root, split_plan, masklet):
    data = masklet(4000)
    root = make_root({"Ref-SAV.json": text(), MANUAL: {"masklet": data.pop("masklet"), **data}})
    [item], _ = split_plan(RefSAV(), root, "train")
    assert len(item.clip) == 1000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, Reason.ANNOTATION_MISSING),
        ("not json", Reason.ANNOTATION_INVALID),
        ("[]", Reason.ANNOTATION_INVALID),
        ({"masklet": [3]}, Reason.ANNOTATION_INVALID),
        ({"masklet": []}, Reason.FRAME_MISMATCH),
    ],
)
def test_missing_or_broken_masklets_are_planned_and_quarantined_at_run_time(
    make_root, split_plan, content, reason
):
    root = make_root({"Ref-SAV.json": text(), **({} if content is None else {MANUAL: content})})
    [item], rejected = split_plan(RefSAV(), root, "train")
    assert not rejected
    assert len(item.clip) == 0
    with pytest.raises(Quarantined) as caught:
        RefSAV().annotate(root, item.clip, item.referents[0])
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    "row", [3, {}, {"objects": []}, {"objects": {}, "video_path": 3, "anno_path": "a"}]
)
def test_malformed_rows_are_rejected(make_root, split_plan, row):
    planned, [rejected] = split_plan(RefSAV(), make_root({"Ref-SAV.json": {VIDEO: row}}), "train")
    assert not planned
    assert (rejected.item, rejected.reason) == (VIDEO, Reason.MALFORMED_ROW)


def test_a_path_that_leaves_the_root_is_quarantined_at_run_time(make_root, split_plan):
    [item], _ = split_plan(RefSAV(), make_root({"Ref-SAV.json": text(prefix="../../..")}), "train")
    with pytest.raises(Quarantined) as caught:
        RefSAV().annotate(make_root({}), item.clip, item.referents[0])
    assert caught.value.reason is Reason.UNSAFE_PATH


@pytest.mark.parametrize("top", ["", "video_datas/"])
def test_a_root_one_folder_too_high_works(make_root, split_plan, masklet, top: str):
    [item], _ = split_plan(
        RefSAV(), make_root({f"{top}Ref-SAV.json": text(), top + MANUAL: masklet(10)}), "train"
    )
    assert len(item.clip) == 3


@pytest.mark.parametrize(("kind", "objects"), [("manual", 5), ("auto", 9)])
def test_real_masklets_give_boxes_that_agree_with_their_masks(
    shared: Path, tmp_path: Path, kind: str, objects: int
):
    folder = tmp_path / "sam_v_full/sav_train/sav_000"
    folder.mkdir(parents=True)
    shutil.copy(shared / f"sav/sav_000001_{kind}.json", folder)
    path = "sav_000/sav_train/sav_000/sav_000001"
    rows = {str(k): {"formated": f"object {k}"} for k in range(objects + 1)}
    entry = {"video_path": f"{path}.mp4", "anno_path": f"{path}_{kind}.json", "objects": rows}
    (tmp_path / "Ref-SAV.json").write_text(json.dumps({"sav_000001": entry}))
    source, root = RefSAV(), DataRoot(tmp_path)
    [item] = source.plan(root, "train")
    clip = item.clip
    assert (len(clip), clip.frame_count, clip.height, clip.width) == (121, 483, 848, 480)
    assert clip.source_frames[-1] == 480
    stored = json.loads((folder / f"sav_000001_{kind}.json").read_text())
    first_seen = []
    for k, referent in enumerate(item.referents[:objects]):
        annotation = source.annotate(root, clip, referent)
        areas = np.array([0 if mask is None else rle_area(mask) for mask in annotation.masks])
        assert ((areas > 0) == annotation.visible).all()
        assert (areas <= area(annotation.boxes)).all()
        shown = areas[areas > 0]
        assert shown.mean() == pytest.approx(stored["masklet_size_abs"][k], rel=1e-3)
        for t in np.flatnonzero(annotation.visible)[::20]:
            assert annotation.boxes[t].tolist() == rle_box(annotation.masks[t]).tolist()
        first_seen.append(int(np.flatnonzero(annotation.visible)[0]))
        since_seen = annotation.visible[first_seen[-1] :].astype(int)
        assert int((np.diff(since_seen) != 0).sum()) == stored["masklet_visibility_changes"][k]
    assert first_seen == [int(n) for n in stored["masklet_first_appeared_frame"]]
    with pytest.raises(Quarantined) as caught:
        source.annotate(root, clip, item.referents[objects])
    assert caught.value.reason is Reason.ANNOTATION_INVALID
