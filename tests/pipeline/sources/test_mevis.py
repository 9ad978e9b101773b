import hashlib
import json

import numpy as np
import pytest

from pipeline.sources.base import DataRoot
from pipeline.sources.mevis import OFFICIAL_SHA256, MeViS, MeViSConfig
from schemas.geometry import rle_area
from schemas.records import KEY, Quarantined, Reason

VIDEO = "0a1b2c3d4e5f"
CAT = {"exp": "a cat", "obj_id": [1], "anno_id": [17]}
META, MASKS = "train/meta_expressions.json", "train/mask_dict.json"


def meta(
    expressions: dict | None = None, frames=("00000", "00001", "00002"), video: str = VIDEO
) -> dict:
    expressions = expressions or {
        "0": {"exp": "the two  cats Running away ", "obj_id": [1, 2], "anno_id": [17, 18]}
    }
    return {"videos": {video: {"frames": list(frames), "expressions": expressions}}}


@pytest.fixture
def masks(square) -> dict:
    first = [square(20, 30, 2, 3, 6, 8), None, None]
    second = [square(20, 30, 10, 10, 15, 12), square(20, 30, 1, 1, 3, 3), square(20, 30)]
    return {"17": first, "18": second}


def test_masks_of_several_objects_are_united_and_boxes_go_around_them(
    make_root, annotate_one, masks
):
    annotation = annotate_one(MeViS(), make_root({META: meta(), MASKS: masks}), "train")
    assert annotation.boxes[0].tolist() == [2, 3, 15, 12]
    assert rle_area(annotation.masks[0]) == 4 * 5 + 5 * 2
    assert annotation.boxes[1].tolist() == [1, 1, 3, 3]


def test_null_and_empty_masks_are_absent_and_known(make_root, annotate_one, masks):
    annotation = annotate_one(MeViS(), make_root({META: meta(), MASKS: masks}), "train")
    assert annotation.known.all()
    assert annotation.visible.tolist() == [True, True, False]
    assert annotation.masks[2] is None


def test_null_masks_may_be_read_as_missing_so_that_gaps_are_tracked(make_root, annotate_one, masks):
    source = MeViS(MeViSConfig(nulls="missing"))
    annotation = annotate_one(source, make_root({META: meta(), MASKS: masks}), "train")
    assert annotation.known.tolist() == [True, True, False]


def test_one_clip_per_video_with_all_its_expressions(make_root, split_plan, masks):
    expressions = {str(i): {"exp": f"cat {i}", "obj_id": [1], "anno_id": [17]} for i in range(3)}
    root = make_root({META: meta(expressions), MASKS: masks})
    [item], _ = split_plan(MeViS(), root, "train")
    assert [r.caption for r in item.referents] == ["cat 0", "cat 1", "cat 2"]
    assert len({r.referent_id for r in item.referents}) == 3
    assert all(KEY.fullmatch(r.referent_id) for r in item.referents)
    assert item.referents[0].object_ids == ("1",)


def test_white_space_of_expressions_is_normalised_and_case_is_not(make_root, split_plan, masks):
    [item], _ = split_plan(MeViS(), make_root({META: meta(), MASKS: masks}), "train")
    assert item.referents[0].caption == "the two cats Running away"
    assert item.referents[0].raw_caption == "the two  cats Running away "
    assert item.referents[0].object_ids == ("1", "2")


def test_frames_are_sorted_names_whose_numbers_may_have_gaps(make_root, split_plan, masks):
    root = make_root({META: meta(frames=("00010", "00000", "00005")), MASKS: masks})
    [item], _ = split_plan(MeViS(), root, "train")
    images = [item.clip.media.image(i) for i in item.clip.source_frames]
    assert images == [
        f"train/JPEGImages/{VIDEO}/{name}.jpg" for name in ("00000", "00005", "00010")
    ]


def test_videos_with_fewer_than_two_frames_are_rejected(make_root, split_plan, masks):
    planned, [rejected] = split_plan(
        MeViS(), make_root({META: meta(frames=("00000",)), MASKS: masks}), "train"
    )
    assert not planned
    assert (rejected.item, rejected.reason) == (VIDEO, Reason.MALFORMED_ROW)


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"exp": " ", "anno_id": [17]},
        {"exp": "a"},
        {"exp": "a", "anno_id": [], "obj_id": [1]},
        "a",
        3,
    ],
)
def test_a_malformed_expression_spoils_itself_only(make_root, split_plan, masks, row):
    good = {"exp": "a cat", "obj_id": [1], "anno_id": [17]}
    [item], [rejected] = split_plan(
        MeViS(), make_root({META: meta({"0": row, "1": good}), MASKS: masks}), "train"
    )
    assert len(item.referents) == 1
    assert (rejected.item, rejected.reason) == (f"{VIDEO}/0", Reason.MALFORMED_ROW)


@pytest.mark.parametrize("without", ["file", "mask"])
def test_missing_masks_are_planned_and_quarantined_at_run_time(
    make_root, split_plan, masks, without: str
):
    root = make_root({META: meta(), **({} if without == "file" else {MASKS: {"17": masks["17"]}})})
    [item], rejected = split_plan(MeViS(), root, "train")
    assert not rejected
    with pytest.raises(Quarantined) as caught:
        MeViS().annotate(root, item.clip, item.referents[0])
    assert caught.value.reason is Reason.ANNOTATION_MISSING


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m, s: m["17"].pop(), Reason.FRAME_MISMATCH),
        (lambda m, s: m.update({"17": {}}), Reason.FRAME_MISMATCH),
        (lambda m, s: m["17"].__setitem__(0, s(10, 10, 0, 0, 1, 1)), Reason.ANNOTATION_INVALID),
        (
            lambda m, s: m["17"].__setitem__(0, {"size": [10**6, 10**6], "counts": "0"}),
            Reason.ANNOTATION_INVALID,
        ),
        (
            lambda m, s: m["17"].__setitem__(0, {"size": [20, 30], "counts": "zz"}),
            Reason.ANNOTATION_INVALID,
        ),
        (lambda m, s: m.update({"17": [None] * 3, "18": [None] * 3}), Reason.NO_TARGET),
    ],
)
def test_broken_masks_are_quarantined_for_a_stated_reason(
    make_root, annotate_one, masks, square, change, reason
):
    change(masks, square)
    with pytest.raises(Quarantined) as caught:
        annotate_one(MeViS(), make_root({META: meta(), MASKS: masks}), "train")
    assert caught.value.reason is reason


def test_a_truncated_mask_dict_is_an_error_that_names_the_byte(make_root, masks):
    root = make_root({META: meta(), MASKS: json.dumps(masks)[:-20]})
    with pytest.raises(Quarantined, match=r"mask_dict\.json: not a JSON object: .* at byte \d+"):
        list(MeViS().plan(root, "train"))


def test_valid_is_not_curated_and_valid_u_is(make_root, masks):
    files = {
        META: meta(),
        MASKS: masks,
        "valid_u/meta_expressions.json": meta(),
        "valid/meta_expressions.json": meta(),
    }
    root = make_root({f"mevis/{path}": content for path, content in files.items()})
    assert MeViS().available(root) == ["train", "valid_u"]
    assert MeViS().annotation_files(root, "train") == [f"mevis/{META}", f"mevis/{MASKS}"]


@pytest.mark.parametrize("top", ["", "mevis/", "MeViS/"])
def test_a_root_one_folder_too_high_works(make_root, annotate_one, masks, top: str):
    root = make_root({top + META: meta(), top + MASKS: masks})
    assert annotate_one(MeViS(), root, "train").visible.sum() == 2


def test_pointers_are_byte_ranges_and_annotate_reads_only_them(
    make_root, split_plan, masks, monkeypatch
):
    masks["19"] = [{"size": [20, 30], "counts": "x" * 100_000}] * 3
    root = make_root({META: meta(), MASKS: masks})
    [item], _ = split_plan(MeViS(), root, "train")
    read, sizes = DataRoot.read_bytes, []
    monkeypatch.setattr(
        DataRoot,
        "read_bytes",
        lambda self, file, offset=0, size=-1: sizes.append(size) or read(self, file, offset, size),
    )
    annotation = MeViS().annotate(root, item.clip, item.referents[0])
    assert np.isfinite(annotation.boxes[0]).all()
    assert len(sizes) == 2
    assert 0 < max(sizes) < 1000


def test_an_expression_about_no_object_has_a_reason_of_its_own(make_root, split_plan, masks):
    rows = {"0": {"exp": "a dog", "obj_id": [], "anno_id": []}, "1": CAT}
    root = make_root({META: meta(rows), MASKS: masks})
    [item], [rejected] = split_plan(MeViS(), root, "train")
    assert [referent.caption for referent in item.referents] == ["a cat"]
    assert rejected.reason == Reason.NO_OBJECT


def test_the_second_version_is_read_before_the_first(make_root, split_plan, masks):
    second = META.replace(".json", "_v2.json")
    dog = {"exp": "a dog", "obj_id": [1], "anno_id": [17]}
    root = make_root({META: meta({"0": CAT}), second: meta({"0": dog}), MASKS: masks})
    [item], _ = split_plan(MeViS(), root, "train")
    assert [referent.caption for referent in item.referents] == ["a dog"]
    assert MeViS().annotation_files(root, "train")[0] == second


def test_masks_in_a_pickle_are_named_and_not_read(make_root, split_plan):
    root = make_root({META: meta({"0": CAT}), MASKS.replace(".json", ".pkl"): b"\x80\x04"})
    [item], _ = split_plan(MeViS(), root, "train")
    message = r"mask_dict\.json: No such file.*mask_dict\.pkl is there, which is not read"
    for ask in (
        lambda referent: MeViS().opens(root, referent),
        lambda referent: MeViS().annotate(root, item.clip, referent),
    ):
        with pytest.raises(Quarantined, match=message) as caught:
            ask(item.referents[0])
        assert caught.value.reason == Reason.ANNOTATION_MISSING


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"<!DOCTYPE html><html></html>", "a web page"), (b'{"17": [null, nu', "not a JSON object")],
)
def test_a_broken_download_of_the_masks_is_compared_with_the_official_checksum(
    make_root, monkeypatch, content, words
):
    root = make_root({META: meta({"0": CAT}), MASKS: content})
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(Quarantined, match=words) as caught:
        list(MeViS().plan(root, "train"))
    message = caught.value.message
    assert message.startswith("train/mask_dict.json: ")
    assert digest in message
    assert OFFICIAL_SHA256["train"] in message
    assert "download mask_dict.json of train again" in message
    monkeypatch.setitem(OFFICIAL_SHA256, "train", digest)
    with pytest.raises(Quarantined, match="is the official one"):
        list(MeViS().plan(root, "train"))
