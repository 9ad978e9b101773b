"""`sparrow train proposer --recall`: from a trained proposer to a line of Table 12."""

import json

import pytest
from typer.testing import CliRunner

from flows import train as training
from flows.cli import app
from model.checkpoints import CheckpointError
from tests.model.data.made import make_output

CHANGES = {"proposer.queries": 32}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(data, run) of a proposer after two steps on curated shards."""
    place = tmp_path_factory.mktemp("recall")
    make_output(place / "data", {"a": (4, 4)})
    request = training.Request(
        what="proposer",
        data=str(place / "data"),
        out=str(place / "run"),
        size="tiny",
        workers=0,
        changes=CHANGES,
        train={"steps": 2, "batch": 2},
    )
    assert training.run(request, lambda text: None) == 0
    return place / "data", place / "run"


def sparrow(*words):
    run = CliRunner().invoke(app, [*map(str, words)])
    if run.exception is not None and not isinstance(run.exception, SystemExit):
        raise run.exception
    return run.output


def recall(data, out, *more):
    words = ["--data", data, "--out", out, "--size", "tiny", "--workers", 0]
    return sparrow("train", "proposer", *words, "--recall", *more)


def test_recall_is_measured_and_joins_table_12(trained):
    data, run = trained
    text = recall(data, run)
    assert "proposer deformable: recall at IoU 0.5" in text
    assert "(paper: 93.0)" in text
    assert "the numbers mean nothing" in text
    found = json.loads((run / "recall.json").read_text())
    assert found["kind"] == "deformable"
    assert (found["top"], found["proposals"]) == (300, 32)
    assert found["images"] > 0
    assert found["boxes"] >= found["images"]
    assert 0 <= found["recall"]["0.75"] <= found["recall"]["0.5"] <= 1
    tables = sparrow("eval", "table", run, "--format", "markdown")
    (line,) = [line for line in tables.splitlines() if "| run: protocol recall (top 300" in line]
    assert line.startswith("| proposer.kind = deformable |")
    assert f"{found['boxes']} boxes on {found['images']} images" in line
    half, strict = (100 * found["recall"][iou] for iou in ("0.5", "0.75"))
    assert line.endswith(f"| 32 | {half:.1f} | {strict:.1f} |")


def test_an_export_elsewhere_can_be_measured(trained, tmp_path):
    data, run = trained
    recall(data, tmp_path, "--from", run / "export")
    assert (tmp_path / "recall.json").is_file()


def test_what_cannot_be_measured_is_refused(trained, tmp_path):
    data, run = trained
    with pytest.raises(CheckpointError, match="not an export of a training"):
        recall(data, tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"proposer\.kind"):
        recall(data, run, "--set", "proposer.kind=mlp")
    with pytest.raises(ValueError, match="--recall measures the proposer, not stage1"):
        sparrow("train", "stage1", "--data", data, "--out", run, "--recall")
