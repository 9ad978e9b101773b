"""Readings of the study, from scores whose outcome is known."""

import csv

import pytest

from model.config import ABLATIONS, configure
from model.study.config import StudyConfig
from model.study.grid import ROWS, TRAININGS, Row, asked_of, rows_of, trainings_of
from model.study.report import CLAIMS, Claim, lines, verdict, write_report


def cell(config: StudyConfig, training: str, level: float) -> dict:
    """A model that gets J = F = level on everything, and 0.1 more where it is asked with [BOX]."""
    scores = []
    for asked in asked_of(config, training):
        value = level + (0.1 if asked["decode.prompts"] == "box+seg" else 0)
        clips = [
            {"kind": kind, "J": value, "F": value, "right": 1.0}
            for kind in ("appearance", "motion", "leaving")
        ]
        scores.append({"asked": asked, "clips": clips})
    return {"scores": scores}


def base(level: float) -> dict:
    clips = [
        {"kind": k, "J": level, "F": level, "right": 0.5}
        for k in ("appearance", "motion", "leaving")
    ]
    return {"scores": [{"asked": {}, "clips": clips}], "recall": {"0.5": 0.9, "0.75": 0.4}}


def test_a_difference_is_read_only_where_it_is_larger_than_its_noise():
    assert verdict([60, 61, 62, 63], [50, 51, 52, 53])[0] == "reproduced"
    assert verdict([50, 51, 52, 53], [60, 61, 62, 63])[0] == "the opposite"
    word, mean, error = verdict([60, 40, 61, 41], [50, 51, 52, 53])
    assert word == "no difference seen"
    assert mean == pytest.approx(-1.0)
    assert error == pytest.approx((442 / 3) ** 0.5 / 2)  # of 10, -11, 9, -12
    assert verdict([60], [50])[0] == "one run only"
    assert verdict([60, 60], [60, 60])[0] == "no difference seen"


def test_the_report_has_every_row_and_reads_every_claim(tmp_path):
    config = StudyConfig(bases=2, seeds=1, noise="all")
    level = {"none": 0.4, "spatial": 0.5}
    runs = {
        t: [cell(config, t, level.get(t, 0.45) + noise) for noise in (0, 0.01)]
        for t in trainings_of(config)
    }
    written = write_report(tmp_path, config, runs, [base(0.3), base(0.31)], 12.0)
    assert {path.name for path in written} == {
        "report.md",
        "rows.csv",
        "table_4.png",
        "table_5c.png",
        "table_9.png",
        "table_10.png",
        "questions.png",
    }
    with (tmp_path / "rows.csv").open() as file:
        rows = {(r["table"], r["row"]): r for r in csv.DictReader(file)}
    assert len(rows) == len(ROWS)
    assert float(rows["Table 4", "neither"]["mean"]) == pytest.approx(40.5)
    assert float(rows["Table 4", "TSF in training + BOX"]["mean"]) == pytest.approx(60.5)
    text = (tmp_path / "report.md").read_text()
    assert all(claim.text in text for claim in CLAIMS)
    assert "| Table 4: [BOX] helps without TSF | +3.0 | +10.0 +- 0.0 | reproduced |" in text
    assert "12 minutes" in text
    assert "| Questions: half of them, or none |  | +0.0 +- 0.0 | no difference seen |" in text


def test_answers_about_regions_stand_beside_the_scores(tmp_path):
    config = StudyConfig(tables=("Questions",), bases=1, seeds=2)
    trainings = trainings_of(config)
    assert trainings == ["spatial, share 0", "spatial, share 0.5", "spatial"]
    runs = {t: [cell(config, t, 0.4), cell(config, t, 0.4)] for t in trainings}
    for place, training in enumerate(trainings):
        for run in runs[training]:
            run["answers"] = {"loss": 2.0 - place, "exact": place / 2}
    write_report(tmp_path, config, runs, [base(0.3)], 1.0)
    text = (tmp_path / "report.md").read_text()
    assert "| share 0.5 | 1.00 +- 0.00 | 50.00 +- 0.00 % |" in text
    assert "| share 1 | 0.00 +- 0.00 | 100.00 +- 0.00 % |" in text


def test_a_row_of_our_own_has_no_number_of_the_paper(tmp_path, monkeypatch):
    """It changes the training, and the paper's column is empty."""
    both = {"decode.prompts": "box+seg"}
    own = Row("Table 9", "k = 8", "spatial, 8 tokens", None, both, {"tsf.k": 8})
    claim = Claim("Table 9", "k = 8", "spatial", "more tokens help")
    monkeypatch.setattr("model.study.grid.ROWS", (*ROWS, own))
    monkeypatch.setattr("model.study.report.CLAIMS", (claim,))
    config = StudyConfig(tables=("Table 9",), bases=1, seeds=2)
    assert own.training in trainings_of(config)
    runs = {t: [cell(config, t, 0.4 + n) for n in (0, 0.01)] for t in trainings_of(config)}
    write_report(tmp_path, config, runs, [base(0.3)], 1.0)
    text = (tmp_path / "report.md").read_text()
    assert "| k = 8 |  | 50.50 +- 0.71 |" in text
    assert "| Table 9: more tokens help |  | +0.0 +- 0.0 |" in text


def test_rows_of_the_study_are_the_registry_s():
    """The same names, the same numbers, and the same models as `ABLATIONS`, asked as they are."""
    for row in (row for row in ROWS if row.table in ABLATIONS):
        config = configure(**row.changes, **row.asked)
        wanted = configure(**ABLATIONS[row.table][row.name])
        assert (config.tsf, config.corruption) == (wanted.tsf, wanted.corruption)
        assert config.decode == wanted.decode
    assert {row.training: row.changes for row in ROWS} == TRAININGS


def test_rows_that_were_not_run_are_left_out():
    config = StudyConfig(tables=("Table 4",))
    assert {line.row.name for line in lines(config, {"none": [cell(config, "none", 0.4)]})} == {
        "neither",
        "BOX only",
    }


def test_hosts_without_a_temporal_projector_have_no_temporal_rows():
    assert "temporal" in trainings_of(StudyConfig())
    assert not {"temporal", "concat", "sum"} & set(trainings_of(StudyConfig(host="glus")))
    assert [row.name for row in rows_of(StudyConfig(host="unipixel", tables=("Table 9",)))] == [
        "none",
        "spatial",
    ]
