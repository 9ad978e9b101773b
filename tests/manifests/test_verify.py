"""Verify: planted damage of every kind is found, and the shard and the rows are named."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from manifests.verify import verify
from schemas import SCHEMA_VERSION, checksum, tables
from tests.manifests import damage as do
from tests.manifests.damage import KEY, OTHER, SHARD, part, tar
from tests.manifests.made import make_whole

CLIP = "hcstvg-train-v"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_whole(tmp_path_factory.mktemp("verify") / "out", ("hcstvg", "a2d", "mevis"))


@pytest.fixture
def out(whole) -> Iterator[Path]:
    """An output to damage: put back afterwards."""
    with do.restored(whole):
        yield whole


class Case(NamedTuple):
    damage: object
    words: str
    rows: str = ""
    """Part of the rows that the problem must name; empty where a file as a whole is wrong."""
    deep: bool = False


def metadata(version: str):
    return lambda t: t.replace_schema_metadata({"schema_version": version, "table": "tsf"})


def without(table: str, column: str, value: str):
    """Rows that have the value, lost."""
    return lambda o: do.edit(
        o, table, lambda t: t.filter(pc.not_equal(pc.cast(t[column], pa.string()), value))
    )


def cast(column: str, kind: pa.DataType):
    def change(t: pa.Table) -> pa.Table:
        return t.set_column(
            t.schema.get_field_index(column), pa.field(column, kind), t[column].cast(kind)
        )

    return change


def plan(out: Path, shards: int) -> None:
    """A plan file, as far as verify reads it."""
    (out / "plan").mkdir(exist_ok=True)
    path = out / "plan" / "hcstvg-train.parquet"
    with pq.ParquetWriter(path, pa.schema([])) as writer:
        checksum.add_metadata(writer, {"counts": json.dumps({"shards": shards})})
    checksum.stamp(path)


def second_copy(out: Path) -> None:
    """The shard again under another number, consistent in itself."""
    for table in (p.name for p in (out / "manifests").iterdir() if p.name != "runs"):
        t = pq.read_table(part(out, table), partitioning=None)
        values = [r | {"shard": "hcstvg-train-000001"} for r in t.to_pylist()]
        if table == "shards":
            values[0] |= {"index": 1, "path": "hcstvg/train/shards/hcstvg-train-000001.tar"}
        copy = part(out, table, "hcstvg-train-000001")
        tables.write_table(copy, pa.Table.from_pylist(values, t.schema), table)
    shutil.copy(tar(out), tar(out, "hcstvg-train-000001"))


def masks_of_nothing(data: bytes) -> bytes:
    """As long, and JSON, but the runs do not add up."""
    masks = json.loads(data)
    first = next(iter(masks.values()))
    first["counts"] = "0" * len(first["counts"])
    return json.dumps(masks, separators=(",", ":"), sort_keys=True).encode()


CASES = {
    # files
    "tar missing": Case(lambda o: tar(o).unlink(), "the tar is missing"),
    "tar truncated": Case(
        lambda o: tar(o).write_bytes(tar(o).read_bytes()[:-1024]), "the manifest says"
    ),
    "tar cut in the middle": Case(
        lambda o: tar(o).write_bytes(tar(o).read_bytes()[:9000]),
        "sha256 differs",
        f"{KEY}.",
        deep=True,
    ),
    "tar with bytes behind its end": Case(
        lambda o: tar(o).write_bytes(tar(o).read_bytes() + bytes(512)), "the manifest says"
    ),
    "tars of two shards swapped": Case(
        lambda o: do.swap(tar(o), tar(o, OTHER)), "where the manifest has", f"{KEY}.json"
    ),
    "bit flip in a crop": Case(
        lambda o: do.flip(tar(o), do.offset(o, "crop1.jpg") + 40),
        "sha256 differs",
        f"{KEY}.crop1.jpg",
        deep=True,
    ),
    "bit flip in the media": Case(
        lambda o: do.flip(tar(o), do.offset(o, "mp4") + 999),
        "sha256 differs",
        f"{KEY}.mp4",
        deep=True,
    ),
    "bit flip in a header": Case(
        lambda o: do.flip(tar(o), do.offset(o, "crop1.jpg") - 512 + 3),
        "not in the tar where",
        f"{KEY}.crop1.jpg",
        deep=True,
    ),
    "bit flip in the padding": Case(lambda o: do.flip(tar(o), -600), "sha256 differs", deep=True),
    "part missing": Case(lambda o: part(o, "masks").unlink(), "the part is missing"),
    "part of no bytes": Case(lambda o: part(o, "masks").write_bytes(b""), "cannot be read"),
    "part without its footer": Case(
        lambda o: part(o, "qa").write_bytes(part(o, "qa").read_bytes()[:-8]), "cannot be read"
    ),
    "bit flip in a part": Case(lambda o: do.flip(part(o, "tracks"), 700), "manifests/tracks"),
    "parts of two shards swapped": Case(
        lambda o: do.swap(part(o, "qa"), part(o, "qa", OTHER)), "rows of another shard"
    ),
    "part of another table": Case(
        lambda o: shutil.copy(part(o, "qa"), part(o, "tsf")), "columns differ"
    ),
    "uncommitted tar": Case(
        lambda o: shutil.copy(tar(o), tar(o, "hcstvg-train-000007")),
        "not committed: no row of shards names it",
    ),
    "commit withdrawn": Case(
        lambda o: part(o, "shards").unlink(), "not committed: no row of shards names it"
    ),
    "planned shard missing": Case(lambda o: plan(o, 2), "is planned but not committed"),
    "shard there twice": Case(second_copy, "the key is in 2 shards", KEY),
    # schemas
    "future schema version": Case(lambda o: do.edit(o, "tsf", metadata("99")), "schema version 99"),
    "no schema version": Case(
        lambda o: do.edit(o, "tsf", lambda t: t.replace_schema_metadata({})), "schema version none"
    ),
    "column lost": Case(lambda o: do.edit(o, "clips", lambda t: t.drop_columns(["fps"])), "no fps"),
    "column of another type": Case(
        lambda o: do.edit(o, "tracks", cast("frame", pa.int64())), "frame is int64, not int32"
    ),
    "features of another length": Case(
        lambda o: do.edit(
            o, "tsf_features", cast("feature", pa.list_(pa.field("element", pa.float16())))
        ),
        "columns differ",
    ),
    # Parquet edited with care: the schema is right, the digest is not
    "caption edited": Case(
        lambda o: do.put(o, "referents", "caption", "a cat", seal=False),
        "has changed since it was committed",
    ),
    "caption edited, deep": Case(
        lambda o: do.put(o, "referents", "caption", "a cat", seal=False),
        "caption differs from referents",
        f"{KEY}.json",
        deep=True,
    ),
    "message of a drop edited": Case(
        lambda o: do.edit(
            o,
            "quarantine",
            lambda t: t.replace_schema_metadata({**t.schema.metadata, "by": "hand"}),
            seal=False,
        ),
        "has changed since it was committed",
    ),
    # rows
    "rows lost": Case(
        lambda o: do.edit(o, "tracks", lambda t: t.slice(1)),
        "rows are missing or too many",
        f"{KEY}: 11 of 12",
    ),
    "rows in another frame": Case(
        lambda o: do.put(o, "tracks", "frame", 40, 3), "frames outside the clip", f"{KEY} frame 40"
    ),
    "rows twice": Case(
        lambda o: do.edit(o, "tracks", lambda t: pa.concat_tables([t, t.slice(3, 1)])),
        "appears 2 times",
        f"{KEY} frame 3",
    ),
    "key twice": Case(
        lambda o: do.edit(o, "referents", lambda t: pa.concat_tables([t, t.slice(0, 1)])),
        "appears 2 times",
        KEY,
    ),
    "no key": Case(lambda o: do.put(o, "qa", "qa_id", None), "NULL in a key"),
    "key that leaves the folder": Case(
        lambda o: do.put(o, "referents", "referent_id", "../../x"), "is not a key", "../../x"
    ),
    "orphan rows": Case(
        lambda o: do.put(o, "qa", "referent_id", "nobody"), "rows without a referent", "nobody"
    ),
    "referent without a clip": Case(
        without("clips", "clip_id", CLIP), "its clip is not in clips", KEY
    ),
    "clip without a referent": Case(
        lambda o: do.rewrite(o, "clips", lambda v: v.append(v[0] | {"clip_id": "lonely"})),
        "a clip without a referent",
        "lonely",
    ),
    "rows of another clip": Case(
        lambda o: do.put(o, "masks", "clip_id", "elsewhere"),
        "not the referent's",
        f"{KEY} has elsewhere",
    ),
    "rows of another source": Case(
        lambda o: do.put(o, "qa", "source", "lasot"), "rows of another source"
    ),
    "features lost": Case(
        lambda o: do.edit(o, "tsf_features", lambda t: t.slice(1)), "ranks differ", f"{KEY} rank 0"
    ),
    "kept and dropped at once": Case(
        lambda o: do.rewrite(
            o,
            "quarantine",
            lambda v: v.append(
                dict.fromkeys(pq.read_schema(part(o, "quarantine")).names)
                | {"source": "hcstvg", "split": "train", "referent_id": KEY, "shard": SHARD}
            ),
        ),
        "dropped here, and kept",
        KEY,
    ),
    "counts of the shard": Case(
        lambda o: do.put(o, "shards", "n_samples", 3), "n_samples is 3, the part has 2 rows"
    ),
    "path that leaves the output": Case(
        lambda o: do.put(o, "shards", "path", "../../etc/passwd"), "its tar cannot be"
    ),
    "number of another shard": Case(
        lambda o: do.put(o, "shards", "index", 5), "source, split and index say hcstvg-train-000005"
    ),
    # members
    "member row lost": Case(
        without("members", "name", "crop2.jpg"), "members are missing", f"{KEY}.crop2.jpg"
    ),
    "member row lost, deep": Case(
        without("members", "name", "mp4"),
        "in the tar, and not in the manifest",
        f"{KEY}.mp4",
        deep=True,
    ),
    "member at another place": Case(
        lambda o: do.put(o, "members", "offset", 1024, 1),
        "overlaps the one before",
        f"{KEY}.track.npy",
    ),
    "member behind the end": Case(
        lambda o: do.put(o, "members", "size", 1 << 30, -1),
        "ends behind the end of the tar",
        ".mp4",
    ),
    "member of another size": Case(
        lambda o: do.put(o, "members", "size", 12), "not in the tar where", f"{KEY}.json", deep=True
    ),
    # what the bytes mean; every digest fits
    "crop is no picture": Case(
        lambda o: do.spoil(o, "crop0.jpg", lambda d: bytes(len(d))),
        "not a picture of a kind that is read",
        f"{KEY}.crop0.jpg",
        deep=True,
    ),
    "video cannot be decoded": Case(
        lambda o: do.spoil(o, "mp4", lambda d: bytes(len(d))),
        "cannot be decoded",
        f"{KEY}.mp4",
        deep=True,
    ),
    "track cannot be read": Case(
        lambda o: do.spoil(o, "track.npy", lambda d: bytes(len(d))),
        "cannot be decoded",
        f"{KEY}.track.npy",
        deep=True,
    ),
    "features not finite": Case(
        lambda o: do.spoil(o, "tsf.npy", lambda d: d[:-2] + b"\x00\x7c"),
        "not finite",
        f"{KEY}.tsf.npy",
        deep=True,
    ),
    "features of the table differ": Case(
        lambda o: do.spoil(o, "tsf.npy", lambda d: d[:-2] + b"\x00\x3c"),
        "differ from tsf_features",
        f"{KEY}.tsf.npy",
        deep=True,
    ),
    "masks that do not add up": Case(
        lambda o: do.spoil(o, "masks.json", masks_of_nothing),
        "cannot be decoded: RLE",
        f"{KEY}.masks.json",
        deep=True,
    ),
    "mask row that does not add up": Case(
        lambda o: do.put(o, "masks", "counts", "0", 2), "does not add up", f"{KEY} frame", deep=True
    ),
    "box outside its frame": Case(
        lambda o: do.put(o, "tracks", "x2", 9999.0, 2), "box outside", f"{KEY} frame 2", deep=True
    ),
    "box without a side": Case(
        lambda o: do.put(o, "tsf", "y1", None), "box outside", f"{KEY} frame 0", deep=True
    ),
    "track of another box": Case(
        lambda o: do.put(o, "tracks", "x1", 6.0, 2),
        "x1 differs from tracks, first in frame 2",
        f"{KEY}.track.npy",
        deep=True,
    ),
    "representative of a dropped frame": Case(
        lambda o: do.put(o, "tracks", "kept", False, 1),
        "not a kept frame",
        f"{KEY} frame 1",
        deep=True,
    ),
    "answer edited": Case(
        lambda o: do.put(o, "qa", "answer", "no"),
        "answer differs from qa",
        f"{KEY}.json",
        deep=True,
    ),
    "licence edited": Case(
        lambda o: do.put(o, "clips", "licence", "free"),
        "licence differs from clips",
        f"{KEY}.json",
        deep=True,
    ),
}


def test_an_untouched_output_is_whole(out):
    report = verify(out, deep=True)
    assert report.problems == []
    assert (report.shards, report.samples) == (3, 6)
    assert report.bytes == sum(p.stat().st_size for p in out.rglob("*.tar"))


@pytest.mark.parametrize("kind", CASES)
def test_damage_is_found_and_shard_and_rows_are_named(out, kind):
    case = CASES[kind]
    case.damage(out)
    problems = verify(out, deep=case.deep).problems
    matching = [p for p in problems if case.words in str(p) and case.rows in ", ".join(p.rows)]
    assert matching, [str(p) for p in problems]
    assert matching[0].shard.startswith("hcstvg-train-00000")
    assert not case.rows or matching[0].count >= len(matching[0].rows) > 0


def test_deep_finds_what_fast_does_and_leaves_the_other_shards_alone(out):
    """One shard is wrong in its tables and in its bytes: nobody else is blamed, and nothing stops at the first."""
    do.put(out, "tracks", "frame", 40, 3, seal=False)
    do.flip(tar(out), do.offset(out, "crop1.jpg") + 40)
    fast, deep = verify(out).problems, verify(out, deep=True).problems
    assert {p.shard for p in deep} == {SHARD}
    assert set(fast) < set(deep)
    assert {p.kind for p in deep} == {"rows", "bytes"}


def test_features_of_another_length_than_the_other_shards(out):
    """Two encoders in one output: each shard is sound, and no query reads both."""
    longer = pa.list_(pa.field("element", pa.float16()), 5)

    def change(t: pa.Table) -> pa.Table:
        values = pa.array([[0.0] * 5] * len(t), longer)
        return t.set_column(
            t.schema.get_field_index("feature"), pa.field("feature", longer), values
        )

    do.edit(out, "tsf_features", change)
    [problem] = verify(out).problems
    assert (problem.shard, "features of 5 numbers, other shards have" in problem.what) == (
        SHARD,
        True,
    )


def test_a_plan_and_a_run_that_cannot_be_read_are_named(out):
    plan(out, 1)
    assert verify(out).problems == []
    (out / "plan" / "hcstvg-train.parquet").write_bytes(b"PAR1")
    (out / "manifests" / "runs" / "r0.parquet").write_bytes(b"PAR1")
    assert [(p.where, p.kind) for p in verify(out).problems] == [
        ("plan/hcstvg-train.parquet", "missing"),
        ("manifests/runs/r0.parquet", "history"),
    ]


def test_only_some_shards_are_looked_into(out):
    tar(out).unlink()
    assert verify(out, only={OTHER}).problems == []
    assert verify(out, only={OTHER}).shards == 1


def test_many_rows_are_counted_and_five_named(out):
    do.edit(out, "tracks", lambda t: t.slice(0, 0))
    problem = next(p for p in verify(out).problems if "masks" in p.where)
    assert (len(problem.rows), problem.count) == (5, 9 + 12)
    assert str(problem).endswith("and 16 more)")


def test_the_report_is_json(out):
    tar(out).unlink()
    data = json.loads(json.dumps(verify(out).as_dict()))
    assert data["problems"][0] | {"what": ""} == {
        "shard": SHARD,
        "where": f"hcstvg/train/shards/{SHARD}.tar",
        "what": "",
        "rows": [],
        "count": 0,
        "kind": "bytes",
    }
    assert SCHEMA_VERSION >= 2


def test_a_folder_without_manifests_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not an output of sparrow"):
        verify(tmp_path)
