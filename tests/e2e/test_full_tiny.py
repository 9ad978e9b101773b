"""The `full` preset's classes, small and with name-seeded weights, through the whole product: flow, Ray, shards.

The networks know nothing, so the detector's boxes are nonsense, and the sources that are tracked from them end in
quarantine because they disagree with the annotation: as a dataset whose detector fails would.
"""

import json
from collections import Counter

import pytest

from manifests.catalog import query
from manifests.verify import verify
from tests.e2e.conftest import Run, shard_hashes

DETECTED = {"hcstvg", "vid_sentence", "lasot"}
"""Sources whose tracks start from the text; A2D starts from the annotated box, the others have tracks of their own."""
SOURCES = DETECTED | {"a2d", "mevis", "refsav"}


@pytest.fixture(scope="module")
def shards(demo, tmp_path_factory):
    """`sparrow shards --preset full-tiny` over the demo's corpus without GOT-10k, and its log. Nobody serves Prefect, so
    it brings a server of its own."""
    folder = tmp_path_factory.mktemp("full-tiny")
    (folder / "data").mkdir()
    for source in SOURCES:
        (folder / "data" / source).symlink_to(demo / "corpus" / source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(folder / "prefect"))
        run = Run(
            "sparrow",
            "shards",
            "--data-root",
            folder / "data",
            "--out",
            folder / "out",
            "--preset",
            "full-tiny",
            "--workers",
            1,
            log=folder / "log.txt",
        )
        assert run.wait() == 0, run.text()[-4000:]
    assert run.gone() == []
    return folder / "out", run.text()


@pytest.fixture(scope="module")
def out(shards):
    return shards[0]


def test_the_log_has_nothing_to_worry_about(shards):
    _, log = shards
    for worrying in ("Traceback", "ERROR   |", "leaked", "Error logging to API"):
        assert worrying not in log


def test_everything_is_whole_and_nothing_crashed(out, demo):
    report = verify(out, deep=True)
    assert report.problems == []
    planted = json.loads((demo / "corpus" / "corpus.json").read_text())["faults"]
    expected = {f["quarantine"] for f in planted if f["quarantine"]} | {
        "disagrees",
        "low_quality",
        "no_detection",
    }
    found = query(out, "SELECT DISTINCT reason FROM quarantine")
    assert {row["reason"] for row in found} <= expected
    every = """SELECT source, count(*) AS n FROM (SELECT source FROM referents UNION ALL SELECT source FROM quarantine)
               GROUP BY ALL"""
    mine, demos = (
        {row["source"]: row["n"] for row in query(place, every)} for place in (out, demo)
    )
    assert mine.keys() == SOURCES
    assert all(
        mine[s] == demos[s] for s in SOURCES - {"lasot"}
    )  # the demo cuts LaSOT into shorter segments


def test_nonsense_of_the_detector_is_disagreement_with_its_numbers(out):
    rows = query(out, "SELECT source, stage, message FROM quarantine WHERE reason = 'disagrees'")
    assert {row["source"] for row in rows} >= DETECTED
    assert all(row["stage"] == "agree" and "no frame is left: " in row["message"] for row in rows)


def test_sources_with_tracks_of_their_own_become_samples(out, demo):
    by_source = "SELECT source, count(*) AS n FROM referents WHERE source IN ('mevis', 'refsav') GROUP BY ALL"
    assert query(out, by_source + " ORDER BY source") == query(demo, by_source + " ORDER BY source")


def test_every_row_says_which_models_made_it(out):
    rows = query(out, "SELECT DISTINCT preset, tracker, segmenter, encoder FROM referents")
    assert rows == [
        {
            "preset": "full-tiny",
            "tracker": "cldtracker",
            "segmenter": "sam2",
            "encoder": "clip-tiny",
        }
    ]
    detectors = Counter()
    for row in query(out, "SELECT source, detector, text_used FROM referents"):
        detectors[row["source"] in DETECTED, row["detector"].split("-")[0], row["text_used"]] += 1
    assert set(detectors) <= {(True, "groundingdino", True), (False, "annotation", False)}
    masks = query(out, "SELECT DISTINCT origin FROM masks")
    assert {row["origin"] for row in masks} <= {"annotation", "sam2"}
    versions = query(out, "SELECT DISTINCT weights_hash FROM clips")
    assert len(versions) == 1


def test_results_do_not_depend_on_how_many_clips_share_the_models(run, demo, tmp_path):
    """Alone in this process, or two at once in an actor: the same bytes."""
    command = [
        "sparrow",
        "curate",
        "got10k",
        "--data-root",
        demo / "corpus" / "got10k",
        "--preset",
        "full-tiny",
        "--limit",
        2,
        "--set",
        "segment.masks=keyframes:2",
        "--source-set",
        "rules.boxes=tracked",
        "--source-set",
        "rules.start=annotation",
        "--source-set",
        "rules.min_iou=null",
    ]
    alone = run(*command, "--out", tmp_path / "alone", "--executor", "inline")
    together = run(
        *command, "--out", tmp_path / "together", "--workers", 1, "--in-flight", 2
    )  # side by side
    assert alone.wait() == 0, alone.text()[-3000:]
    assert together.wait() == 0, together.text()[-3000:]
    assert shard_hashes(tmp_path / "alone") == shard_hashes(tmp_path / "together")
    assert (
        query(tmp_path / "alone", "SELECT count(*) AS n FROM tracks WHERE origin = 'tracked'")[0][
            "n"
        ]
        > 20
    )


def test_the_annotated_box_with_the_other_full_models_is_a_supported_mode(run, demo, tmp_path):
    words = [
        "--preset",
        "full-tiny",
        "--set",
        "detect=annotation",
        "--source-set",
        "rules.min_iou=null",
        "--limit",
        1,
    ]
    one = run(
        "sparrow",
        "curate",
        "hcstvg",
        "--data-root",
        demo / "corpus" / "hcstvg",
        "--out",
        tmp_path / "out",
        "--split",
        "val",
        "--executor",
        "inline",
        *words,
    )
    assert one.wait() == 0, one.text()[-3000:]
    rows = query(tmp_path / "out", "SELECT DISTINCT detector, text_used, tracker FROM referents")
    assert rows == [{"detector": "annotation", "text_used": False, "tracker": "cldtracker"}]


def test_missing_weights_are_one_error_before_any_work(run, demo, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARROW_WEIGHTS", str(tmp_path / "weights"))
    one = run(
        "sparrow",
        "curate",
        "hcstvg",
        "--data-root",
        demo / "corpus" / "hcstvg",
        "--out",
        tmp_path / "out",
        "--preset",
        "full",
    )
    assert one.wait() == 1
    text = one.text()
    for file in (
        "groundingdino_swint_ogc.pth",
        "cldtracker.safetensors",
        "sam2.1_hiera_large.pt",
        "clip-vit-large-patch14-336.safetensors",
    ):
        assert file in text
    assert "docs/weights.md explains" in text
    assert "Traceback" not in text
    assert not (tmp_path / "out" / "manifests").exists()
