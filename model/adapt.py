"""What is trained on top of a frozen host: LoRA on named layers, and the rows of tokens the host did not know.

Freezing every base weight freezes the row of a token added to the vocabulary too, at its random start: the released
training does that to [BOX] (`spec/model.md` section 1.7). Here new rows start as the mean of the others and train.
Both are `peft` layers put in place, so that the host's module names stay what they are.
"""

import warnings
from collections.abc import Sequence

from peft import LoraConfig, TrainableTokensConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import nn

from schemas.config import Config

LORA, ROWS = "sparrow", "rows"
"""Names of the two adapters, as they appear in parameter names."""


class LoraOptions(Config):
    """LoRA as in VideoGLaMM, GLUS and the release."""

    r: int = 8
    alpha: int = 16
    dropout: float = 0.05


def add_lora(module: nn.Module, names: Sequence[str], options: LoraOptions) -> None:
    """Wrap the linear layers called `names` (full names, no patterns). ValueError names the ones that are not there.

    The release gives substrings ("q_proj") and gets what happens to match; see `spec/model.md` section 4.
    """
    layers = dict(module.named_modules())
    if wrong := [name for name in names if not isinstance(layers.get(name), nn.Linear)]:
        raise ValueError(
            f"LoRA needs linear layers, and these are none of {type(module).__name__}: {', '.join(wrong)}"
        )
    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        bias="none",
        target_modules=list(names),
    )
    trained = [p for p in module.parameters() if p.requires_grad]
    inject_adapter_in_model(config, module, adapter_name=LORA)
    _restore(module, trained)


def train_rows(llm: nn.Module, ids: Sequence[int]) -> None:
    """Make the rows `ids` of input and output embeddings trainable, whatever else is frozen. Tied tables stay tied."""
    layers = [llm.get_input_embeddings(), llm.get_output_embeddings()]  # type: ignore[operator]
    if llm.config.tie_word_embeddings:  # type: ignore[union-attr]
        layers = layers[:1]  # peft finds the other by itself
    names = [
        name for name, module in llm.named_modules() if any(module is layer for layer in layers)
    ]
    trained = [p for p in llm.parameters() if p.requires_grad]
    config = TrainableTokensConfig(token_indices=list(ids), target_modules=names)
    with (
        warnings.catch_warnings()
    ):  # peft warns of merging tied tables, which `merge` below does right
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        inject_adapter_in_model(config, llm, adapter_name=ROWS)
    _restore(llm, trained)


def _restore(module: nn.Module, trained: list[nn.Parameter]) -> None:
    """Injecting freezes all other weights and leaves its own layers in training mode: neither is its business."""
    for parameter in trained:
        parameter.requires_grad_(True)
    module.train(module.training)


def merge(module: nn.Module) -> None:
    """Write LoRA and new rows into the weights and take the wrappers away, in place: the module as if it had always
    been so."""
    wrapped = [
        (name, m)
        for name, m in module.named_modules()
        if isinstance(m, LoraLayer | TrainableTokensLayer)
    ]
    for name, layer in wrapped:
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, layer.get_base_layer())
