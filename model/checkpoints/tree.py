"""The tensors of a model by name, each once, and putting values into them where they are."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Tree:
    """Parameters and stored tables of `model` under the names that `rename` makes of its own.

    A tensor with several names (tied embeddings, the proposer's heads) counts once, by the first of them.
    """

    def __init__(self, model: nn.Module, rename: Callable[[str], str] = str) -> None:
        self.model = model
        self.float32 = tuple(
            f"{part}." for part in getattr(getattr(model, "host", model), "float32", ())
        )
        self.tensors: dict[str, Tensor] = {}
        """First name -> tensor, in the model's order."""
        self.first: dict[str, str] = {}
        """Every name -> first name."""
        self._places: dict[str, list[str]] = {}
        seen: dict[int, str] = {}
        for place, tensor in model.state_dict(keep_vars=True).items():
            name = rename(place)
            self.first[name] = seen.setdefault(id(tensor), name)
            self.tensors.setdefault(self.first[name], tensor)
            self._places.setdefault(self.first[name], []).append(place)

    def has(self, part: str) -> bool:
        """Whether a name starts with `part`."""
        return any(name.startswith(part) for name in self.first)

    def put(
        self, name: str, value: Tensor, dtype: torch.dtype | None, device: torch.device | str | None
    ) -> None:
        """Values for the tensor with this first name, under all its names.

        One that has memory keeps dtype and device. One on meta gets memory on `device` (default: the CPU), and if it
        is a floating-point parameter `dtype` (default: its own; `Host.float32` says what keeps that).
        """
        old = self.tensors[name]
        if self._places[name][0].removeprefix("host.").startswith(self.float32):
            dtype = None
        if not old.is_meta:
            with torch.no_grad():
                old.copy_(value)
            return
        parameter = isinstance(old, nn.Parameter)
        kind = dtype if dtype is not None and parameter and old.is_floating_point() else old.dtype
        new = value.to(device=device or "cpu", dtype=kind, copy=True)
        if parameter:
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        self.tensors[name] = new
        for place in self._places[name]:
            owner, _, leaf = place.rpartition(".")
            setattr(self.model.get_submodule(owner), leaf, new)


def retie(llm: Any) -> None:
    """Tied embeddings become one tensor again: building on meta makes two of them."""
    tied = llm.config.get_text_config().tie_word_embeddings
    if tied and llm.get_input_embeddings().weight is not llm.get_output_embeddings().weight:
        llm.tie_weights()


def _all(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def unfilled(model: nn.Module) -> list[str]:
    """Names of all parameters and tables that have no values (are on the meta device)."""
    return [name for name, tensor in _all(model) if tensor.is_meta]


def move_tables(model: nn.Module, device: torch.device | str) -> None:
    """Tables that constructors computed are not in any file: bring them to where the weights are put."""
    for module in model.modules():
        for name, table in module._buffers.items():
            if table is not None and not table.is_meta:
                module._buffers[name] = table.to(device)
