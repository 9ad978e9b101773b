"""What a check finds: problems, each with its shard and its rows, and the report that gathers them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Literal

SHOWN = 5
"""Rows that a problem names; it counts the others."""

Kind = Literal["rows", "bytes", "missing", "garbage", "history", "source"]
"""What can be done about it. `rows`: the shard has to be made again. `bytes`: its tables are sound, its tar is not:
what reads back whole can be kept. `missing`: planned, not committed. `garbage`: files that nothing names. `history`:
the record of a run is lost, no data. `source`: the pictures are not those of the data set: curate it again."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: which shard, what file or table, what about it, and in which rows.

    rows: up to SHOWN of the `count` rows, by their keys ("referent_id frame 3", "key.member"); empty where a file as a
    whole is wrong.
    """

    shard: str
    where: str
    what: str
    rows: tuple[str, ...] = ()
    count: int = 0
    kind: Kind = "rows"

    def __str__(self) -> str:
        more = f" and {self.count - len(self.rows)} more" if self.count > len(self.rows) else ""
        return f"{self.shard}: {self.where}: {self.what}" + (
            f" ({', '.join(self.rows)}{more})" if self.rows else ""
        )


@dataclass(slots=True)
class Report:
    """What was looked at, and what was found."""

    shards: int = 0
    samples: int = 0
    members: int = 0
    bytes: int = 0
    deep: bool = False
    problems: list[Problem] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    """Files beside the manifests that are no part of them. Nothing reads them."""

    def as_dict(self) -> dict:
        return asdict(self)


def some(
    shard: str, where: str, what: str, rows: Iterable[str], kind: Kind = "rows"
) -> list[Problem]:
    """One problem for all `rows` that have it; none for no rows."""
    found = list(rows)
    return [Problem(shard, where, what, tuple(found[:SHOWN]), len(found), kind)] if found else []
