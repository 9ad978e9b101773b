"""Statistics of an output: a row per source, and distributions. `manifests.catalog` has the definitions, as views.

Area and motion need every box of every track. The report looks at a sample of them (`most`); `sparrow stats` and the
view `statistics` at all.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from manifests.catalog import MEASURES, SHAPES, STATISTICS, rows_of
from manifests.charts import nice

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BINS = 24


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of the view `measures`: what it is called, and where its scale ends if that is known beforehand."""

    column: str
    title: str
    unit: str
    end: float | None = None
    whole: bool = False


MEASURED = (
    Measure("mean_iou", "IoU", "with annotated boxes", 1.0),
    Measure("kept_share", "Kept share", "of its frames", 1.0),
    Measure("seconds", "Clip length", "seconds"),
    Measure("n_boxes", "Track length", "frames with a box", whole=True),
    Measure("words", "Expression", "words", whole=True),
    Measure("area", "Target size", "share of the picture"),
    Measure("motion", "Motion", "target sizes per frame"),
    Measure("occlusion", "Hidden", "of annotated frames", 1.0),
)


@dataclass(slots=True)
class Distribution:
    """One measure over all samples that have it.

    end: where the scale ends; the last bin holds what is beyond. bins: per bin, source -> samples. spread: per source
    and for "all", (samples, 10 % quantile, median, 90 % quantile).
    """

    measure: Measure
    end: float
    bins: list[dict[str, int]] = field(default_factory=list)
    spread: dict[str, tuple[int, float, float, float]] = field(default_factory=dict)


def measure(
    catalogue: "DuckDBPyConnection", *, source: str | None = None, most: int | None = None
) -> None:
    """Make the temporary table `measured`, a row of numbers per referent (the view `measures`).

    most: area and motion of at most so many referents of each source, always the same ones. source: only this one.
    """
    wanted = "SELECT referent_id FROM referents WHERE source = coalesce($1, source)"
    if most is not None:
        wanted += f" QUALIFY row_number() OVER (PARTITION BY source ORDER BY md5(referent_id)) <= {int(most)}"
    catalogue.execute(f"CREATE OR REPLACE TEMP TABLE looked_at AS {wanted}", [source])
    shapes = SHAPES.format("t.referent_id IN (FROM looked_at)")
    catalogue.execute(f"CREATE OR REPLACE TEMP TABLE shaped AS {shapes}")
    catalogue.execute(
        f"CREATE OR REPLACE TEMP TABLE measured AS {MEASURES.format('shaped')} WHERE r.source = coalesce($1, r.source)",
        [source],
    )


def statistics(catalogue: "DuckDBPyConnection", *, source: str | None = None) -> list[dict]:
    """A row per source and one of all, from the table `measured`: the columns of the view `statistics`."""
    of = f"FROM ({STATISTICS.format('measured')}) WHERE source = coalesce($1, source)"
    return rows_of(catalogue, of, [source])


def distributions(catalogue: "DuckDBPyConnection") -> list[Distribution]:
    """Histograms and quantiles of every measure that any sample has, from the table `measured`."""
    columns = ", ".join(f"{one.column}::DOUBLE AS {one.column}" for one in MEASURED)
    long = f"UNPIVOT (SELECT source, {columns} FROM measured) ON * EXCLUDE (source) INTO NAME name VALUE v"
    catalogue.execute(f"CREATE OR REPLACE TEMP TABLE long AS {long}")
    quantiles = rows_of(
        catalogue,
        """
        SELECT name, coalesce(source, 'all') AS source, count(*) AS n, quantile_cont(v, [0.1, 0.5, 0.9, 0.99]) AS q
        FROM long WHERE isfinite(v) GROUP BY GROUPING SETS ((name, source), (name)) ORDER BY source""",
    )
    made: dict[str, Distribution] = {}
    for one in MEASURED:
        rows = [row for row in quantiles if row["name"] == one.column]
        if not rows:
            continue
        end = one.end or nice(max(row["q"][3] for row in rows if row["source"] == "all"))
        if one.whole:
            end = float(BINS * -(-end // BINS)) if end > BINS else max(1.0, end)
        made[one.column] = Distribution(
            one,
            end,
            [{} for _ in range(int(min(BINS, end) if one.whole else BINS))],
            {row["source"]: (row["n"], *row["q"][:3]) for row in rows},
        )
    scales = [{"name": name, "end": d.end, "bins": len(d.bins)} for name, d in made.items()]
    if not scales:
        return []
    values = ", ".join(["(?, ?, ?)"] * len(scales))
    counted = rows_of(
        catalogue,
        f"""
        SELECT name, source, least(floor(v * bins / last), bins - 1)::INT AS bin, count(*) AS n
        FROM long JOIN (VALUES {values}) AS scale(name, last, bins) USING (name) WHERE isfinite(v) GROUP BY ALL""",
        [value for scale in scales for value in scale.values()],
    )
    for row in counted:
        made[row["name"]].bins[max(0, row["bin"])][row["source"]] = row["n"]
    return list(made.values())
