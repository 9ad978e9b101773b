"""From what a user asks for (a source, a folder, a preset) to jobs; sums of plans, and the paper's beside them."""

from collections import Counter
from pathlib import Path
from typing import Literal, get_args

from pipeline.corpora import PAPER_COUNTS, PAPER_TOTAL, Expected, Take, take
from pipeline.exclude import read_exclude
from pipeline.plan import Job, configured_source, left_out
from pipeline.presets import CurateConfig
from pipeline.presets import override as overridden
from pipeline.sources.base import DataRoot
from pipeline.sources.hints import explain
from schemas.parts import check_output_path

SourceName = Literal["hcstvg", "vid_sentence", "a2d", "lasot", "mevis", "got10k", "refsav"]
SOURCES: tuple[SourceName, ...] = get_args(SourceName)


def normal(source: str) -> str:
    """`vid-sentence`, `VID_Sentence` -> `vid_sentence`. ValueError lists the sources."""
    name = source.lower().replace("-", "_")
    if name not in SOURCES:
        raise ValueError(f"unknown source {source!r}: choose one of {', '.join(SOURCES)}")
    return name


def sources_under(data_root: str | Path) -> list[SourceName]:
    """Sources that have a folder of their name under `data_root`. ValueError if none has."""
    if found := [s for s in SOURCES if (Path(data_root) / s).is_dir()]:
        return found
    raise ValueError(
        f"{data_root} has none of the folders {', '.join(SOURCES)}: put or link each dataset under its name"
    )


def make_jobs(
    source: str,
    data_root: str | Path,
    out: str | Path,
    config: CurateConfig,
    *,
    splits: list[str] | None = None,
    corpus: str = "all",
    limit: int | None = None,
    follow_links: bool = False,
    synthetic: bool = False,
    source_sets: list[str] | None = None,
    override: Take | None = None,
    exclude: str | Path | None = None,
) -> list[Job]:
    """One job per split. limit: at most so many clips of each split, a deterministic sample. source_sets:
    `field=value` overrides of the source's own config (its rules, spans, segments). exclude: a file of referent or clip
    ids to leave out, after the limit.

    ValueError says what was expected under `data_root` and what is there, or which splits there are.
    """
    check_output_path(Path(out).resolve())
    name = normal(source)
    wanted = override or take(corpus, name)
    if limit is not None:
        capped = limit if wanted.max_clips is None else min(limit, wanted.max_clips)
        wanted = wanted.model_copy(update={"max_clips": capped})
    if source_sets:
        full = overridden(
            configured_source(name, wanted).config.model_dump(mode="json"), source_sets
        )
        wanted = wanted.model_copy(update={"source": full})
    listed = read_exclude(Path(exclude)) if exclude is not None else None
    reader = configured_source(name, wanted)
    root = DataRoot(data_root, follow_links=follow_links)
    available = reader.available(root)
    if not available:
        raise ValueError(explain(reader, root))
    chosen = splits or (list(wanted.splits) if wanted.splits else available)
    unknown = [s for s in chosen if s not in available]
    if unknown and splits:
        raise ValueError(explain(reader, root, unknown[0]))
    return [
        Job(
            source=name,
            split=split,
            data_root=str(root.path),
            out=str(Path(out).resolve()),
            config=config,
            take=wanted,
            exclude=listed,
            follow_links=follow_links,
            synthetic=synthetic,
        )
        for split in chosen
        if split in available
    ]


def unknown_keys(jobs: list[Job]) -> str:
    """What the exclude list names and the saved plans of one source do not have, in a sentence; empty if all is there.
    Ids begin with their source: those of other sources are not looked for."""
    listed = next((job.exclude for job in jobs if job.exclude), None)
    if listed is None:
        return ""
    found = set[str]().union(*map(left_out, jobs))
    others = tuple(f"{source}-" for source in SOURCES if source != jobs[0].source)
    lost = [key for key in listed.keys if key not in found and not key.startswith(others)]
    more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
    return (
        f"{listed.name}: not in this plan of {jobs[0].source}: {', '.join(lost[:5])}{more}"
        if lost
        else ""
    )


def beside_paper(rows: list[dict]) -> list[dict]:
    """Reached beside inferred counts, per source, and the sum beside the paper's totals."""
    lines = []
    for source in dict.fromkeys(row["source"] for row in rows):
        mine = [row for row in rows if row["source"] == source]
        paper = PAPER_COUNTS.get(source, Expected(clips=0, qa=0))
        counted = "videos" if source == "vid_sentence" else "clips"
        clips, qa = sum(row[counted] for row in mine), sum(row["qa"] for row in mine)
        lines.append(
            {
                "source": source,
                "clips": clips,
                "paper_clips": paper.clips,
                "qa": qa,
                "paper_qa": paper.qa,
            }
        )
    if len(lines) > 1:
        sums = {key: sum(line[key] for line in lines) for key in ("clips", "qa")}
        total = {"source": "all", "paper_clips": PAPER_TOTAL.clips, "paper_qa": PAPER_TOTAL.qa}
        lines.append(total | sums)
    return lines


def totals(rows: list[dict]) -> dict:
    """Sums over splits of the numbers that add up, and of what will be skipped by reason."""
    keys = (
        "videos",
        "clips",
        "referents",
        "qa",
        "frames",
        "shards",
        "quarantined",
        "bytes",
        "seconds",
    )
    skip: Counter[str] = Counter()
    for row in rows:
        skip.update(row["skip"])
    sums: dict = {
        key: None if any(row[key] is None for row in rows) else sum(row[key] for row in rows)
        for key in keys
    }
    return sums | {"skip": dict(sorted(skip.items()))}
