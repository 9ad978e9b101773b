"""The run report: `report/index.html`, one file that needs nothing else, made from the manifests after every run.

Funnel, counts beside the paper's, distributions, time, slowest and worst samples, contact sheets, configuration. It
has no script; charts are inline SVG and pictures are data URIs, so it opens from disk and can be sent to somebody.
"""

from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import cv2
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from manifests import charts
from manifests.catalog import connect
from manifests.noise import noise, noise_words
from manifests.quality import iou_words, rests_on_little
from manifests.report import data, pictures
from manifests.stats import distributions, measure, statistics
from schemas.files import write_whole
from schemas.members import refuse_links

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

PLACE = "report/index.html"
SAMPLED = 2000
"""Tracks of each source that are looked at for area and motion."""
UNREADABLE = (OSError, EOFError, ValueError, LookupError, av.FFmpegError, cv2.error)
"""What a damaged shard raises: its picture is then missing, and the report says so."""


def write_report(
    out: Path,
    paper: dict[str, tuple[int, int]],
    paper_total: tuple[int, int],
    *,
    planned: dict[str, int] | None = None,
    leaks: dict | None = None,
) -> Path:
    """Write `report/index.html` into an output, in one step, and return its path.

    paper, paper_total: clips and QA that the paper has, by source and in all. planned: referents in the plan of each
    "<source>-<split>". leaks: the summary of a leak check (`manifests.leaks`), if there has been one.
    FileNotFoundError if the output has no committed shard.
    """
    refuse_links(out)
    with connect(out) as catalogue:
        text = render(catalogue, out, paper, paper_total, planned=planned, leaks=leaks)
    path = out / PLACE
    write_whole(path, text)
    return path


def render(
    catalogue: "DuckDBPyConnection",
    out: Path,
    paper: dict[str, tuple[int, int]],
    paper_total: tuple[int, int],
    *,
    planned: dict[str, int] | None = None,
    leaks: dict | None = None,
) -> str:
    """The page's text."""
    measure(catalogue, most=SAMPLED)
    rows = statistics(catalogue)
    names = data.sources(catalogue)
    worst, slowest, sheet = data.worst(catalogue), data.slowest(catalogue), data.sheet(catalogue)
    wanted = [
        row["referent_id"] for row in (*worst, *(one for rows in sheet.values() for one in rows))
    ]
    return _page().render(
        name=out.resolve().name,
        made=datetime.now(UTC),
        charts=charts,
        names=names,
        colour={name: f"c{i % COLOURS}" for i, name in enumerate(names)} | {"all": "call"},
        totals=data.totals(catalogue),
        waiting=data.waiting(catalogue, planned or {}),
        funnel=data.funnel(catalogue),
        rows=data.per_source(catalogue, rows, paper),
        noise=[noise_words(row) for row in noise(catalogue)],
        paper_total=paper_total,
        drops=data.drops(catalogue),
        distributions=distributions(catalogue),
        sampled=SAMPLED,
        time=data.time_spent(catalogue),
        slowest=slowest,
        worst=worst,
        sheet=sheet,
        strips=_strips(catalogue, out, wanted),
        repeats=data.repeats(catalogue),
        leaks=leaks,
        events=data.events(catalogue),
        runs=data.runs(catalogue),
        configs=data.configs(catalogue),
    )


COLOURS = 8


@lru_cache(maxsize=1)
def _page() -> Template:
    """The template, compiled once: that takes longer than a small output's numbers."""
    loader = PackageLoader("manifests.report", "")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment.get_template("page.html")


def _strips(catalogue: "DuckDBPyConnection", out: Path, wanted: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    places = pictures.places(catalogue, wanted)
    for referent_id in dict.fromkeys(wanted):
        try:
            found[referent_id] = pictures.strip(out, places.get(referent_id, []))
        except UNREADABLE as error:
            found[referent_id] = f"no picture: {type(error).__name__}: {error}"
    return found


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _number(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return "–"
    return (
        f"{value:,.0f}"
        if abs(value) >= 100
        else f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.2f}"
    )


def _percent(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.0f} %" if value >= 0.1 or value == 0 else f"{100 * value:.1f} %"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.1f} min" if value < 600 else f"{value / 60:.0f} min"
    return f"{value / 3600:,.1f} h"


def _bytes(value: float | None) -> str:
    value = float(value or 0)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit in ("B", "kB") else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def _when(value: datetime | None) -> str:
    return "–" if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _words(value: str) -> str:
    return value.replace("_", " ")


FILTERS: dict[str, Any] = {
    "count": _count,
    "number": _number,
    "percent": _percent,
    "seconds": _seconds,
    "bytes": _bytes,
    "when": _when,
    "words": _words,
    "iou_words": iou_words,
    "rests_on_little": rests_on_little,
}
