"""A host with SPARROW on it, ready to ground or to train: sizes, weights and device in one place."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from model.config import SparrowConfig
    from model.sparrow import Sparrow

NONSENSE = "random weights: the masks mean nothing"
TINY = {"proposer.queries": 32, "proposer.encoder_layers": 1, "proposer.decoder_layers": 2}
"""Of every tiny model, so that an export of one fits the other."""


def make_model(
    host: str,
    size: str,
    preset: str = "paper",
    checkpoints: Sequence[str | Path] = (),
    *,
    changes: dict[str, Any] | None = None,
    where: "torch.device | None" = None,
    fresh: bool = False,
    tell: Callable[[str], None] = print,
) -> "tuple[Sparrow, str]":
    """A model on its device, and what must be said of its weights ("" if all of them were loaded).

    size: "full", with weights from `checkpoints` in their order (published files or folders, our own saves, exports of
    a training), or "tiny": made-up weights, the same every time, and `checkpoints` on top. preset, changes: of
    `model.config.configure`. where: default SPARROW_DEVICE. fresh: SPARROW's own modules begin untrained, as training
    needs them; otherwise every weight has to be in some file. tell: hears what was loaded from published files.
    ValueError (CheckpointError) if something is missing or does not fit.
    """
    import torch

    from model.checkpoints import require_filled
    from model.hosts import build
    from model.sparrow import Sparrow
    from trackers.runtime import device

    where, config = where or device(), model_config(size, preset, changes)
    require_weights(size, checkpoints)
    torch.manual_seed(0)
    if size == "tiny":
        sparrow = Sparrow(build(host, "tiny", "cpu"), config)
        for path in checkpoints:
            _fill(sparrow, Path(path), tell)
        return sparrow.to(where), f"tiny {host}, {NONSENSE}"
    half = torch.bfloat16 if where.type == "cuda" else torch.float32
    built = build(host, "full", "meta")
    if fresh:
        sparrow = Sparrow(built, config)
    else:
        from accelerate import init_empty_weights

        with init_empty_weights(
            include_buffers=False
        ):  # what no file fills must be seen, not made up
            sparrow = Sparrow(built, config)
    for path in checkpoints:
        _fill(sparrow, Path(path), tell, dtype=half, device=where)
    require_filled(sparrow)
    return sparrow.to(where), ""


def model_config(
    size: str, preset: str, changes: Mapping[str, Any] | None = None
) -> "SparrowConfig":
    """The config of a model before it is built. ValueError for fields that there are not."""
    from model.config import configure

    small: dict[str, Any] = {}
    if size == "tiny":
        small = TINY | ({"proposals.input": 128} if preset == "release" else {})
    return configure(preset, **(small | dict(changes or {})))


def require_weights(size: str, checkpoints: Sequence[str | Path]) -> None:
    """ValueError if a model of this size needs checkpoints and there are none."""
    if size != "tiny" and not checkpoints:
        raise ValueError(
            "--size full needs --checkpoint, once per file or folder: docs/checkpoints.md says which"
        )


def _fill(sparrow: "Sparrow", path: Path, tell: Callable[[str], None], **where: Any) -> None:
    """Published weights, a whole save of ours, or what a training exported (to be put on the weights it began with)."""
    from model.adapt import merge
    from model.checkpoints import is_ours, load, load_official
    from model.train.export import ABOUT, FREE, load_export

    if (path / ABOUT).is_file():
        load_export(sparrow, path)
        merge(sparrow)
        sparrow.lora_names = {}
    elif is_ours(path):
        load(sparrow, path, differing=FREE, **where)
    else:
        tell(str(load_official(sparrow, path, strict=False, **where)))
