"""Checkpoint files: read without running anything, load without guessing, name every difference.

Weights come from strangers, and a pickle is a program. `.safetensors` is read as it is. A `.pth`, `.pt`, `.tar` or
`.bin` file goes through torch's weights-only reader, which builds tensors and plain containers; classes of the
authors' own (CLDTracker and OSTrack save their settings objects beside the weights) become `Inert` objects that hold
nothing and do nothing.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trackers.runtime import CheckpointError as CheckpointError

PREFIXES = ("module.",)
"""What DistributedDataParallel puts before every name."""


class Inert:
    """Stands in for a class of the checkpoint's authors: takes any arguments and any state, keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_checkpoint(path: str | Path, *, mmap: bool = False) -> Any:
    """Whatever a checkpoint file holds, on the CPU; unknown classes become `Inert`. CheckpointError says why not.

    mmap: leave the tensors in the file until they are touched. Files of torch before 1.6 cannot do that.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file (sparrow weights list: where it comes from and where to put it)"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        _refuse_bomb(path)
        unknown = _unknown_classes(path)
        stubs: list[Any] = [
            (type(f"Inert{i}", (Inert,), {}), name) for i, name in enumerate(unknown)
        ]
        with torch.serialization.safe_globals(stubs):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged or hostile file may raise anything; none of it is ours
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint: {_reason(error)}"
        ) from error


_SLACK = 64 << 20
"""Bytes that small files may hold more than they weigh: names, a pickle that was compressed, padding."""


def _refuse_bomb(path: Path) -> None:
    """CheckpointError for a zip archive that would unpack to more than it holds: torch stores tensors as they are."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    size = path.stat().st_size
    if unpacked > 2 * size + _SLACK:
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint: its {size:,} bytes would unpack to {unpacked:,}; "
            "torch.save does not compress, so this file is damaged or made to fill the memory"
        )


def _refuse_unreal(tensors: Mapping[str, Tensor], path: Path) -> None:
    """CheckpointError for tensors that are no plain arrays, or that have more elements than their file can hold.

    A few bytes with strides of 0 may be called a tensor of 10^12 elements. Some bytes under a few names (tied
    weights) are well.
    """
    size = path.stat().st_size
    claimed = 0
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(f"{path}: {name!r:.200} is no plain tensor with values")
        claimed += tensor.numel() * tensor.element_size()
        if claimed > 4 * size + _SLACK:
            raise CheckpointError(
                f"{path}: with {name!r:.200} of shape {tuple(tensor.shape)!s:.100} its tensors have {claimed:,} bytes, "
                f"the file {size:,}: it is damaged or made to fill the memory"
            )


def _reason(error: Exception) -> str:
    """torch's reason without its advice, which is to run the file's code."""
    lines = str(error).rpartition("WeightsUnpickler error: ")[2].splitlines()
    reasons = [
        line.strip()
        for line in lines
        if line.strip() and not line.startswith("Weights only load failed")
    ]
    return reasons[0].partition(" Please use")[0][:300] if reasons else type(error).__name__


def _unknown_classes(path: Path) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except ValueError:  # the format of torch < 1.6: the weights-only reader alone decides
        return []


def read_state_dict(path: str | Path, *, mmap: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, whether it is one dict of them or holds it under `net`, `model`,
    `module` or `state_dict`. The prefix of DistributedDataParallel is taken off. CheckpointError if there are none."""
    path = Path(path)
    found = read_checkpoint(path, mmap=mmap)
    for key in ("net", "model", "module", "state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: holds {type(found).__name__}, not named tensors")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path}: holds no tensors under {', '.join(map(str, list(found)[:8])) or 'any name'}"
        )
    _refuse_unreal(tensors, path)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def load_strict(
    module: nn.Module, state: Mapping[str, Tensor], what: str, *, ignore: tuple[str, ...] = ()
) -> None:
    """Copy `state` into the module, or raise one CheckpointError with every missing, unknown and mis-shaped name.

    what: the file, for the message. ignore: names (or prefixes, if they end in a dot) that may be in the file or be
    missing from it. Nothing is copied unless everything fits. dtypes are converted to the module's own.
    """

    def ignored(name: str) -> bool:
        return any(
            name == word or (word.endswith(".") and name.startswith(word)) for word in ignore
        )

    own = module.state_dict()
    rows: list[tuple] = []
    rows += [
        ("missing", name, tuple(own[name].shape), "")
        for name in own
        if name not in state and not ignored(name)
    ]
    rows += [
        ("unknown", name, "", tuple(state[name].shape))
        for name in state
        if name not in own and not ignored(name)
    ]
    rows += [
        ("mis-shaped", name, tuple(own[name].shape), tuple(state[name].shape))
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    if rows:
        raise CheckpointError(mismatch_table(what, type(module).__name__, rows))
    module.load_state_dict({name: state[name] for name in own if name in state}, strict=False)


def mismatch_table(what: str, model: str, rows: list[tuple], most: int = 20) -> str:
    """One message about rows of ("missing" | "unknown" | "mis-shaped", name, shape wanted, shape found)."""
    counts = {
        kind: sum(row[0] == kind for row in rows) for kind in ("missing", "unknown", "mis-shaped")
    }
    head = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
    lines = [
        f"  {kind:10}  {name:60}  model {wanted!s:20}  file {found}"
        for kind, name, wanted, found in rows[:most]
    ]
    more = [f"  and {len(rows) - most} more"] if len(rows) > most else []
    return "\n".join([f"{what} does not fit {model}: {head}", *lines, *more])
