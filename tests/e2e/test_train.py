"""From the demo's shards to a score: proposer, stage 1, stage 2, export, evaluation, each by its own command."""

import json

import pytest

from model.train.log import read
from tests.model.evaluate.made import MAKERS

pytestmark = pytest.mark.timeout(300, func_only=True)

TINY = (
    "--host",
    "videoglamm",
    "--size",
    "tiny",
    "--workers",
    0,
    "--frames",
    3,
    "--set",
    "train.lr=0.003",
)


def test_what_the_demo_trained_is_evaluated(demo, run, tmp_path):
    stages = {"proposer": (16, 8, ""), "stage1": (12, 2, "proposer"), "stage2": (12, 2, "stage1")}
    for stage, (steps, batch, before) in stages.items():
        start = ("--from", tmp_path / before / "export") if before else ()
        one = run(
            "sparrow",
            "train",
            stage,
            "--data",
            demo,
            "--out",
            tmp_path / stage,
            *TINY,
            "--steps",
            steps,
            "--set",
            f"train.batch={batch}",
            *start,
        )
        assert one.wait(200) == 0, one.text()[-3000:]
        losses = [row["loss"] for row in read(tmp_path / stage / "steps.csv")]
        assert len(losses) == steps
        if stage != "stage2":  # with a proposer of 16 steps there is little for the filter to learn
            assert sum(losses[-4:]) < sum(losses[:4]), losses
    MAKERS["ref-davis17"](tmp_path / "davis")
    one = run(
        "sparrow",
        "eval",
        "ref-davis17",
        "--data-root",
        tmp_path / "davis",
        "--out",
        tmp_path / "eval",
        "--size",
        "tiny",
        "--checkpoint",
        tmp_path / "stage2" / "export-full",
        "--answer",
        "force",
    )
    assert one.wait(200) == 0, one.text()[-3000:]
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert set(results["summary"]) >= {"J", "F", "J&F"}
