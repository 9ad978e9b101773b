"""`sparrow study` end to end, as small as it gets: one host from nothing, two models of the grid."""

import json

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.study import configure

SMALL = {
    "tables": "Table 4",
    "bases": 1,
    "seeds": 1,
    "clips": 8,
    "tested": 3,
    "batch": 4,
    "stage_clips": 8,
    "shown": 2,
    "segmenting": 2,
    "pointing": 2,
    "following": 2,
    "seeing": 2,
    "listening": 2,
    "proposing": 2,
    "stage1": 2,
    "stage2": 2,
    "frames": 4,
}


def study(out, *more):
    sets = [arg for name, value in SMALL.items() for arg in ("--set", f"{name}={value}")]
    return CliRunner().invoke(app, ["study", "--out", str(out), *sets, *more])


def test_a_study_ends_with_its_report_and_goes_on_where_it_stopped(tmp_path):
    done = study(tmp_path)
    assert done.exit_code == 0, done.output
    assert "report.md" in done.output
    text = (tmp_path / "report.md").read_text()
    assert "| TSF in both + BOX | 77.7 |" in text
    assert "one run only" in text
    cells = sorted(path.name for path in (tmp_path / "cells").iterdir())
    assert cells == ["0-0-none.json", "0-0-spatial.json"]
    before = (tmp_path / "cells" / "0-0-spatial.json").stat().st_mtime_ns
    (tmp_path / "cells" / "0-0-none.json").unlink()
    assert study(tmp_path).exit_code == 0
    assert (tmp_path / "cells" / "0-0-spatial.json").stat().st_mtime_ns == before
    scores = json.loads((tmp_path / "cells" / "0-0-none.json").read_text())["scores"]
    assert [len(one["clips"]) for one in scores] == [3, 3]
    refused = study(tmp_path, "--set", "stage1=3")
    assert refused.exit_code != 0
    assert "other settings (stage1)" in str(refused.exception)


def test_settings_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="--scale huge is not known: one of cpu, gpu"):
        configure("huge", "glus", [])
    with pytest.raises(ValueError, match="no such field; there are tables"):
        configure("cpu", "glus", ["step=3"])
