"""The scale benchmark runs through at a tiny size, and what it prints hangs together. Its figures are not judged."""

import json
import re

import pytest
import torch

from benchmarks import scale, scaling
from benchmarks.measure import Setting
from flows import driver, work
from pipeline.sources import SOURCES

QUICK = Setting(torch.device("cpu"), torch.float32, quick=True)


@pytest.fixture
def rows(monkeypatch, capsys):
    """A function: section, size -> what it prints, by name. In this process, which has loaded the pipeline already."""
    for place, name in ((driver, "work"), (driver, "fused"), (work, "fused")):
        monkeypatch.setattr(
            place, name, getattr(place, name)
        )  # the stub's place is given back afterwards
    monkeypatch.delitem(SOURCES, "made", raising=False)

    def measure(section, size):
        capsys.readouterr()
        scaling.main(section, size)
        lines = [
            json.loads(line)
            for line in capsys.readouterr().out.splitlines()
            if line.startswith('{"what"')
        ]
        assert all(line["value"] > 0 for line in lines)
        return {line["what"].strip(): line for line in lines}

    return measure


def test_a_plan_is_made_hashed_and_read_back_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setenv("SCALE_ONLY", "plan")
    monkeypatch.setenv("SCALE_PLAN", "3000")
    found = {row.what.strip(): row for row in scale.run(QUICK)}
    assert "1,500 clips, 6 shards" in found["plan, 3,000 referents"].note
    assert "6 shards" in found["hashes of its shards"].note
    assert "1,500 clips" in found["read back whole"].note
    before = float(re.match(r"(\d+) before", found["peak memory"].note)[1])
    assert before - 1 <= found["peak memory"].value < before + 200
    assert before < 400  # no torch


def test_a_run_commits_all_and_the_next_one_finds_all(rows):
    found = rows("run", 120)
    first, again = found["run, stub stages, 120 referents"], found["run again, everything done"]
    assert "60 clips" in first["note"]
    assert "1 shards found" in again["note"]
    assert again["value"] < first["value"]
    assert found["engine: the driver's own, a clip"]["ratio"] > 0
    assert found["beside the run"]["value"] < 100


def test_copies_of_a_shard_are_found_done_as_if_they_had_been_made(rows):
    found = rows("resume", 1100)
    assert "3 shards, 550 videos" in found["resume, all done, 1,100 referents"]["note"]
    steps = ["hashes of the plan's shards", "what is committed", "the source files"]
    assert (
        sum(found[step]["value"] for step in steps) > found["os.stat of each, and no more"]["value"]
    )


def test_made_tracks_are_on_disk_and_asked(rows):
    found = rows("queries", 12_800)
    assert {
        "12,800 track rows on disk",
        "the 20 worst tracks",
        "one referent's track",
    } <= found.keys()


def test_an_unknown_section_names_the_known_ones(monkeypatch):
    monkeypatch.setenv("SCALE_ONLY", "plan,speed")
    with pytest.raises(ValueError, match="speed: plan, run, resume, queries, ray, workers"):
        list(scale.run(QUICK))


def test_a_section_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match=r"'nonsense'.*code 1"):
        list(scale.section("nonsense", 1))
