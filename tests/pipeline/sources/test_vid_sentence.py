import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources.base import DataRoot
from pipeline.sources.vid_sentence import VIDSentence, VIDSentenceConfig
from schemas.records import KEY, Planned, Quarantined, Reason, Rejected

LISTS, TUBES = "data/ILSVRC/Data/VID/annSamples", "data/ILSVRC/Annotations/VID/tubeGt"
VAL = "ILSVRC2015_val_00000001"
TRAIN = "ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000001"


def box(frame: int, corners=(10, 20, 110, 220), **changes) -> dict:
    record = {
        "frame": frame,
        "bbox": list(corners),
        "frame_size": [720, 1280],
        "class": "dog",
        "class_index": 9,
    }
    return {**record, "name": "n02084071", "occluded": 0, "generated": 0, **changes}


def tube(*tracks: list, video: str = VAL) -> dict:
    return {
        "video": video,
        "annotations": [{"id": str(i), "track": track} for i, track in enumerate(tracks)],
    }


def files(
    *tracks: list,
    sentences: str = "0, A brown dog.\n",
    split: str = "val",
    video: str = VAL,
    folder="",
) -> dict:
    return {
        f"{LISTS}/{split}_valid_list.txt": "".join(
            f"{video},{i}\n" for i in range(max(len(tracks), 1))
        ),
        f"{LISTS}/{split}_ann_list_v2.txt": sentences,
        **({f"{TUBES}/{folder or split}/{video}.js": tube(*tracks, video=video)} if tracks else {}),
    }


def test_a_clip_is_the_span_of_the_track_and_images_are_frame_minus_one(make_root, split_plan):
    root = make_root(files([box(58), box(59)]))
    [item], _ = split_plan(VIDSentence(), root, "val")
    clip = item.clip
    assert (clip.start, clip.stop, clip.height, clip.width, clip.fps) == (57, 59, 720, 1280, None)
    assert clip.media.image(clip.source_frames[0]) == f"data/ILSVRC/Data/VID/val/{VAL}/000057.JPEG"
    assert item.referents[0].category == "dog"


def test_boxes_name_their_last_pixel_and_are_clipped_to_the_frame(make_root, annotate_one):
    annotation = annotate_one(
        VIDSentence(), make_root(files([box(1), box(2, (0, 0, 1280, 719))])), "val"
    )
    assert annotation.boxes.tolist() == [[10, 20, 111, 221], [0, 0, 1280, 720]]
    assert annotation.raw_boxes[1].tolist() == [0, 0, 1280, 719]


def test_a_gap_is_an_absent_frame_that_the_dataset_knows(make_root, annotate_one):
    annotation = annotate_one(VIDSentence(), make_root(files([box(1), box(4)])), "val")
    assert annotation.known.all()
    assert annotation.visible.tolist() == [True, False, False, True]


def test_occluded_and_generated_boxes_are_kept(make_root, annotate_one):
    annotation = annotate_one(
        VIDSentence(), make_root(files([box(1, occluded=1), box(2, generated=1)])), "val"
    )
    assert annotation.visible.all()


def test_sentences_split_at_the_first_comma_and_lose_only_stray_space(make_root, split_plan):
    root = make_root(files([box(1)], sentences="0, A dog,  running, fast \n"))
    [item], _ = split_plan(VIDSentence(), root, "val")
    assert item.referents[0].caption == "A dog, running, fast"
    assert item.referents[0].raw_caption == " A dog,  running, fast "


def test_train_paths_have_a_bucket_that_the_video_id_lacks(make_root, split_plan):
    root = make_root(files([box(1)], split="train", video=TRAIN))
    [item], _ = split_plan(VIDSentence(), root, "train")
    assert item.clip.video_id == "ILSVRC2015_train_00000001"
    assert item.clip.media.path == f"data/ILSVRC/Data/VID/train/{TRAIN}"


@pytest.mark.parametrize("kind", ["absent", "folder", "link", "text file of a link"])
def test_test_tubes_are_in_val_however_the_link_came_out(
    make_root, split_plan, tmp_path: Path, kind: str
):
    root = make_root(files([box(1)], split="test", folder="test" if kind == "folder" else "val"))
    link = tmp_path / TUBES / "test"
    if kind == "link":
        link.symlink_to("val")
    elif kind == "text file of a link":
        link.write_text("val")
    [item], _ = split_plan(VIDSentence(), root, "test")
    assert len(item.clip) == 1
    assert item.clip.media.path == f"data/ILSVRC/Data/VID/val/{VAL}"
    assert VIDSentence().annotate(root, item.clip, item.referents[0]).visible.all()


def test_spans_are_bounded_around_the_middle_annotated_frame(make_root, split_plan):
    source = VIDSentence(VIDSentenceConfig(max_frames=10))
    root = make_root(files([box(f) for f in [1, *range(80, 101)]]))
    [item], _ = split_plan(source, root, "val")
    assert (item.clip.start, item.clip.stop) == (84, 94)
    assert source.annotate(root, item.clip, item.referents[0]).visible.all()


def test_two_tracks_with_one_span_are_two_clips(make_root, split_plan):
    root = make_root(files([box(1)], [box(1)], sentences="0, a\n1, b\n"))
    planned, _ = split_plan(VIDSentence(), root, "val")
    assert len({i.clip.clip_id for i in planned}) == 2
    assert all(KEY.fullmatch(i.referents[0].referent_id) for i in planned)


def test_a_missing_tube_is_planned_and_quarantined_at_run_time(make_root, split_plan):
    root = make_root(files(sentences="0, A dog.\n"))
    [item], rejected = split_plan(VIDSentence(), root, "val")
    assert not rejected
    assert (item.clip.start, item.clip.stop) == (0, 0)
    with pytest.raises(Quarantined) as caught:
        VIDSentence().annotate(root, item.clip, item.referents[0])
    assert caught.value.reason is Reason.ANNOTATION_MISSING


@pytest.mark.parametrize(
    "track", [[box(0)], [box("1")], [{"frame": 1}], [box(1, (1, 2, 3))], "x", [7]]
)
def test_a_broken_tube_is_planned_and_quarantined_at_run_time(make_root, split_plan, track):
    root = make_root(files(track))
    [item], _ = split_plan(VIDSentence(), root, "val")
    with pytest.raises(Quarantined) as caught:
        VIDSentence().annotate(root, item.clip, item.referents[0])
    assert caught.value.reason is Reason.ANNOTATION_INVALID


def test_a_video_path_that_leaves_the_root_is_quarantined_at_run_time(make_root, split_plan):
    root = make_root(files(video="../../../../../../etc/passwd"))
    [item], _ = split_plan(VIDSentence(), root, "val")
    with pytest.raises(Quarantined) as caught:
        VIDSentence().annotate(root, item.clip, item.referents[0])
    assert caught.value.reason is Reason.UNSAFE_PATH


def test_malformed_lines_are_rejected_with_their_place(make_root, split_plan):
    root = make_root(files([box(1)], sentences="no comma\nx, a\n7, beyond\n0,  \n\n0, good\n"))
    planned, rejected = split_plan(VIDSentence(), root, "val")
    assert len(planned) == 1
    assert {r.reason for r in rejected} == {Reason.MALFORMED_ROW}
    assert [r.where.rsplit(":")[-1] for r in rejected] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("top", ["", "VID-Sentence/"])
@pytest.mark.parametrize("low", [True, False])
def test_a_root_too_high_or_too_low_works(make_root, top: str, low: bool):
    content = {top + path: text for path, text in files([box(1)]).items()}
    root = make_root(content)
    if low:
        root = DataRoot(root.path / top / "data/ILSVRC")
    assert VIDSentence().available(root) == ["val"]
    [item] = VIDSentence().plan(root, "val")
    assert len(item.clip) == 1


def test_planning_opens_one_tube_at_a_time_and_only_when_asked_for_more(
    make_root, monkeypatch: pytest.MonkeyPatch
):
    sentences = "".join(f"{i}, dog {i}\n" for i in range(4))
    root = make_root(files([box(1)], [box(2)], [box(3)], [box(4)], sentences=sentences))
    reads = []
    read_json = DataRoot.read_json
    monkeypatch.setattr(
        DataRoot, "read_json", lambda self, file: reads.append(file) or read_json(self, file)
    )
    plan = VIDSentence().plan(root, "val")
    assert reads == []
    next(plan)
    next(plan)
    assert len(reads) == 1  # two sentences about one video read its tube once


# --- the real annotations ----------------------------------------------------------------------------------------


def test_real_sentence_counts(shared: Path):
    source, root = VIDSentence(), DataRoot(shared / "vid_sentence")
    counts, ids = {}, set()
    for split in source.available(root):
        counts[split] = Counter()
        for item in source.plan(root, split):
            assert isinstance(item, Planned)
            counts[split][type(item)] += len(item.referents)
            ids.add(item.clip.clip_id)
    assert {split: count[Planned] for split, count in counts.items()} == {
        "train": 6582,
        "val": 536,
        "test": 536,
    }
    assert not any(count[Rejected] for count in counts.values())
    assert len(ids) == 7654


def test_planning_the_real_sentences_takes_little_memory(shared: Path):
    """In an interpreter of its own: pathlib interns the parts of every path, and the table of interned strings is the
    whole process's. Where it doubles, it doubles by the strings of all tests that ran before."""
    program = """if True:
        import sys, tracemalloc
        from pipeline.sources.base import DataRoot
        from pipeline.sources.vid_sentence import VIDSentence

        source, root = VIDSentence(), DataRoot(sys.argv[1])
        tracemalloc.start()
        clips = sum(1 for split in source.available(root) for _ in source.plan(root, split))
        print(clips, tracemalloc.get_traced_memory()[1])"""
    words = [sys.executable, "-c", program, shared / "vid_sentence"]
    clips, peak = map(
        int, subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    )
    assert clips == 7654
    assert peak < 8e6


def test_real_tubes_annotate_without_error(shared: Path):
    source, root = VIDSentence(), DataRoot(shared / "vid_sentence")
    videos, boxes = set(), 0
    for split in source.available(root):
        for item in source.plan(root, split):
            if len(item.clip) == 0:  # its tube is not among the shipped ones
                continue
            annotation = source.annotate(root, item.clip, item.referents[0])
            assert annotation.known.all()
            assert annotation.visible[0]
            assert len(annotation.known) == len(item.clip)
            assert np.nanmin(annotation.boxes) >= 0
            videos.add(item.clip.video_id)
            boxes += int(annotation.visible.sum())
    shipped = len(list((shared / "vid_sentence").rglob("*.js")))
    assert shipped == 118
    assert len(videos) == shipped
    assert boxes > 10_000


def test_real_plan_does_not_depend_on_the_tubes_being_there(shared: Path, tmp_path: Path):
    lists = "data/ILSVRC/Data/VID/annSamples"
    shutil.copytree(shared / "vid_sentence" / lists, tmp_path / lists)
    items = list(VIDSentence().plan(DataRoot(tmp_path), "val"))
    assert sum(isinstance(item, Planned) for item in items) == 536
