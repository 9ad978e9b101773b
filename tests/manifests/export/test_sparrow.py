"""SPARROW's layout, read back by the loaders' rules (scene folders) and by our own readers (MeViS, Ref-SAV)."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from manifests.catalog import query
from manifests.export import export
from pipeline.presets import configure
from pipeline.sources.base import DataRoot, load_source
from pipeline.video import decode
from schemas.geometry import rle_decode
from tests.manifests.made import AWAY, FRAMES, LOST, pictures

SCENES = {
    "got10k": "VOT_dataset/GOT-10k/val/_v.1",
    "lasot": "VOT_dataset/LaSOT/kite/kite-3",
    "vid_sentence": "VOT_dataset/VID-Sentence/VID/train/ILSVRC2015_VID_train_0003/_v.1",
    "a2d": "test/VOT_dataset/A2D_sentences/Images/_v.1",
    "hcstvg": "VOT_dataset/HC-STVG/Images/v",
}
XYWH = ("got10k", "lasot")


@pytest.fixture(scope="module")
def to(whole, tmp_path_factory) -> Path:
    to = tmp_path_factory.mktemp("sparrow") / "to"
    done = export(whole, to, "sparrow")
    assert (done.clips, sum(done.samples.values()), done.skipped) == (7, 14, [])
    return to


def load(scene: Path) -> tuple[list[Path], np.ndarray, list[np.ndarray], str]:
    """What the released loaders do: sorted images, first four numbers of non-blank lines, grey > 127, joined lines."""
    images = sorted((scene / "img").iterdir(), key=lambda path: path.name)
    lines = [line for line in (scene / "groundtruth.txt").read_text().splitlines() if line.strip()]
    boxes = np.array([[float(v) for v in line.replace(",", " ").split()[:4]] for line in lines])
    masks = [
        cv2.imread(str(scene / "mask" / f"{p.stem}.png"), cv2.IMREAD_UNCHANGED) for p in images
    ]
    assert all(m.dtype == np.uint8 and set(np.unique(m)) <= {0, 255} for m in masks)
    caption = " ".join(
        line.strip() for line in (scene / "nlp.txt").read_text().splitlines() if line.strip()
    )
    return images, boxes, [m > 127 for m in masks], caption


@pytest.mark.parametrize("source", SCENES)
def test_scenes_read_back_as_the_manifests_say(to, truth, source):
    mine = sorted((key, row) for key, row in truth.items() if row["source"] == source)
    assert sorted(p.name for p in (to / SCENES[source]).iterdir()) == ["00", "01"]
    for scene, (_, row) in zip(("00", "01"), mine, strict=True):
        images, boxes, masks, caption = load(to / SCENES[source] / scene)
        frames = [int(p.stem) for p in images]
        assert frames == sorted({*row["masks"], *row["absent"]})
        assert len(boxes) == len(images)
        assert caption == row["caption"]
        for t, box, mask in zip(frames, boxes.astype(np.float32), masks, strict=True):
            if t in row["absent"]:
                assert not mask.any()
                assert box.tolist() == [0, 0, 0, 0]
                continue
            np.testing.assert_array_equal(mask, row["masks"][t])
            wanted = row["boxes"][t].copy()
            if source in XYWH:
                wanted[2:] -= wanted[:2]
            np.testing.assert_array_equal(box, wanted)


def test_a_dropped_frame_is_left_out_and_an_absent_one_is_black(to):
    frames = {int(p.stem) for p in (to / SCENES["got10k"] / "00" / "img").iterdir()}
    assert frames == set(range(FRAMES)) - {LOST}
    assert set(AWAY) <= frames


@pytest.mark.parametrize("source", ["a2d", "got10k"])  # stored as JPEG, and as padded video
def test_pictures_have_the_clips_size_and_content(to, source):
    picture = cv2.imread(str(to / SCENES[source] / "01" / "img" / "000003.jpg"))[..., ::-1]
    wanted = pictures((97, 161))[3]
    assert picture.shape == wanted.shape
    assert np.abs(picture.astype(int) - wanted).mean() < 4


def test_stored_jpegs_are_copied_and_not_encoded_again(to, whole):
    (row,) = query(
        whole,
        'SELECT path, "offset", size FROM members m JOIN shards s USING (shard) '
        "WHERE name = 'frames.tar' ORDER BY key LIMIT 1",
    )
    with (whole / row["path"]).open("rb") as file:
        file.seek(row["offset"])
        stored = file.read(row["size"])
    assert (to / SCENES["a2d"] / "00" / "img" / "000000.jpg").read_bytes() in stored


@pytest.mark.parametrize("source", ["mevis", "refsav"])
def test_native_forms_read_back_by_our_own_readers(to, truth, source):
    root, reader = DataRoot(to / "sa2va"), load_source(source)
    (planned,) = reader.plan(root, reader.available(root)[0])
    wanted = [row for _, row in sorted(truth.items()) if row["source"] == source]
    assert [r.caption for r in planned.referents] == [
        " ".join(row["caption"].split()) for row in wanted
    ]
    for referent, row in zip(planned.referents, wanted, strict=True):
        found = reader.annotate(root, planned.clip, referent)
        masks = {t: rle_decode(rle) for t, rle in enumerate(found.masks) if rle is not None}
        assert masks.keys() == row["masks"].keys()
        for t, mask in masks.items():
            np.testing.assert_array_equal(mask, row["masks"][t])
    decoded = decode(root, planned.clip, configure("lite").decode)
    size = decoded.frames.shape[1:3]
    assert len(decoded.frames) == FRAMES
    assert (
        np.abs(decoded.frames.astype(int) - pictures(size)).mean() < 5
    )  # each label with its own picture


def test_ref_sav_is_found_with_and_without_the_repeated_directory(to):
    base = to / "sa2va" / "sam_v_full"
    for path in ("sav_007/sav_train/sav_007", "sav_train/sav_007"):
        assert (
            len(list((base / path).glob("*.mp4")))
            == len(list((base / path).glob("*_manual.json")))
            == 1
        )


def test_no_name_of_an_annotation_leaves_the_export(to):
    assert not [p for p in to.parent.iterdir() if p != to]  # video ids were "../v.1"
