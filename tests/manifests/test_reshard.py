"""Reshard: other shards, the same members and rows; one atomic step; later runs find what they need."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import driver
from flows.cli import app
from flows.executors import Inline
from flows.jobs import make_jobs
from flows.progress import Quiet
from flows.repair import repair
from flows.reshard import parse_size, reshard
from manifests.catalog import query
from manifests.parts import read_rows
from manifests.reshard import PARTS, Unit, finish, group, pending
from manifests.verify import verify
from pipeline.presets import ShardConfig, configure
from tests.manifests import damage as do
from tests.manifests.test_repair import QUICK

NAME = "hcstvg-train"


@pytest.fixture(scope="module")
def whole(tiny_root, tmp_path_factory) -> Path:
    """Seven rows of annotation: clips 0 1 | 2, 3 without media | 4, row 5 malformed, 6; so five samples."""
    base = tmp_path_factory.mktemp("reshard")
    shutil.copytree(tiny_root, base / "data", copy_function=shutil.copy2)
    driver.run([job(base / "out")], Inline(), Quiet())
    return base / "out"


def job(out: Path):
    config = configure("lite").model_copy(update={"shard": ShardConfig(max_referents=2)})
    return make_jobs("hcstvg", out.parent / "data", out, config, source_sets=QUICK)[0]


@pytest.fixture
def out(whole) -> Iterator[Path]:
    with do.restored(whole):
        yield whole


@pytest.fixture(scope="module")
def by_ones(whole) -> dict[str, bytes]:
    """The tree of a reshard to one sample each that nobody disturbed."""
    with do.restored(whole):
        cut(whole, count=1)
        return do.tree(whole)


def cut(out: Path, **limits: int):
    return reshard(out, sources=[], progress=Quiet(), **limits)[0]


def content(out: Path) -> dict[str, list[dict]]:
    """All rows, without where they are."""
    found = {}
    for table in PARTS:
        parts = sorted((out / "manifests" / table).glob("*.parquet"))
        rows = [
            row | {"offset": None} for part in parts for row in read_rows(out, table, part.stem)
        ]
        found[table] = sorted(rows, key=repr)
    return found


def per_shard(out: Path) -> list[tuple]:
    rows = query(
        out, "SELECT shard, n_samples, n_quarantined, n_referents FROM shards ORDER BY shard"
    )
    return [tuple(row.values()) for row in rows]


def test_by_count_members_and_rows_stay(out):
    before = content(out)
    done = cut(out, count=3)
    assert (done.name, done.before, done.after, done.samples) == (NAME, 3, 2, 5)
    assert content(out) == before
    assert per_shard(out) == [(f"{NAME}-000000", 3, 1, 4), (f"{NAME}-000001", 2, 1, 2)]
    assert verify(out, deep=True).problems == []
    assert sorted(p.name for p in out.rglob("*.tar")) == [f"{NAME}-00000{i}.tar" for i in range(2)]
    assert list((out / ".staging").iterdir()) == []


def test_by_size_no_tar_is_larger(out):
    before = content(out)
    largest = max(p.stat().st_size for p in out.rglob("*.tar")) - 10240
    cut(out, size=largest)
    sizes = [p.stat().st_size for p in out.rglob("*.tar")]
    assert max(sizes) <= largest
    assert len(sizes) == len(per_shard(out)) > 3
    assert content(out) == before
    assert verify(out, deep=True).problems == []


def test_the_way_there_does_not_matter(out):
    """Straight to two shards, or through five: the same bytes, also of the plan."""
    cut(out, count=3)
    straight, plan = do.tree(out), (out / "plan" / f"{NAME}.parquet").read_bytes()
    assert cut(out, count=1).after == 5
    assert cut(out, count=3).before == 5
    assert do.tree(out) == straight
    assert (out / "plan" / f"{NAME}.parquet").read_bytes() == plan


def test_nothing_is_written_where_the_shards_are_so_already(out):
    cut(out, count=3)
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*-0000*")}
    assert cut(out, count=3).after == 2
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*-0000*")} == stamps


def test_the_curate_that_made_it_finds_it_finished(out):
    cut(out, count=3)
    (again,) = driver.run([job(out)], Inline(), Quiet())
    assert (again.shards_skipped, again.shards_done, again.clips_done) == (2, 0, 0)


def test_repair_and_retry_work_on_the_new_shards(out):
    cut(out, count=3)
    before = do.tree(out)
    do.tar(out, f"{NAME}-000001").unlink()
    done = repair(out, Inline(), Quiet())
    assert (done.left, done.shards, done.curated) == ([], [f"{NAME}-000001"], 2)
    assert do.tree(out) == before
    data = out.parent / "data" / "part_1"
    shutil.copy2(data / "2_video.mp4", data / "3_video.mp4")
    try:
        (again,) = driver.retry(out, "retryable", Inline(), Quiet())
    finally:
        (data / "3_video.mp4").unlink()
    assert (again.shards_done, again.shards_skipped) == (1, 1)
    assert [row[1:] for row in per_shard(out)] == [(4, 0, 4), (2, 1, 2)]
    assert verify(out, deep=True).problems == []


class Killed(BaseException):
    """A kill, as seen from inside."""


@pytest.mark.parametrize(
    ("after", "by_repair"), [(0, False), (53, False), (57, False), (57, True), (59, False)]
)
def test_killed_in_the_middle_of_the_swap_it_is_finished_by_whoever_comes_next(
    out, by_ones, monkeypatch, after, by_repair
):
    before = content(out)
    left, replace = [after], os.replace

    def dying(source, target):
        if pending(out, NAME):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
        replace(source, target)

    monkeypatch.setattr("manifests.reshard.os.replace", dying)
    with pytest.raises(Killed):
        cut(out, count=1)
    monkeypatch.undo()
    assert any("a reshard was interrupted" in p.what for p in verify(out).problems)
    if by_repair:
        assert repair(out, Inline(), Quiet()).problems == []
    (run,) = driver.run([job(out)], Inline(), Quiet())
    assert (run.shards_skipped, run.clips_done) == (5, 0)
    assert do.tree(out) == by_ones
    assert content(out) == before
    assert not pending(out, NAME)


@pytest.mark.parametrize("marker", [b"", b'["hcstvg-tr', b"{}", b"[]"])
@pytest.mark.parametrize("again", ["reshard", "curate", "repair"])
def test_a_marker_that_is_not_whole_stops_nobody(out, by_ones, marker, again):
    """As a full disk or a loss of power may have left it: before the old shards are withdrawn, nothing has happened."""
    before = do.tree(out)
    stage = out / ".staging" / f"reshard-{NAME}"
    stage.mkdir(parents=True)
    (stage / "ready").write_bytes(marker)
    if again == "reshard":
        cut(out, count=1)
        assert do.tree(out) == by_ones
        return
    if again == "curate":
        driver.run([job(out)], Inline(), Quiet())
    else:
        assert repair(out, Inline(), Quiet()).problems == []
    assert do.tree(out) == before
    assert not stage.exists()


def test_killed_while_it_builds_nothing_has_happened(out, monkeypatch):
    before = do.tree(out)
    monkeypatch.setattr("manifests.reshard.ready", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        cut(out, count=1)
    there = {name: data for name, data in do.tree(out).items() if not name.startswith(".staging")}
    assert there == before
    assert verify(out).problems == []
    assert not finish(out, NAME)  # only sweeps
    assert do.tree(out) == before


def test_what_is_not_whole_is_refused_and_left_alone(out):
    do.flip(do.tar(out, f"{NAME}-000002"), do.tar(out, f"{NAME}-000002").stat().st_size // 2)
    before = do.tree(out)
    with pytest.raises(ValueError, match="is not what the manifest says: `sparrow repair`"):
        cut(out, count=1)
    do.part(out, "shards", f"{NAME}-000001").unlink()
    with pytest.raises(ValueError, match="Mend it first: `sparrow curate` again"):
        cut(out, count=1)
    finish(out, NAME)
    after = do.tree(out)
    assert {k: v for k, v in before.items() if k in after} == after
    assert before.keys() - after.keys() == {f"manifests/shards/{NAME}-000001.parquet"}


def test_shards_of_another_code_version_are_refused(out):
    do.put(out, "shards", "plan_hash", "other")
    with pytest.raises(ValueError, match="another code version"):
        cut(out, count=1)


def test_a_clip_over_the_limit_gets_a_shard_of_its_own():
    units = [Unit("s", f"c{i}", n, n, n * 1000) for i, n in enumerate([1, 5, 1, 1])]
    units.insert(2, Unit("s", "", 0, 0, 0))
    assert [[u.clip_id for u in g] for g in group(units, count=2)] == [
        ["c0"],
        ["c1", ""],
        ["c2", "c3"],
    ]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500_000_000),
        ("1.5 GiB", 3 << 29),
        ("7", 7),
        ("64k", 64_000),
        ("256mib", 256 << 20),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1GB", "0", "1TBB", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="500MB, 1GB or 256MiB"):
        parse_size(text)


def test_on_the_command_line(out):
    cli = CliRunner()
    none = cli.invoke(app, ["reshard", str(out)])
    assert "say how: --size 1GB, --count 1000" in str(none.exception)
    other = cli.invoke(app, ["reshard", str(out), "--count", "3", "--source", "lasot"])
    assert f"has nothing of lasot: it has {NAME}" in str(other.exception)
    done = cli.invoke(app, ["reshard", str(out), "--count", "3"])
    assert done.exit_code == 0, done.output
    assert len(per_shard(out)) == 2
