"""Verify: planted damage of each kind is found, and the right shard is named."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import driver
from flows.executors import Inline
from flows.jobs import make_jobs
from flows.progress import Quiet
from manifests.verify import verify
from pipeline.presets import ShardConfig, configure

SHARD = "hcstvg-train-000001"


@pytest.fixture(scope="module")
def whole(tiny_root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "out"
    config = configure("lite").model_copy(update={"shard": ShardConfig(max_referents=2)})
    driver.run(make_jobs("hcstvg", tiny_root, out, config), Inline(), Quiet())
    return out


@pytest.fixture
def out(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"


def part(out: Path, table: str, name: str = SHARD) -> Path:
    return out / "manifests" / table / f"{name}.parquet"


def tar(out: Path, name: str = SHARD) -> Path:
    return out / "hcstvg" / "train" / "shards" / f"{name}.tar"


def edit(path: Path, change) -> None:
    table = pq.read_table(path, partitioning=None)
    pq.write_table(change(table), path)


def set_column(table: pa.Table, name: str, value) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(
        place, table.schema.field(name), pa.array([value] * len(table), table.schema.field(name).type)
    )


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(bytes(data))


def first_member(out: Path, name: str) -> int:
    rows = pq.read_table(part(out, "members"), partitioning=None).to_pylist()
    return next(r["offset"] for r in rows if r["name"] == name)


DAMAGE = {
    "tar missing": (lambda o: tar(o).unlink(), False, "the tar is missing"),
    "tar truncated": (lambda o: tar(o).write_bytes(tar(o).read_bytes()[:-1024]), False, "the manifest says"),
    "bit flip in a crop": (lambda o: flip(tar(o), first_member(o, "crop1.jpg") + 40), True, "sha256 differs"),
    "bit flip in a header": (lambda o: flip(tar(o), first_member(o, "crop1.jpg") - 500), True, "sha256 differs"),
    "part missing": (lambda o: part(o, "masks").unlink(), False, "cannot be read"),
    "part without footer": (lambda o: part(o, "qa").write_bytes(part(o, "qa").read_bytes()[:-8]), False, "cannot be read"),
    "rows lost": (lambda o: edit(part(o, "tracks"), lambda t: t.slice(1)), False, "rows, expected"),
    "orphan rows": (lambda o: edit(part(o, "qa"), lambda t: set_column(t, "referent_id", "nobody")), False, "rows without a referent"),
    "referent without a clip": (lambda o: edit(part(o, "clips"), lambda t: t.slice(1)), False, "is not in clips"),
    "duplicated key": (lambda o: edit(part(o, "referents"), lambda t: pa.concat_tables([t, t.slice(0, 1)])), False, "appears 2 times"),
    "future schema": (
        lambda o: edit(part(o, "tsf"), lambda t: t.replace_schema_metadata({"schema_version": "99", "table": "tsf"})),
        False, "schema version 99",
    ),
    "column dropped": (lambda o: edit(part(o, "clips"), lambda t: t.drop_columns(["fps"])), False, "columns differ"),
    "features dropped": (lambda o: edit(part(o, "tsf_features"), lambda t: t.drop_columns(["feature"])), False, "columns differ"),
    "rows of another shard": (
        lambda o: shutil.copy(part(o, "clips", "hcstvg-train-000000"), part(o, "clips")), False, "rows of another shard",
    ),
    "box outside its frame": (lambda o: edit(part(o, "tracks"), lambda t: set_column(t, "x2", 9999.0)), True, "box outside"),
    "representative not in the track": (
        lambda o: edit(part(o, "tracks"), lambda t: set_column(t, "kept", False)), True, "not a kept frame",
    ),
    "swapped shards": (
        lambda o: (lambda a, b: (tar(o).write_bytes(b), tar(o, "hcstvg-train-000000").write_bytes(a)))(
            tar(o).read_bytes(), tar(o, "hcstvg-train-000000").read_bytes()
        ), False, "the manifest says",
    ),
}  # fmt: skip


def test_an_untouched_output_is_whole(out):
    report = verify(out, deep=True)
    assert report.problems == []
    assert (report.shards, report.samples) == (3, 5)
    assert report.bytes == sum(p.stat().st_size for p in out.rglob("*.tar"))


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_the_shard_named(out, kind):
    damage, deep, words = DAMAGE[kind]
    damage(out)
    problems = verify(out, deep=deep).problems
    assert any(words in str(p) for p in problems), problems
    assert any(p.shard == SHARD for p in problems)


def test_an_uncommitted_file_is_reported_as_garbage(out):
    part(out, "shards").unlink()
    problems = verify(out).problems
    assert any("not committed" in p.what and p.shard == SHARD for p in problems)
    assert any("planned but not committed" in p.what and p.shard == SHARD for p in problems)


def test_a_missing_last_shard_is_noticed(out):
    name = "hcstvg-train-000002"
    for path in [*out.rglob(f"{name}.parquet"), tar(out, name)]:
        path.unlink()
    assert [(p.shard, p.what.split(":")[0]) for p in verify(out).problems] == [(name, "is planned but not committed")]


def test_a_folder_without_manifests_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not an output of sparrow"):
        verify(tmp_path)
