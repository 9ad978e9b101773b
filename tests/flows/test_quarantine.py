"""Quarantine: rows that group and repeat, times that live with the runs, and a budget that turns a run red."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import driver
from flows.cli import app
from flows.executors import Inline
from flows.jobs import make_jobs
from flows.progress import Quiet
from manifests.catalog import query
from manifests.quarantine import OverBudget, Tally, dropped, tally
from pipeline.demo.corpus import CorpusConfig, write_corpus
from pipeline.plan import build_plan
from pipeline.presets import configure
from pipeline.sample import quarantine_row
from pipeline.sources import SOURCES
from schemas.records import Quarantined, Reason
from tests.flows.test_driver import Dies, Killed, tree

PLACE = [("hcstvg", "train")]
SMALL = CorpusConfig(
    size=(48, 80), a2d_size=(48, 80), frames=dict.fromkeys((*SOURCES, "broken"), 8)
)
QUICK = ["rules.boxes=annotation", "rules.masks=none"]


@pytest.fixture(scope="module")
def data(tiny_root, tmp_path_factory) -> Path:
    copy = tmp_path_factory.mktemp("quarantine") / "data"
    shutil.copytree(tiny_root, copy, copy_function=shutil.copy2)
    return copy


def job(data: Path, out: Path, *sets: str):
    config = configure("lite", ["shard.max_referents=2", *sets])
    return make_jobs("hcstvg", data, out, config, source_sets=QUICK)[0]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """Five clips kept; one has no video, one row of annotation is malformed."""
    out = tmp_path_factory.mktemp("quarantine") / "out"
    driver.run([job(data, out)], Inline(), Quiet())
    return out


@pytest.fixture
def out(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"


def fails(where: str) -> None:
    if where == "here":
        raise ZeroDivisionError("of clip 1")
    raise ZeroDivisionError("of clip 2")


def fails_elsewhere(where: str) -> None:
    fails(where)


def hash_of(made_job, call) -> str:
    try:
        call()
    except (ArithmeticError, Quarantined) as error:
        return quarantine_row(made_job, error, "c", "r")["traceback_hash"]
    raise AssertionError("nothing was raised")


def test_failures_of_one_function_share_a_hash_and_others_do_not(data, tmp_path):
    """Whatever the line in it: a hash that an edit further up changes groups nothing across versions."""
    made = job(data, tmp_path)
    ways = ((fails, "here"), (fails, "there"), (fails_elsewhere, "here"))
    one, line, other = (
        hash_of(made, lambda way=way, where=where: way(where)) for way, where in ways
    )
    assert one == line != other
    assert len(one) == 16
    never_raised = Quarantined(Reason.DEADLINE, "took too long", stage="worker")
    assert quarantine_row(made, never_raised, "c", "r")["traceback_hash"] == ""


def test_an_error_that_was_raised_for_many_threads_keeps_its_hash(data, tmp_path):
    """The model's thread raises it once, each waiting clip again: the way of each is in the traceback then."""
    made, error = job(data, tmp_path), ZeroDivisionError("of a batch")

    def clip() -> None:
        raise error

    assert len({hash_of(made, clip) for _ in range(3)}) == 1


def test_a_row_says_what_is_needed_to_judge_it(out):
    row = dropped(out, "reason = 'media_missing'")[0]
    assert (row["stage"], row["error_class"], row["attempt"], row["retryable"]) == (
        "ingest",
        "Quarantined",
        1,
        True,
    )
    assert "3_video.mp4" in row["message"]
    assert len(row["traceback_hash"]) == 16
    [run] = query(out, "SELECT ended FROM runs")
    assert row["first_seen"] == row["last_seen"] == run["ended"]
    assert row["runs"] == 1


def test_retry_keeps_when_it_was_first_seen_and_the_bytes(out):
    before = tree(out)
    driver.retry(out, "reason = 'media_missing' AND first_seen < now()", Inline(), Quiet())
    assert tree(out) == before
    seen = {r["reason"]: r for r in dropped(out)}
    missing, malformed = seen["media_missing"], seen["malformed_row"]
    assert missing["first_seen"] < missing["last_seen"]
    assert (missing["runs"], malformed["runs"]) == (
        2,
        1,
    )  # the malformed row is in a shard that was left alone


def test_a_run_with_nothing_to_do_has_seen_nothing(data, out):
    driver.run([job(data, out)], Inline(), Quiet())
    assert {r["runs"] for r in dropped(out)} == {1}


def test_what_a_killed_run_dropped_is_recorded_by_the_next(data, tmp_path):
    made = job(data, tmp_path / "killed")
    with pytest.raises(Killed):
        driver.run([made], Dies(6), Quiet())
    killed = {p.stem for p in Path(made.out, "manifests", "shards").glob("*.parquet")}
    assert killed
    driver.run([made], Inline(), Quiet())
    rows = dropped(Path(made.out))
    assert len(rows) == 2
    assert any(r["shard"] in killed for r in rows)
    assert all(r["first_seen"] is not None and r["runs"] == 1 for r in rows)


def test_the_tally_counts_clips(out):
    found = tally(out, PLACE)
    assert (found.kept, found.dropped, found.reasons) == (
        5,
        2,
        {"malformed_row": 1, "media_missing": 1},
    )
    assert str(found) == "dropped: 2 of 7 clips (28.6%): 1 malformed_row, 1 media_missing"


def test_what_was_excluded_is_not_held_against_the_run(data, tmp_path):
    [first] = query_ids(data, tmp_path / "a", 1)
    file = tmp_path / "exclude.txt"
    file.write_text(first)
    config = configure("lite", ["media.media=none"])
    jobs = make_jobs("hcstvg", data, tmp_path / "b", config, source_sets=QUICK, exclude=file)
    driver.run(jobs, Inline(), Quiet())
    assert "excluded" in {r["reason"] for r in dropped(tmp_path / "b")}
    found = tally(tmp_path / "b", PLACE)
    assert (found.kept, found.dropped) == (4, 2)


def query_ids(data: Path, out: Path, n: int) -> list[str]:
    from pipeline.plan import plan_items
    from schemas.records import Planned

    items = plan_items(job(data, out))
    return [item.clip.clip_id for item in items if isinstance(item, Planned)][:n]


@pytest.mark.parametrize(
    ("budget", "over"), [(None, False), (0.3, False), (0.25, True), (0.0, True), (2 / 7, False)]
)
def test_the_budget_is_a_share_of_the_clips(budget, over):
    found = Tally(5, 2, {"media_missing": 2})
    if not over:
        found.judge(budget, "hcstvg")
        return
    with pytest.raises(
        OverBudget, match=r"hcstvg: 2 of 7 clips were dropped \(28.6%\), --max-dropped allows"
    ) as raised:
        found.judge(budget, "hcstvg")
    assert raised.value.exit_code == 4


def test_nothing_dropped_of_nothing_is_within_any_budget():
    Tally(0, 0).judge(0.0, "hcstvg")


def test_list_counts_show_explains_and_a_budget_exits_with_4(out, monkeypatch):
    cli = CliRunner()
    listed = json.loads(cli.invoke(app, ["quarantine", "list", str(out), "--json"]).stdout)
    assert {r["reason"] for r in listed} == {"malformed_row", "media_missing"}
    counted = cli.invoke(app, ["quarantine", "list", str(out), "--by", "stage,reason", "--json"])
    assert [(r["reason"], r["n"]) for r in json.loads(counted.stdout)] == [
        ("media_missing", 1),
        ("malformed_row", 1),
    ]
    assert (
        "nothing is in quarantine"
        in cli.invoke(app, ["quarantine", "list", str(out), "--where", "runs > 1"]).stdout
    )
    shown = cli.invoke(app, ["quarantine", "show", str(out), listed[0]["clip_id"]]).stdout
    assert "traceback_hash" in shown
    assert "first_seen" in shown
    words = ["quarantine", "retry", str(out), "--executor", "inline", "--max-dropped"]
    within = cli.invoke(app, [*words, "0.5"])
    assert within.exit_code == 0, within.output
    assert "dropped: 2 of 7 clips (28.6%)" in within.stdout

    from flows import cli as entry

    monkeypatch.setattr("signal.signal", lambda *_: None)  # it is pytest's process
    monkeypatch.setattr("sys.argv", ["sparrow", *words, "0.1"])
    with pytest.raises(SystemExit) as stopped:
        entry.main()
    assert stopped.value.code == 4


def spoil_one_expression(source: str, root: Path) -> None:
    """One expression of a clip that has others becomes useless."""
    if source == "a2d":
        table = root / "text_annotations" / "a2d_annotation.txt"
        video = table.read_text().splitlines()[1].split(",")[0]
        table.write_text(f"{table.read_text().rstrip()}\n{video},1 (copy),a dog\n")
        return
    file = root / {"mevis": "train/meta_expressions.json", "refsav": "Ref-SAV.json"}[source]
    tree = json.loads(file.read_text())
    first = next(iter((tree["videos"] if source == "mevis" else tree).values()))
    if source == "mevis":
        first["expressions"]["99"] = {"exp": "a dog", "obj_id": [], "anno_id": []}
    else:
        first["objects"]["one"] = {"formated": "a dog"}
    file.write_text(json.dumps(tree))


@pytest.mark.parametrize("source", ["mevis", "refsav", "a2d"])
def test_a_rejected_expression_is_no_dropped_clip(source, tmp_path):
    root = tmp_path / "data" / source
    write_corpus(tmp_path / "data", config=SMALL)
    takes = {"splits": ["train"], "source_sets": QUICK}
    before, after = tmp_path / "before", tmp_path / "after"
    driver.run(make_jobs(source, root, before, configure("lite"), **takes), Inline(), Quiet())
    spoil_one_expression(source, root)
    driver.run(make_jobs(source, root, after, configure("lite"), **takes), Inline(), Quiet())
    was, now = (tally(out, [(source, "train")]) for out in (before, after))
    assert (now.kept, now.dropped, now.reasons) == (was.kept, was.dropped, was.reasons)
    assert now.parts == was.parts + 1
    find = "SELECT clip_id FROM quarantine WHERE clip_id IN (SELECT clip_id FROM clips)"
    assert len(query(after, find)) == len(query(before, find)) + 1


def test_retry_says_how_many_were_tried_and_cured(data, out, tmp_path):
    """One of the two videos that were missing has come back."""
    moved = tmp_path / "moved"
    shutil.copytree(data, moved, copy_function=shutil.copy2)
    whole, other = sorted(moved.rglob("*.mp4"))[:2]
    lost, broken = whole.with_name("lost"), other.with_name("broken")
    whole.rename(lost)
    other.rename(broken)
    made = job(moved, tmp_path / "out2")
    driver.run([made], Inline(), Quiet())
    lost.rename(whole)
    words = ["quarantine", "retry", made.out, "--executor", "inline"]
    told = CliRunner().invoke(app, words)
    assert "tried again: 3 items; 1 are cured, 2 dropped" in told.output
    words += ["--where", "reason = 'malformed_row'"]
    told = CliRunner().invoke(app, words)
    assert "tried again: 1 items; 0 are cured, 1 dropped" in told.output


def test_the_first_clip_does_not_pay_for_importing_scikit_learn(data, tmp_path):
    """In a process of its own, where nothing has imported it yet."""
    made = job(data, tmp_path / "alone")
    build_plan(made)
    code = (
        "import sys; from pipeline.plan import Job, plan_items; from pipeline.fused import Fused;"
        "from schemas.records import Planned; job = Job.model_validate_json(sys.argv[1]);"
        "models = Fused(job.config); assert 'sklearn' not in sys.modules; models.load();"
        "assert 'sklearn.cluster' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, made.model_dump_json()], check=True)
