"""The exclude list: what a person wants left out of a run, one referent or clip id a line (`--exclude FILE`).

The plan turns each of them into a row of the quarantine. The job carries the list itself, not the file's path: a plan
can be made again (`sparrow quarantine retry`) when the file has changed or gone.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from schemas.config import Config
from schemas.records import KEY, Planned, Reason, Rejected


class Exclude(Config):
    """name: of the file, without its folder; keys: referent and clip ids, sorted."""

    name: str
    keys: tuple[str, ...]


def read_exclude(file: Path) -> Exclude | None:
    """The list in a file; what is behind a # is a comment. None if it names nothing. ValueError names a bad line."""
    try:
        lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise ValueError(f"--exclude {file}: {error.strerror or error}") from error
    keys = set()
    for number, line in enumerate(lines, 1):
        key = line.partition("#")[0].strip()
        if key and not KEY.fullmatch(key):
            raise ValueError(
                f"--exclude {file}:{number}: {key[:80]!r} is no referent or clip id (a-z, 0-9, _ and -). "
                "Write one a line; # starts a comment"
            )
        keys.add(key)
    keys.discard("")
    return Exclude(name=file.name, keys=tuple(sorted(keys))) if keys else None


def leaving_out(
    exclude: Exclude | None,
) -> Callable[[Planned | Rejected], list[Planned | Rejected]]:
    """A function: what a plan has -> a row for each referent that is listed, by its own id or its clip's, and the clip
    with those that are left, if any."""
    keys = frozenset(exclude.keys if exclude else ())

    def parts(item: Planned | Rejected) -> list[Planned | Rejected]:
        if exclude is None or isinstance(item, Rejected):
            return [item]
        clip, rows, left = item.clip, list[Planned | Rejected](), []
        for referent in item.referents:
            own = referent.referent_id
            key = own if own in keys else clip.clip_id
            if key in keys:
                message = f"excluded by {exclude.name}: {key}"
                rows.append(
                    Rejected(
                        clip.source,
                        clip.split,
                        clip.clip_id,
                        Reason.EXCLUDED,
                        message,
                        referent_id=own,
                    )
                )
            else:
                left.append(referent)
        return [*rows, replace(item, referents=tuple(left))] if left else rows

    return parts
