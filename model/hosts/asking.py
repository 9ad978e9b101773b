"""Prompts through the language model together: their common beginning once, what differs as a batch, then answers token
by token.

Rows of a batch end in the same column, and what is missing is missing on the left, so that the distance of two tokens is
the same as alone: a sliding window counts columns. Of the common beginning, which each row gets from the cache, a short
row has a few positions less there, and reads these again.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from model.hosts.inputs import TSF

TOGETHER = 16
"""Prompts of one batch at most. Each has a cache of its own: about 1.4 GB on VideoGLaMM, in half precision, as its sizes
say. Where that is too much, the batch is halved."""


@dataclass(frozen=True)
class Packed:
    """A batch ready for the language model. All of length L, right-padded."""

    embeds_bld: Tensor
    ids_bl: Tensor
    """int64; IMAGE at visual, TSF at TSF positions."""
    attention_bl: Tensor
    """bool; with a cache, of all positions so far."""
    positions: Tensor
    """[B, L], or [3, B, L] for M-RoPE."""
    labels_bl: Tensor | None = None

    def __len__(self) -> int:
        return self.ids_bl.shape[1]


@dataclass(frozen=True)
class Generated:
    ids_l: Tensor
    """Prompt (with sentinels) and answer; of prompts that were read together, the end of the prompt."""
    hidden_ld: Tensor
    """PromptRow i is the state that predicts id i + 1, as `seg_read` says. One row less than `ids_l`."""
    answer: list[int]
    length: int
    """Of the answer without the token that ended it."""


@dataclass(frozen=True)
class VideoQuestion:
    """A question about a video. tsf_nd: tokens for the prompt's TSF slots, [n, D]."""

    question: str
    tsf_nd: Tensor | None = None


class LanguageModel(Protocol):
    """What is needed of a host here."""

    def lm(self, packed: Packed, cache: Any = None) -> tuple[Tensor, Tensor, Any]:
        """`Host.lm`."""

    def token_embeddings(self) -> nn.Embedding:
        """`Host.token_embeddings`."""


@dataclass(frozen=True)
class PromptRow:
    """A prompt, and maybe a forced answer. answer_from: where the answer begins, in positions."""

    embeds_ld: Tensor
    ids_l: Tensor
    positions: Tensor
    """[L], or [3, L]."""
    answer_from: int

    def __len__(self) -> int:
        return len(self.ids_l)


@dataclass(frozen=True)
class Prefilled:
    """Rows that the language model has read: the last S positions of each. logits [n, S, V], hidden [n, S, D]."""

    packed: Packed
    logits: Tensor
    hidden: Tensor
    cache: Any


def batches(rows: Sequence[PromptRow], most: int) -> list[list[int]]:
    """Numbers of rows that may be read together: at most so many, and of lengths that differ by less than their
    common beginning."""
    by_length = sorted(range(len(rows)), key=lambda k: len(rows[k]))
    common = _common(rows)
    found: list[list[int]] = []
    for k in by_length:
        fits = found and len(found[-1]) < most and len(rows[k]) - len(rows[found[-1][0]]) <= common
        if fits:
            found[-1].append(k)
        else:
            found.append([k])
    return found


def prefill(host: LanguageModel, rows: Sequence[PromptRow]) -> Prefilled:
    """The rows of one of `batches` through the language model."""
    attention = [torch.ones(len(row), dtype=torch.bool, device=row.ids_l.device) for row in rows]
    if len(rows) == 1:
        packed = _packed(rows, attention, len(rows[0]))
        return Prefilled(packed, *host.lm(packed))
    common, total = _common(rows), max(map(len, rows))
    last = total - common
    head = replace(rows[0], embeds_ld=rows[0].embeds_ld[:common], ids_l=rows[0].ids_l[:common])
    head = replace(head, positions=head.positions[..., :common])
    _, _, seen = host.lm(_packed([head], [attention[0][:common]], common), DynamicCache())
    cache = DynamicCache()
    for number, layer in enumerate(seen.layers):
        keys, values = (
            torch.cat([_left_padded(part[:, :, : len(row) - last], total - last) for row in rows])
            for part in (layer.keys, layer.values)
        )
        cache.update(keys, values, number)
    seen_so_far = [_left_padded(one[None, None, :, None], total)[0, 0, :, 0] for one in attention]
    packed = _packed(rows, seen_so_far, last)
    return Prefilled(packed, *host.lm(packed, cache))


def greedy(
    host: LanguageModel,
    prompts: Prefilled,
    lengths: Sequence[int],
    max_new_tokens: int,
    ends: Collection[int],
    max_len: int,
) -> list[Generated]:
    """The most probable token after token, for each row until one of `ends`, or until its text is too long.

    lengths: of the whole prompts. max_len: positions of a prompt with its answer.
    """
    answers: list[list[int]] = [[] for _ in lengths]
    is_done = [False] * len(lengths)
    hidden, step, logits, cache = [prompts.hidden], prompts.packed, prompts.logits, prompts.cache
    while True:
        tokens = logits[:, -1].argmax(-1)
        for row, token in enumerate(tokens.tolist()):
            if is_done[row]:
                continue
            answers[row].append(token)
            count = len(answers[row])
            is_full = count >= max_new_tokens or lengths[row] + count >= max_len
            is_done[row] = token in ends or is_full
        if all(is_done):
            break
        step = _next(host, step, tokens)
        logits, states, cache = host.lm(step, cache)
        hidden.append(states)
    states_nld = torch.cat(hidden, 1)
    found = []
    for row, answer in enumerate(answers):
        ids = torch.cat([prompts.packed.ids_bl[row], torch.tensor(answer, device=tokens.device)])
        length = len(answer) - (answer[-1] in ends)
        found.append(Generated(ids, states_nld[row, : len(ids) - 1], answer, length))
    return found


def shared_out(rounds: Iterator[Sequence[Any]], count: int) -> list[Iterator[Any]]:
    """An iterator over rows of `count` items as `count` iterators, which may be asked in any order. An exception in the
    place of an item is raised there; one of `rounds` itself, by every iterator that gets so far."""
    waiting: list[deque[Any]] = [deque() for _ in range(count)]
    failures: list[Exception] = []

    def items_of(place: int) -> Iterator[Any]:
        while True:
            if not waiting[place]:
                if failures:
                    raise failures[0]
                try:
                    found = next(rounds, None)
                except Exception as error:
                    failures.append(error)
                    raise
                if found is None:
                    return
                for queue, item in zip(waiting, found, strict=True):
                    queue.append(item)
            item = waiting[place].popleft()
            if isinstance(item, Exception):
                raise item
            yield item

    return [items_of(place) for place in range(count)]


def _common(rows: Sequence[PromptRow]) -> int:
    """How many positions all rows begin with: not the tokens of a target, nor the last word before an answer."""
    common = min(row.answer_from for row in rows) - 1
    first = rows[0].ids_l[:common]
    is_same = first != TSF
    for row in rows[1:]:
        is_same = is_same & (row.ids_l[:common] == first)
    different = (~is_same).nonzero()
    return int(different[0]) if len(different) else common


def _packed(rows: Sequence[PromptRow], attention: Sequence[Tensor], last: int) -> Packed:
    """The last positions of each row, as a batch."""
    return Packed(
        torch.stack([row.embeds_ld[-last:] for row in rows]),
        torch.stack([row.ids_l[-last:] for row in rows]),
        torch.stack(list(attention)),
        torch.stack([row.positions[..., -last:] for row in rows], -2),
    )


def _left_padded(values_1hld: Tensor, length: int) -> Tensor:
    """[1, h, l, d] -> [1, h, length, d], zeros first."""
    missing = length - values_1hld.shape[2]
    return nn.functional.pad(values_1hld, (0, 0, missing, 0))


def _next(host: LanguageModel, step: Packed, tokens: Tensor) -> Packed:
    ids = tokens[:, None]
    seen = torch.cat([step.attention_bl, torch.ones_like(step.attention_bl[:, :1])], 1)
    return replace(
        step,
        embeds_bld=host.token_embeddings()(ids),
        ids_bl=ids,
        attention_bl=seen,
        positions=step.positions[..., -1:] + 1,
    )
