"""A tokenizer that needs no file: one id per byte. The tiny hosts speak with it."""

from collections.abc import Sequence
from typing import Any


def byte_tokenizer(special: Sequence[str] = ()) -> Any:
    """A transformers fast tokenizer: 256 bytes, then <pad>, <s>, </s>, <unk>, then the given tokens, in order.

    Text of any language goes in and comes out unchanged.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    tokenizer.add_tokens(list(special))
    return tokenizer
