"""Four real videos, curated from annotations written by hand in HC-STVG's official layout."""

import json
import shutil

import numpy as np

from flows.against_source import compare_with_source
from manifests.catalog import query
from manifests.verify import verify


def tube(first, last, n):
    """xywh boxes between two hand-drawn ones."""
    return np.linspace(first, last, n).round().astype(int).tolist()


HAND = {
    # name: frames of the video, first frame of the tube (1-based), boxes, height, width, sentence
    "01_dog.mp4": (
        289,
        97,
        tube((232, 98, 316, 457), (183, 77, 158, 478), 60),
        720,
        1280,
        "The woman in jeans throws something.",
    ),
    "02_cups.mp4": (
        300,
        1,
        tube((475, 0, 527, 440), (400, 0, 530, 440), 40),
        720,
        1280,
        "The woman in the orange knitted top.",
    ),
    "03_blocks.mp4": (
        292,
        1,
        tube((675, 537, 85, 95), (675, 537, 85, 95), 40),
        720,
        1280,
        "The blue block with the letter X lies still.",
    ),
    "bedroom.mp4": (
        200,
        67,
        tube((200, 66, 190, 303), (177, 8, 197, 506), 40),
        540,
        960,
        "The girl in the blue skirt jumps on the bed.",
    ),
}


def test_real_videos_are_curated_from_hand_written_annotations(shared, run, tmp_path):
    root, out = tmp_path / "HC-STVG", tmp_path / "out"
    (root / "anno_v2").mkdir(parents=True)
    (root / "video").mkdir()
    rows = {}
    for name, (count, first, boxes, height, width, sentence) in HAND.items():
        shutil.copy(shared / "data" / "video" / name, root / "video" / name)
        rows[name] = {
            "bbox": boxes,
            "st_frame": first,
            "st_time": 0.0,
            "ed_time": 1.0,
            "img_num": count,
            "img_size": [height, width, 3],
            "English": sentence,
            "Chinese": "",
        }
    (root / "anno_v2" / "train_v2.json").write_text(json.dumps(rows))

    one = run(
        "sparrow",
        "curate",
        "hcstvg",
        "--data-root",
        root,
        "--out",
        out,
        "--source-set",
        "span=tube",
        "--workers",
        2,
    )
    assert one.wait() == 0, one.text()[-3000:]
    assert verify(out, deep=True).problems == []
    found = {
        r["video_id"]: r for r in query(out, "SELECT * FROM referents JOIN clips USING (clip_id)")
    }
    assert set(found) == set(HAND)
    assert found["03_blocks.mp4"]["mean_iou"] > 0.8  # it lies still
    assert found["02_cups.mp4"]["mean_iou"] > 0.6
    assert {(r["height"], r["width"]) for r in found.values()} == {(720, 1280), (540, 960)}
    assert {r["decoder"] for r in found.values()} == {"pyav"}
    assert {r["n_concealed"] for r in found.values()} == {0}
    compared = compare_with_source(out)
    assert (compared.clips, compared.problems) == (4, [])
    assert compared.psnr is not None
    assert compared.psnr[0] > 33
    assert (out / "report" / "hcstvg.png").stat().st_size > 50_000
