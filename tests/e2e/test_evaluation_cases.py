"""The rows E of ../shared/cases/README.md: a fault of the truth costs its own query, and is not the model's zero."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.evaluation import Request, run
from tests.conftest import ABSENT, SHARED
from tests.schemas.video.made import encode, numbered

TREES = SHARED / "cases" / "trees"

pytestmark = pytest.mark.skipif(not TREES.is_dir(), reason=ABSENT)


def evaluated(benchmark: str, root: Path, out: Path) -> dict[str, Any]:
    """The results of a tiny model with random weights."""
    request = Request(
        benchmark=benchmark,
        data_root=str(root),
        out=str(out),
        host="glus",
        size="tiny",
        asking={"answer": "force"},
    )
    return run(request)


def test_e01_an_expression_without_target_is_scored(tmp_path):
    """The tiny model answers with a mask, which is wrong for it: 0, and both accuracies are given."""
    results = evaluated("mevis", TREES / "mevis_no_target", tmp_path)
    assert (results["queries"], results["failed"], results["unscored"]) == (3, 0, 0)
    assert (results["summary"]["N-acc"], results["summary"]["T-acc"]) == (0.0, 1.0)
    assert results["summary"]["J&F"] > 0


def test_e02_an_expression_without_text_is_named_and_the_others_are_asked(tmp_path):
    results = evaluated("mevis", TREES / "mevis_no_exp", tmp_path)
    assert (results["failed"], results["unscored"]) == (0, 1)
    [fault] = results["annotation_faults"]
    assert "valid_u/meta_expressions.json: " in fault["unscored"]
    assert "has no `exp`" in fault["unscored"]
    assert results["summary"]["J&F"] > 0


def test_e03_a_turned_video_is_not_squashed(tmp_path):
    results = evaluated("vidstg", TREES / "vidstg_turned", tmp_path)
    assert results["failed"] == results["queries"] == 2
    assert all("has frames of 160x128" in failure["error"] for failure in results["failures"])


def test_a_video_of_another_length_than_annotated_is_not_scored_as_if_it_were_whole(tmp_path):
    root = tmp_path / "root"
    shutil.copytree(TREES / "vidstg_vidor_folder", root)
    [video] = root.rglob("*.mp4")
    video.chmod(0o644)
    video.parent.chmod(0o755)
    encode(video, frames=numbered(60, 128, 160))
    results = evaluated("vidstg", root, tmp_path / "out")
    assert results["failed"] == results["queries"]
    assert all(
        "60 pictures decode, the annotation counts" in f["error"] for f in results["failures"]
    )


def test_e04_boxes_in_the_folder_of_the_official_archive_are_read(tmp_path):
    results = evaluated("vidstg", TREES / "vidstg_vidor_folder", tmp_path)
    assert (results["failed"], results["unscored"]) == (0, 0)
    assert results["summary"]


def test_without_truth_nothing_is_asked(tmp_path):
    root = tmp_path / "root"
    shutil.copytree(TREES / "vidstg_vidor_folder", root)
    (root / "annotation").rename(root / "elsewhere")
    with pytest.raises(
        ValueError, match=r"no truth under .* Looked for vidor_annotations/validation"
    ) as said:
        evaluated("vidstg", root, tmp_path / "out")
    assert "elsewhere" in str(said.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tree", ["davis_bom", "davis_appledouble"])
def test_e05_e06_marks_and_files_of_other_systems_are_ignored(tree, tmp_path):
    results = evaluated("ref-davis17", TREES / tree, tmp_path)
    assert (results["failed"], results["unscored"]) == (0, 0)
    assert results["summary"]["J&F"] > 0


def test_e07_a_missing_mask_is_named_and_costs_its_own_video(tmp_path):
    results = evaluated("ref-davis17", TREES / "davis_truth_gap", tmp_path)
    assert (results["queries"], results["failed"], results["unscored"]) == (12, 0, 8)
    faults = {fault["video"]: fault["unscored"] for fault in results["annotation_faults"]}
    assert all(".png" in reason for reason in faults.values())


def test_s01_the_file_of_the_second_version_is_read(tmp_path):
    results = evaluated("mevis", TREES / "mevis_v2_file", tmp_path)
    assert results["scoring"] == {"version": "2", "expressions": "3"}
    assert results["failed"] == results["unscored"] == 0


SPOILT = [
    {"exp": 5, "obj_id": [1], "anno_id": [1]},
    {"exp": "a dog", "obj_id": [1], "anno_id": None},
    {"exp": "a dog", "obj_id": [1], "anno_id": "0"},
    {"exp": "a dog", "obj_id": [1], "anno_id": [1.5]},
    {"exp": "a dog", "obj_id": [1], "anno_id": [[0]]},
    ["a", "dog"],
    None,
]


@pytest.mark.parametrize("entry", SPOILT, ids=str)
def test_an_expression_of_any_shape_costs_itself_only(entry, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(TREES / "mevis_no_target", root)
    [file] = root.rglob("meta_expressions.json")
    for path in (file, file.parent):
        path.chmod(0o755)
    tree = json.loads(file.read_text())
    [video] = tree["videos"].values()
    video["expressions"]["99"] = entry
    file.write_text(json.dumps(tree))
    results = evaluated("mevis", root, tmp_path / "out")
    assert (results["queries"], results["unscored"], results["failed"]) == (4, 1, 0)
    assert "/99 has no `" in results["annotation_faults"][0]["unscored"]
