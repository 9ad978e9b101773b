"""Published weights into our modules, tensor by tensor, and back."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.checkpoints.files import Tensors, weight_files
from model.checkpoints.layouts import FUSER_SCALE, Layout, layout, recognise
from model.checkpoints.plan import Plan
from model.checkpoints.tree import Tree, move_tables, retie, unfilled
from trackers.checkpoints import CheckpointError, mismatch_table

LOST_SCALE = 1e-6
"""Where SAM2's layer scales start, and stay in upstream GLUS inference (`spec/hosts.md` section 2)."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Report:
    """What `load_official` did. Print it."""

    model: nn.Module
    layout: str
    files: list[Path]
    tensors: int
    """Put into the model, each once."""
    bytes: int
    """Of these, as they are in the files."""
    ignored: dict[str, list[str]]
    """Reason -> official names."""
    problems: list[tuple] = field(default_factory=list)
    """(missing | unknown | mis-shaped, name, shape wanted, shape found). None if `strict`."""
    unfilled: list[str] = field(default_factory=list)
    """Names of the model's tensors that still have no values: other files have them."""
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        where = (
            self.files[0]
            if len(self.files) == 1
            else f"{self.files[0].parent} ({len(self.files)} files)"
        )
        lines = [f"{where}: {self.layout}, {self.tensors} tensors, {self.bytes / 1e9:.2f} GB"]
        lines += [
            f"  left alone: {len(names)} tensors, {reason}"
            for reason, names in self.ignored.items()
        ]
        lines += [f"  {kind}: {name}" for kind, name, _, _ in self.problems[:20]]
        lines += [f"  {len(self.problems)} problems in all"] if len(self.problems) > 20 else []
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  still without values: {_by_part(self.unfilled)}"] if self.unfilled else []
        return "\n".join(lines)


def load_official(
    host: nn.Module | str,
    path: str | Path,
    strict: bool = True,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    fuser_scale: Literal["checkpoint", "lost"] = "checkpoint",
) -> Report:
    """Put the published weights at `path` into a model: a whole host, SPARROW, the proposer, or one component.

    host: a Host, a Sparrow, or the name of a host, which is built first (`Report.model`). path: a file, an index, or
    a folder; `.safetensors` comes before `.bin` where both are there. What it is, is read off its tensors' names
    (`model.checkpoints.layouts`). Tensors are read one by one: a model on the meta device needs little more memory
    than its weights.
    strict: every tensor of the file has its place, and every part the file speaks of is filled; otherwise one
    CheckpointError with a table, and nothing is loaded. False loads what fits and reports the rest. Parts that such
    files never have (a host's frozen towers, mostly) are in `Report.unfilled`: load their files too, then call
    `require_filled`.
    dtype, device: of parameters on meta (default: their own, and the CPU). What has memory keeps what it has.
    fuser_scale: "lost" reproduces upstream GLUS inference, where the two layer scales of SAM2's memory fuser never
    get their trained values.
    The size of the vocabulary is the file's. A tokenizer beside the weights of a language model becomes the host's.
    ValueError if the model wears LoRA or rows under training (`model.adapt`): load first, train then.
    """
    if fuser_scale not in ("checkpoint", "lost"):
        raise ValueError(f"fuser_scale {fuser_scale!r} must be checkpoint or lost")
    path = Path(path)
    tensors = Tensors(weight_files(path))
    one = recognise(tensors, str(path))
    model = _build(host) if isinstance(host, str) else host
    tree = host_tree(model)
    plan = Plan(one, tensors, tree, str(path))
    if plan.problems and strict:
        raise CheckpointError(
            mismatch_table(f"{path} ({one.about})", type(model).__name__, plan.problems)
        )
    plan.check_copies()
    notes = plan.notes()
    inner = inner_host(model)
    if plan.rows is not None:
        inner.llm.resize_token_embeddings(plan.rows, mean_resizing=False)
        tree = host_tree(model)
    read = 0
    for ours, official in plan.sources.items():
        value = tensors[official[0]]
        read += value.nbytes
        if fuser_scale == "lost" and ours.startswith(FUSER_SCALE) and ours.endswith(".gamma"):
            value = torch.full_like(value, LOST_SCALE)
            notes.append(f"{ours} is {LOST_SCALE:g}, not what the file says: fuser_scale is lost")
        tree.put(ours, value, dtype, device)
    if device is not None:
        move_tables(model, device)
    notes += plan.compare_twins(tree)
    if any(name.startswith("host.llm.") for name in plan.sources):
        notes += take_tokenizer(model, path if path.is_dir() else path.parent)
    return Report(
        model,
        one.name,
        tensors.files,
        len(plan.sources),
        read,
        plan.ignored,
        plan.problems,
        unfilled(model),
        notes,
    )


def require_filled(model: nn.Module) -> None:
    """CheckpointError names every part of a model that still has no values after loading."""
    if left := unfilled(model):
        raise CheckpointError(
            f"{type(model).__name__}: {len(left)} tensors have no values yet: {_by_part(left)}. Load the files that "
            "have them too (docs/checkpoints.md says which)"
        )


def export_official(
    model: nn.Module, to: str, *, optional: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """(official name, tensor) for everything that files of layout `to` hold, shared tensors under each name.

    optional: also the parts that such files may leave out (VideoGLaMM's video tower).
    ValueError: no such layout, the model has not got its parts, or it wears LoRA or rows under training (call
    `model.adapt.merge`).
    """
    one, tree = layout(to), host_tree(model)
    wanted = [part for part in one.parts if optional or part not in one.optional]
    host = inner_host(model).spec.name
    absent = [part for part in wanted if not tree.has(part)]
    if absent or (one.hosts and host not in one.hosts):
        raise ValueError(
            f"layout {to} is {one.about}: {host} in a {type(model).__name__} cannot be written so"
        )
    return _exported(model, one, tree, tuple(wanted))


def _exported(
    model: nn.Module, one: Layout, tree: Tree, wanted: tuple[str, ...]
) -> Iterator[tuple[str, Tensor]]:
    for name, first in tree.first.items():
        official = one.to_official(name)
        if official is not None and name.startswith(wanted):
            yield official, tree.tensors[first].detach()
        for twin in one.twins:
            if name.startswith(twin.ours):
                yield twin.official + name.removeprefix(twin.ours), tree.tensors[first].detach()
    if one.rotary is not None:
        llm = inner_host(model).llm
        for i in range(llm.config.num_hidden_layers):
            yield one.rotary.format(i), llm.model.rotary_emb.inv_freq


def save_official(model: nn.Module, to: str, folder: str | Path, *, optional: bool = False) -> None:
    """`export_official` as `.safetensors` of up to 5 GB with an index, and the tokenizer. Of a tensor with two names
    the file has one: the format refuses shared tensors. The authors' `config.json` is not made."""
    from huggingface_hub import save_torch_state_dict

    require_filled(model)
    tensors = dict(export_official(model, to, optional=optional))
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(tensors, str(folder))
    tokenizer = inner_host(model).tokenizer
    if tokenizer is not None and any(part.startswith("host.llm.") for part in layout(to).parts):
        tokenizer.save_pretrained(str(folder))


def inner_host(model: nn.Module) -> Any:
    """The host of a Sparrow; a host itself."""
    return getattr(model, "host", model)


def host_tree(model: nn.Module) -> Tree:
    """A model's tensors by the names that layouts use: those of a Sparrow."""
    host = inner_host(model)
    retie(host.llm)
    tree = Tree(model, str if host is not model else "host.{}".format)
    if any(".base_layer." in name for name in tree.first):
        raise ValueError(
            f"{type(model).__name__} wears LoRA or rows under training, which official files know nothing of: load "
            "official weights before adding them, and call model.adapt.merge before exporting"
        )
    return tree


def _build(name: str) -> nn.Module:
    from model.hosts import build

    return build(name)


def _by_part(names: list[str], depth: int = 2) -> str:
    counts: dict[str, int] = {}
    for name in names:
        part = ".".join(name.split(".")[:depth])
        counts[part] = counts.get(part, 0) + 1
    return ", ".join(f"{part} ({count})" for part, count in counts.items())


def take_tokenizer(model: Any, folder: Path) -> list[str]:
    """The tokenizer that lies in `folder` becomes the host's. Only data is read. Notes say what came of it."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return []
    from transformers import AutoTokenizer

    host = inner_host(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # noqa: BLE001  (a stranger's files, many parsers: the weights are in, so say why not)
        return [
            f"the tokenizer in {folder} could not be read, set host.tokenizer yourself: {str(error)[:300]}"
        ]
    host.tokenizer = tokenizer
    notes = [f"tokenizer: {len(tokenizer)} tokens, {type(tokenizer).__name__}"]
    if host.spec.seg_token not in tokenizer.get_vocab():
        notes.append(
            f"the tokenizer does not know {host.spec.seg_token}: host.add_tokens([{host.spec.seg_token!r}])"
        )
    if model is not host:
        model.learn_tokens()
    return notes
