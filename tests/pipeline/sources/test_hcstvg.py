import numpy as np
import pytest

from pipeline.sources.hcstvg import HCSTVG, HCSTVGConfig
from schemas.records import KEY, Quarantined, Reason

ROW = {
    "bbox": [[120, 40, 88, 210], [122, 41, 88, 209]],
    "st_frame": 61,
    "st_time": 2.4,
    "ed_time": 2.48,
    "img_num": 500,
    "img_size": [360, 640, 3],
    "English": "The man in grey  turns around. ",
    "Chinese": "...",
}
VIDEO = "7_AbCdEfGhIjK.mkv"


def v2(**changes) -> dict:
    return {"anno_v2/train_v2.json": {VIDEO: {**ROW, **changes}}}


def test_a_clip_is_the_whole_video_and_the_annotation_its_tube(make_root, split_plan):
    root = make_root(v2())
    [item], rejected = split_plan(HCSTVG(), root, "train")
    clip, [referent] = item.clip, item.referents
    assert not rejected
    assert (clip.video_id, clip.start, clip.stop) == (VIDEO, 0, 498)
    assert KEY.fullmatch(clip.clip_id)
    assert KEY.fullmatch(referent.referent_id)
    assert referent.caption == "The man in grey turns around."
    assert referent.raw_caption == ROW["English"]
    annotation = HCSTVG().annotate(root, clip, referent)
    assert np.flatnonzero(annotation.known).tolist() == [60, 61]
    assert annotation.boxes[60].tolist() == [120, 40, 208, 250]
    assert annotation.raw_boxes[61].tolist() == [122, 41, 88, 209]


def test_st_frame_is_one_based(make_root, annotate_one):
    annotation = annotate_one(HCSTVG(), make_root(v2(st_frame=1)), "train")
    assert np.flatnonzero(annotation.visible).tolist() == [0, 1]


def test_span_tube_cuts_to_the_annotated_frames(make_root, split_plan):
    source = HCSTVG(HCSTVGConfig(span="tube"))
    root = make_root(v2())
    [item], _ = split_plan(source, root, "train")
    assert (item.clip.start, item.clip.stop) == (60, 62)
    assert source.annotate(root, item.clip, item.referents[0]).visible.all()


def test_frame_rate_is_img_num_over_20_and_img_num_is_the_frame_count(make_root, split_plan):
    [item], _ = split_plan(HCSTVG(HCSTVGConfig(frame_tolerance=3)), make_root(v2()), "train")
    assert (item.clip.fps, item.clip.frame_count, item.clip.frame_tolerance, item.clip.stop) == (
        25.0,
        500,
        3,
        497,
    )


def test_v2_img_size_puts_the_height_first_and_v1_has_width_and_height(make_root, split_plan):
    v1 = {key: value for key, value in ROW.items() if key not in ("img_size", "English", "Chinese")}
    v1 |= {"width": 640, "height": 360, "caption": "A man."}
    root = make_root({**v2(), "annos/hcstvg_v1/train.json": {VIDEO: v1}})
    assert HCSTVG().available(root) == ["train", "v1_train"]
    for split in ("train", "v1_train"):
        [item], _ = split_plan(HCSTVG(), root, split)
        assert (item.clip.height, item.clip.width) == (360, 640)
    assert item.referents[0].caption == "A man."


def test_tubedetr_file_names_are_accepted(make_root):
    root = make_root({"trainv2.json": {VIDEO: ROW}, "valv2.json": {}})
    assert HCSTVG().available(root) == ["train", "val"]


def test_negative_sizes_and_coordinates_are_unknown_and_boxes_outside_the_image_are_clipped(
    make_root, annotate_one
):
    boxes = [
        [10, 10, 20, 20],
        [10, 10, -5, 20],
        [-900, 10, 20, 20],
        [630, 350, 50, 50],
        [700, 10, 20, 20],
        [0, 0, 9999, 9],
    ]
    annotation = annotate_one(HCSTVG(), make_root(v2(bbox=boxes, st_frame=1)), "train")
    assert annotation.known[:7].tolist() == [True, False, False, True, False, False, False]
    assert annotation.visible[:7].tolist() == annotation.known[:7].tolist()
    assert annotation.boxes[3].tolist() == [630, 350, 640, 360]
    assert annotation.raw_boxes[1].tolist() == [10, 10, -5, 20]


def test_videos_are_found_in_subfolders_with_either_extension_and_missing_ones_are_still_planned(
    make_root, split_plan
):
    rows = {"anno_v2/train_v2.json": {"1_a.mkv": ROW, "2_b.mp4": ROW, "3_c.mkv": ROW}}
    root = make_root({**rows, "part 1/1_a.mkv": "", "part2/deep/2_b.mp4": ""})
    planned, rejected = split_plan(HCSTVG(), root, "train")
    assert not rejected
    assert [i.clip.media.path for i in planned] == [
        "part 1/1_a.mkv",
        "part2/deep/2_b.mp4",
        "3_c.mkv",
    ]
    assert HCSTVG().annotation_files(root, "train") == ["anno_v2/train_v2.json"]


def test_query_file_fills_a_missing_english_sentence(make_root, split_plan):
    files = {
        "anno_v2/train_v2.json": {
            "a.mkv": {**ROW, "English": ""},
            "b.mkv": {**ROW, "English": None},
        }
    }
    root = make_root({**files, "anno_v2/query_v2.json": {"a.mkv": {"English": "A woman sits."}}})
    [item], [rejected] = split_plan(HCSTVG(), root, "train")
    assert item.referents[0].caption == "A woman sits."
    assert (rejected.item, rejected.reason, rejected.message) == (
        "b.mkv",
        Reason.MALFORMED_ROW,
        "no English sentence",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"bbox": []},
        {"bbox": "x"},
        {"st_frame": 0},
        {"st_frame": "1"},
        {"st_frame": 501},
        {"img_num": None},
        {"English": 3},
    ],
)
def test_rows_without_a_tube_or_a_sentence_are_rejected(make_root, split_plan, changes: dict):
    planned, [rejected] = split_plan(HCSTVG(), make_root(v2(**changes)), "train")
    assert not planned
    assert rejected.reason is Reason.MALFORMED_ROW
    assert rejected.where.startswith("anno_v2/train_v2.json@")


def test_a_tube_beyond_img_num_ends_with_the_video(make_root, annotate_one):
    annotation = annotate_one(HCSTVG(), make_root(v2(st_frame=500)), "train")
    assert len(annotation.known) == 500
    assert np.flatnonzero(annotation.known).tolist() == [499]


@pytest.mark.parametrize(
    "boxes", [[[1, 2, 3]], [[1, 2, 3, "x"]], [[1, 2, 3, None, 5]], [[1, 2, 3, {}]]]
)
def test_broken_boxes_quarantine_the_clip_at_run_time(make_root, annotate_one, boxes: list):
    with pytest.raises(Quarantined) as caught:
        annotate_one(HCSTVG(), make_root(v2(bbox=boxes)), "train")
    assert caught.value.reason is Reason.ANNOTATION_INVALID


def test_a_tube_without_any_usable_box_has_no_target(make_root, annotate_one):
    with pytest.raises(Quarantined) as caught:
        annotate_one(HCSTVG(), make_root(v2(bbox=[[5, 5, 0, 0]])), "train")
    assert caught.value.reason is Reason.NO_TARGET


def test_entries_of_the_other_version_stop_the_plan(make_root):
    """`annos/hcstvg_v1/train.json` and a v2 file of the same name are told apart by their fields."""
    v2 = {"1_x.mp4": {"bbox": [[1, 2, 3, 4]], "st_frame": 1, "img_num": 20, "English": "A man."}}
    v1 = {"1_x.mp4": {"bbox": [[1, 2, 3, 4]], "st_frame": 1, "img_num": 20, "caption": "A man."}}
    root = make_root({"annos/hcstvg_v1/train.json": v2, "anno_v2/train_v2.json": v1})
    with pytest.raises(
        ValueError, match=r"annos/hcstvg_v1/train.json has the entries of HC-STVG v2"
    ):
        list(HCSTVG().plan(root, "v1_train"))
    with pytest.raises(ValueError, match=r"anno_v2/train_v2.json has the entries of HC-STVG v1"):
        list(HCSTVG().plan(root, "train"))
