"""One file from a mirror: resumed, bounded, verified, renamed into place when it is whole.

A download goes into `<file>.part`, which every attempt and every later run continues as long as the server says that
its file is still the same. Nothing outside the given root is written.
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import httpx

Tick = Callable[[int], None]
"""Bytes of the file so far."""

ATTEMPTS = 5
PAUSE = 1.0  # seconds before the second attempt; twice as long before each further one
MOST = 20 * 10**9  # bytes: no file of the preset comes near
SUMS = "SHA256SUMS"


class Refused(ValueError):
    """A download that another attempt cannot mend: what, where, why, what to do."""


class Absent(Refused):
    """The mirror has no such file."""


class Passing(Exception):
    """What may be gone at the next attempt."""


def fetch_file(
    client: "httpx.Client",
    base: "httpx.URL",
    root: Path,
    path: str,
    size: int,
    listed: str | None = None,
    known: str | None = None,
    tick: Tick = lambda done: None,
) -> str:
    """`<base>/<path>` into `<root>/<path>`; says in words what was verified. Refused says why not.

    size: about, bounds the download; listed: sha256 from the mirror's SHA256SUMS; known: the published file's.
    """
    from trackers.runtime import sha256

    target, part, wanted = root / path, root / f"{path}.part", listed or known
    if not all(place.resolve().is_relative_to(root.resolve()) for place in (target, part)):
        raise Refused(
            f"{target} leads out of the weights root {root}: nothing is written there; remove the link"
        )
    word = "is there already"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            download(
                client,
                base.join(path),
                part,
                min(MOST, max(4 * size, 1 << 20)) if size else MOST,
                tick,
            )
        except OSError as error:
            if error.errno not in (ENOSPC, EDQUOT, EFBIG):
                raise
            raise Refused(
                f"{part}: no room ({error.strerror}); what arrived is kept: free some space, then run the "
                "same command again"
            ) from error
        _version_of(part).unlink(missing_ok=True)
        if (got := part.stat().st_size) < size // 4:  # a login page, say
            part.unlink()
            raise Refused(
                f"{_shown(base.join(path))}: {got:,} bytes: not the file that is meant; look at the mirror"
            )
        if wanted and (found := sha256(part)) != wanted:
            part.unlink()
            raise Refused(
                f"{_shown(base.join(path))}: sha256 is {found}, {SUMS if listed else 'the published file'} "
                f"says {wanted}: deleted; run again, or mend the mirror"
            )
        part.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)  # so that the rename outlives a power cut
        os.fsync(folder)
        os.close(folder)
        word = f"{target.stat().st_size / 1e6:,.1f} MB"
    elif wanted and (found := sha256(target)) != wanted:
        raise Refused(
            f"{target} is there, but its sha256 is {found} instead of {wanted}: move it away to fetch it"
        )
    if not wanted:
        return f"{word}, nothing to verify it with except its size"
    other = ", which is NOT the published file's" if known not in (None, wanted) else ""
    return f"{word}, sha256 as {f'in {SUMS}' if listed else 'published'}{other}"


def download(client: "httpx.Client", url: "httpx.URL", part: Path, limit: int, tick: Tick) -> None:
    """All of `url` into `part`, going on where an earlier attempt or run stopped; at most `limit` bytes."""
    import httpx

    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE * 2 ** (attempt - 1) if attempt else 0)
        try:
            with part.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before anything in it changes
                return _attempt(client, url, part, file, limit, tick)
        except BlockingIOError as error:
            raise Refused(f"{part} is being written by another process: wait for it") from error
        except Refused:
            if not part.stat().st_size:
                part.unlink()
            raise
        except (httpx.TransportError, Passing) as error:
            last = str(error) if isinstance(error, Passing) else f"{type(error).__name__}: {error}"
    raise Refused(
        f"{_shown(url)}: {ATTEMPTS} attempts failed, the last with {last}. What arrived is kept in {part}: "
        "run the same command again to go on"
    )


def _attempt(
    client: "httpx.Client", url: "httpx.URL", part: Path, file: BinaryIO, limit: int, tick: Tick
) -> None:
    mark = _version_of(part)
    version = mark.read_text() if mark.exists() else ""
    start = file.tell() if version else 0  # without a version nobody knows what the bytes belong to
    ranged = {"Range": f"bytes={start}-", "If-Range": version} if start else {}
    with _opened(client, url, {"Accept-Encoding": "identity"} | ranged) as response:
        span = re.match(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", ""))
        if response.status_code == 416 and span and int(span[2]) == start:
            return  # all of it was here: stopped between the last byte and the new name
        now = response.headers.get("ETag", "")
        now = (
            now if now and not now.startswith("W/") else response.headers.get("Last-Modified", "")
        )  # for If-Range
        goes_on = response.status_code == 206 and span and span[1] == str(start) and now == version
        if response.status_code != 200 and not goes_on:
            mark.unlink(missing_ok=True)
            raise Passing("the file on the server is another one than before: starting over")
        start = start if goes_on else 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        large = Refused(
            f"{_shown(url)}: over {limit:,} bytes: not the file that is meant; look at the mirror"
        )
        if (total or 0) > limit:
            raise large
        if total and total - start > (room := shutil.disk_usage(part.parent).free):
            raise Refused(
                f"{part}: {total - start:,} bytes to come, {room:,} free on that disk: free some space"
            )
        file.truncate(start)
        mark.write_text(now)
        for chunk in response.iter_raw():
            start += len(chunk)
            if start > limit:
                file.truncate(0)
                raise large
            file.write(chunk)
            tick(start)
    file.flush()
    os.fsync(file.fileno())
    if total is not None and start != total:
        raise Passing(f"only {start:,} of {total:,} bytes came")


@contextmanager
def _opened(
    client: "httpx.Client", url: "httpx.URL", headers: dict[str, str]
) -> Iterator["httpx.Response"]:
    """The answer to a GET, after redirects that stay on http(s) and do not give up encryption: 200, 206 or 416."""
    for _ in range(6):
        response = client.send(client.build_request("GET", url, headers=headers), stream=True)
        try:
            code, onward = response.status_code, response.next_request
            if code in (403, 404, 410):
                raise Absent(
                    f"{_shown(url)}: HTTP {code}: not on the mirror; check URL and file name"
                )
            if code in (408, 429) or code >= 500:
                raise Passing(f"HTTP {code}")
            if onward is None:
                if (
                    code not in (200, 206, 416)
                    or response.headers.get("Content-Encoding", "identity") != "identity"
                ):
                    raise Refused(
                        f"{_shown(url)}: HTTP {code}, not the bare file: open the URL in a browser"
                    )
                yield response
                return
        finally:
            response.close()
        allowed = ("https",) if url.scheme == "https" else ("http", "https")
        if onward.url.scheme not in allowed:
            raise Refused(
                f"{_shown(url)} redirects to {_shown(onward.url)}: only {' and '.join(allowed)} can be "
                "followed from there; use a mirror that serves the file itself"
            )
        url = onward.url
    raise Refused(f"{_shown(url)}: more than 5 redirects: look at the mirror")


def fetch_sums(client: "httpx.Client", base: "httpx.URL", root: Path) -> dict[str, str]:
    """path -> sha256 from the mirror's SHA256SUMS (coreutils format); empty if it has none."""
    root.mkdir(parents=True, exist_ok=True)
    part = root / f"{SUMS}.part"
    part.unlink(missing_ok=True)
    try:
        download(client, base.join(SUMS), part, 1 << 20, lambda done: None)
        lines = part.read_text(errors="replace").splitlines()
    except Absent:
        return {}
    finally:
        part.unlink(missing_ok=True)
        _version_of(part).unlink(missing_ok=True)
    rows = [
        re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line) for line in lines if line.strip()
    ]
    if not all(rows):
        raise Refused(
            f"{_shown(base.join(SUMS))} is not what sha256sum writes: mend or remove it on the mirror"
        )
    return {row[2]: row[1].lower() for row in rows if row}


def _version_of(part: Path) -> Path:
    """The file beside a .part that says what the server called this version of its file (for If-Range)."""
    return part.with_name(part.name + ".version")


def _shown(url: "httpx.URL") -> str:
    """For messages: without what may be secret."""
    return str(url.copy_with(userinfo=b"", query=None))
