"""Noise on TSF through the whole way: the command, the driver, and what is said of it. Nothing loses or repeats it."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import driver
from flows.cli import app, main
from flows.executors import Inline
from flows.progress import Quiet
from flows.repair import repair
from flows.reshard import reshard
from manifests.catalog import query
from manifests.noise import noise_words
from manifests.verify import verify
from pipeline.fused import Fused
from pipeline.plan import build_plan, plan_items, read_plan_header
from tests.flows.test_driver import Dies, Killed, tree
from tests.pipeline.two_targets import ONE, make_job, make_root

SWITCH = ("corrupt.kind=id_switch", "corrupt.level=0.2", "shard.max_referents=1")
COLUMNS = "referent_id, corruption, corruption_level, n_corrupted, n_corruptible, n_switchable"
ROWS = f"SELECT {COLUMNS} FROM referents ORDER BY referent_id"
REPRESENTATIVES = "SELECT referent_id, rank, frame, x1, y1, x2, y2 FROM tsf ORDER BY 1, 2"
SAID = "id_switch 20 %: 20.5 % of frames in 2 of 3 samples, 13.6 % of all frames; 1 has no other target"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_root(tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory) -> Path:
    """An undisturbed run with id switches, with pictures, never changed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    driver.run([job(root, out)], Inline(), Quiet())
    return out


@pytest.fixture
def out(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def job(root: Path, out: Path, *sets: str):
    return make_job(root, out, *SWITCH, "media.media=mp4", *sets)


def said(*command: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in command])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def test_the_manifests_have_what_was_asked_for_and_what_was_reached(whole):
    assert verify(whole, deep=True).problems == []
    rows = query(whole, ROWS)
    assert {row["corruption"] for row in rows} == {"id_switch"}
    assert [round(row["corruption_level"], 6) for row in rows] == [0.2] * 3
    counted = [(r["n_corrupted"], r["n_corruptible"], r["n_switchable"]) for r in rows]
    assert sorted(counted) == [(0, 40, 0), (8, 38, 30), (8, 40, 30)]


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_killed_run_resumes_to_the_same_bytes(root, whole, tmp_path, after):
    one = job(root, tmp_path / "out")
    with pytest.raises(Killed):
        driver.run([one], Dies(after), Quiet())
    driver.run([one], Inline(), Quiet())
    assert tree(tmp_path / "out") == tree(whole)


def test_clips_at_once_are_the_clips_one_by_one(root, tmp_path):
    one = job(root, tmp_path / "out")
    items = list(plan_items(one))
    alone, together = (
        [[s.members for s in result.samples] for result in Fused(one.config).map(one, items, n)]
        for n in (1, 3)
    )
    assert alone == together


def test_resharding_keeps_the_noise_and_the_run_finished(root, out):
    before = query(out, ROWS), query(out, REPRESENTATIVES)
    reshard(out, count=3, sources=[], progress=Quiet())
    assert (query(out, ROWS), query(out, REPRESENTATIVES)) == before
    (again,) = driver.run([job(root, out)], Inline(), Quiet())
    assert (again.shards_done, again.clips_done) == (0, 0)


def test_repair_makes_the_same_noise_again(whole, out):
    next(out.rglob("*000000.tar")).unlink()
    repair(out, Inline(), Quiet())
    assert tree(out) == tree(whole)


def test_retry_makes_the_missing_clip_with_the_noise(root, whole, tmp_path):
    data = Path(shutil.copytree(root, tmp_path / "data"))
    folder = next(data.rglob(ONE))
    folder.rename(tmp_path / "away")
    out = tmp_path / "out"
    driver.run([job(data, out)], Inline(), Quiet())
    assert len(query(out, ROWS)) == 2
    (tmp_path / "away").rename(folder)
    driver.retry(out, "retryable", Inline(), Quiet())
    assert query(out, ROWS) == query(whole, ROWS)
    assert query(out, REPRESENTATIVES) == query(whole, REPRESENTATIVES)


def test_before_the_first_shard_the_plan_takes_the_config_of_the_run(root, tmp_path):
    """Retry and repair take it from there: a plan of a clean run must not make them forget the noise."""
    out = tmp_path / "out"
    build_plan(make_job(root, out))
    noisy = make_job(root, out, "corrupt.kind=jitter", "corrupt.level=0.1")
    driver.ensure_plan(noisy, Quiet())
    assert read_plan_header(noisy.plan_path)[0] == noisy


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("corrupt.kind=none", "corrupt.level=0"), r"corrupt kind id_switch -> none, .*level 0\.2"),
        (("corrupt.seed=5",), "corrupt seed 0 -> 5"),
        (("corrupt.level=0.3",), "another config"),
    ],
)
def test_an_output_has_one_noise(root, out, sets, said):
    before = tree(out)
    with pytest.raises(driver.PlanConflict, match=said):
        driver.run([job(root, out, *sets)], Inline(), Quiet())
    assert tree(out) == before


def test_statistics_report_and_card_say_what_was_reached(out):
    assert f"Noise on TSF trajectories: {SAID}" in said("stats", out)
    [row] = json.loads(said("stats", out, "--json"))["noise"]
    assert noise_words(row).startswith(SAID)
    said("card", out)
    said("report", out)
    assert SAID in (out / "README.md").read_text()
    assert SAID in (out / "report" / "index.html").read_text()


def test_an_export_says_that_it_is_clean(out, tmp_path):
    to = tmp_path / "export"
    assert "TSF of 3 samples was made with noise" in said(
        "export", out, "--format", "artemis", "--to", to
    )
    assert "no TSF" in json.loads((to / "sparrow-export.json").read_text())["noise"]
    one = said("export", out, "--format", "ytvis", "--to", to / "x", "--where", "n_corrupted = 0")
    assert "TSF of 1 samples" in one


def test_nothing_is_said_of_a_clean_output(root, tmp_path):
    out = tmp_path / "out"
    driver.run([make_job(root, out, "media.media=mp4")], Inline(), Quiet())
    assert "Noise" not in said("stats", out)
    assert "noise" not in json.loads(said("stats", out, "--json"))
    said("card", out)
    assert "Noise" not in (out / "README.md").read_text()
    assert "Noise on" not in (out / "report" / "index.html").read_text()
    assert "noise" not in said("export", out, "--format", "artemis", "--to", tmp_path / "export")


def test_the_command_curates_with_noise(tiny_root, tmp_path):
    noise = ("--set", "corrupt.kind=id_switch", "--set", "corrupt.level=0.05")
    where = ("hcstvg", "--data-root", tiny_root)
    out, first = tmp_path / "out", ("--limit", 1, "--executor", "inline")
    assert "6 of 6 referents have no other target" in said("plan", *where, *noise)
    assert json.loads(said("plan", *where, *noise, "--json"))["splits"][0]["alone"] == 6
    assert "other target" not in said("plan", *where)
    shown = json.loads(said("plan", *where, *noise, "--show-config"))["config"]["corrupt"]
    assert shown == {"kind": "id_switch", "level": 0.05, "segments": 1, "seed": 0}
    said("curate", *where, "--out", out, *first, *noise)
    [row] = query(out, ROWS)
    assert (row["corruption"], row["n_corrupted"], row["n_switchable"]) == ("id_switch", 0, 0)


@pytest.mark.parametrize(
    ("sets", "line"),
    [
        (["corrupt.level=0.05"], "corrupt: level 0.05 without a kind changes nothing"),
        (["corrupt.kind=id_switch"], "corrupt: kind id_switch at level 0 changes nothing"),
        (["corrupt.kind=jitter", "corrupt.level=1.5"], "corrupt.level 1.5: Input should be less"),
        (["corrupt.kind=jiter", "corrupt.level=0.1"], "corrupt.kind 'jiter': Input should be"),
        (["corrupt.kind=dropout", "corrupt.level=1"], "corrupt.level 1 with kind dropout leaves"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(tiny_root, tmp_path, monkeypatch, capsys, sets, line):
    words = [word for one in sets for word in ("--set", one)]
    command = ["curate", "hcstvg", "--data-root", str(tiny_root), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["sparrow", *command, *words])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(f"error: {line}")
    assert "\n" not in printed
    assert not (tmp_path / "out").exists()
