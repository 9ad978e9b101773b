"""Noise on purpose, in words: what was asked for on the trajectories that TSF is made of, and what was reached.

Table 10 (paper, Appendix D.4) is about TSF only. Tracks, masks and IoU of an output with noise are clean.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from manifests.catalog import rows_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

NOISE = """
        SELECT corruption, round(corruption_level::DOUBLE, 6) AS level, count(*) AS samples,
               count(*) FILTER (n_corrupted > 0) AS corrupted, count(*) FILTER (n_switchable = 0) AS alone,
               sum(n_corrupted)::BIGINT AS n_corrupted, sum(n_corruptible)::BIGINT AS n_corruptible,
               coalesce(sum(n_corruptible) FILTER (n_corrupted > 0), 0)::BIGINT AS n_frames
        FROM referents WHERE corruption <> 'none' AND source = coalesce($1, source)
        GROUP BY ALL ORDER BY corruption, level"""
"""SQL over `referents` for a row per kind and level of noise: samples, those with a frame that was corrupted, those
without another target to switch to; frames that were corrupted, that could be, and those of corrupted samples."""


def noise(catalogue: "DuckDBPyConnection", source: str | None = None) -> list[dict]:
    """A row per kind and level of noise, none for a clean output. source: only this one."""
    columns = rows_of(
        catalogue,
        "SELECT column_name FROM duckdb_columns() WHERE table_name = 'referents' AND column_name = 'corruption'",
    )
    if not columns:  # an output from before there was noise
        return []
    return rows_of(catalogue, NOISE, [source])


def noise_words(row: Mapping) -> str:
    """ "id_switch 5 %: 4.7 % of frames in 31 of 45 samples, 3.2 % of all frames; 14 have no other target to switch to"
    for a row of `noise`."""
    samples, corrupted, alone = row["samples"], row["corrupted"], row["alone"]
    words = _asked(row["corruption"], row["level"])
    if corrupted:
        among = _percent(row["n_corrupted"] / row["n_frames"])
        words += f": {among} of frames in {corrupted:,} of {samples:,} samples"
    else:
        words += f": no frame of {samples:,} samples"
    if 0 < corrupted < samples:
        words += f", {_percent(row['n_corrupted'] / row['n_corruptible'])} of all frames"
    if alone:
        words += f"; {alone:,} {'has' if alone == 1 else 'have'} no other target to switch to"
    return words


def sample_noise_words(row: Mapping) -> str:
    """ "id_switch 5 %, 3 of 60 frames" for a row of `referents`; empty for a clean sample."""
    kind = row.get("corruption") or "none"
    if kind == "none":
        return ""
    asked = _asked(kind, row["corruption_level"])
    return f"{asked}, {row['n_corrupted']:,} of {row['n_corruptible']:,} frames"


def _asked(kind: str, level: float) -> str:
    """Kind and level; that of jitter is a share of the box's size, that of the others one of the frames."""
    return f"{kind} {level:.3g}" if kind == "jitter" else f"{kind} {100 * level:.3g} %"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
