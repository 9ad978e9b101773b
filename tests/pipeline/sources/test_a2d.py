from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.sources.a2d import A2D, A2DConfig
from pipeline.sources.base import DataRoot
from schemas.geometry import rle_area, rle_decode
from schemas.records import KEY, Planned, Quarantined, Reason

TABLE, VIDEOSET = "text_annotations/a2d_annotation.txt", "Release/videoset.csv"
INSTANCES = "text_annotations/a2d_annotation_with_instances"
ROWS = "video_id,instance_id,query\nAbC-1,1,small white dog  jumping\nAbC-1,0,a man\n"
VIDEOS = "AbC-1,31,0:00:01,0:00:05,480,640,136,3,0\n"


@pytest.fixture
def frame(tmp_path: Path):
    """frame("AbC-1", 20, {id: (x1, y1, x2, y2)}): an h5 file as the dataset has it, transposed and squeezed."""

    def write(
        video: str,
        number: int,
        objects: dict[int, tuple],
        height: int = 32,
        width: int = 42,
        base: str = "",
    ):
        masks = np.zeros((len(objects), width, height), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, objects.values(), strict=True):
            mask[x1:x2, y1:y2] = 1
        boxes = np.array(list(objects.values()), np.float32).T + np.array([[1], [1], [0], [0]])
        path = tmp_path / base / INSTANCES / video / f"{number:05d}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["instance"] = (
                np.array(list(objects))[None] if len(objects) > 1 else np.array(list(objects))
            )
            file["reMask"] = masks if len(objects) > 1 else masks[0]
            file["reBBox"] = boxes if len(objects) > 1 else boxes[:, 0]

    return write


def test_masks_are_transposed_and_boxes_come_from_them(make_root, split_plan, frame):
    root = make_root({TABLE: ROWS, VIDEOSET: VIDEOS})
    frame("AbC-1", 20, {0: (0, 0, 5, 5), 1: (10, 4, 30, 9)})
    [item], _ = split_plan(A2D(), root, "train")
    annotation = A2D().annotate(root, item.clip, item.referents[0])
    t = 19 - item.clip.start
    assert annotation.boxes[t].tolist() == [10, 4, 30, 9]
    assert rle_decode(annotation.masks[t]).shape == (32, 42)
    assert rle_area(annotation.masks[t]) == 20 * 5
    assert annotation.raw_boxes[t].tolist() == [11, 5, 30, 9]
    assert annotation.known.sum() == 1


def test_a_single_instance_has_lost_its_axis(make_root, split_plan, frame):
    root = make_root({TABLE: ROWS, VIDEOSET: VIDEOS})
    frame("AbC-1", 20, {1: (10, 4, 30, 9)})
    [item], _ = split_plan(A2D(), root, "train")
    annotation = A2D().annotate(root, item.clip, item.referents[0])
    assert annotation.boxes[19 - item.clip.start].tolist() == [10, 4, 30, 9]
    assert annotation.raw_boxes[19 - item.clip.start].tolist() == [11, 5, 30, 9]


def test_h5_names_are_one_based_and_a_frame_without_the_instance_is_unknown(
    make_root, split_plan, frame
):
    root = make_root({TABLE: ROWS, VIDEOSET: VIDEOS})
    frame("AbC-1", 20, {0: (0, 0, 5, 5), 1: (10, 4, 30, 9)})
    frame("AbC-1", 60, {0: (0, 0, 5, 5)})
    frame("AbC-1", 100, {0: (0, 0, 5, 5), 1: (0, 0, 0, 0)})
    [item], _ = split_plan(A2D(), root, "train")
    assert (item.clip.start, item.clip.stop) == (19, 100)
    dog, man = (A2D().annotate(root, item.clip, referent) for referent in item.referents)
    assert np.flatnonzero(man.known).tolist() == [0, 40, 80]
    assert np.flatnonzero(dog.known).tolist() == [
        0
    ]  # frame 60 lacks it, frame 100 lists an empty mask


def test_one_clip_per_video_with_all_its_sentences(make_root, split_plan):
    [item], rejected = split_plan(A2D(), make_root({TABLE: ROWS, VIDEOSET: VIDEOS}), "train")
    assert not rejected
    assert [r.caption for r in item.referents] == ["small white dog jumping", "a man"]
    assert item.referents[0].raw_caption == "small white dog  jumping"
    assert all(KEY.fullmatch(r.referent_id) for r in item.referents)
    assert item.clip.media.path == "Release/clips320H/AbC-1.mp4"
    assert (item.clip.frame_count, item.clip.height, item.clip.width) == (
        136,
        None,
        None,
    )  # 480x640 is the original's


def test_either_name_of_the_clips_folder(make_root, split_plan):
    root = make_root({TABLE: ROWS, VIDEOSET: VIDEOS, "Release/CLIPS320/AbC-1.mp4": b""})
    [item], _ = split_plan(A2D(), root, "train")
    assert item.clip.media.path == "Release/CLIPS320/AbC-1.mp4"


def test_videoset_has_no_header_and_its_ninth_column_is_the_subset(make_root, split_plan):
    rows = "video_id,instance_id,query\nfirst,0,a\nsecond,0,b\n"
    videos = "first,1,0,1,480,640,100,3,1\nsecond,1,0,1,480,640,100,3,0\n"
    root = make_root({TABLE: rows, VIDEOSET: videos})
    assert A2D().available(root) == ["train", "test"]
    assert [i.clip.video_id for i in split_plan(A2D(), root, "test")[0]] == ["first"]
    assert [i.clip.video_id for i in split_plan(A2D(), root, "train")[0]] == ["second"]


def test_missed_videos_are_dropped_and_unlisted_ones_reported(make_root, split_plan):
    rows = ROWS + "gone,0,a cat\nunlisted,0,a bird\n"
    root = make_root(
        {
            TABLE: rows,
            VIDEOSET: VIDEOS + "gone,1,0,1,480,640,99,3,0\n",
            "text_annotations/a2d_missed_videos.txt": "gone\n",
        }
    )
    [item], rejected = split_plan(A2D(), root, "train")
    assert item.clip.video_id == "AbC-1"
    assert [(r.item, r.reason) for r in rejected] == [
        ("gone,0", Reason.KNOWN_BAD),
        ("unlisted,0", Reason.ANNOTATION_MISSING),
    ]
    assert split_plan(A2D(), root, "test") == ([], [])


def test_without_videoset_the_only_split_is_all(make_root, split_plan):
    root = make_root({TABLE: ROWS})
    assert A2D().available(root) == ["all"]
    assert len(split_plan(A2D(), root, "all")[0]) == 1
    with pytest.raises(ValueError, match=r"no split 'train'.*found only all"):
        next(A2D().plan(root, "train"))


@pytest.mark.parametrize(
    ("numbers", "total", "span"),
    [
        ([50], 136, (40, 60)),  # symmetric, 0-based frame 49
        ([1], 136, (0, 20)),
        ([136], 136, (116, 136)),
        ([5], 8, (0, 8)),  # the video has no more
        ([20, 60], 136, (19, 60)),
        ([50], None, (30, 50)),  # length unknown: nothing after the last annotated frame
    ],
)
def test_short_clips_are_widened_to_20_frames_inside_the_video(
    make_root, split_plan, frame, numbers, total, span
):
    videos = {} if total is None else {VIDEOSET: VIDEOS.replace("136", str(total))}
    root = make_root({TABLE: ROWS, **videos})
    for number in numbers:
        frame("AbC-1", number, {1: (1, 1, 9, 9)})
    [item], _ = split_plan(A2D(), root, "all" if total is None else "train")
    assert (item.clip.start, item.clip.stop) == span
    assert A2D().annotate(root, item.clip, item.referents[0]).known.sum() == len(numbers)


def test_min_frames_is_configurable(make_root, split_plan, frame):
    root = make_root({TABLE: ROWS, VIDEOSET: VIDEOS})
    frame("AbC-1", 50, {1: (1, 1, 9, 9)})
    [item], _ = split_plan(A2D(A2DConfig(min_frames=1)), root, "train")
    assert (item.clip.start, item.clip.stop) == (49, 50)


def test_the_copied_instance_is_the_only_rejected_row(make_root, split_plan):
    root = make_root(
        {
            TABLE: ROWS + 'AbC-1,1 (copy),bird\nAbC-1,2,"a man, sitting"\nAbC-1,3,\n',
            VIDEOSET: VIDEOS,
        }
    )
    [item], rejected = split_plan(A2D(), root, "train")
    assert [r.item for r in rejected] == ["AbC-1,1 (copy)", "AbC-1,3"]
    assert {r.reason for r in rejected} == {Reason.MALFORMED_ROW}
    assert rejected[0].where == f"{TABLE}:4"
    assert item.referents[-1].caption == "a man, sitting"


def test_an_unclosed_quote_spoils_its_own_row_only(make_root, split_plan):
    root = make_root(
        {TABLE: 'video_id,instance_id,query\nAbC-1,0,"a man\nAbC-1,1,a dog\n', VIDEOSET: VIDEOS}
    )
    [item], _ = split_plan(A2D(), root, "train")
    assert [r.caption for r in item.referents] == ["a man", "a dog"]


def test_a_second_sentence_about_an_instance_is_a_duplicate(make_root, split_plan):
    _, [rejected] = split_plan(
        A2D(), make_root({TABLE: ROWS + "AbC-1,1,again\n", VIDEOSET: VIDEOS}), "train"
    )
    assert rejected.reason is Reason.DUPLICATE


def test_missing_h5_files_are_planned_and_quarantined_at_run_time(make_root, split_plan):
    root = make_root({TABLE: ROWS, VIDEOSET: VIDEOS})
    [item], _ = split_plan(A2D(), root, "train")
    assert len(item.clip) == 0
    with pytest.raises(Quarantined) as caught:
        A2D().annotate(root, item.clip, item.referents[0])
    assert caught.value.reason is Reason.ANNOTATION_MISSING


@pytest.mark.parametrize(
    "fault", ["not hdf5", "no masks", "external link", "wrong number of masks"]
)
def test_broken_h5_files_are_quarantined(make_root, split_plan, frame, tmp_path: Path, fault: str):
    root = make_root({TABLE: ROWS, VIDEOSET: VIDEOS})
    frame("AbC-1", 20, {0: (0, 0, 5, 5), 1: (10, 4, 30, 9)})
    path = tmp_path / INSTANCES / "AbC-1" / "00020.h5"
    if fault == "not hdf5":
        path.write_bytes(b"\0" * 100)
    else:
        with h5py.File(path, "a") as file:
            masks = file["reMask"][...]
            del file["reMask"]
            if fault == "external link":
                file["reMask"] = h5py.ExternalLink("/somewhere/else.h5", "/reMask")
            elif fault == "wrong number of masks":
                file["reMask"] = masks[:1]
    [item], _ = split_plan(A2D(), root, "train")
    with pytest.raises(Quarantined) as caught:
        A2D().annotate(root, item.clip, item.referents[0])
    assert caught.value.reason is Reason.ANNOTATION_INVALID


def test_the_h5_files_take_part_in_the_plan(make_root, frame):
    root = make_root({TABLE: ROWS, VIDEOSET: VIDEOS})
    frame("AbC-1", 20, {1: (10, 4, 30, 9)})
    assert A2D().annotation_files(root, "train") == [TABLE, VIDEOSET, f"{INSTANCES}/AbC-1/00020.h5"]


def test_a_root_one_folder_too_high_works(make_root, split_plan, frame):
    root = make_root({f"a2d_sentences/{TABLE}": ROWS})
    frame("AbC-1", 20, {1: (10, 4, 30, 9)}, base="a2d_sentences")
    [item], _ = split_plan(A2D(), root, "all")
    assert A2D().annotate(root, item.clip, item.referents[0]).known.any()


def test_real_table_has_6655_rows_of_which_one_is_rejected(shared: Path, make_root):
    text = (
        shared / "a2d_sentences/a2d_annotation_with_short_query.txt"
    ).read_text()  # a fourth column, too
    root = make_root({TABLE: text})
    planned, rejected = [], []
    for item in A2D().plan(DataRoot(root.path), "all"):
        (planned if isinstance(item, Planned) else rejected).append(item)
    assert sum(len(item.referents) for item in planned) == 6654
    assert len(planned) == 3754
    assert len({r.referent_id for item in planned for r in item.referents}) == 6654
    [copy] = rejected
    assert (copy.item, copy.reason) == ("T6bNPuKV-wY,1 (copy)", Reason.MALFORMED_ROW)


def test_the_real_table_has_an_instance_a_row(shared):
    """6,655, not the 4,825 of tables elsewhere; one id is no integer."""
    file = shared / "a2d_sentences" / "a2d_annotation_with_short_query.txt"
    rows = [line.split(",", 2)[:2] for line in file.read_text().splitlines()[1:]]
    assert len(rows) == len({tuple(row) for row in rows}) == 6655
    assert len({video for video, _ in rows}) == 3754
