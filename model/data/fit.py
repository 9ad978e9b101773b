"""Fit: which samples a host cannot take, by the manifests alone, before anything is trained.

A prompt grows with its caption, and in a host that is asked about every frame with each frame. The longest words of the
mix are taken: the longest templates, and as many frames as a sample can have.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from model.data.collate import Preparation, plain_text
from model.data.index import Index
from model.data.questions import (
    ABOUT_REGION,
    FAMILIES,
    Family,
    QuestionMix,
    split_region,
    with_mask,
)
from schemas.questions import Templates


@dataclass(frozen=True, slots=True)
class TooLong:
    """A referent whose prompt may be longer than the host can take, in its longest family."""

    referent_id: str
    family: Family
    positions: int

    def __str__(self) -> str:
        return f"{self.referent_id}: {self.positions:,} positions as {self.family}"


def too_long(
    index: Index, preparation: Preparation, mix: QuestionMix, frames: int
) -> Iterator[TooLong]:
    """Referents that may not fit, in the order of the index. frames: at most, of a sample."""
    rows = index.referents.select(["referent_id", "caption", "height", "width", "n_frames"])
    known: dict[tuple[Templates, int, int, int], _Lengths] = {}
    for row, (referent, caption, height, width, length) in enumerate(
        zip(*_columns(rows), strict=True)
    ):
        kind = index.templates(row), height, width, min(frames, length or frames)
        if kind not in known:
            known[kind] = _Lengths(preparation, *kind)
        worst = known[kind].longest(mix, caption)
        if worst is not None:
            yield TooLong(referent, *worst)


def _columns(table: pa.Table) -> list[list]:
    return [column.to_pylist() for column in table.columns]


@dataclass(frozen=True)
class _Lengths:
    """Positions of prompts about pictures of one size."""

    preparation: Preparation
    templates: Templates
    height: int
    width: int
    frames: int
    empty: dict[tuple[Family, bool], int] = field(default_factory=dict)
    """Positions without a caption, once they are known."""

    def longest(self, mix: QuestionMix, caption: str) -> tuple[Family, int] | None:
        """The family with the longest prompt, and its positions, if that is more than the host takes."""
        most = self.preparation.host.spec.max_len
        found: tuple[Family, int] | None = None
        for family, has_tsf in _families(mix, self.preparation.config.tsf.tokens > 0):
            if self._at_most(family, has_tsf, caption) <= most:
                continue
            length = self.length(family, has_tsf, caption)
            if length > most and (found is None or length > found[1]):
                found = family, length
        return found

    def _at_most(self, family: Family, has_tsf: bool, caption: str) -> int:
        """A bound that needs no tokenizer: a token has at least one byte, and a caption comes at most once per frame
        and once more."""
        kind = family, has_tsf
        if kind not in self.empty:
            self.empty[kind] = self.length(family, has_tsf, "")
        return self.empty[kind] + (self.frames + 1) * (len(caption.encode()) + 2)

    def length(self, family: Family, has_tsf: bool, caption: str) -> int:
        """Positions with the longest templates of a family."""
        host, tokens = self.preparation.host, self.preparation.tokens
        caption = plain_text(caption, host)
        own = host.question(caption), host.answer.format(seg=tokens)
        question, answer = own
        at, later = None, None
        if family in ABOUT_REGION:
            question, at = split_region(max(self.templates.region, key=len))
            later = own
            answer = f"{caption} {tokens}" if family == "region_mask" else caption
        elif family == "segment":
            number = max(range(len(self.templates.segment)), key=self._request_length)
            question = self.templates.request(number, caption)
            answer = with_mask(max(self.templates.reply, key=len), tokens)
        slots = self.preparation.config.tsf.tokens if has_tsf else 0
        ids, _ = host.lesson_ids(self.frames, question, answer, slots, at=at, later=later)
        return host.prompt_length(ids, self.height, self.width, self.frames)

    def _request_length(self, number: int) -> int:
        return len(self.templates.segment[number])


def _families(mix: QuestionMix, has_tsf: bool) -> list[tuple[Family, bool]]:
    """The families that are asked, each with whether its prompt has TSF slots."""
    asked: list[tuple[Family, bool]] = []
    for family in FAMILIES:
        if has_tsf and getattr(mix.with_tsf, family) > 0:
            asked.append((family, True))
        if getattr(mix.without_tsf, family, 0) > 0:
            asked.append((family, False))
    return asked
