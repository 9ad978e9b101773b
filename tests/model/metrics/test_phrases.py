"""Phrases are compared by the mean of BERT's last states, one by one or in a batch; half a model is refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, BertTokenizer

from model.metrics import gcg_recall
from model.metrics.phrases import PhraseEncoder

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "dog",
    "cat",
    "red",
    "car",
    "that",
    "jumps",
]
PHRASES = ["a dog", "a red car that jumps", "", "cat", "something unknown"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    at = tmp_path_factory.mktemp("bert")
    (at / "vocab.txt").write_text("\n".join(VOCABULARY))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(at)
    BertTokenizer(str(at / "vocab.txt")).save_pretrained(at)
    return at


def released(folder, text):
    """As the released script embeds a phrase."""
    tokenizer, model = (
        BertTokenizer.from_pretrained(folder),
        BertModel.from_pretrained(folder).eval(),
    )
    with torch.no_grad():
        outputs = model(**tokenizer(text, return_tensors="pt", padding=True, truncation=True))
    return torch.mean(outputs.last_hidden_state[0], dim=0).numpy()


def test_a_batch_is_what_the_released_script_makes_one_by_one(folder):
    found = PhraseEncoder(folder)(PHRASES)
    np.testing.assert_allclose(found, [released(folder, phrase) for phrase in PHRASES], atol=1e-5)


def test_similarity_goes_into_recall(folder):
    similarity = PhraseEncoder(folder).similarity(PHRASES[:2], PHRASES[1::-1])
    np.testing.assert_allclose(similarity[::-1].diagonal(), 1, atol=1e-6)
    assert similarity[0, 0] < 0.999
    masks = np.zeros((2, 1, 4, 4), bool)
    masks[0, :, :2] = masks[1, :, 2:] = True
    assert gcg_recall(masks[::-1], masks, similarity, "corrected", text_threshold=0.999) == 1.0
    assert gcg_recall(masks, masks, similarity, "corrected", text_threshold=0.999) == 0.0


def test_nothing_said_is_no_phrase(folder):
    assert PhraseEncoder(folder).similarity(PHRASES, []).shape == (5, 0)


def test_half_a_model_or_none_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        PhraseEncoder(tmp_path)
    for name in ("config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"1 weights are missing, .*layer\.1\.output\.dense\.weight"
    ):
        PhraseEncoder(tmp_path)
