"""One shard, looked at alone: its tables, its tar, and what the output as a whole has to know of it."""

from dataclasses import dataclass, field
from pathlib import Path

from manifests.verify.deep import check_tar
from manifests.verify.fast import Parts, check_tables
from manifests.verify.files import check_ends, feature_length, load_parts
from manifests.verify.problem import Problem
from schemas.members import MemberError, open_regular, tar_path
from schemas.records import KEY

NEEDED = ("path", "source", "split", "bytes", "sha256", "n_samples", "parts_sha256")
"""Columns of `shards` that a check needs."""


@dataclass(slots=True)
class CheckedShard:
    """What was found in a shard. keys: ids of its clips and referents; feature: length of a feature, 0 if unknown.
    whole: its tables could be read."""

    name: str
    problems: list[Problem] = field(default_factory=list)
    whole: bool = False
    samples: int = 0
    members: int = 0
    bytes: int = 0
    feature: int = 0
    keys: list[str] = field(default_factory=list)


def check_shard(out: Path, name: str, deep: bool) -> CheckedShard:
    """Never raises for what is wrong with the shard: a damaged file may make any library fail in any way, and that is
    then a problem of this shard."""
    found = CheckedShard(name)
    try:
        _check(out, found, deep)
    except Exception as error:  # noqa: BLE001 - a damaged file may make any library fail in any way
        what = f"cannot be checked: {type(error).__name__}: {str(error)[:160]}"
        found.problems.append(Problem(name, "manifests", what))
    return found


def _check(out: Path, found: CheckedShard, deep: bool) -> None:
    name, problems = found.name, found.problems
    if not KEY.fullmatch(name):
        problems.append(Problem(name, "manifests/shards", "is not a name of a shard"))
        return
    parts, wrong = load_parts(out, name, whole=deep)
    problems += wrong
    if parts is None:
        return
    row = parts["shards"].to_pylist()[0]
    if nulls := sorted(column for column in NEEDED if row.get(column) is None):
        problems.append(Problem(name, "manifests/shards", f"{', '.join(nulls)}: NULL"))
        return
    found.whole = True
    found.samples, found.bytes = row["n_samples"], row["bytes"]
    found.members = len(parts["members"])
    found.feature = feature_length(out, name)
    for table, column in (("referents", "referent_id"), ("clips", "clip_id")):
        found.keys += sorted({f"{column} {key}" for key in parts[table][column].to_pylist()})
    problems += check_tables(name, row, parts)
    problems += _check_tar(out, name, row, parts, deep)


def _check_tar(out: Path, name: str, row: dict, parts: Parts, deep: bool) -> list[Problem]:
    """What is wrong with the tar of a shard, and between it and its tables."""
    where = str(row["path"])
    try:
        tar = tar_path(out, row["path"])
        with open_regular(tar):
            pass
        found = check_ends(name, tar, row, parts["members"])
        return found + (check_tar(name, tar, row, parts) if deep else [])
    except FileNotFoundError:
        return [Problem(name, where, "the tar is missing", kind="bytes")]
    except MemberError as error:
        return [Problem(name, where, f"is not read: {error}", kind="bytes")]
