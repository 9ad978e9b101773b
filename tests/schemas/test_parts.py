"""Names of an output's files, and paths that DuckDB would take for patterns."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.parts import (
    check_output_path,
    escaped,
    is_part,
    part_names,
    part_paths,
    plan_paths,
    read_parquet,
    split_of,
    strays,
)

STRAYS = ("._hcstvg-train-000000.parquet", "hcstvg-train-000000 (copy).parquet", "x.parquet")


@pytest.fixture
def out(tmp_path) -> Path:
    place = tmp_path / "out"
    for folder, names in {
        "manifests/shards": ("hcstvg-train-000001", "hcstvg-train-000000", "a2d-test-000000"),
        "manifests/runs": ("hcstvg-train-20260101T000000Z-0a1b2c",),
        "plan": ("hcstvg-train", "a2d-test"),
    }.items():
        (place / folder).mkdir(parents=True)
        for name in (*names, *(stray.removesuffix(".parquet") for stray in STRAYS[:2])):
            (place / folder / f"{name}.parquet").touch()
    (place / "manifests/shards/x.parquet").touch()
    (place / "manifests/shards/.hcstvg-train-000002.77.tmp").touch()
    return place


def test_only_files_with_the_names_of_parts_are_parts(out):
    assert part_names(out) == ["a2d-test-000000", "hcstvg-train-000000", "hcstvg-train-000001"]
    assert part_names(out, "shards", "hcstvg-train") == part_names(out)[1:]
    assert part_names(out, "clips") == []
    assert [path.stem for path in part_paths(out, "runs")] == [
        "hcstvg-train-20260101T000000Z-0a1b2c"
    ]
    assert [path.stem for path in plan_paths(out)] == ["a2d-test", "hcstvg-train"]
    assert split_of("vid_sentence-valid_u-000123") == "vid_sentence-valid_u"
    assert [is_part(name) for name in ("a-b-000000.parquet", *STRAYS)] == [
        True,
        False,
        False,
        False,
    ]
    found = {path.relative_to(out).as_posix() for path in strays(out)}
    assert found == {
        f"{folder}/{name}"
        for folder in ("manifests/shards", "manifests/runs", "plan")
        for name in STRAYS[:2]
    } | {"manifests/shards/x.parquet"}


ODD = [
    "x[1]",
    "run[12]",
    "a*b",
    "what?",
    "[a-z]",
    "[[]]",
    "it's",
    "source=foo",
    "a b",
    "[!x]",
    "{a,b}",
    "**",
]


@pytest.mark.parametrize("name", ODD)
def test_a_path_is_itself_and_no_pattern_or_partition(tmp_path, name):
    """Beside it lie folders that the name would fit as a pattern."""
    for other in (name, "x1", "run1", "run2", "a-b", "whats", "q", "[]", "a", "b", "y"):
        folder = tmp_path / other / "split=bar"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"of": [other]}), folder / "p.parquet")
    path = tmp_path / name / "split=bar" / "p.parquet"
    assert duckdb.sql(f"SELECT * FROM {read_parquet([path])}").fetchall() == [(name,)]


def test_escaping_is_by_classes_of_one_character():
    assert escaped("/a/x[1]/b*?") == "/a/x[[]1]/b[*][?]"


def test_a_backslash_is_refused():
    check_output_path("/a/b c")
    with pytest.raises(ValueError, match="cannot have a backslash"):
        check_output_path("/a/b\\c")
