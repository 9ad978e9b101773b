import shutil
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources.base import DataRoot
from pipeline.sources.lasot import LaSOT, LaSOTConfig
from schemas.geometry import from_xywh, is_box
from schemas.records import KEY, Planned, Quarantined, Reason

BAD_FRAMES = {  # 0-based, flagged visible, with a box without size
    "person-7": 2110,
    "tank-17": 626,
    "microphone-6": 1108,
    "tiger-6": 117,
    "pool-14": 145,
    "lion-5": 552,
    "lizard-16": 321,
}


def official(
    name: str = "kite-2",
    boxes: list[str] | None = None,
    full="",
    out="",
    phrase="red kite",
    base="",
) -> dict:
    boxes = boxes or ["31,44,60,22"] * 4
    folder = f"{base}{name.rpartition('-')[0]}/{name}"
    zeros = ",".join("0" * len(boxes))
    return {
        f"{folder}/groundtruth.txt": "\n".join(boxes),
        f"{folder}/full_occlusion.txt": full or zeros,
        f"{folder}/out_of_view.txt": out or zeros,
        f"{folder}/nlp.txt": phrase,
    }


def toolkit(
    name: str = "kite-2", boxes: list[str] | None = None, absent: str = "0\n0\n0\n0\n"
) -> dict:
    return {
        f"annos/{name}.txt": "\n".join(boxes or ["31,44,60,22"] * 4) + "\n",
        f"annos/absent/{name}.txt": absent,
        f"annos/nlp/{name}.txt": "red kite",
    }


def test_boxes_are_one_based(make_root, annotate_one):
    annotation = annotate_one(LaSOT(), make_root(official()), "all")
    assert annotation.boxes[0].tolist() == [30, 43, 90, 65]
    assert annotation.raw_boxes[0].tolist() == [31, 44, 60, 22]


@pytest.mark.parametrize("layout", ["official", "toolkit"])
def test_the_flag_wins_over_a_stale_box(make_root, annotate_one, layout: str):
    files = (
        official(full="0,0,1,0", out="0,1,0,0")
        if layout == "official"
        else toolkit(absent="0\n1\n1\n0\n")
    )
    annotation = annotate_one(LaSOT(), make_root(files), "all")
    assert annotation.visible.tolist() == [True, False, False, True]
    assert annotation.known.all()
    assert annotation.raw_boxes[1].tolist() == [31, 44, 60, 22]


def test_a_visible_frame_with_a_bad_box_is_unknown(make_root, annotate_one):
    boxes = ["31,44,60,22", "613,731,247,-11", "2,2,-1,-1", "0,0,0,0"]
    annotation = annotate_one(LaSOT(), make_root(official(boxes=boxes)), "all")
    assert annotation.known.tolist() == [True, False, False, False]
    assert not annotation.visible[1:].any()


def test_one_image_more_than_labels_is_tolerated(make_root, split_plan):
    root = make_root(
        {
            **official("airplane-14"),
            **{f"airplane/airplane-14/img/{i:08d}.jpg": b"" for i in range(1, 6)},
        }
    )
    [item], _ = split_plan(LaSOT(), root, "all")
    assert len(item.clip) == 4
    assert (item.clip.frame_count, item.clip.frame_tolerance) == (4, 1)
    assert item.clip.media.image(0) == "airplane/airplane-14/img/00000001.jpg"


def test_stray_spaces_leave_the_caption_but_not_the_raw_caption(make_root, split_plan):
    [item], _ = split_plan(LaSOT(), make_root(official(phrase=" red  kite over a beach ")), "all")
    assert item.referents[0].caption == "red kite over a beach"
    assert item.referents[0].raw_caption == " red  kite over a beach "
    assert (item.referents[0].category, item.clip.video_id) == ("kite", "kite-2")


@pytest.mark.parametrize(
    "lists",
    [
        {"testing_set.txt": "kite-10"},
        {"sequence_evaluation_config/testing_set.txt": "kite-10\n"},
        {"split.json": {"train": ["kite-9", "kite-2"], "test": ["kite-10"]}},
    ],
)
def test_splits_come_from_any_official_list_in_order_of_class_and_number(
    make_root, split_plan, lists: dict
):
    root = make_root({**official("kite-2"), **official("kite-9"), **official("kite-10"), **lists})
    assert LaSOT().available(root) == ["train", "test"]
    assert [i.clip.video_id for i in split_plan(LaSOT(), root, "train")[0]] == ["kite-2", "kite-9"]
    assert [i.clip.video_id for i in split_plan(LaSOT(), root, "test")[0]] == ["kite-10"]


def test_without_a_list_the_only_split_is_all(make_root):
    assert LaSOT().available(make_root({**official("kite-2"), **toolkit("dog-1")})) == ["all"]


@pytest.mark.parametrize("base", ["", "LaSOT/", "LaSOTBenchmark/"])
def test_a_root_one_folder_too_high_works(make_root, annotate_one, base: str):
    assert annotate_one(LaSOT(), make_root(official(base=base)), "all").visible.all()


def windows(make_root, split_plan, flags: str, **config) -> list[tuple[int, int]]:
    root = make_root(toolkit(boxes=["1,1,5,5"] * len(flags), absent="\n".join(flags)))
    planned, rejected = split_plan(LaSOT(LaSOTConfig(**config)), root, "all")
    assert not rejected
    return [(i.clip.start, i.clip.stop) for i in planned]


def test_three_disjoint_ten_second_segments_at_the_quantiles(make_root, split_plan):
    assert windows(make_root, split_plan, "0" * 1800) == [(150, 450), (750, 1050), (1350, 1650)]


def test_segments_follow_the_visible_frames(make_root, split_plan):
    found = windows(make_root, split_plan, "1" * 900 + "0" * 900)
    assert found == [(900, 1200), (1200, 1500), (1500, 1800)]


def test_short_sequences_give_fewer_and_shorter_segments(make_root, split_plan):
    assert windows(make_root, split_plan, "0" * 899) == [(74, 374), (524, 824)]
    assert windows(make_root, split_plan, "0" * 100) == [(0, 100)]
    assert windows(make_root, split_plan, "1" * 100) == [(0, 100)]


def test_segments_and_seconds_are_configurable(make_root, split_plan):
    found = windows(make_root, split_plan, "0" * 100, segments=2, seconds=1.0, fps=10.0)
    assert found == [(20, 30), (70, 80)]


def test_missing_files_are_planned_and_quarantined_at_run_time(make_root, split_plan):
    files = official()
    for missing in files:
        root = make_root({**files, "split.json": {"train": ["kite-2"]}})
        (root.path / missing).unlink()
        [item], rejected = split_plan(LaSOT(), root, "train")
        assert not rejected
        with pytest.raises(Quarantined) as caught:
            LaSOT().annotate(root, item.clip, item.referents[0])
        assert caught.value.reason is Reason.ANNOTATION_MISSING


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (official(full="0,0"), Reason.FRAME_MISMATCH),
        (official(full="0,0,2,0"), Reason.ANNOTATION_INVALID),
        (official(boxes=["1,2,3", "1,2,3,4"]), Reason.ANNOTATION_INVALID),
        (toolkit(absent="0\n0\n0\n"), Reason.FRAME_MISMATCH),
        (official(full="1,1,1,1"), Reason.NO_TARGET),
    ],
)
def test_broken_files_are_quarantined_for_a_stated_reason(
    make_root, split_plan, files: dict, reason: Reason
):
    root = make_root(files)
    [item], _ = split_plan(LaSOT(), root, "all")
    with pytest.raises(Quarantined) as caught:
        LaSOT().annotate(root, item.clip, item.referents[0])
    assert caught.value.reason is reason


def test_names_that_are_no_sequences_are_rejected(make_root, split_plan):
    root = make_root({"split.json": {"train": ["kite", "../kite-1", 7]}})
    planned, rejected = split_plan(LaSOT(), root, "train")
    assert {r.item for r in rejected} == {"kite", "7"}
    assert {r.reason for r in rejected} == {Reason.MALFORMED_ROW}
    with pytest.raises(Quarantined) as caught:
        LaSOT().annotate(root, planned[0].clip, planned[0].referents[0])
    assert caught.value.reason is Reason.UNSAFE_PATH


def test_annotation_files_are_the_lists_flags_and_phrases(make_root):
    root = make_root({**official(), "testing_set.txt": "kite-3\n"})
    assert LaSOT().annotation_files(root, "train") == [
        "testing_set.txt",
        "kite/kite-2/full_occlusion.txt",
        "kite/kite-2/out_of_view.txt",
        "kite/kite-2/nlp.txt",
    ]


# --- the real annotations ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_root(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    folder = tmp_path_factory.mktemp("lasot")
    with tarfile.open(shared / "lasot/lasot_annotations.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    shutil.copy(shared / "lasot/split.json", folder)
    return DataRoot(folder)


def test_real_sequences_give_4200_disjoint_segments_in_seconds(real_root: DataRoot):
    source, sequences, start = LaSOT(), {}, time.perf_counter()
    for split in source.available(real_root):
        sequences[split] = Counter()
        last = ("", 0)
        for item in source.plan(real_root, split):
            assert isinstance(item, Planned)
            clip = item.clip
            assert KEY.fullmatch(clip.clip_id)
            assert len(clip) == 300
            assert clip.start >= (last[1] if last[0] == clip.video_id else 0)
            assert clip.stop <= clip.frame_count
            assert item.referents[0].caption.strip()
            last = (clip.video_id, clip.stop)
            sequences[split][clip.video_id] += 1
    assert {split: len(names) for split, names in sequences.items()} == {"train": 1120, "test": 280}
    assert {count for names in sequences.values() for count in names.values()} == {3}
    assert time.perf_counter() - start < 120


def test_real_absent_frames_have_no_box_and_the_seven_bad_frames_are_unknown(real_root: DataRoot):
    source = LaSOT(LaSOTConfig(segments=1, seconds=1e6))  # whole sequences
    frames = absent = stale = 0
    unknown = []
    for split in source.available(real_root):
        for item in source.plan(real_root, split):
            annotation = source.annotate(real_root, item.clip, item.referents[0])
            gone = annotation.known & ~annotation.visible
            frames += len(gone)
            absent += int(gone.sum())
            stale += int((gone & is_box(from_xywh(annotation.raw_boxes))).sum())
            unknown += [(item.clip.video_id, int(t)) for t in np.flatnonzero(~annotation.known)]
    assert (frames, absent, stale) == (3_517_342, 97_968, 71_708)
    assert sorted(unknown) == sorted(BAD_FRAMES.items())
