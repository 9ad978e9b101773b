"""The text side of GroundingDINO: tokens, the masks that keep phrases apart, the text encoder, and a stand-in for it.

Spec: tracking 5.1. Every ".", "?", [CLS] and [SEP] ends a phrase; tokens see only their own phrase, and positions
restart in it. Captions are padded to one of five lengths, which changes nothing if they end with a period.
"""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.detect.captions import VOCABULARY

MAX_TOKENS = 256
"""What the text branch reads at most."""
BUCKETS = (16, 32, 64, 128, 256)
"""Captions are padded to the next of these lengths: few shapes, hence few compiled kernels and full batches."""


@dataclass(frozen=True, slots=True)
class Text:
    """A caption as BERT's tokenizer cuts it: ids with [CLS] and [SEP], and each token's [start, end) in the caption."""

    caption: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    @property
    def bucket(self) -> int:
        return next(size for size in BUCKETS if size >= len(self.ids))

    def tokens(self, span: tuple[int, int] | None) -> list[int]:
        """Indices of the tokens inside the characters [start, end); of all words and marks if span is None."""
        start, end = span or (0, len(self.caption))
        return [i for i, (s, e) in enumerate(self.offsets) if s < e and s < end and e > start]


class Tokenizer:
    """BERT's tokenizer as the detector uses it. Any number of threads may call it; captions are tokenised once."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._separators = torch.tensor(
            tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", ".", "?"])
        )
        self._lock = threading.Lock()  # the Rust tokenizer refuses concurrent use
        self._known = lru_cache(4096)(self._tokenise)

    def __call__(self, caption: str) -> Text:
        """ValueError if the caption has no final period or more than 256 tokens."""
        return self._known(caption)

    def _tokenise(self, caption: str) -> Text:
        if not caption.endswith("."):
            # without one, the last phrase is masked in one way at full length and in another when padded
            raise ValueError(
                f"caption {caption!r} does not end in a period: use captions.normalise"
            )
        with self._lock:
            found = self.tokenizer(caption, return_offsets_mapping=True)
        ids = found["input_ids"]
        if len(ids) > MAX_TOKENS:
            raise ValueError(
                f"caption of {len(ids)} tokens: GroundingDINO reads at most {MAX_TOKENS}"
            )
        return Text(caption, tuple(ids), tuple(found["offset_mapping"]))

    def batch(self, texts: Sequence[Text]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """ids [B, L], which are no padding [B, L], which see each other [B, L, L], positions [B, L]; L is a bucket."""
        length = max(text.bucket for text in texts)
        ids = torch.tensor(
            [text.ids + (self.tokenizer.pad_token_id,) * (length - len(text.ids)) for text in texts]
        )
        known = torch.tensor([[i < len(text.ids) for i in range(length)] for text in texts])
        return ids, known, *phrase_blocks(ids, self._separators)

    def phrase(self, text: Text, probabilities: Sequence[float], threshold: float) -> str:
        """The words whose tokens are above the threshold, as the package's `predict` names a box.

        probabilities: one per token, longer ones are cut. [CLS] and [SEP] may be named; no token above: "".
        """
        chosen = [i for i, p in zip(text.ids, probabilities, strict=False) if p > threshold]
        with self._lock:
            return self.tokenizer.decode(chosen).replace(".", "")


def phrase_blocks(ids: Tensor, separators: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens see each other, [B, L, L] bool, and positions, [B, L], counted from 0 in every phrase.

    ids: [B, L], padded. A phrase ends with a separator ([CLS], [SEP], "." or "?"), which belongs to it; padding after
    the last one sees itself alone. Equal to the package's masks for captions that end with a period.
    """
    index = torch.arange(ids.shape[1]).expand_as(ids)
    ends = torch.isin(ids, separators)
    phrase = ends.cumsum(1) - ends.long()  # separators before this token
    closed = phrase < ends.sum(1, keepdim=True)
    same = (phrase[:, :, None] == phrase[:, None, :]) & closed[:, :, None]
    last = torch.where(ends, index, -1).cummax(1).values.roll(1, 1)
    last[:, 0] = -1
    return same | torch.eye(ids.shape[1], dtype=torch.bool), torch.where(
        closed, index - last - 1, 0
    )


class TextEncoder(nn.Module):
    """BERT whose tokens see the tokens of their own phrase: attention_mask [B, L, L] bool. Same parameter names as the
    package's wrapper; the pooler has parameters in every checkpoint and no use."""

    def __init__(self, bert_model: Any):
        super().__init__()
        self.config = bert_model.config
        self.embeddings, self.encoder, self.pooler = (
            bert_model.embeddings,
            bert_model.encoder,
            bert_model.pooler,
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        hidden = self.embeddings(
            input_ids=input_ids, position_ids=position_ids, token_type_ids=token_type_ids
        )
        additive = torch.zeros_like(attention_mask, dtype=hidden.dtype).masked_fill(
            ~attention_mask, float("-inf")
        )
        return {"last_hidden_state": self.encoder(hidden, attention_mask=additive[:, None])[0]}


def write_text_encoder(folder: Path, *, tiny: bool) -> None:
    """A BERT folder without weights, for name-seeded models: config, tokenizer settings, and a vocabulary of words and
    letters, filled up to BERT's 30,522 entries unless tiny. It has BERT's structure and cost, not its words."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", "!", "'", "-"]
    vocabulary += [*sorted(VOCABULARY), *letters, *(f"##{c}" for c in letters)]
    config: dict[str, object] = {"model_type": "bert", "architectures": ["BertModel"]}
    if tiny:
        config |= {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 128,
        }
    else:
        vocabulary += [f"[unused{i}]" for i in range(30522 - len(vocabulary))]
    config["vocab_size"] = len(vocabulary)
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
