"""`sparrow weights`: which files the `full` preset needs, whether they are the right ones, and how to get them.

A download goes into `<file>.part`, which every attempt and every later run continues as long as the server says that
its file is still the same. Nothing outside the weights root is written.
"""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

if TYPE_CHECKING:
    import httpx

    from pipeline.weights import Checked, WeightFile

app = typer.Typer(help="The full preset's weight files: list, check, fetch, convert.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Names = Annotated[list[str] | None, typer.Argument(help="Names from `sparrow weights list`. Default: what is needed.")]
Tick = Callable[[int], None]
"""Bytes of the file so far."""

ATTEMPTS = 5
PAUSE = 1.0  # seconds before the second attempt; twice as long before each further one
MOST = 20 * 10**9  # bytes: no file of the preset comes near
SUMS = "SHA256SUMS"


@app.command("list", epilog="Example: sparrow weights list")
def list_(as_json: Json = False) -> None:
    """Every weight file: is it needed, is it there, where does it come from, and under which licence."""
    from pipeline.weights import WEIGHTS
    from trackers.runtime import weights_root

    root = weights_root().absolute()
    rows = [_row(entry, root) for entry in WEIGHTS]
    if as_json:
        print(json.dumps({"root": str(root), "weights": rows}, indent=2))
        return
    for columns in ("name needed there MB path licence", "name purpose published_as", "name source"):
        cells = [columns.split(), *([str(row[key]) for key in columns.split()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        print("\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells), end="\n\n")
    print(f"weights root: {root} (SPARROW_WEIGHTS=/another/folder changes it). MB: on disk, else about.\n"
          "docs/weights.md says what to do, from here to the first shard.")  # fmt: skip


def _row(entry: "WeightFile", root: Path) -> dict:
    place = entry.found(root)
    size = sum(path.stat().st_size for path in entry.parts(place)) if place else 0
    there = "yes" if place == root / entry.path else "not converted" if place else "no"
    return asdict(entry) | {
        "needed": "needed" if entry.needed else "alternative", "there": there, "on_disk": size,
        "MB": round((size or entry.bytes) / 1e6, 1) or "?", "path": place.name if place else entry.path,
    }  # fmt: skip


@app.command(epilog="Example: sparrow weights check sam2.1-l")
def check(names: Names = None, as_json: Json = False) -> None:
    """Load each file into its real model on the CPU, one at a time. Exits 0 only if all are good."""
    from flows.progress import Bars, Quiet
    from pipeline.weights import check as examine
    from pipeline.weights import choose

    entries, results = choose(names or ()), []
    with (Quiet() if as_json else Bars()).stage("check", unit="files", total=len(entries)) as tick:
        for entry in entries:
            results.append(examine(entry, lambda note: tick(0, note)))
            tick(1)
    if as_json:
        print(json.dumps([asdict(result) | {"good": result.good} for result in results], indent=2))
    else:
        for result in results:
            _show(result)
    if not all(result.good for result in results):
        raise typer.Exit(1)


def _show(result: "Checked") -> None:
    print(f"\n{result.name}: {'good' if result.good else 'NOT GOOD'}, {result.path}")
    if result.tensors:
        kinds = ", ".join(f"{n} {kind}" for kind, n in result.dtypes.items())
        print(f"  {result.bytes / 1e6:,.1f} MB, {result.tensors} tensors ({kinds}), {result.elements:,} elements, "
              f"{sum(result.not_finite.values())} of them not finite")  # fmt: skip
    for name, digest in result.sha256.items():
        print(f"  sha256  {digest}  {name}")
    if zero := result.all_zero:
        print(f"  all zero: {', '.join(zero[:6])}{f' and {len(zero) - 6} more' if zero[6:] else ''}")
    for line in [*result.notes, *(f"problem: {problem}" for problem in result.problems)]:
        print(f"  {line}")


@app.command(epilog="Example: sparrow weights fetch --from https://mirror.example.org/weights")
def fetch(
    names: Names = None,
    mirror: Annotated[
        str, typer.Option("--from", envvar="SPARROW_MIRROR", help="Folder URL that holds the files under their paths.")
    ] = "",
) -> None:
    """Download from a mirror of yours what its licence allows to be handed on. Resumes; verifies against SHA256SUMS."""
    import httpx

    from flows.progress import Bars
    from pipeline.weights import choose
    from trackers.runtime import weights_root

    if not re.match(r"https?://[^/]", mirror):
        raise ValueError(f"--from {mirror!r} is not an http(s) URL: name a mirror that holds the files (there is no "
                         "default), or download them from the pages in `sparrow weights list`")  # fmt: skip
    entries, root, bars = choose(names or ()), weights_root(), Bars()
    by_hand = [f"{e.name} has to be downloaded by hand ({e.licence}): {e.source}" for e in entries if not e.fetchable]
    problems = by_hand if names else []
    with httpx.Client(timeout=30, headers={"User-Agent": "sparrow-tsf"}) as client:
        base = httpx.URL(mirror.rstrip("/") + "/")
        sums = fetch_sums(client, base, root)
        for path, size, known in (file for entry in entries if entry.fetchable for file in entry.files):
            try:
                with bars.stage(path, unit="MB", total=round(size / 1e6) or None) as tick:
                    done = fetch_file(client, base, root, path, size, sums.get(path), known, _megabytes(tick))
                print(f"{path}: {done}")
            except Refused as error:
                problems = [*problems, str(error)]
    for text in by_hand if not names else []:
        print(f"note: {text}")
    for text in problems:
        print(f"problem: {text}")
    if problems:
        raise typer.Exit(1)


def _megabytes(tick: Callable[[int, str], None]) -> Tick:
    """Bytes so far -> steps of whole megabytes, with the rate as a note."""
    start, shown = time.monotonic(), 0

    def to(done: int) -> None:
        nonlocal shown
        if step := done // 10**6 - shown:
            shown += step
            tick(step, f"{shown / (time.monotonic() - start):.1f} MB/s")

    return to


@app.command(epilog="Example: sparrow weights convert cldtracker.pth.tar --out weights/cldtracker.safetensors")
def convert(
    path: Annotated[Path, typer.Argument(help="CLDTracker's or OSTrack's checkpoint as published.")],
    out: Annotated[Path, typer.Option("--out", help="The .safetensors file to write.")],
    whole: Annotated[bool, typer.Option("--all", help="Keep CLDTracker's text branch (default: drop it).")] = False,
) -> None:
    """Take the network out of a training checkpoint: no pickle, no optimizer state, a fraction of the size."""
    from trackers.checkpoints import read_state_dict
    from trackers.cldtracker.checkpoint import convert as convert_file
    from trackers.cldtracker.checkpoint import text_branch_report

    for key, value in convert_file(path, out, subset=not whole).items():
        print(f"{key:14} {value}")
    print(f"{'text branch':14} {text_branch_report(read_state_dict(path))['verdict']}")


# --- downloading ------------------------------------------------------------------------------------------------------


class Refused(ValueError):
    """A download that another attempt cannot mend: what, where, why, what to do."""


class Absent(Refused):
    """The mirror has no such file."""


class Passing(Exception):
    """What may be gone at the next attempt."""


def fetch_file(
    client: "httpx.Client", base: "httpx.URL", root: Path, path: str, size: int, listed: str | None = None,
    known: str | None = None, tick: Tick = lambda done: None,
) -> str:  # fmt: skip
    """`<base>/<path>` into `<root>/<path>`; says in words what was verified. Refused says why not.

    size: about, bounds the download; listed: sha256 from the mirror's SHA256SUMS; known: the published file's.
    """
    from trackers.runtime import sha256

    target, part, wanted = root / path, root / f"{path}.part", listed or known
    if not all(place.resolve().is_relative_to(root.resolve()) for place in (target, part)):
        raise Refused(f"{target} leads out of the weights root {root}: nothing is written there; remove the link")
    word = "is there already"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            download(client, base.join(path), part, min(MOST, max(4 * size, 1 << 20)) if size else MOST, tick)
        except OSError as error:
            if error.errno not in (ENOSPC, EDQUOT, EFBIG):
                raise
            raise Refused(f"{part}: no room ({error.strerror}); what arrived is kept: free some space, then run the "
                          "same command again") from error  # fmt: skip
        _version_of(part).unlink(missing_ok=True)
        if (got := part.stat().st_size) < size // 4:  # a login page, say
            part.unlink()
            raise Refused(f"{_shown(base.join(path))}: {got:,} bytes: not the file that is meant; look at the mirror")
        if wanted and (found := sha256(part)) != wanted:
            part.unlink()
            raise Refused(f"{_shown(base.join(path))}: sha256 is {found}, {SUMS if listed else 'the published file'} "
                          f"says {wanted}: deleted; run again, or mend the mirror")  # fmt: skip
        part.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)  # so that the rename outlives a power cut
        os.fsync(folder)
        os.close(folder)
        word = f"{target.stat().st_size / 1e6:,.1f} MB"
    elif wanted and (found := sha256(target)) != wanted:
        raise Refused(f"{target} is there, but its sha256 is {found} instead of {wanted}: move it away to fetch it")
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
    raise Refused(f"{_shown(url)}: {ATTEMPTS} attempts failed, the last with {last}. What arrived is kept in {part}: "
                  "run the same command again to go on")  # fmt: skip


def _attempt(client: "httpx.Client", url: "httpx.URL", part: Path, file: BinaryIO, limit: int, tick: Tick) -> None:
    mark = _version_of(part)
    version = mark.read_text() if mark.exists() else ""
    start = file.tell() if version else 0  # without a version nobody knows what the bytes belong to
    ranged = {"Range": f"bytes={start}-", "If-Range": version} if start else {}
    with _opened(client, url, {"Accept-Encoding": "identity"} | ranged) as response:
        span = re.match(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", ""))
        if response.status_code == 416 and span and int(span[2]) == start:
            return  # all of it was here: stopped between the last byte and the new name
        now = response.headers.get("ETag", "")
        now = now if now and not now.startswith("W/") else response.headers.get("Last-Modified", "")  # for If-Range
        goes_on = response.status_code == 206 and span and span[1] == str(start) and now == version
        if response.status_code != 200 and not goes_on:
            mark.unlink(missing_ok=True)
            raise Passing("the file on the server is another one than before: starting over")
        start = start if goes_on else 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        large = Refused(f"{_shown(url)}: over {limit:,} bytes: not the file that is meant; look at the mirror")
        if (total or 0) > limit:
            raise large
        if total and total - start > (room := shutil.disk_usage(part.parent).free):
            raise Refused(f"{part}: {total - start:,} bytes to come, {room:,} free on that disk: free some space")
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
def _opened(client: "httpx.Client", url: "httpx.URL", headers: dict[str, str]) -> Iterator["httpx.Response"]:
    """The answer to a GET, after redirects that stay on http(s) and do not give up encryption: 200, 206 or 416."""
    for _ in range(6):
        response = client.send(client.build_request("GET", url, headers=headers), stream=True)
        try:
            code, onward = response.status_code, response.next_request
            if code in (403, 404, 410):
                raise Absent(f"{_shown(url)}: HTTP {code}: not on the mirror; check URL and file name")
            if code in (408, 429) or code >= 500:
                raise Passing(f"HTTP {code}")
            if onward is None:
                if code not in (200, 206, 416) or response.headers.get("Content-Encoding", "identity") != "identity":
                    raise Refused(f"{_shown(url)}: HTTP {code}, not the bare file: open the URL in a browser")
                yield response
                return
        finally:
            response.close()
        allowed = ("https",) if url.scheme == "https" else ("http", "https")
        if onward.url.scheme not in allowed:
            raise Refused(f"{_shown(url)} redirects to {_shown(onward.url)}: only {' and '.join(allowed)} can be "
                          "followed from there; use a mirror that serves the file itself")  # fmt: skip
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
    rows = [re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line) for line in lines if line.strip()]
    if not all(rows):
        raise Refused(f"{_shown(base.join(SUMS))} is not what sha256sum writes: mend or remove it on the mirror")
    return {row[2]: row[1].lower() for row in rows if row}


def _version_of(part: Path) -> Path:
    """The file beside a .part that says what the server called this version of its file (for If-Range)."""
    return part.with_name(part.name + ".version")


def _shown(url: "httpx.URL") -> str:
    """For messages: without what may be secret."""
    return str(url.copy_with(userinfo=b"", query=None))
