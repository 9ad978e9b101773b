"""`sparrow eval cost`: hours by stage from the runs' own timings, beside Tables 13 and 14."""

import csv
import json

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.cost import read_costs, tables_of_cost
from model.config import configure

A100 = {"device": "NVIDIA A100", "processes": 8}


def training(folder, what, hours, ran_on=None, preset="paper", memory=""):
    """The folder of a run of `sparrow train` with two steps."""
    folder.mkdir(parents=True)
    model = configure(preset).model_dump(mode="json")
    about = {"what": what, "settled": {"model": model}} | ({"ran_on": ran_on} if ran_on else {})
    (folder / "config.json").write_text(json.dumps(about))
    with (folder / "steps.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", "seconds", "memory_gb"])
        writer.writerows([[step, 1.0, hours * 1800, memory] for step in (0, 1)])
    return folder


def curation(folder, seconds, clips, peak_gpu=0):
    """The logs of one run of `sparrow curate`."""
    run = folder / "runs" / "20260101T000000Z-abcdef"
    run.mkdir(parents=True)
    summary = {
        "phases": {"planning": 5.0, "curating": seconds, "reporting": 2.0},
        "jobs": {"a": {"clips_done": clips}},
        "hosts": {"one": {"peak_gpu": peak_gpu}},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    facts = {"workers": 1, "host": {"gpus": [{"name": "NVIDIA H200"}]}}
    (run / "run.json").write_text(json.dumps(facts))
    return folder


def lines(table, method):
    """(source, texts of the cells) of a row's lines, the paper's first."""
    return [(row.source, [str(c) for c in row.cells]) for row in table.rows if row.method == method]


def test_a_run_as_the_paper_s_has_the_paper_s_numbers(tmp_path):
    training(tmp_path / "one", "stage1", 12, A100)
    training(tmp_path / "two", "stage2", 2, A100)
    training(tmp_path / "base", "stage1", 10, A100, preset="host")
    curation(tmp_path / "tsf", 51.9 * 3600, 30_646, peak_gpu=1)
    table_13, table_14 = tables_of_cost(read_costs([tmp_path, tmp_path / "tsf"]))
    for method, source, cells in (
        ("Stage 1: TSF injection", "one: 8 x NVIDIA A100", ["12.00", "8", "96.00", "4.00"]),
        (
            "Stage 2: dual-prompt box learning",
            "two: 8 x NVIDIA A100",
            ["2.00", "8", "16.00", "0.67"],
        ),
        (
            "Baseline fine-tuning (per backbone)",
            "base: 8 x NVIDIA A100",
            ["10.00", "8", "80.00", "3.33"],
        ),
        ("SPARROW training (S1 + S2)", "one, two", ["14.00", "", "112.00", "4.67"]),
        ("Increment over baseline", "one, two, base", ["", "", "32.00", "1.33"]),
    ):
        assert lines(table_13, method)[1:] == [(source, cells)]
    (_, paper), *ours = lines(table_13, "Offline TSF precomputation (30,646 clips)")
    assert paper == ["51.90", "1", "51.90", "2.16"]
    assert all(cells == paper and "1 x NVIDIA H200" in source for source, cells in ours)
    paper, (_, cells), *_ = lines(table_14, "GroundingDINO + CLDTracker")
    assert paper[1][-1] == "6.1 s / clip"
    assert cells[-1] == "6.10 s / clip"
    assert lines(table_14, "TSF injection (stage 1)")[1][1][-1] == "4.00 GPU-days"


def test_hours_of_a_cpu_are_not_gpu_hours(tmp_path):
    training(tmp_path / "one", "stage1", 1, {"device": "CPU", "processes": 2})
    training(tmp_path / "two", "stage2", 1, {"device": "CPU", "processes": 2})
    training(tmp_path / "proposer", "proposer", 1, {"device": "CPU", "processes": 1})
    curation(tmp_path / "tsf", 3600, 100)
    table_13, table_14 = tables_of_cost(read_costs([tmp_path]))
    assert lines(table_13, "Stage 1: TSF injection")[1:] == [
        ("one: 2 x CPU", ["1.00", "2", "CPU", "CPU"])
    ]
    assert lines(table_13, "SPARROW training (S1 + S2)")[1:] == []
    assert lines(table_13, "Proposer pretraining (not in the paper's table)") == [
        ("proposer: 1 x CPU", ["1.00", "1", "CPU", "CPU"])
    ]
    (source, cells) = lines(table_14, "GroundingDINO + CLDTracker")[1]
    assert source.endswith("1 x CPU")
    assert cells[-1] == "36.00 s / clip"


def test_runs_of_earlier_versions_leave_traces_of_their_device(tmp_path):
    run = training(tmp_path / "one", "stage1", 3, memory="12.5")
    state = run / "states" / "step-00000002"
    state.mkdir(parents=True)
    (state / "state.json").write_text(json.dumps({"ranks": 4}))
    (cost,) = read_costs([run])
    assert (cost.processes, cost.gpu_hours) == (4, 12.0)
    (cpu,) = read_costs([training(tmp_path / "two", "stage1", 3)])
    assert (cpu.device, cpu.gpu_hours) == ("CPU", None)


def test_a_sum_is_not_made_of_several_runs_of_a_stage(tmp_path):
    for name in ("a", "b"):
        training(tmp_path / name, "stage1", 12, A100)
    training(tmp_path / "c", "stage2", 2, A100)
    table_13, _ = tables_of_cost(read_costs([tmp_path]))
    assert len(lines(table_13, "Stage 1: TSF injection")) == 3
    assert len(lines(table_13, "SPARROW training (S1 + S2)")) == 1


def test_the_command_prints_both_tables(tmp_path):
    training(tmp_path / "one", "stage1", 1, {"device": "CPU", "processes": 1})
    run = CliRunner().invoke(app, ["eval", "cost", str(tmp_path)])
    assert run.exit_code == 0, run.output
    for words in ("Table 13", "Table 14", "51.90", "one: 1 x CPU", "6.1 s / clip"):
        assert words in run.output
    found = json.loads(
        CliRunner().invoke(app, ["eval", "cost", str(tmp_path), "--format", "json"]).stdout
    )
    mine = [one for one in found["numbers"] if one["source"] != "paper"]
    assert [(one["column"], one["value"]) for one in mine] == [
        ("wall-clock (h)", 1.0),
        ("devices", 1),
    ]
    with pytest.raises(ValueError, match="no run of `sparrow train` is there"):
        read_costs([tmp_path / "one" / "nothing"])
