"""Benchmarks run: their quick form, through the command line. What they measure is not judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES, run

SPARROW = Path(sys.executable).parent / "sparrow"


def test_the_command_prints_every_row_and_writes_them(tmp_path):
    words = [
        "bench",
        "tracker",
        "models",
        "decode",
        "--quick",
        "--device",
        "cpu",
        "--out",
        tmp_path / "bench.json",
    ]
    done = subprocess.run([SPARROW, *map(str, words)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "QUICK" in done.stdout
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["quick"] is True
    rows = {row["what"]: row for row in result["rows"]}
    assert all(row["value"] > 0 for row in rows.values())
    assert rows["tracker, lock-step, B = 4, float32"]["baseline"].startswith("the naive loop")
    for model in ("GroundingDINO", "CLIP", "SAM2, image mode"):
        assert rows[f"{model}, batch 4" if model != "CLIP" else "CLIP, batch 16"]["ratio"] > 0
    assert all(what in done.stdout for what in rows)


def test_the_pipeline_s_rows_cover_its_stages(tmp_path):
    result = run(["pipeline"], device="cpu", quick=True, show=lambda line: None)
    rows = {row["what"].strip(): row for row in result["rows"]}
    assert rows["whole clip, no masks"]["ratio"] > 0
    assert "12 of 12 clips became samples" in rows["whole clip, no masks"]["note"]
    assert {"of it decode", "of it detect", "of it track", "of it encode"} <= set(rows)


def test_an_unknown_benchmark_names_the_known_ones():
    with pytest.raises(ValueError, match=", ".join(NAMES)):
        run(["speed"])


def test_the_model_s_rows_say_what_sparrow_costs_and_that_no_frame_is_encoded_twice():
    import torch

    from benchmarks.measure import Setting
    from benchmarks.model import one_host

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = {
            row.what: row
            for row in one_host(Setting(torch.device("cpu"), torch.float32, True), "glus")
        }
    finally:
        torch.set_num_threads(threads)
    assert rows["glus: whole video, with SPARROW"].ratio > 0
    assert "image encoder 1 x a frame" in rows["glus: whole video, with SPARROW"].note
    assert rows["glus: decoding"].baseline.startswith("no cache")
    assert rows["glus: peak memory"].value > 0
