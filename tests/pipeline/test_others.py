"""Other targets of a video: found in all its clips, placed by source frame, and never the target itself."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline import plan
from pipeline.others import MOST_OTHERS, OtherTargets, boxes_on, others_of, place_others
from pipeline.plan import build_plan, plan_identity, plan_items, read_plan
from schemas.geometry import absent
from schemas.records import Annotation, Clip, Media, Planned, Referent
from tests.pipeline.two_targets import ONE, SPANS, TWO, boxes_of, make_job, make_root

SWITCH = ("corrupt.kind=id_switch", "corrupt.level=0.2")


def clip(name: str, start: int, stop: int, step: int = 1, video: str = "v") -> Clip:
    return Clip(name, "mevis", "train", video, Media("video", "v.mp4"), start, stop, step)


def referent(name: str, *objects: str, of: str = "c") -> Referent:
    return Referent(name, of, "a caption", objects, raw_caption="A caption", pointer={"at": 1})


def planned(made: Clip, *referents: Referent) -> Planned:
    return Planned(made, referents)


def ids(item: Planned) -> list[str]:
    return sorted(other.referent_id for _, other in item.others)


# --- planning --------------------------------------------------------------------------------------------------------


def test_targets_of_the_same_video_in_shared_frames_are_others():
    items = [
        planned(clip("a", 0, 10), referent("a-1", "1"), referent("a-1-again", "1")),
        planned(clip("b", 5, 20), referent("b-2", "2")),
        planned(clip("c", 10, 20), referent("c-3", "3")),  # shares no frame with a
        planned(clip("d", 0, 10, video="another"), referent("d-4", "4")),
    ]
    attach = OtherTargets(items, seed=0).attach
    assert [ids(attach(item)) for item in items] == [
        ["b-2"],
        ["a-1", "c-3"],  # a target is there once, whatever is said about it
        ["b-2"],
        [],
    ]


def test_who_has_an_object_in_common_is_no_other():
    item = planned(
        clip("a", 0, 10), referent("one", "1"), referent("two", "2"), referent("both", "1", "2")
    )
    attached = OtherTargets([item], seed=0).attach(item)
    assert ids(attached) == ["one", "two"]
    alone = planned(clip("a", 0, 10), referent("one", "1"), referent("both", "1", "2"))
    assert OtherTargets([alone], seed=0).attach(alone) is alone


def test_a_target_of_unknown_objects_is_not_its_own_other():
    item = planned(clip("a", 0, 10), referent("one"))
    two = planned(clip("b", 0, 10), referent("two"))
    attach = OtherTargets([item, two], seed=0).attach
    assert (ids(attach(item)), ids(attach(two))) == (["two"], ["one"])


def test_of_many_others_a_seeded_sample_is_kept():
    items = [planned(clip(f"c{n}", 0, 10), referent(f"r{n}", str(n))) for n in range(60)]
    first, again, other = (OtherTargets(items, seed).attach(items[0]) for seed in (0, 0, 1))
    assert len(first.others) == MOST_OTHERS
    assert ids(first) == ids(again) != ids(other)
    backwards = OtherTargets(items[::-1], 0).attach(items[0])
    assert backwards == first


def test_a_plan_has_others_for_id_switches_only(tmp_path):
    root = make_root(tmp_path / "data")
    clean, noisy = make_job(root, tmp_path / "a"), make_job(root, tmp_path / "b", *SWITCH)
    assert not any(item.others for item in plan_items(clean))
    found = {item.referents[0].caption: item for item in plan_items(noisy)}
    for caption, start in (("The red one.", 10), ("The blue one.", 0)):
        [(other, pointer)] = found[caption].others
        assert (other.video_id, other.start) == (TWO, start)
        assert (pointer.caption, pointer.raw_caption) == ("", "")
    assert found["It is alone."].clip.video_id == ONE
    assert found["It is alone."].others == ()
    without = [replace(item, others=()) for item in plan_items(noisy)]
    assert without == list(plan_items(clean))
    build_plan(noisy)
    assert [i for shard in read_plan(noisy, "") for i in shard.items] == list(plan_items(noisy))


def test_an_other_target_need_not_be_curated_itself(tmp_path):
    root = make_root(tmp_path / "data")
    job = make_job(root, tmp_path / "out", *SWITCH)
    every = {item.clip.clip_id: item for item in plan_items(job)}
    for limit in (1, 2):
        capped = job.model_copy(update={"take": job.take.model_copy(update={"max_clips": limit})})
        for item in plan_items(capped):
            assert item == every[item.clip.clip_id]


def test_the_plans_identity_follows_the_others(tmp_path, monkeypatch):
    root = make_root(tmp_path / "data")
    same = make_job(root, tmp_path, "corrupt.kind=jitter", "corrupt.level=0.1")
    seeded = make_job(root, tmp_path, *SWITCH, "corrupt.seed=1")
    higher = make_job(root, tmp_path, "corrupt.kind=id_switch", "corrupt.level=0.5")
    clean, switch = make_job(root, tmp_path), make_job(root, tmp_path, *SWITCH)
    assert plan_identity(clean) == plan_identity(same)
    assert plan_identity(switch) == plan_identity(higher)
    assert len({plan_identity(job) for job in (clean, switch, seeded)}) == 3
    before = plan_identity(switch)
    monkeypatch.setattr(plan, "MOST_OTHERS", 3)
    assert plan_identity(switch) != before


# --- curation --------------------------------------------------------------------------------------------------------


def line(*frames: int) -> np.ndarray:
    """Boxes whose place is the number of the source frame."""
    x = np.array(frames, np.float32)
    return np.stack([x, 2 * x, x + 10, 2 * x + 10], 1)


def test_boxes_are_placed_by_source_frame():
    annotation = Annotation(line(*range(30, 50)), np.ones(20, bool))
    placed = boxes_on(clip("mine", 25, 40), clip("other", 30, 50), annotation)
    assert np.isnan(placed[:5]).all()
    np.testing.assert_array_equal(placed[5:], line(*range(30, 40)))
    assert np.isnan(boxes_on(clip("mine", 0, 30), clip("other", 30, 50), annotation)).all()


def test_between_annotated_frames_boxes_are_interpolated_and_never_beyond():
    boxes, known = absent(20), np.zeros(20, bool)
    for t in (4, 12):
        boxes[t], known[t] = line(t)[0], True
    placed = boxes_on(clip("mine", 0, 20), clip("other", 0, 20), Annotation(boxes, known))
    np.testing.assert_allclose(placed[4:13], line(*range(4, 13)), atol=1e-4)
    assert np.isnan(placed[:4]).all()
    assert np.isnan(placed[13:]).all()


def test_where_the_target_is_known_to_be_absent_nothing_is_interpolated():
    boxes, known = absent(20), np.zeros(20, bool)
    known[[4, 8, 12, 16]] = True
    for t in (4, 12, 16):
        boxes[t] = line(t)[0]
    placed = boxes_on(clip("mine", 0, 20), clip("other", 0, 20), Annotation(boxes, known))
    assert np.isfinite(placed[:, 0]).tolist() == [t == 4 or 12 <= t <= 16 for t in range(20)]


def test_clips_of_another_step_meet_in_source_frames():
    annotation = Annotation(line(*range(1, 41, 4)), np.ones(10, bool))
    placed = boxes_on(clip("mine", 0, 20), clip("other", 1, 41, 4), annotation)
    np.testing.assert_allclose(placed[1:], line(*range(1, 20)), atol=1e-4)
    assert np.isnan(placed[0]).all()


def test_placed_boxes_are_in_the_pixels_of_the_frames():
    mine, other = clip("mine", 0, 4), referent("o", "2")
    item = Planned(mine, (referent("r", "1"),), ((mine, other),))
    scale = np.array([[1, 1], [2, 3], [1, 1], [40, 1]], np.float32)
    annotation = Annotation(line(0, 1, 2, 3), np.ones(4, bool))
    [(who, boxes)] = place_others(item, lambda *_: annotation, scale, (100, 120))
    assert who == other
    np.testing.assert_array_equal(boxes[1], [2, 6, 22, 36])
    assert np.isnan(boxes[3]).all()  # it begins at the border


@pytest.mark.parametrize("size", [(50, 120), (100, 120)])
def test_masks_of_another_size_are_of_another_picture(size):
    mine = clip("mine", 0, 1)
    item = Planned(mine, (referent("r", "1"),), ((mine, referent("o", "2")),))
    masks = [{"size": list(size), "counts": ""}]
    annotation = Annotation(line(5), np.ones(1, bool), masks)
    placed = place_others(item, lambda *_: annotation, np.ones((1, 2), np.float32), (100, 120))
    assert len(placed) == (size == (100, 120))


def test_the_same_person_under_another_number_is_no_other():
    mine = boxes_of(0, 0)
    same, shifted, far = mine + 1, mine + 20, boxes_of(1, 0)
    placed = [
        (referent(name, name), boxes)
        for name, boxes in zip("abc", (same, shifted, far), strict=True)
    ]
    found = others_of(referent("me", "m"), mine, placed)
    assert [boxes.tobytes() for boxes in found] == [shifted.tobytes(), far.tobytes()]
    assert others_of(referent("me", "b", "c"), mine, placed) == ()


def test_who_has_no_box_in_a_kept_frame_is_no_other():
    mine, other = boxes_of(0, 0), boxes_of(1, 0)
    mine[SPANS[1][0] :] = np.nan
    assert others_of(referent("me", "m"), mine, [(referent("o", "o"), other)]) == ()
