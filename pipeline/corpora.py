"""Corpora: how much to take of each source. `all` takes everything, `paper` aims at the paper's counts.

The paper states totals only (30,646 clips, 45,231 QA; Appendix A). The split by source is an inference: two rows
follow exactly from the raw files (A2D-Sentences, VID-Sentence), four are those of a sibling corpus that shares six of
the seven sources, and Ref-SAV gets what is then missing to the totals. Nothing is forced: `sparrow plan --corpus paper`
prints what was reached beside these, and a source with fewer clips stays short.
"""

from pydantic import Field

from schemas.config import Config


class Take(Config):
    """What to take of one source.

    splits: official split names; None = all that are there
    max_clips, max_referents: caps per split, filled by a deterministic hash sample; None = no cap
    max_objects: only expressions about so many objects (MeViS); None = any
    qa: question-answer pairs per referent; None = the preset's
    source: overrides of the source's own config, e.g. {"segments": 3}
    """

    splits: tuple[str, ...] | None = None
    max_clips: int | None = None
    max_referents: int | None = None
    max_objects: int | None = None
    qa: int | None = None
    seed: int = 0
    source: dict = Field(default_factory=dict)


class Expected(Config):
    """The counts that a corpus aims at. For VID-Sentence, whose sentences have spans of their own, clips are videos."""

    clips: int
    qa: int


CORPORA: dict[str, dict[str, Take]] = {
    "all": {},
    "paper": {
        "hcstvg": Take(splits=("train",), max_clips=10_105),
        "mevis": Take(splits=("train",), max_clips=1_644, max_referents=4_489, max_objects=1),
        "a2d": Take(splits=("train",)),
        "lasot": Take(splits=("train",), max_clips=2_640, qa=3),
        "vid_sentence": Take(splits=("train", "val", "test")),
        "got10k": Take(splits=("train",), max_clips=9_078),
        "refsav": Take(splits=("train",), max_clips=117, max_referents=626),
    },
}

PAPER_COUNTS: dict[str, Expected] = {
    "hcstvg": Expected(clips=10_105, qa=10_105),
    "mevis": Expected(clips=1_644, qa=4_489),
    "a2d": Expected(clips=3_017, qa=5_359),
    "lasot": Expected(clips=2_640, qa=7_920),
    "vid_sentence": Expected(clips=4_045, qa=7_654),
    "got10k": Expected(clips=9_078, qa=9_078),
    "refsav": Expected(clips=117, qa=626),
}
PAPER_TOTAL = Expected(clips=30_646, qa=45_231)


def take(corpus: str, source: str) -> Take:
    """What a named corpus takes of a source."""
    if corpus not in CORPORA:
        raise ValueError(f"unknown corpus {corpus!r}: choose one of {', '.join(CORPORA)}")
    return CORPORA[corpus].get(source, Take())
