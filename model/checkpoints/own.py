"""Our own checkpoints: `.safetensors` under the names of our modules, and a `config.json` that says what for.

    <folder>/config.json · model.safetensors (or shards and an index) · tokenizer files with `only="all"`

`config.json` is written last: a folder without it is a save that was interrupted, and is not loaded.
"""

import json
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from model.checkpoints.files import Tensors, weight_files
from model.checkpoints.official import inner_host, require_filled
from model.checkpoints.plan import VOCABULARY
from model.checkpoints.tree import Tree, move_tables, retie
from model.earlier import completed
from schemas.config import Config
from schemas.files import sync, write_whole
from schemas.json_checksum import FILES, damages, dumps_checked, file_digests, load_checked
from trackers.checkpoints import CheckpointError, mismatch_table

FORMAT = 1
"""Goes up when older code could misread a new folder."""
_UNCOMPARED = ("format", "version", "only", FILES)


def save(
    model: nn.Module, folder: str | Path, only: Literal["trainable", "all"] = "trainable"
) -> None:
    """Write a Sparrow (or a bare Host) to `folder`; what an earlier save left there is replaced.

    only: "trainable" writes the parameters that require gradients, LoRA and new rows among them, to be put on the
    same published weights again; "all" writes everything, with the tokenizer.
    CheckpointError if there are no such tensors, or some have no values.
    """
    if only not in ("trainable", "all"):
        raise ValueError(f"only {only!r} must be trainable or all")
    from huggingface_hub import save_torch_state_dict

    tree, folder = Tree(model), Path(folder)
    if only == "all":
        require_filled(model)
    tensors = {
        name: t.detach() for name, t in tree.tensors.items() if only == "all" or t.requires_grad
    }
    if not tensors or any(t.is_meta for t in tensors.values()):
        raise CheckpointError(
            f"{folder}: the model has no trainable parameters with values: nothing to save"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    save_torch_state_dict(tensors, str(folder))
    if only == "all" and (tokenizer := inner_host(model).tokenizer) is not None:
        tokenizer.save_pretrained(str(folder))
    about = {"format": FORMAT, "version": version("sparrow-tsf"), "only": only, **_about(model)}
    files = [path for path in folder.iterdir() if path.is_file()]
    for path in files:
        sync(path)
    write_whole(folder / "config.json", dumps_checked(about, file_digests(sorted(files))))


def is_ours(folder: str | Path) -> bool:
    """Whether a folder is a save of this project, readable by this code or not."""
    try:
        about = json.loads((Path(folder) / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and "format" in about and "host_config" in about


def describe(folder: str | Path) -> dict[str, Any]:
    """`config.json` of a save: format, version, only, host, vocabulary, host_config, and of a Sparrow its config.

    CheckpointError if `folder` is not a finished save of ours, or one that newer code wrote.
    """
    path = Path(folder) / "config.json"
    try:
        about = load_checked(path)
        known = about["format"]
    except (OSError, ValueError, LookupError) as error:
        raise CheckpointError(
            f"{folder}: not a finished checkpoint of this project: {path.name}: {error!r}"
        ) from error
    if known != FORMAT:
        raise CheckpointError(
            f"{path}: format {known}, but this code (format {FORMAT}) cannot read it: update it"
        )
    if isinstance(about.get("sparrow"), dict):
        about["sparrow"] = completed(about["sparrow"])
    return about


def load(
    model: nn.Module,
    folder: str | Path,
    *,
    differing: Collection[str] = (),
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Put a save back into a model built the same way, in place; dtype, device: as in `load_official`.

    After "trainable", everything else keeps the values it has: load the published weights first.
    differing: names of config fields that may differ ("sparrow.decode.mode", or a whole section: "sparrow.loss").
    CheckpointError, with a table and before anything is loaded: another host, config or vocabulary; names or shapes
    that do not fit; files that have changed since they were saved.
    """
    folder, about = Path(folder), describe(folder)
    if damaged := damages(folder, about.get(FILES, {})):
        raise CheckpointError(f"{folder} is damaged: {'; '.join(damaged)}")
    everything = about["only"] == "all"
    _compare(folder, about, _about(model), {*differing, *(("vocabulary",) if everything else ())})
    host = inner_host(model)
    retie(host.llm)
    tree, tensors = Tree(model), Tensors(weight_files(folder))
    if rows := _misfits(tree, tensors, everything):
        lines = _reasons(rows, _about(model), about)
        lines.append(mismatch_table(str(folder), type(model).__name__, rows))
        raise CheckpointError("\n".join(lines))
    if about["vocabulary"] != host.token_embeddings().weight.shape[0]:
        host.llm.resize_token_embeddings(about["vocabulary"], mean_resizing=False)
        tree = Tree(model)
    for name in tensors:
        tree.put(tree.first[name], tensors[name], dtype, device)
    if device is not None:
        move_tables(model, device)
    if everything and (folder / "tokenizer_config.json").is_file():
        from transformers import AutoTokenizer

        host.tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )


def _misfits(tree: Tree, tensors: Tensors, everything: bool) -> list[tuple]:
    stored = {tree.first[name] for name in tensors if name in tree.first}
    rows: list[tuple] = [
        ("unknown", name, "", shape)
        for name, shape in tensors.shapes.items()
        if name not in tree.first
    ]
    for name, tensor in tree.tensors.items():
        if everything and name not in stored:
            rows.append(("missing", name, tuple(tensor.shape), ""))
    for name, shape in tensors.shapes.items():
        wanted = tuple(tree.tensors[tree.first[name]].shape) if name in tree.first else shape
        same = (
            shape[1:] == wanted[1:] if everything and name.endswith(VOCABULARY) else shape == wanted
        )
        if not same:
            rows.append(("mis-shaped", name, wanted, shape))
    return rows


def _reasons(rows: list[tuple], ours: dict, theirs: dict) -> list[str]:
    """A line for each config field that differs, of the parts whose tensors do not fit."""
    parts = {f"sparrow.{name.split('.')[0]}." for _, name, *_ in rows}
    model, saved = _flat(ours), _flat(theirs)
    return [
        f"saved with {name.removeprefix('sparrow.')}={value}, and the model has {model.get(name)}: "
        f"--set {name.removeprefix('sparrow.')}={value} builds the one that was saved"
        for name, value in saved.items()
        if name.startswith(tuple(parts)) and model.get(name) != value
    ]


def _about(model: nn.Module) -> dict[str, Any]:
    host = inner_host(model)
    about = {
        "host": host.spec.name,
        "vocabulary": host.token_embeddings().weight.shape[0],
        "host_config": _plain(host.config),
    }
    return about if model is host else about | {"sparrow": _plain(model.config)}


def _plain(config: Any) -> dict[str, Any]:
    assert isinstance(config, Config)
    return config.model_dump(mode="json")


def _compare(folder: Path, theirs: dict, ours: dict, allowed: set[str]) -> None:
    flat = [
        _flat({k: v for k, v in about.items() if k not in _UNCOMPARED}) for about in (ours, theirs)
    ]
    rows = [
        f"  {name:40} model {flat[0].get(name, 'has it not')!s:24} saved {flat[1].get(name, 'has it not')}"
        for name in sorted({*flat[0], *flat[1]})
        if flat[0].get(name) != flat[1].get(name)
        and not any(f"{name}.".startswith(f"{word}.") for word in allowed)
    ]
    if rows:
        raise CheckpointError(
            "\n".join(
                [
                    f"{folder} was saved from another model: {len(rows)} fields differ",
                    *rows[:20],
                    *([f"  and {len(rows) - 20} more"] if len(rows) > 20 else []),
                    "Build the model like the saved one. Fields that may differ: differing=(their names)",
                ]
            )
        )


def _flat(value: dict, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= (
            _flat(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {prefix + name: inner}
        )
    return found
