"""Verify: is what the `shards` table promises really there, and is nothing there that it does not name?

Fast: files, sizes, digests of the parts, schemas, counts, keys, references between tables. Deep: every byte of every
tar, every member decoded and compared with its rows, boxes inside frames, representatives inside tracks. Problems are
values that name the shard and the rows; nothing here repairs or deletes (`sparrow repair` does).
"""

from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

from manifests.verify.deep import check_tar
from manifests.verify.fast import Parts, check_tables
from manifests.verify.files import (
    check_ends,
    check_plans,
    check_runs,
    feature_length,
    garbage,
    load_parts,
)
from manifests.verify.problem import Problem, Report
from schemas.members import MemberError, open_regular, tar_path
from schemas.parts import part_names, strays
from schemas.records import KEY

__all__ = ["Problem", "Report", "verify"]


def verify(
    out: Path,
    *,
    deep: bool = False,
    tick: Callable[[int], None] | None = None,
    only: Collection[str] | None = None,
) -> Report:
    """Check an output. FileNotFoundError if it holds no manifests at all.

    only: look into these shards and no others; what concerns the output as a whole is checked in any case.
    """
    folder = out / "manifests" / "shards"
    if not folder.is_dir():
        raise FileNotFoundError(f"{out} is not an output of sparrow: there is no {folder}")
    report = Report(deep=deep)
    problems = report.problems
    names, dims = part_names(out), dict[str, int]()
    owners: dict[str, list[str]] = {}
    for name in names:
        if only is not None and name not in only:
            continue
        if tick:
            tick(1)
        if not KEY.fullmatch(name):
            problems.append(Problem(name, "manifests/shards", "is not a name of a shard"))
            continue
        parts, found = load_parts(out, name, whole=deep)
        problems += found
        if parts is None:
            continue
        row = parts["shards"].to_pylist()[0]
        if nulls := sorted(column for column in NEEDED if row.get(column) is None):
            what = f"{', '.join(nulls)}: NULL"
            problems.append(Problem(name, "manifests/shards", what))
            continue
        report.shards += 1
        report.samples += row["n_samples"]
        report.members += len(parts["members"])
        report.bytes += row["bytes"]
        dims[name] = feature_length(out, name)
        for column in ("referent_id", "clip_id"):
            table = {"referent_id": "referents", "clip_id": "clips"}[column]
            for key in set(parts[table][column].to_pylist()):
                owners.setdefault(f"{column} {key}", []).append(name)
        problems += check_tables(name, row, parts)
        problems += _check_bytes(out, name, row, parts, deep)
    for key, where in owners.items():
        for name in where[1:]:
            problems.append(
                Problem(name, "manifests", f"the key is in {len(where)} shards", (key,), len(where))
            )
    common = Counter(dims.values()).most_common(1)
    for name, dim in dims.items():
        if dim != common[0][0]:
            what = (
                f"features of {dim} numbers, other shards have {common[0][0]}: no query reads both"
            )
            problems.append(Problem(name, "manifests/tsf_features", what))
    problems += check_plans(out, names)
    problems += check_runs(out)
    problems += garbage(out, set(names))
    report.strays = [path.relative_to(out).as_posix() for path in strays(out)]
    return report


NEEDED = ("path", "source", "split", "bytes", "sha256", "n_samples", "parts_sha256")
"""Columns of `shards` that a check needs."""


def _check_bytes(out: Path, name: str, row: dict, parts: Parts, deep: bool) -> list[Problem]:
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
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        what = f"cannot be checked: {type(error).__name__}: {str(error)[:160]}"
        return [Problem(name, where, what)]
