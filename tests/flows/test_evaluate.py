"""`sparrow eval` as a user runs it: tiny hosts on small benchmarks in their official layouts."""

import csv
import json
import os
import signal
from contextlib import contextmanager

import pytest
import torch
from typer.testing import CliRunner

from flows import evaluate, evaluation
from flows.cli import app
from flows.evaluation import Request, fingerprint
from model.config import ABLATIONS
from model.evaluate.benchmarks import BENCHMARKS
from tests.model.data.made import make_output
from tests.model.evaluate.made import MAKERS
from tests.model.tables.made import run_of

TINY = ["--host", "glus", "--size", "tiny", "--answer", "force"]
FILES = (
    "run.json",
    "results.json",
    "per_query.parquet",
    "parts/dogs-scale.parquet",
    "parts/motorbike.parquet",
)


def sparrow(*words):
    run = CliRunner().invoke(app, ["eval", *map(str, words)])
    if run.exception is not None and not isinstance(run.exception, SystemExit):
        raise run.exception
    return run


def contents(out):
    return {name: (out / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny models are run on one thread; what comes after them in this process is not."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    return MAKERS["ref-davis17"](tmp_path_factory.mktemp("davis"))


@pytest.fixture(scope="module")
def whole(davis, tmp_path_factory):
    """A run in one go, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, sparrow("ref-davis17", "--data-root", davis, "--out", out, *TINY).output


def test_a_run_prints_its_numbers_beside_the_paper_s_and_says_what_they_are(whole):
    out, text = whole
    for words in (
        "paper: glus",
        "72.9",
        "75.5",
        "protocol host+answer=force",
        "scorer: expression",
        "random weights: the numbers mean nothing",
    ):
        assert words in text
    results = json.loads((out / "results.json").read_text())
    assert (results["videos"], results["of_videos"], results["queries"], results["failed"]) == (
        2,
        2,
        16,
        0,
    )
    assert results["note"]
    assert (
        0
        <= results["intervals"]["J&F"][0]
        <= results["summary"]["J&F"]
        <= results["intervals"]["J&F"][1]
        <= 1
    )
    with (out / "timings.csv").open() as file:
        assert {row["video"]: row["frames_asked"] for row in csv.DictReader(file)} == {
            "dogs-scale": "48",
            "motorbike": "48",
        }


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(davis, whole, tmp_path):
    """The process dies as by kill -9 when one video is done."""
    out = tmp_path / "run"
    pid = os.fork()
    if not pid:

        class Deadly:
            @contextmanager
            def stage(self, *_, **__):
                yield (
                    lambda _, note="": note == "dogs-scale" and os.kill(os.getpid(), signal.SIGKILL)
                )

        request = Request(
            benchmark="ref-davis17",
            data_root=str(davis),
            out=str(out),
            host="glus",
            size="tiny",
            asking={"answer": "force"},
        )
        evaluation.run(request, progress=Deadly())
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert os.listdir(out / "parts") == ["dogs-scale.parquet"]
    assert not (out / "results.json").exists()
    first = (out / "parts/dogs-scale.parquet").stat().st_mtime_ns
    (out / "parts/.motorbike.parquet.1.tmp").write_bytes(b"half a part")
    sparrow("ref-davis17", "--data-root", davis, "--out", out, *TINY)
    assert (out / "parts/dogs-scale.parquet").stat().st_mtime_ns == first
    assert contents(out) == contents(whole[0])


def test_another_run_in_the_same_folder_is_refused(davis, whole):
    words = ["ref-davis17", "--data-root", davis, "--out", whole[0], *TINY]
    with pytest.raises(ValueError, match=r"model\.decode\.prompts: there box\+seg, now seg"):
        sparrow(*words, "--set", "decode.prompts=seg")
    with pytest.raises(ValueError, match=r"scoring\.scorer: there expression, now official"):
        sparrow(*words, "--set", "benchmark.scorer=official")


def test_an_archive_comes_out_as_the_server_wants_it(davis, whole, tmp_path):
    sparrow(
        "ref-davis17",
        "--data-root",
        davis,
        "--out",
        whole[0],
        *TINY,
        "--archive",
        tmp_path / "a.zip",
    )
    assert (tmp_path / "a.zip").stat().st_size > 0


def test_vidstg_and_the_tables(davis, whole, tmp_path):
    root = MAKERS["vidstg"](tmp_path / "data")
    out = whole[0].parent / "vidstg"
    text = sparrow("vidstg", "--data-root", root, "--out", out, *TINY, "--limit", 1).output
    assert "1 of 2 videos: not the benchmark's number" in text
    assert "29.92" in text
    text = sparrow("vidstg", "--data-root", root, "--out", out, *TINY).output
    assert "not the benchmark's number" not in text
    tables = sparrow("table", whole[0].parent, "--format", "markdown").output
    assert "| GLUS + SPARROW | vidstg: protocol host+answer=force, tiny |" in tables
    assert "| GLUS + SPARROW | whole: protocol host+answer=force, tiny |" in tables
    assert "- vidstg: vidstg test; glus, preset paper; protocol host+answer=force, tiny; " in tables
    assert "GLUS + SPARROW" in sparrow("table", whole[0]).output
    found = json.loads(sparrow("table", whole[0], "--format", "json").output)
    assert {one["table"] for one in found["numbers"] if one["source"] != "paper"} == {
        "Table 2",
        "Table 15",
    }
    assert found["in_no_row"] == []


def test_runs_of_ablations_stand_in_their_own_tables(tmp_path):
    """All of `ABLATIONS`, a run each: Tables 5, 9, 10 and 11 used to fill Table 4 as the default row."""
    for table, rows in ABLATIONS.items():
        for name, changes in rows.items():
            folder = tmp_path / f"{table} {name}"
            folder.mkdir()
            (folder / "results.json").write_text(json.dumps(run_of(changes=changes)))
    found = json.loads(sparrow("table", tmp_path, "--format", "json").output)
    assert found["in_no_row"] == []
    lines = {(one["table"], one["source"]) for one in found["numbers"] if one["source"] != "paper"}
    for table, rows in ABLATIONS.items():
        for name in rows:
            printed = table.rstrip("ABC")
            mine = [other for other, source in lines if f"{table} {name}" in source]
            assert printed in mine
    default = [one for one in found["numbers"] if one["method"] == "TSF in training (default)"]
    runs = {one["source"].split(": protocol")[0] for one in default if one["source"] != "paper"}
    assert runs == {
        "Table 4 TSF in training",
        *("Table 4 TSF in training + BOX", "Table 9 spatial", "Table 10 clean"),  # one config
    }


def test_an_ablation_that_is_run_is_in_its_table_and_a_deviating_one_in_none(davis, tmp_path):
    words = ["ref-davis17", "--data-root", davis, "--size", "tiny", "--answer", "force"]
    words += ["--limit", 1, "--set", "tsf.path=none"]
    sparrow(*words, "--out", tmp_path / "mllm", "--set", "filter.where=mllm")
    sparrow(*words, "--out", tmp_path / "loose", "--set", "filter.nms=0.7")
    text = sparrow("table", tmp_path, "--format", "markdown").output
    lines = [line for line in text.splitlines() if "| mllm: " in line]
    assert [line.split(" | ")[0] for line in lines] == ["| (B) filter.where = mllm"]
    assert "| loose: " not in text
    nearest = "loose: in no row; the nearest is Table 4, BOX only, but for filter.nms=0.7"
    assert f"- {nearest} (the row has 0.8)" in text


def test_every_row_can_be_listed():
    text = sparrow("rows", "--format", "markdown").output
    assert "| BOX only | videoglamm | paper | `tsf.path=none` | [BOX] on 72.5 |" in text
    assert "`box.enabled=false` `decode.prompts=seg`" in text
    assert "Table 12" in sparrow("rows").output


@pytest.mark.parametrize(
    ("name", "host", "headline"),
    [
        ("mevis", "videoglamm", "J&F"),
        ("ref-ytvos", "unipixel", "J&F"),
        ("videogcg", "videoglamm", "mIoU"),
    ],
)
def test_the_other_benchmarks_run_from_their_official_layouts(name, host, headline, tmp_path):
    """With `whole` and VidSTG: all five, and all three hosts."""
    root, out = MAKERS[name](tmp_path / "data"), tmp_path / "run"
    done = sparrow(
        name,
        "--data-root",
        root,
        "--out",
        out,
        "--host",
        host,
        "--size",
        "tiny",
        "--answer",
        "force",
    )
    assert done.exit_code == 0, done.output
    results = json.loads((out / "results.json").read_text())
    assert 0 <= results["summary"][headline] <= 1
    assert "random weights" in done.output


def test_what_a_training_leaves_is_a_checkpoint(davis, tmp_path):
    """The folders that `sparrow train stage2` writes, by the functions that it calls."""
    from model.make import make_model
    from model.train.export import save_export, save_whole

    model, _ = make_model("glus", "tiny", fresh=True)
    model.adapt()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.05)
    save_export(model, tmp_path / "export", "stage2", 1)
    save_whole(model, tmp_path)
    scores = []
    for name in ("export", "export-full"):
        out = tmp_path / f"run-{name}"
        words = ["--checkpoint", tmp_path / name, "--limit", 1]
        sparrow("ref-davis17", "--data-root", davis, "--out", out, *TINY, *words)
        scores.append(json.loads((out / "results.json").read_text()))
        assert scores[-1]["weights"] == [list(fingerprint(tmp_path / name))]
        assert scores[-1]["note"] == "tiny glus, tiny weights: the numbers mean nothing"
        assert scores[-1]["trained"] == model.config.model_dump(mode="json")
    assert scores[0]["summary"] == pytest.approx(scores[1]["summary"], abs=1e-3)
    out = tmp_path / "seg"  # a field of the decoder may differ from what was trained
    words = ["--checkpoint", tmp_path / "export-full", "--set", "decode.prompts=seg", "--limit", 1]
    sparrow("ref-davis17", "--data-root", davis, "--out", out, *TINY, *words)


def test_media_that_are_all_missing_end_with_an_error(tmp_path):
    import shutil

    root = MAKERS["mevis"](tmp_path / "data")
    shutil.rmtree(root / "valid_u/JPEGImages")
    run = sparrow("mevis", "--data-root", root, "--out", tmp_path / "run", *TINY)
    assert run.exit_code == 3
    assert "6 of 6 queries failed and count as zero" in run.output
    assert "clip0/0:" in run.output


def test_what_cannot_be_run_is_refused_before_anything_is_loaded(davis, tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        sparrow(
            "mevis",
            "--data-root",
            MAKERS["mevis"](tmp_path),
            "--out",
            tmp_path / "o",
            "--checkpoint",
            "nowhere",
        )
    with pytest.raises(ValueError, match=r"tsf\.infer is True .* but --tsf is off"):
        sparrow(
            "ref-davis17",
            "--data-root",
            davis,
            "--out",
            tmp_path / "o",
            *TINY,
            "--set",
            "tsf.infer=true",
        )
    with pytest.raises(ValueError, match="write it as field=value"):
        sparrow(
            "ref-davis17", "--data-root", davis, "--out", tmp_path / "o", "--set", "decode.prompts"
        )


def test_every_benchmark_is_a_command():
    assert list(evaluate.BENCHMARKS) == list(BENCHMARKS)
    assert evaluate.parse(["asking.merge=union", "benchmark.fps=2", "box.enabled=false"]) == {
        "model": {"box.enabled": False},
        "asking": {"merge": "union"},
        "options": {"fps": 2},
    }


def test_region_questions_are_asked_on_curated_shards(tmp_path):
    shards = make_output(tmp_path / "shards", {"a": (1, 1)})
    place = ["regions", "--data-root", shards, "--split", "train", "--size", "tiny"]
    short = ["--set", "asking.max_new_tokens=3", "--set", "benchmark.captions=false"]
    text = sparrow(*place, "--out", tmp_path / "run", *short).output
    assert "What is the <region> doing during this video?" in text
    assert "answers name no object" not in text
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["queries"], results["failed"], results["unscored"]) == (2, 0, 0)
    assert results["summary"].keys() == {"exact", "word_F1"}
    for words, message in (
        (["--answer", "force"], "what the model says"),
        (["--tsf", "full-tiny"], "crops that the shards hold"),
        (["--set", "benchmark.template=99"], "the pool has 0 to 11"),
    ):
        with pytest.raises(ValueError, match=message):
            sparrow(*place, "--out", tmp_path / "other", *words)
