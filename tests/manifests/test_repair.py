"""Repair: just what is damaged is made again, and the tree is then that of an undamaged run, byte for byte."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from flows import driver
from flows.cli import app
from flows.executors import Inline
from flows.jobs import make_jobs
from flows.progress import Quiet
from flows.repair import repair
from manifests.verify import verify
from pipeline.presets import ShardConfig, configure
from tests.manifests import damage as do
from tests.manifests.damage import part, tar

SHARD = "hcstvg-train-000000"
"""Two clips of one referent each."""
QUICK = ["rules.boxes=annotation", "rules.max_kept_frames=2"]
"""No tracking, and few masks: what is tested is who does the work, not the work."""


@pytest.fixture(scope="module")
def whole(tiny_root, tmp_path_factory) -> Path:
    """Three shards of a source whose data can be touched."""
    base = tmp_path_factory.mktemp("repair")
    shutil.copytree(tiny_root, base / "data", copy_function=shutil.copy2)
    config = configure("lite").model_copy(update={"shard": ShardConfig(max_referents=2)})
    driver.run(
        make_jobs("hcstvg", base / "data", base / "out", config, source_sets=QUICK),
        Inline(),
        Quiet(),
    )
    return base / "out"


@pytest.fixture
def out(whole) -> Iterator[Path]:
    with do.restored(whole):
        yield whole


def second(out: Path, name: str) -> int:
    """Where a member of the shard's second clip lies."""
    keys = sorted({row["key"] for row in do.rows(out, "members")})
    return next(
        r["offset"] for r in do.rows(out, "members") if (r["key"], r["name"]) == (keys[1], name)
    )


def two_at_once(out: Path) -> None:
    tar(out).unlink()
    part(out, "qa", "hcstvg-train-000002").unlink()


def plan_of(out: Path) -> Path:
    return out / "plan" / "hcstvg-train.parquet"


def flip_middle(path: Path) -> None:
    do.flip(path, path.stat().st_size // 2)


def lose_plan_and_last_shard(out: Path) -> None:
    """No plan says that there were three shards, and no file of the third is left."""
    plan_of(out).unlink()
    for path in out.rglob("hcstvg-train-000002.*"):
        path.unlink()


class Case(NamedTuple):
    damage: object
    shards: int
    kept: int
    curated: int
    """Of the two clips of a shard; those of other shards are never curated again."""


CASES = {
    "bit flip in a member": Case(lambda o: do.flip(tar(o), second(o, "crop0.jpg") + 30), 1, 1, 1),
    "bit flip in a header": Case(lambda o: do.flip(tar(o), second(o, "crop0.jpg") - 510), 1, 2, 0),
    "tar cut in the second clip": Case(
        lambda o: os.truncate(tar(o), second(o, "tsf.npy")), 1, 1, 1
    ),
    "tar missing": Case(lambda o: tar(o).unlink(), 1, 0, 2),
    "tars swapped": Case(lambda o: do.swap(tar(o), tar(o, "hcstvg-train-000002")), 2, 0, 4),
    "part missing": Case(lambda o: part(o, "masks").unlink(), 1, 0, 2),
    "caption edited": Case(
        lambda o: do.put(o, "referents", "caption", "a cat", seal=False), 1, 0, 2
    ),
    "edited so that every digest fits": Case(
        lambda o: do.put(o, "referents", "caption", "a cat"), 1, 0, 2
    ),
    "commit unreadable": Case(lambda o: part(o, "shards").write_bytes(b"PAR1"), 1, 0, 2),
    "a tar that nothing names": Case(
        lambda o: shutil.copy(tar(o), tar(o, "hcstvg-train-000009")), 0, 0, 0
    ),
    "plan unreadable": Case(
        lambda o: (o / "plan" / "hcstvg-train.parquet").write_bytes(b"PAR1"), 0, 0, 0
    ),
    "two shards": Case(two_at_once, 2, 0, 4),
    "bit flip in the plan": Case(lambda o: flip_middle(plan_of(o)), 0, 0, 0),
    "bit flip in a commit": Case(lambda o: flip_middle(part(o, "shards")), 1, 0, 2),
    "bit flip in timings": Case(lambda o: flip_middle(part(o, "timings")), 1, 0, 2),
    "no path": Case(lambda o: do.put(o, "shards", "path", None), 1, 0, 2),
    "no size": Case(lambda o: do.put(o, "members", "size", None, 3), 1, 0, 2),
    "an absurd place": Case(lambda o: do.put(o, "members", "offset", -(1 << 62), 0), 1, 0, 2),
    "an absurd box": Case(lambda o: do.put(o, "tracks", "x1", float("inf"), 1), 1, 0, 2),
    "plan and shard lost": Case(lose_plan_and_last_shard, 1, 0, 2),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_tree_is_that_of_an_undamaged_run(out, kind):
    case, before = CASES[kind], do.tree(out)
    case.damage(out)
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*-000001.*")}
    done = repair(out, Inline(), Quiet())
    assert done.left == []
    assert (len(done.shards), done.kept, done.curated) == (case.shards, case.kept, case.curated)
    assert do.tree(out) == before
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps  # the others were not touched
    assert list((out / ".staging").iterdir()) == []


def test_nothing_is_done_where_nothing_is_wrong(out):
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")}
    done = repair(out, Inline(), Quiet())
    assert (done.problems, done.shards, done.curated) == ([], [], 0)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")} == before


def test_the_record_of_a_run_that_cannot_be_read_is_set_aside(out):
    path = next((out / "manifests" / "runs").iterdir())
    path.write_bytes(b"PAR1")
    assert repair(out, Inline(), Quiet()).left == []
    assert path.with_suffix(".damaged").exists()


def test_any_changed_bit_of_plan_commit_timings_or_runs_is_found(out):
    """Nothing but their own checksum vouches for these; the fast check compares it."""
    [run] = (out / "manifests" / "runs").iterdir()
    for path in (plan_of(out), part(out, "shards"), part(out, "timings"), run):
        data = path.read_bytes()
        for place in range(0, len(data), len(data) // 25):
            do.flip(path, place)
            named = {problem.where.split("/")[1] for problem in verify(out).problems}
            assert named & {path.name, path.parent.name}, (path, place)
            path.write_bytes(data)
    assert verify(out).problems == []


def test_a_run_record_with_another_bit_is_set_aside(out):
    path = next((out / "manifests" / "runs").iterdir())
    flip_middle(path)
    assert repair(out, Inline(), Quiet()).left == []
    assert path.with_suffix(".damaged").exists()


def test_without_its_data_nothing_is_touched_until_one_says_where_they_are(out):
    before = do.tree(out)
    tar(out).unlink()
    data, moved = out.parent / "data", out.parent / "moved"
    data.rename(moved)
    try:
        with pytest.raises(ValueError, match=r"data root .* is not there.*--data-root"):
            repair(out, Inline(), Quiet())
        assert part(out, "shards").exists()
        assert repair(out, Inline(), Quiet(), data_root=moved).left == []
        assert do.tree(out) == before
    finally:
        moved.rename(data)


def test_with_other_annotations_it_refuses_and_touches_nothing(out):
    tar(out).unlink()
    before = do.tree(out)
    file = out.parent / "data" / "anno_v2" / "train_v2.json"
    stat = file.stat()
    os.utime(file, ns=(1, 1))
    try:
        with pytest.raises(driver.PlanConflict, match="annotations have changed"):
            repair(out, Inline(), Quiet())
        assert do.tree(out) == before
    finally:
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_with_other_code_it_refuses_and_touches_nothing(out, monkeypatch):
    tar(out).unlink()
    before = do.tree(out)
    stages = driver.fused(
        make_jobs("hcstvg", out.parent / "data", out, configure("lite"))[0].config
    ).stages
    monkeypatch.setattr(type(stages), "digest", property(lambda self: "other"))
    with pytest.raises(driver.PlanConflict, match="another config, code version or weights"):
        repair(out, Inline(), Quiet())
    assert do.tree(out) == before


def test_an_output_whose_making_is_unknown_is_refused(out):
    (out / "plan" / "hcstvg-train.parquet").unlink()
    shutil.rmtree(out / "manifests" / "runs")
    tar(out).unlink()
    with pytest.raises(ValueError, match="how hcstvg-train was made is not known"):
        repair(out, Inline(), Quiet())


def test_on_the_command_line(out):
    do.flip(tar(out), second(out, "crop0.jpg") + 30)
    cli = CliRunner()
    dry = cli.invoke(app, ["repair", str(out), "--dry-run"])
    assert dry.exit_code == 1
    assert f"shards to make again: {SHARD}" in dry.stdout
    assert verify(out, deep=True).problems
    done = cli.invoke(app, ["repair", str(out), "--executor", "inline"])
    assert done.exit_code == 0, done.output
    assert "1 shards made again: 1 clips curated, 1 clips kept; 0 problems left" in done.stdout
    assert cli.invoke(app, ["repair", str(out), "--dry-run"]).exit_code == 0
