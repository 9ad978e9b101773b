"""Questions of training: which family each sample of an epoch is asked, and with which words.

region       the TSF tokens stand at `<region>` of a referential template, the caption is the answer: language loss
region_mask  the same with the grounding tokens after the caption: language and mask loss
segment      a curated request to segment what the caption describes: language and mask loss
host         the host's own request: language and mask loss

The first two are the paper's (Appendix A): the template is drawn during training, the placeholder filled, the caption
unchanged is the answer. They need TSF: without it the question says nothing, and the model would learn to guess.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from pydantic import Field, model_validator

from schemas.config import Config
from schemas.questions import MASK, PLACEHOLDER, Templates, draw

Family = Literal["region", "region_mask", "segment", "host"]
FAMILIES: tuple[Family, ...] = get_args(Family)
ABOUT_REGION = ("region", "region_mask")
"""Families whose question holds the TSF tokens and whose answer holds the caption."""
MASKED = ("region_mask", "segment", "host")
"""Families whose answer holds the grounding tokens."""


class WithTSF(Config):
    """Weights of the families of samples whose prompt has TSF tokens."""

    region: float = Field(default=1.0, ge=0)
    region_mask: float = Field(default=2.0, ge=0)
    segment: float = Field(default=0.0, ge=0)
    host: float = Field(default=0.0, ge=0)


class WithoutTSF(Config):
    """Weights of the families of samples whose prompt has none. None of them asks about a region."""

    segment: float = Field(default=0.0, ge=0)
    host: float = Field(default=1.0, ge=0)


class QuestionMix(Config):
    """Shares of the families in stage 1, as weights that need not add up to 1. They are met exactly, up to a sample.

    The paper gives no shares. With TSF a third of the samples is asked for the caption alone, as Appendix A has it, and
    two thirds also for the mask, so that the region is grounded too; without TSF it is the host's own request, which
    inference uses.
    """

    with_tsf: WithTSF = WithTSF()
    without_tsf: WithoutTSF = WithoutTSF()

    @model_validator(mode="after")
    def _something_is_asked(self) -> "QuestionMix":
        for name in ("with_tsf", "without_tsf"):
            weights = getattr(self, name).model_dump()
            if not any(weights.values()):
                raise ValueError(
                    f"questions.{name}: at least one of {', '.join(weights)} must be above 0"
                )
        return self

    @classmethod
    def host_only(cls) -> "QuestionMix":
        """The host's own request for every sample, as in the released training."""
        return cls(with_tsf=WithTSF(region=0, region_mask=0, host=1))

    @classmethod
    def about_regions(cls, share: float) -> "QuestionMix":
        """Region questions for a share of the samples with TSF, in the default proportion; the host's for the rest."""
        return cls(with_tsf=WithTSF(region=share / 3, region_mask=2 * share / 3, host=1 - share))


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a sample is asked. otherwise: the family if it turns out to have no TSF, for a shard may hold none."""

    family: Family
    otherwise: Family
    key: str
    """Decides the words, together with the sample: seed and epoch."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The words of a sample. question: of a region question, with its placeholder; empty for the host's own request.

    answer: the caption, or a reply with [SEG]; empty for the host's own.
    """

    family: Family = "host"
    question: str = ""
    answer: str = ""


def draw_families(
    mix: QuestionMix, tsf: Sequence[bool], seed: Sequence[int], window: int
) -> list[tuple[Family, Family]]:
    """The families of an epoch's samples, in order: (family, family if there is no TSF after all).

    tsf: whether each sample's prompt is to have TSF. seed: decides the draws. window: samples of a step; if none of
    them had a mask, the first one that is asked for its caption alone is asked for its mask too.
    """
    has_tsf = np.asarray(tsf, bool)
    rng = np.random.default_rng([*seed])
    otherwise = np.empty(len(has_tsf), object)
    for group in (has_tsf, ~has_tsf):  # each has exact shares of its own
        otherwise[group] = _shared(mix.without_tsf.model_dump(), int(group.sum()), rng)
    families = otherwise.copy()
    families[has_tsf] = _shared(mix.with_tsf.model_dump(), int(has_tsf.sum()), rng)
    for start in range(0, len(families), window):
        step = families[start : start + window]
        if not np.isin(step, MASKED).any():
            step[0] = "region_mask"
    return list(zip(families.tolist(), otherwise.tolist(), strict=True))


def _shared(weights: dict[str, float], count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` names in random order, each as often as its weight says, up to one."""
    bounds = np.cumsum(list(weights.values()))
    places = (rng.permutation(count) + 0.5) / max(count, 1) * bounds[-1]
    return np.array(list(weights), object)[np.searchsorted(bounds, places, side="right")]


def ask(
    drawn: Drawn, templates: Templates, referent: str, ordinal: int, caption: str, *, has_tsf: bool
) -> Asked:
    """The words of the `ordinal`-th question about a referent in an epoch. No template comes twice for a referent in an
    epoch before its pool is used up."""
    family = drawn.family if has_tsf else drawn.otherwise
    key = f"{drawn.key}/{referent}/{family}"
    if family in ABOUT_REGION:
        number = draw(key, ordinal, templates.region)
        return Asked(family, templates.region[number], caption)
    if family == "segment":
        number = draw(key, ordinal, templates.segment)
        reply = templates.reply[draw(f"{key}/reply", ordinal, templates.reply)]
        return Asked(family, templates.request(number, caption), reply)
    return Asked("host")


def split_region(question: str) -> tuple[str, int]:
    """A region question -> its text without the placeholder, and where in it the TSF tokens stand, in characters.

    ValueError for a question without it.
    """
    before, found, after = question.partition(PLACEHOLDER)
    if not found:
        raise ValueError(f"a question about a region needs {PLACEHOLDER}: {question!r:.100}")
    return before + after, len(before)


def with_mask(reply: str, tokens: str) -> str:
    """A reply with the grounding tokens in the place of its [SEG]."""
    return reply.replace(MASK, tokens)
