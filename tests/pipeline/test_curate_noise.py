"""Noise in curation: TSF is made of the corrupted trajectory, everything else of the clean one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flows.jobs import make_jobs
from pipeline.corrupt import Corruption, make_trajectory
from pipeline.curate import curate_clip
from pipeline.plan import Job, plan_items
from pipeline.presets import build_stages, configure
from pipeline.select import candidates, select_representatives
from schemas.geometry import is_box
from schemas.records import Planned, Reason, Sample
from schemas.video.pictures import decode_picture
from tests.pipeline.two_targets import HEIGHT, SPANS, WIDTH, boxes_of, make_job, make_root, shows

TARGETS = {"The red one.": 0, "The blue one.": 1, "It is alone.": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_root(tmp_path_factory.mktemp("two"))


def curated(root: Path, *sets: str) -> dict[str, Sample]:
    """Caption -> sample."""
    job = make_job(root, root / "out", *sets)
    return {sample.rows["referents"][0]["caption"]: sample for sample in samples(job)}


def samples(job: Job, items: list[Planned] | None = None) -> list[Sample]:
    stages, found = build_stages(job.config), []
    for item in plan_items(job) if items is None else items:
        result = curate_clip(item, job, job.load(), stages)
        assert result.quarantine == []
        found += result.samples
    return found


def boxes(rows: list[dict]) -> np.ndarray:
    values = [[r[c] for c in ("x1", "y1", "x2", "y2")] for r in rows]
    return np.array([[np.nan if v is None else v for v in row] for row in values], np.float32)


def moved(sample: Sample) -> list[bool]:
    """Which representatives have another box than the track has in their frame."""
    track = boxes(sample.rows["tracks"])
    tsf = boxes(sample.rows["tsf"])
    frames = [row["frame"] for row in sample.rows["tsf"]]
    return (tsf != track[frames]).any(1).tolist()


def counts(sample: Sample) -> dict:
    row = sample.rows["referents"][0]
    names = ("corruption", "corruption_level", "n_corrupted", "n_corruptible", "n_switchable")
    return {name: row[name] for name in names}


SWITCH = ("corrupt.kind=id_switch", "corrupt.level=0.2")


def test_a_switched_frame_shows_the_other_target_of_the_other_clip(root):
    for caption, sample in curated(root, *SWITCH, "select.max_candidates=all").items():
        target = TARGETS[caption]
        if caption == "It is alone.":
            continue
        length, shared = SPANS[target][1] - SPANS[target][0], SPANS[0][1] - SPANS[1][0]
        wanted = counts(sample) == {
            "corruption": "id_switch",
            "corruption_level": 0.2,
            "n_corrupted": round(0.2 * length),
            "n_corruptible": length,
            "n_switchable": shared,
        }
        assert wanted, counts(sample)
        switched = moved(sample)
        assert any(switched), caption  # another colour is a cluster of its own
        for row, is_other in zip(sample.rows["tsf"], switched, strict=True):
            shown = 1 - target if is_other else target
            expected = boxes_of(shown, target)[row["frame"]]
            np.testing.assert_array_equal(boxes([row])[0], expected)
            picture = decode_picture(sample.members[f"crop{row['rank']}.jpg"])
            assert shows(picture, shown)
            assert row["source_frame"] == SPANS[target][0] + row["frame"]


def test_representatives_are_chosen_after_the_switch(root):
    """Of 16 candidates K-means takes a switched one whenever there is one: it looks like nothing else."""
    found = []
    for seed in range(6):
        noise = Corruption(kind="id_switch", level=0.05, seed=seed)
        sets = ("corrupt.kind=id_switch", "corrupt.level=0.05", f"corrupt.seed={seed}")
        for caption, sample in curated(root, *sets).items():
            target = TARGETS[caption]
            if caption == "It is alone.":
                assert not any(moved(sample))
                continue
            mine, other = boxes_of(target, target), boxes_of(1 - target, target)
            key = sample.rows["referents"][0]["referent_id"]
            noisy = make_trajectory(mine, noise, key, (HEIGHT, WIDTH), (other,)).boxes
            frames = candidates(is_box(noisy), 16)
            has_candidate = (noisy[frames] != mine[frames]).any()
            assert any(moved(sample)) == has_candidate
            found.append(any(moved(sample)))
    assert 0.4 < np.mean(found) < 1.0


def test_who_is_alone_keeps_the_track_and_is_counted(root):
    clean, noisy = curated(root)["It is alone."], curated(root, *SWITCH)["It is alone."]
    assert counts(noisy) == {
        "corruption": "id_switch",
        "corruption_level": 0.2,
        "n_corrupted": 0,
        "n_corruptible": 40,
        "n_switchable": 0,
    }
    assert noisy.rows["tsf"] == clean.rows["tsf"]
    assert noisy.members["tsf.npy"] == clean.members["tsf.npy"]


@pytest.mark.parametrize(
    "sets", [SWITCH, ("corrupt.kind=jitter", "corrupt.level=0.1")], ids=["id_switch", "jitter"]
)
def test_only_tsf_is_corrupted(root, sets):
    clean, noisy = curated(root)["The red one."], curated(root, *sets)["The red one."]
    for name in ("tracks", "masks", "qa"):
        assert repr(noisy.rows[name]) == repr(clean.rows[name])  # NaN is NaN
    tsf = {"tsf.npy", *(f"crop{rank}.jpg" for rank in range(4))}
    assert noisy.members.keys() == clean.members.keys()
    other = {name for name, data in noisy.members.items() if data != clean.members[name]}
    assert {"json", "tsf.npy"} <= other <= tsf | {"json"}
    noise = counts(noisy).keys()
    rows = [
        {k: v for k, v in s.rows["referents"][0].items() if k not in noise} for s in (clean, noisy)
    ]
    assert rows[0] == rows[1]


def test_the_json_member_says_what_the_tables_say(root):
    sample = curated(root, *SWITCH)["The red one."]
    described = json.loads(sample.members["json"])
    assert {name: described["referent"][name] for name in counts(sample)} == counts(sample)
    for entry, row in zip(described["tsf"], sample.rows["tsf"], strict=True):
        assert entry == {name: row[name] for name in entry}


def test_without_noise_representatives_have_the_boxes_of_the_track(root):
    for sample in curated(root).values():
        assert not any(moved(sample))
        n = sample.rows["referents"][0]["n_kept"]
        assert counts(sample) == {
            "corruption": "none",
            "corruption_level": None,
            "n_corrupted": 0,
            "n_corruptible": n,
            "n_switchable": None,
        }
        assert json.loads(sample.members["json"])["referent"]["corruption"] == "none"


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_after_dropout_there_are_four_distinct_frames_where_four_are_left(root, level):
    for sample in curated(root, "corrupt.kind=dropout", f"corrupt.level={level}").values():
        found = counts(sample)
        assert found["n_corrupted"] == round(level * found["n_corruptible"])
        frames = [row["frame"] for row in sample.rows["tsf"]]
        left = found["n_corruptible"] - found["n_corrupted"]
        assert len(set(frames)) == min(4, left)
        assert not any(moved(sample))
        assert sample.rows["tsf"][0]["n_candidates"] == min(16, left)


def test_jitter_moves_every_crop_by_a_share_of_its_box(root):
    for sample in curated(root, "corrupt.kind=jitter", "corrupt.level=0.1").values():
        assert counts(sample)["n_corrupted"] == counts(sample)["n_corruptible"]
        assert all(moved(sample))
        track = boxes(sample.rows["tracks"])
        for row in sample.rows["tsf"]:
            x1, y1, x2, y2 = boxes([row])[0]
            assert 0 <= x1 < x2 <= WIDTH
            assert 0 <= y1 < y2 <= HEIGHT
            difference = np.abs(boxes([row])[0] - track[row["frame"]])
            side = track[row["frame"]][2] - track[row["frame"]][0]
            assert (
                difference.max() <= 0.15 * side + 1e-3
            )  # the centre by 0.1, the edge by half of 0.1
            picture = decode_picture(sample.members[f"crop{row['rank']}.jpg"])
            covered = (int(np.ceil(y2)) - int(y1), int(np.ceil(x2)) - int(x1))
            assert picture.shape[:2] == covered == (row["crop_height"], row["crop_width"])


def test_an_other_target_that_cannot_be_read_harms_nothing(root):
    job = make_job(root, root / "out", *SWITCH)
    item = next(item for item in plan_items(job) if item.others)
    clip, pointer = item.others[0]
    gone = replace(pointer, pointer={"file": "gone.js", "track": "1"})
    strange = replace(pointer, pointer={})
    [sample] = samples(job, [replace(item, others=((clip, gone), (clip, strange)))])
    assert (counts(sample)["n_corrupted"], counts(sample)["n_switchable"]) == (0, 0)
    [sample] = samples(job, [replace(item, others=((clip, gone), (clip, pointer)))])
    assert counts(sample)["n_corrupted"] == 8


def test_the_same_target_in_an_overlapping_clip_is_no_other(root):
    """As where people have another number in each clip."""
    job = make_job(root, root / "out", *SWITCH)
    item = next(item for item in plan_items(job) if item.others)
    itself = replace(item.referents[0], referent_id="another", object_ids=("another",))
    [sample] = samples(job, [replace(item, others=((item.clip, itself),))])
    assert (counts(sample)["n_corrupted"], counts(sample)["n_switchable"]) == (0, 0)


def test_noise_that_leaves_no_box_is_a_row_with_its_reason(root, monkeypatch):
    job = make_job(root, root / "out", "corrupt.kind=dropout", "corrupt.level=0.5")
    monkeypatch.setattr("pipeline.corrupt.corrupt", lambda boxes, *_: np.full_like(boxes, np.nan))
    item = next(iter(plan_items(job)))
    result = curate_clip(item, job, job.load(), build_stages(job.config))
    [row] = result.quarantine
    assert (row["reason"], row["stage"]) == (Reason.NO_TARGET, "corrupt")
    assert "dropout at level 0.5 leaves no box" in row["message"]


def test_only_kept_frames_are_corrupted(root):
    """Those that were thinned out have a box, do not count and are never chosen."""
    noise = ["media.media=none", "corrupt.kind=dropout", "corrupt.level=0.5"]
    rules = ["rules.boxes=annotation", "rules.masks=none", "rules.max_kept_frames=10"]
    config = configure("lite", noise)
    [job] = make_jobs("vid_sentence", root, root / "out", config, source_sets=rules)
    for sample in samples(job):
        kept = {row["frame"] for row in sample.rows["tracks"] if row["kept"]}
        assert len(kept) == 10
        assert (counts(sample)["n_corrupted"], counts(sample)["n_corruptible"]) == (5, 10)
        assert {row["frame"] for row in sample.rows["tsf"]} <= kept


def test_kmeans_looks_at_the_corrupted_boxes(root, monkeypatch):
    seen = []

    def spy(features, boxes_xyxy, *args, **options):
        seen.append(boxes_xyxy)
        return select_representatives(features, boxes_xyxy, *args, **options)

    monkeypatch.setattr("pipeline.curate.select_representatives", spy)
    sample = curated(root, "corrupt.kind=jitter", "corrupt.level=0.1")["The red one."]
    track = boxes(sample.rows["tracks"])
    assert not (seen[0][:, None] == track[None]).all(-1).any()
    for box in boxes(sample.rows["tsf"]):
        assert (seen[0] == box).all(1).any()
