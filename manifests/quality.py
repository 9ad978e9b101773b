"""What a quality figure of a sample rests on, in words and in SQL."""

from collections.abc import Mapping

LOW_COVERAGE = 0.2
"""Below this share of compared frames among the kept ones, an IoU says little about the sample."""

COMPARED_OF_KEPT = "round(iou_coverage * n_kept)::BIGINT"
"""SQL over `referents`: the kept frames that were compared with the annotation."""

COVERAGE = f"sum({COMPARED_OF_KEPT}) / nullif(sum(n_kept) FILTER (iou_coverage IS NOT NULL), 0)"
"""SQL over `referents`: `iou_coverage` of several samples together; NULL where none was tracked."""


def iou_words(row: Mapping) -> str:
    """ "IoU 0.99 on 6 of 278 frames" for a row of `referents`: the kept frames that were compared, of all kept.

    Where dropped frames were compared too, they are named. For boxes that are the dataset's own: the box rule.
    """
    iou, coverage, n_kept = row["mean_iou"], row["iou_coverage"], row["n_kept"]
    if coverage is None:
        return f"boxes of the dataset ({row['box_rule']})"
    if iou is None:
        return f"IoU unknown: none of {n_kept:,} frames is annotated"
    compared = round(coverage * n_kept)
    words = f"IoU {iou:.2f} on {compared:,} of {n_kept:,} frames"
    dropped = row["n_compared"] - compared
    return f"{words} and {dropped:,} dropped ones" if dropped else words


def rests_on_little(row: Mapping) -> bool:
    """Whether the IoU of a row of `referents` covers less than LOW_COVERAGE of its kept frames."""
    coverage = row["iou_coverage"]
    return coverage is not None and coverage < LOW_COVERAGE
