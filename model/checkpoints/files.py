"""Checkpoint files and folders: which files belong together, and their tensors one at a time.

Nothing in a file is run: `.safetensors` holds no code, everything else goes through `trackers.checkpoints`. An index
file may name only files beside it.
"""

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from trackers.checkpoints import CheckpointError, read_state_dict

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
"""Of weights, best first: where a folder has two kinds, the first is read."""
_OTHER = re.compile(r"^(training_args|optimizer|scheduler|scaler|rng_state|random_states)")
_AT_ONCE = 64 << 20
"""Bytes read through one mapping of a file before it is opened anew: mapped pages count as memory in use."""


def weight_files(path: str | Path) -> list[Path]:
    """The files with the weights at `path`: a file, an index file, or a folder of either.

    CheckpointError if there are none, if an index names a file that is not beside it, or if one is not there.
    """
    path = Path(path)
    if path.is_file():
        return _indexed(path) if path.name.endswith(".index.json") else [path]
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder")
    for suffix in SUFFIXES:
        if indices := sorted(path.glob(f"*{suffix}.index.json")):
            if len(indices) > 1:
                raise CheckpointError(
                    f"{path}: {len(indices)} index files ({_names(indices)}): give the path of one"
                )
            return _indexed(indices[0])
        if files := sorted(
            p for p in path.glob(f"*{suffix}") if p.is_file() and not _OTHER.match(p.name)
        ):
            return files
    raise CheckpointError(
        f"{path}: no weights here: wanted *{', *'.join(SUFFIXES)}; found {_names(sorted(path.iterdir())) or 'nothing'}"
    )


def _names(paths: list[Path], most: int = 8) -> str:
    return ", ".join(p.name for p in paths[:most]) + (", ..." if len(paths) > most else "")


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        wrong = [name for name in names if Path(name).name != name or name in ("", ".", "..")]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of weights: {error!r}") from error
    if wrong:
        raise CheckpointError(
            f"{index}: names files outside its own folder, which are not read: {wrong[:3]}"
        )
    files = [index.parent / name for name in names]
    if absent := [p for p in files if not p.is_file()]:
        raise CheckpointError(
            f"{index}: names {len(names)} files, of which are not here: {_names(absent)}"
        )
    return files


class Tensors(Mapping[str, Tensor]):
    """The named tensors of some files. `shapes` are known at once; a tensor is read when it is asked for, and may be
    a view of its file: copy what you keep. Go file by file (the order of iteration): one is open at a time.

    CheckpointError: a file cannot be read, or two files have a tensor of one name.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = list(files)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file: dict[str, Path] = {}
        self._open: tuple[Path, Callable[[str], Tensor]] | None = None
        self._read = 0
        for file in self.files:
            shapes, _ = _opened(file)
            if twice := [name for name in shapes if name in self.shapes]:
                raise CheckpointError(
                    f"{len(twice)} tensors are in {self._file[twice[0]]} and in {file}: {twice[0]}"
                )
            self.shapes |= shapes
            self._file |= dict.fromkeys(shapes, file)

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __getitem__(self, name: str) -> Tensor:
        file = self._file[name]
        if (
            self._open is None
            or self._open[0] != file
            or (self._read > _AT_ONCE and _mappable(file))
        ):
            self._open, self._read = None, 0
            self._open = (file, _opened(file)[1])
        tensor = self._open[1](name)
        self._read += tensor.nbytes
        return tensor


def _opened(file: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    if file.suffix != ".safetensors":
        state = read_state_dict(file, mmap=_mappable(file))
        return {name: tuple(tensor.shape) for name, tensor in state.items()}, state.__getitem__
    try:
        handle = safe_open(file, framework="pt")
        return {
            name: tuple(handle.get_slice(name).get_shape())
            for name in handle.keys()  # noqa: SIM118
        }, handle.get_tensor
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cannot be read as a checkpoint: {error}") from error


def _mappable(file: Path) -> bool:
    """Files of torch before 1.6 are no zip archives, and are read whole."""
    return file.suffix == ".safetensors" or zipfile.is_zipfile(file)
