"""Readers of the four detection datasets: right boxes, every fault counted, nothing outside the data root."""

import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from model.proposer.data.corpora import Corpus
from model.proposer.data.json_rows import json_rows
from model.proposer.data.readers import (
    READERS,
    read,
    read_coco,
    read_objects365,
    read_openimages,
    read_v3det,
)
from pipeline.sources.base import DataRoot
from schemas.records import Quarantined, Reason
from tests.model.proposer.made import coco_like, fault, openimages

TWO = [("a.jpg", "train2017/a.jpg"), ("b.jpg", "train2017/b.jpg")]
COCO = "annotations/instances_train2017.json"


def ordered(boxes: np.ndarray) -> np.ndarray:
    return boxes[np.lexsort(boxes.T)]


def same(corpus: Corpus, wanted: list[np.ndarray]) -> None:
    assert len(corpus) == len(wanted)
    for i, boxes in enumerate(wanted):
        np.testing.assert_allclose(ordered(corpus.example(i).boxes_n4), ordered(boxes), atol=1e-3)


def test_coco_boxes_become_corners_and_faults_are_counted(tmp_path):
    faults = [
        fault(100, [0, 0, 50, 50], iscrowd=1),
        fault(100, [5, 5, 0, 9]),
        fault(100, [5, 5, -3, 9]),
        fault(99, [500, 10, 20, 20]),
        fault(99, [150, 80, 40, 40]),
        fault(99, [150.2, 80.1, 40, 40]),
        fault(99, [1, 2, 3]),
        fault(99, "box"),
        fault(99, [float("nan"), 0, 3, 3]),
        fault(12345, [0, 0, 9, 9]),
        fault(7, [0, 0, 9, 9]),
        fault(6, [0, 0, 9, 9]),
    ]
    extra = [
        {"id": 7, "file_name": "gone.jpg", "height": 96, "width": 160},
        {"id": 6, "file_name": "../../../etc/passwd", "height": 96, "width": 160},
        {"id": 5, "file_name": "b.jpg", "height": 96, "width": 160},
        {"id": 99, "file_name": "b.jpg", "height": 96, "width": 160},
        {"id": 4, "file_name": "b.jpg", "height": None, "width": 160},
        {"id": 3},
    ]
    wanted = coco_like(tmp_path, COCO, TWO, faults, extra)
    wanted[1] = np.concatenate([wanted[1], [[150, 80, 160, 96]]]).astype(np.float32)
    corpus = read_coco(DataRoot(tmp_path))
    same(corpus, wanted)
    assert corpus.dropped == {
        "crowd": 1,
        "degenerate": 2,
        "duplicate": 1,
        "duplicate_image": 1,
        "malformed": 3,
        "malformed_image": 2,
        "media_missing": 1,
        "no_boxes": 1,
        "of_dropped_image": 2,
        "outside": 1,
        "unknown_image": 1,
        "unsafe_path": 1,
    }
    assert corpus.mended == {"clipped": 2}
    assert corpus.example(0).path == tmp_path / "train2017/a.jpg"
    assert corpus.example(0).size == (96, 160)
    assert corpus.key(0) == "coco/train2017/a.jpg"


def test_objects365_patch_folders_and_images_that_were_never_shipped(tmp_path):
    images = [
        ("images/v1/patch8/objects365_v1_00420917.jpg", "train/patch8/objects365_v1_00420917.jpg"),
        ("images/v2/patch16/objects365_v2_00908726.jpg", ""),
        (
            "images/v2/patch16/objects365_v2_00908727.jpg",
            "train/patch16/objects365_v2_00908727.jpg",
        ),
    ]
    first, _, last = coco_like(
        tmp_path, "zhiyuan_objv2_train.json", images, [fault(100, [-3, 2, 20, 20], isfake=1)]
    )
    corpus = read_objects365(DataRoot(tmp_path))
    same(corpus, [np.concatenate([first, [[0, 2, 17, 22]]]).astype(np.float32), last])
    assert corpus.dropped == {"known_bad": 1, "of_dropped_image": 2}
    assert corpus.mended == {"clipped": 1}


def test_v3det_known_bad_images_are_left_out(tmp_path):
    bad = "images/n12026476/29_186_15091304754_5c219872f7_c.jpg"
    images = [("images/a00000066/1_2_c.jpg", "images/a00000066/1_2_c.jpg"), (bad, bad)]
    wanted = coco_like(tmp_path, "annotations/v3det_2023_v1_train.json", images)
    corpus = read_v3det(DataRoot(tmp_path))
    same(corpus, wanted[:1])
    assert corpus.dropped == {"known_bad": 1, "of_dropped_image": 2}


def test_images_of_another_size_are_mended_or_refused(tmp_path):
    images = [(f"images/c/{k}.jpg", f"images/c/{k}.jpg") for k in range(5)]
    boxes = coco_like(tmp_path, "v3det_2023_v1_train.json", images)
    files = [tmp_path / place for _, place in images]
    Image.open(files[0]).resize((80, 48)).save(files[0])
    Image.open(files[1]).resize((80, 90)).save(files[1])
    rotated = Image.open(files[2]).transpose(Image.Transpose.ROTATE_90)
    exif = rotated.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    rotated.save(files[2], exif=exif, quality=95)
    files[3].write_bytes(files[3].read_bytes()[:900])
    corpus = read_v3det(DataRoot(tmp_path))
    files[4].unlink()
    image, halved = corpus.load(0)
    assert image.size == (80, 48)
    np.testing.assert_allclose(ordered(halved), ordered(boxes[0]) / 2, atol=1e-3)
    image, upright = corpus.load(2)
    assert image.size == (160, 96)
    np.testing.assert_allclose(ordered(upright), ordered(boxes[2]))
    for index, reason in (
        (1, Reason.FRAME_MISMATCH),
        (3, Reason.MEDIA_UNREADABLE),
        (4, Reason.MEDIA_MISSING),
    ):
        with pytest.raises(Quarantined) as error:
            corpus.load(index)
        assert error.value.reason == reason


def test_openimages_columns_groups_and_pixels_from_the_file(tmp_path):
    name, other = "000002b66c9c498e", "000062a39995e348"
    faults = [
        [name, "xclick", "/m/02", 1, 0.1, 0.9, 0.1, 0.9, 0, 0, 1, 0, 0],
        [name, "xclick", "/m/02", 1, 0.5, 0.5, 0.1, 0.9, 0, 0, 0, 0, 0],
        [name, "xclick", "/m/02", 1, 0.2, 0.6, 0.1, 0.9, 0, 0, 0, 1, 0],
        [name, "xclick", "/m/03", 1, 0.2, 0.6, 0.1, 0.9001, 0, 0, 0, 0, 0],
        [name, "xclick", "/m/02"],
        [name, "xclick", "/m/02", 1, "?", 0.5, 0.1, 0.9, 0, 0, 0, 0, 0],
        ["../secret", "xclick", "/m/02", 1, 0.1, 0.9, 0.1, 0.9, 0, 0, 0, 0, 0],
        ["ffff62a39995e348", "xclick", "/m/02", 1, 0.1, 0.9, 0.1, 0.9, 0, 0, 0, 0, 0],
    ]
    wanted = openimages(tmp_path, [name, other], faults)
    drawing = np.float32([[0.2 * 160, 0.1 * 64, 0.6 * 160, 0.9 * 64]])
    corpus = read_openimages(DataRoot(tmp_path))
    same(corpus, [np.concatenate([wanted[0], drawing]), wanted[1]])
    assert corpus.example(1).size == (80, 160)
    assert corpus.dropped == {
        "degenerate": 1,
        "duplicate": 1,
        "group_of": 1,
        "malformed": 2,
        "media_missing": 1,
        "of_dropped_image": 2,
        "unsafe_path": 1,
    }


def test_a_link_out_of_the_root_is_not_followed(tmp_path):
    coco_like(tmp_path / "data", COCO, TWO)
    (tmp_path / "data/train2017/a.jpg").rename(tmp_path / "private.jpg")
    (tmp_path / "data/train2017/a.jpg").symlink_to(tmp_path / "private.jpg")
    corpus = read_coco(DataRoot(tmp_path / "data"))
    assert len(corpus) == 1
    assert corpus.dropped["unsafe_path"] == 1


@pytest.mark.parametrize("name", READERS)
def test_missing_annotations_say_what_is_expected(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: no annotations under .* expected one of"):
        READERS[name](DataRoot(tmp_path), "train")


def test_a_kept_table_spares_reading_the_annotations(tmp_path, monkeypatch):
    root, tables = DataRoot(tmp_path), tmp_path / "tables"
    wanted = coco_like(tmp_path, COCO, TWO, [fault(100, [0, 0, 5, 5], iscrowd=1)])
    same(read("coco", root, keep=tables), wanted)
    with monkeypatch.context() as without:
        without.setitem(READERS, "coco", None)
        corpus = read("coco", root, keep=tables)
    same(corpus, wanted)
    assert isinstance(corpus.boxes_m4, np.memmap)
    assert corpus.dropped == {"crowd": 1}


def test_a_table_of_other_annotations_or_half_a_table_is_not_opened(tmp_path):
    root, tables = DataRoot(tmp_path), tmp_path / "tables"
    table = tables / "coco-train"
    coco_like(tmp_path, COCO, TWO)
    read("coco", root, keep=tables)
    wanted = coco_like(tmp_path, COCO, TWO[:1])
    with pytest.raises(ValueError, match="has changed since"):
        Corpus.open(table, root)
    same(read("coco", root, keep=tables), wanted)
    same(Corpus.open(table, root), wanted)
    (table / "corpus.json").unlink()
    with pytest.raises(ValueError, match="not a saved corpus"):
        Corpus.open(table, root)
    with pytest.raises(ValueError, match="no reader for 'lvis'"):
        read("lvis", root)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_json_rows_are_those_of_json_whatever_the_chunk(tmp_path, chunk):
    whole = {
        "a": [1, 23, 4.5],
        "skip": [[{"x": "]}"}]],
        "rows": [{"k": 'é"\\'}, [], None, -1e-3],
        "empty": [],
    }
    path = tmp_path / "x.json"
    path.write_text(json.dumps(whole, indent=1))
    found = list(json_rows(path, ("a", "rows", "empty"), chunk))
    assert found == [*(("a", v) for v in whole["a"]), *(("rows", v) for v in whole["rows"])]


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"rows": [1, 2', '{"rows": 3}', '{"rows": [1 2]}', '{"rows": [{]}']
)
def test_what_is_not_rows_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: not a JSON object of rows"):
        list(json_rows(tmp_path / "x.json", ("rows",)))


def test_reading_holds_one_row_at_a_time(tmp_path):
    row = json.dumps(fault(1, [1, 2, 3, 4], segmentation=[list(range(100))]))
    with (tmp_path / "x.json").open("w") as file:
        file.write('{"annotations": [' + ",".join([row] * 10_000) + "]}")
    size = (tmp_path / "x.json").stat().st_size
    tracemalloc.start()
    assert sum(1 for _ in json_rows(tmp_path / "x.json", ("annotations",), 1 << 16)) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 8


def test_objects365_with_all_images_in_one_folder(tmp_path):
    names = [f"images/v1/patch{k}/objects365_v1_0042091{k}.jpg" for k in range(2)]
    images = [(name, f"train/{name.rsplit('/', 1)[-1]}") for name in names]
    wanted = coco_like(tmp_path, "zhiyuan_objv2_train.json", images)
    same(read_objects365(DataRoot(tmp_path)), wanted)


@pytest.mark.parametrize("name", READERS)
def test_no_image_at_all_says_where_the_first_was_looked_for(tmp_path, name):
    other = tmp_path / "pictures"
    if name == "openimages":
        openimages(tmp_path, ["000002b66c9c498e"], [])
        (tmp_path / "train").rename(other)
    else:
        file = {
            "coco": COCO,
            "objects365": "zhiyuan_objv2_train.json",
            "v3det": "v3det_2023_v1_train.json",
        }[name]
        coco_like(tmp_path, file, [("x/patch1/a.jpg", "pictures/a.jpg")])
    message = rf"{name}: none of 1 annotated images .* looked for at .*\.jpg.* holds .*pictures/"
    with pytest.raises(ValueError, match=message):
        READERS[name](DataRoot(tmp_path), "train")


def test_byte_order_marks_of_annotations_are_no_part_of_them(tmp_path):
    wanted = openimages(tmp_path / "o", ["000002b66c9c498e"], [])
    table = tmp_path / "o" / "oidv6-train-annotations-bbox.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    same(read_openimages(DataRoot(tmp_path / "o")), wanted)
    wanted = coco_like(tmp_path / "c", COCO, TWO)
    file = tmp_path / "c" / COCO
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    same(read_coco(DataRoot(tmp_path / "c")), wanted)


def test_a_png_of_16_bits_is_scaled_and_not_clipped(tmp_path):
    coco_like(tmp_path, COCO, [("a.png", "train2017/a.png")])
    path = tmp_path / "train2017" / "a.png"
    ramp = np.tile(np.linspace(0, 65535, 160).astype(np.uint16), (96, 1))
    Image.fromarray(ramp).save(path)
    picture, _ = read_coco(DataRoot(tmp_path)).load(0)
    grey = np.asarray(picture)[..., 0].astype(int)
    assert np.abs(grey[0] - np.linspace(0, 255, 160)).max() <= 1


def test_too_many_missing_images_stop_and_a_repaired_folder_goes_on(tmp_path):
    root, tables = DataRoot(tmp_path), tmp_path / "tables"
    names = [(f"{k}.jpg", f"train2017/{k}.jpg") for k in range(3)]
    wanted = coco_like(tmp_path, COCO, names)
    lost = (tmp_path / "train2017/2.jpg").read_bytes()
    (tmp_path / "train2017/2.jpg").unlink()
    message = (
        r"coco: 2 of 3 images \(dropped: 1 media_missing\).*\n33\.3% of the images are missing"
    )
    for _ in range(2):  # no table of the first attempt hides the second one
        with pytest.raises(ValueError, match=message):
            read("coco", root, keep=tables, max_missing=0.05)
    assert len(read("coco", root, keep=tables, max_missing=0.5)) == 2
    (tmp_path / "train2017/2.jpg").write_bytes(lost)
    same(read("coco", root, keep=tables, max_missing=0.05), wanted)
