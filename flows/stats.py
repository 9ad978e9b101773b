"""`sparrow stats`: statistics by source, and the leak check against evaluation sets."""

import csv
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.text import say
from schemas.files import replacing, write_whole
from schemas.members import refuse_links

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from flows.progress import Progress
    from flows.references import Reference

CHECK = "report/leaks.json"
ROWS = "report/leaks.csv"


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(
        epilog="Example: sparrow stats outputs/demo --leaks --against /data/mevis --videos"
    )(stats)


def stats(
    out: Annotated[Path, typer.Argument(help="Output folder of a run.", show_default=False)],
    source: Annotated[str | None, typer.Option(help="Only this source.")] = None,
    leaks: Annotated[
        bool,
        typer.Option("--leaks", help="Look for evaluation splits, and repeats between sources."),
    ] = (False),
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of evaluation sets, official layouts (repeatable)."),
    ] = None,
    videos: Annotated[
        bool, typer.Option("--videos", help="Compare pictures too; kept for the next time.")
    ] = False,
    similarity: Annotated[
        float, typer.Option(help="From which on expressions are nearly the same (Jaccard).")
    ] = 0.8,
    leaks_out: Annotated[
        Path | None, typer.Option(help="Write what leaks, for `sparrow curate --exclude`.")
    ] = None,
    level: Annotated[
        list[str] | None,
        typer.Option(
            help="What --leaks-out takes (repeatable). Default: all but same_expression, near_expression."
        ),
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Allow links that leave --against.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Counts, words, sizes, motion, IoU by source; what repeats between sources; what evaluation sets have too."""
    from flows.jobs import normal
    from flows.progress import Bars, Quiet
    from manifests.catalog import connect
    from manifests.leaks import LEVELS, SURE, keys
    from manifests.noise import noise
    from manifests.stats import measure, statistics

    unknown = [one for one in level or [] if one not in LEVELS]
    if unknown:
        raise ValueError(f"--level {unknown[0]!r}: choose one of {', '.join(LEVELS)}")
    progress = Quiet() if as_json else Bars()
    name = normal(source) if source else None
    report: dict[str, Any] = {}
    with connect(out) as catalogue:
        have = [
            row[0]
            for row in catalogue.execute("SELECT DISTINCT source FROM shards ORDER BY 1").fetchall()
        ]
        if name and name not in have:
            raise ValueError(f"{out} holds nothing of {name}; it has {', '.join(have)}")
        measure(catalogue, source=name)
        report["statistics"] = statistics(catalogue, source=name)
        if noisy := noise(catalogue, name):
            report["noise"] = noisy
        if leaks or against or videos or leaks_out:
            given = [one for folder in against or [] for one in _read(folder, follow_links)]
            report["leaks"] = check_output(
                catalogue, out, given, progress, name, videos=videos, similarity=similarity
            )
            if leaks_out:
                found = [
                    key
                    for key in keys(catalogue, level or SURE)
                    if not name or key.startswith(f"{name}-")
                ]
                _write_list(catalogue, leaks_out, found, level or list(SURE))
                report["leaks"]["listed"] = len(found)
    if "leaks" in report:
        from flows.report import make_report

        make_report(out)
    say(json.dumps(report, indent=2)) if as_json else _show(report, out, leaks_out)


def _read(folder: Path, follow_links: bool) -> list["Reference"]:
    from flows.references import read_references

    return read_references(folder, follow_links=follow_links)


def check_output(
    catalogue: "DuckDBPyConnection",
    out: Path,
    given: list["Reference"],
    progress: "Progress",
    source: str | None = None,
    *,
    videos: bool = False,
    similarity: float = 0.8,
) -> dict[str, Any]:
    """Check an output against evaluation sets, save `report/leaks.csv` and `.json`, and return what the latter holds.

    The tables `leaks` and `repeats` stay in `catalogue`.
    """
    from manifests.leaks import check, found, repeated, summary
    from manifests.leaks.looks import PLACE, clips, look

    looks = known_looks = None
    problems: dict[str, str] = {}
    blind = 0
    if videos:
        mine, blind = clips(catalogue, out)
        theirs = [footage for one in given if (footage := one.footage())]
        with progress.stage("look at videos", unit="videos", total=len(mine) + len(theirs)) as tick:
            seen, problems = look([*mine, *theirs], out / PLACE, tick=tick)
        split = seen["key"].to_pylist()
        own = {one.key for one in mine}
        looks, known_looks = (
            seen.filter([(key in own) is is_own for key in split]) for is_own in (True, False)
        )
    check(
        catalogue,
        [known for one in given for known in one.known()],
        looks=looks,
        known_looks=known_looks,
        similarity=similarity,
    )
    sets = Counter(one.evaluation for one in given)
    rows = found(catalogue)
    if source:
        rows = [row for row in rows if row["source"] == source]
    made = {
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "similarity": similarity,
        "videos": videos,
        "against": [f"{name} ({n} videos)" for name, n in sorted(sets.items())],
        "rows": [row for row in summary(catalogue) if source in (None, row["source"])],
        "repeats": [row for row in repeated(catalogue) if source in (None, row["source"])],
        "clips_without_media": blind,
        "unreadable": dict(sorted(problems.items())),
    }
    _save(out, made, rows)
    return made


def _save(out: Path, made: dict[str, Any], rows: list[dict]) -> None:
    refuse_links(out)
    (out / "report").mkdir(exist_ok=True)
    columns = (
        "level",
        "referent_id",
        "clip_id",
        "source",
        "split",
        "evaluation",
        "score",
        "matches",
        "ours",
        "theirs",
    )
    with (
        replacing(out / ROWS) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    write_whole(out / CHECK, json.dumps(made, indent=2, ensure_ascii=False) + "\n")


def saved_check(out: Path) -> dict[str, Any] | None:
    """The last leak check of an output; None if there was none, or its file is not what `check_output` writes."""
    try:
        made = json.loads((out / CHECK).read_text(encoding="utf-8"))
        tables = (
            ("rows", {"level", "evaluation", "source", "split", "referents", "clips", "example"}),
            ("repeats", {"level", "source", "other", "referents", "example"}),
        )
        whole = all(columns <= row.keys() for name, columns in tables for row in made[name])
        return made if whole and {"made", "against", "videos"} <= made.keys() else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _write_list(
    catalogue: "DuckDBPyConnection", file: Path, found: list[str], levels: list[str]
) -> None:
    """A line per referent: its id, and as a comment why."""
    from manifests.catalog import rows_of

    why = rows_of(
        catalogue,
        """
        SELECT referent_id, string_agg(level || ' ' || evaluation, ', ' ORDER BY level, evaluation) AS why
        FROM leaks WHERE list_contains($1, level) GROUP BY referent_id""",
        [levels],
    )
    reasons = {row["referent_id"]: " ".join(row["why"].split()) for row in why}
    head = (
        f"# what evaluation sets have too ({', '.join(levels)}); for `sparrow curate --exclude`\n"
    )
    write_whole(file, head + "".join(f"{key}  # {reasons[key]}\n" for key in found))


def _show(report: dict[str, Any], out: Path, leaks_out: Path | None) -> None:
    from flows.show import console, table
    from manifests.noise import noise_words

    rows = report["statistics"]
    names = {
        "track_length": "track",
        "clip_frames": "frames",
        "kept_share": "kept",
        "iou_coverage": "IoU covers",
        "quarantined": "dropped",
    }
    table(
        "Statistics",
        [names.get(column, column) for column in rows[0]],
        [list(row.values()) for row in rows],
        caption="means over samples; area: share of the picture; motion: way of the centre from frame to frame, in "
        "square roots\nof the box's area; occlusion: annotated frames without the target; IoU: tracked with "
        "annotated boxes, in the share of kept frames that it covers",
    )
    for row in report.get("noise", []):
        say(f"\nNoise on TSF trajectories: {noise_words(row)}")
    made = report.get("leaks")
    if made is None:
        return
    columns = ["level", "evaluation", "source", "split", "referents", "clips", "example", "theirs"]
    if made["rows"]:
        against = ", ".join(made["against"]) or "the evaluation splits that are in the output"
        table(
            "What evaluation sets have too",
            columns,
            [[_short(row[c]) for c in columns] for row in made["rows"]],
            caption=f"against: {against}",
        )
    else:
        console.print("\nno evaluation set has anything of this output")
    columns = ["level", "source", "other", "referents", "example", "theirs"]
    if made["repeats"]:
        table(
            "What sources have in common",
            columns,
            [[_short(row[c]) for c in columns] for row in made["repeats"]],
        )
    for key, why in list(made["unreadable"].items())[:5]:
        say(f"not looked at: {key}: {why}")
    if made["clips_without_media"]:
        console.print(
            f"{made['clips_without_media']} clips have no media in their shards and were not looked at"
        )
    say(f"\nall of it: {out / ROWS}, {out / CHECK}")
    if leaks_out:
        say(
            f"to leave out: {leaks_out}, {made['listed']} referents; sparrow curate … --exclude {leaks_out}"
        )


def _short(value: object) -> object:
    return value[:60] if isinstance(value, str) else value
