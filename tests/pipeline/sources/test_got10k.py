from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.sources.base import DataRoot
from pipeline.sources.got10k import GOT10k, article, parse_meta, sentence
from schemas.records import KEY, Quarantined, Reason

NAME = "GOT-10k_Train_000001"
META = """[METAINFO]
url: https://youtu.be/xyz
begin: 00:00:01
end: 00:00:10
anno_fps: 10Hz
object_class: bear
motion_class: walking
major_class: mammal
root_class: animal
motion_adverb: slowly
resolution: (1920, 1080)
"""
BOX = "347.0000,443.0000,129.0000,72.0000"


def files(
    name: str = NAME,
    boxes=(BOX,) * 4,
    absence="0000",
    cover="8888",
    meta: str = META,
    base: str = "",
) -> dict:
    folder = f"{base}train/{name}"
    return {
        f"{base}train/list.txt": f"{name}\n",
        f"{folder}/groundtruth.txt": "\n".join(boxes) + "\n",
        f"{folder}/absence.label": "\n".join(absence) + "\n",
        f"{folder}/cover.label": "\n".join(cover) + "\n",
        f"{folder}/meta_info.ini": meta,
    }


def test_boxes_are_one_based(make_root, annotate_one):
    annotation = annotate_one(GOT10k(), make_root(files()), "train")
    assert annotation.boxes[0].tolist() == [346, 442, 475, 514]
    assert annotation.raw_boxes[0].tolist() == [347, 443, 129, 72]


def test_absent_frames_are_flags_boxes_of_minus_one_or_of_no_size(make_root, annotate_one):
    boxes = [BOX, BOX, "-1,-1,-1,-1", "10.5,10,0,0", BOX]
    annotation = annotate_one(
        GOT10k(), make_root(files(boxes=boxes, absence="01000", cover="88880")), "train"
    )
    assert annotation.visible.tolist() == [True, False, False, False, False]
    assert annotation.known.all()


def test_an_all_zero_cover_label_falls_back_to_absence(make_root, annotate_one):
    annotation = annotate_one(GOT10k(), make_root(files(absence="0100", cover="0000")), "train")
    assert annotation.visible.tolist() == [True, False, True, True]


@pytest.mark.parametrize("number", [8623, 8630, 8637, 9058, 9059])
def test_corrupt_sequences_are_rejected_as_known_bad(make_root, split_plan, number: int):
    planned, [rejected] = split_plan(
        GOT10k(), make_root(files(f"GOT-10k_Train_{number:06d}")), "train"
    )
    assert not planned
    assert rejected.reason is Reason.KNOWN_BAD


@pytest.mark.parametrize("number", [8622, 8638, 9057, 9060])
def test_their_neighbours_are_not(make_root, split_plan, number: int):
    assert (
        len(split_plan(GOT10k(), make_root(files(f"GOT-10k_Train_{number:06d}")), "train")[0]) == 1
    )


@pytest.mark.parametrize(("name", "first", "last"), [("001636", 43, 53), ("001638", 25, 33)])
def test_wrong_images_of_two_sequences_are_unknown(
    make_root, annotate_one, name: str, first: int, last: int
):
    content = files(f"GOT-10k_Train_{name}", [BOX] * 60, "0" * 60, "8" * 60)
    annotation = annotate_one(GOT10k(), make_root(content), "train")
    assert (np.flatnonzero(~annotation.known) + 1).tolist() == list(range(first, last + 1))
    assert not annotation.visible[first - 1 : last].any()


def test_boxes_beyond_the_image_are_clipped_to_their_own_image_even_when_sizes_change(
    make_root, annotate_one
):
    root = make_root(files(boxes=["91,71,50,50"] * 4))
    for number, (height, width) in enumerate([(100, 120), (200, 240), (100, 120)], start=1):
        cv2.imwrite(
            str(root.path / f"train/{NAME}/{number:08d}.jpg"),
            np.zeros((height, width, 3), np.uint8),
        )
    (root.path / f"train/{NAME}/00000004.jpg").write_bytes(b"broken")
    annotation = annotate_one(GOT10k(), root, "train")
    assert annotation.boxes.tolist() == [
        [90, 70, 120, 100],
        [90, 70, 140, 120],
        [90, 70, 120, 100],
        [90, 70, 140, 120],  # decoding will report this image
    ]


def test_meta_info_is_read_by_key_not_by_line(make_root, split_plan):
    lines = [line for line in META.splitlines() if not line.startswith(("url", "major"))]
    root = make_root(files(meta="\r\n".join([lines[0], *reversed(lines[1:])])))
    [item], _ = split_plan(GOT10k(), root, "train")
    [referent] = item.referents
    assert referent.caption == "a bear is slowly walking"
    assert referent.raw_caption == "bear / walking / slowly"
    assert referent.category == "bear"
    assert (item.clip.fps, item.clip.height, item.clip.width) == (10.0, 1080, 1920)
    assert KEY.fullmatch(referent.referent_id)
    assert item.clip.media.image(0) == f"train/{NAME}/00000001.jpg"


def test_real_meta_info_sample(shared: Path):
    labels = parse_meta((shared / "got10k/meta_info_sample.ini").read_text())
    assert labels["url"].startswith("https://")
    assert labels["begin"] == "00:00:01"
    assert labels["resolution"] == "(1920, 1080)"
    assert sentence(labels) == "a ctenophore is slowly swimming"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (
            {"object_class": "bear", "motion_class": "walking", "motion_adverb": "slowly"},
            "a bear is slowly walking",
        ),
        ({"object_class": "bear", "motion_class": "walking"}, "a bear is walking"),
        ({"object_class": "bear"}, "a bear"),
        ({"object_class": "bear", "motion_adverb": "slowly"}, "a bear"),
        (
            {"motion_class": "moving", "root_class": "animal", "major_class": ""},
            "an animal is moving",
        ),
        ({"motion_class": "moving"}, "an object is moving"),
        ({}, "an object"),
        ({"object_class": "polar_bear", "motion_class": " walking "}, "a polar bear is walking"),
    ],
)
def test_sentences_with_missing_labels(labels: dict, expected: str):
    assert sentence(labels) == expected


def test_articles_follow_the_sound():
    words = ["owl", "hourglass", "heir", "umbrella", "ostrich", "Elephant", "uninvited"]
    assert {article(word) for word in words} == {"an"}
    words = ["bear", "unicycle", "euphonium", "one-wheeler", "used", "user", "hippo", "Unicorn"]
    assert {article(word) for word in words} == {"a"}


@pytest.mark.parametrize(
    "missing", ["groundtruth.txt", "meta_info.ini", "absence.label", "cover.label"]
)
def test_missing_files_are_planned_and_quarantined_at_run_time(make_root, split_plan, missing: str):
    root = make_root(files())
    (root.path / "train" / NAME / missing).unlink()
    [item], rejected = split_plan(GOT10k(), root, "train")
    assert not rejected
    with pytest.raises(Quarantined, match=missing.replace(".", r"\.")) as caught:
        GOT10k().annotate(root, item.clip, item.referents[0])
    assert caught.value.reason is Reason.ANNOTATION_MISSING


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (files(absence="000"), Reason.FRAME_MISMATCH),
        (files(cover="88889"), Reason.ANNOTATION_INVALID),
        (files(boxes=("1,2,3", "1,2,3,4", BOX, BOX)), Reason.ANNOTATION_INVALID),
        (files(absence="1111"), Reason.NO_TARGET),
        (files(boxes=("nan,1,2,3",) * 4), Reason.NO_TARGET),
    ],
)
def test_broken_files_are_quarantined_for_a_stated_reason(
    make_root, annotate_one, content: dict, reason: Reason
):
    with pytest.raises(Quarantined) as caught:
        annotate_one(GOT10k(), make_root(content), "train")
    assert caught.value.reason is reason


def test_sequences_come_from_the_list_or_from_the_folders(make_root, split_plan):
    root = make_root({**files("GOT-10k_Train_000002"), **files("GOT-10k_Train_000001")})
    assert [i.clip.video_id for i in split_plan(GOT10k(), root, "train")[0]] == [
        "GOT-10k_Train_000001"
    ]
    (root.path / "train/list.txt").unlink()
    assert [i.clip.video_id[-1] for i in split_plan(GOT10k(), root, "train")[0]] == ["1", "2"]


@pytest.mark.parametrize("base", ["", "GOT-10k/"])
def test_a_root_one_folder_too_high_works(make_root, annotate_one, base: str):
    root = make_root(files(base=base))
    assert GOT10k().available(root) == ["train"]
    assert annotate_one(GOT10k(), DataRoot(root.path), "train").visible.all()
    assert f"{base}train/{NAME}/groundtruth.txt" in GOT10k().annotation_files(root, "train")
