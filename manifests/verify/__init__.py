"""Verify: is what the `shards` table promises really there, and is nothing there that it does not name?

Fast: files, sizes, checksums of all tables and plans, schemas, counts, keys, references between tables. Deep: every
byte of every tar, every member decoded and compared with its rows, boxes inside frames, representatives inside tracks.
Problems are values that name the shard and the rows; nothing here writes (`sparrow repair` does).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from pathlib import Path

from manifests.verify.files import check_plans, check_runs, garbage
from manifests.verify.problem import Problem, Report
from manifests.verify.processes import check_shards
from manifests.verify.shard import CheckedShard
from schemas.parts import part_names, strays

__all__ = ["Problem", "Report", "verify"]


def verify(
    out: Path,
    *,
    deep: bool = False,
    tick: Callable[[int], None] | None = None,
    only: Collection[str] | None = None,
    workers: int = 1,
) -> Report:
    """Check an output. FileNotFoundError if it holds no manifests at all.

    only: look into these shards and no others; what concerns the output as a whole is checked in any case.
    workers: processes.
    """
    folder = out / "manifests" / "shards"
    if not folder.is_dir():
        raise FileNotFoundError(f"{out} is not an output of sparrow: there is no {folder}")
    names = part_names(out)
    wanted = [name for name in names if only is None or name in only]
    found: dict[str, CheckedShard] = {}
    for checked in check_shards(out, wanted, deep, workers):
        found[checked.name] = checked
        if tick:
            tick(1)
    shards = [found[name] for name in wanted]
    whole = [shard for shard in shards if shard.whole]
    return Report(
        shards=len(whole),
        samples=sum(shard.samples for shard in whole),
        members=sum(shard.members for shard in whole),
        bytes=sum(shard.bytes for shard in whole),
        deep=deep,
        problems=[
            *(problem for shard in shards for problem in shard.problems),
            *_between(whole),
            *check_plans(out, names),
            *check_runs(out),
            *garbage(out, set(names)),
        ],
        strays=[path.relative_to(out).as_posix() for path in strays(out)],
    )


def _between(shards: list[CheckedShard]) -> list[Problem]:
    """What is wrong between shards: keys that two of them have, features of different lengths."""
    problems = []
    owners: dict[str, list[str]] = defaultdict(list)
    for shard in shards:
        for key in shard.keys:
            owners[key].append(shard.name)
    for key, where in owners.items():
        what = f"the key is in {len(where)} shards"
        problems += [Problem(name, "manifests", what, (key,), len(where)) for name in where[1:]]
    lengths = Counter(shard.feature for shard in shards).most_common(1)
    for shard in shards:
        if shard.feature != lengths[0][0]:
            have, others = shard.feature, lengths[0][0]
            what = f"features of {have} numbers, other shards have {others}: no query reads both"
            problems.append(Problem(shard.name, "manifests/tsf_features", what))
    return problems
