"""Where models run and where their files are: two environment variables, so that no path or device enters a config.

SPARROW_DEVICE   cuda, cuda:1, cpu; default: cuda if there is one
SPARROW_WEIGHTS  the folder with the weight files; default: weights/ in the working directory
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class CheckpointError(ValueError):
    """A file that is not there, cannot be read as weights, or does not fit the model: one message, with a table."""


def device() -> "torch.device":
    """Of this process. ValueError if SPARROW_DEVICE names one that is not there."""
    import torch

    name = os.environ.get("SPARROW_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"SPARROW_DEVICE={name!r} is not a device: use cuda, cuda:N or cpu"
        ) from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"SPARROW_DEVICE={name!r}, but torch {torch.__version__} sees no CUDA device: use cpu"
        )
    return found


@contextmanager
def own_stream(where: "torch.device | None" = None, priority: int = 0) -> Iterator[None]:
    """On a GPU, a stream for this thread alone: on the common one, reading a result would wait for the work of every
    other thread. where: default `device()`; priority: -1 goes before others. Elsewhere nothing."""
    import torch

    where = where or device()
    if where.type != "cuda":
        yield
        return
    torch.cuda.set_device(where)
    with torch.cuda.stream(torch.cuda.Stream(where, priority=priority)):
        yield


def settle(where: "torch.device") -> None:
    """Wait for the device: what this thread has put there may be used from other threads' streams."""
    if where.type == "cuda":
        import torch

        torch.cuda.synchronize(where)


def weights_root() -> Path:
    return Path(os.environ.get("SPARROW_WEIGHTS") or "weights")


def is_seeded(weights: str) -> bool:
    """`seeded:<salt>` means name-seeded weights (`trackers.seeded`): a model's structure and cost, no knowledge."""
    return weights.startswith("seeded:")


def locate(weights: str, purpose: str) -> Path:
    """The file or folder `weights` under the weights root. CheckpointError says where it should be and what to do."""
    path = weights_root() / weights
    if not path.exists():
        raise CheckpointError(
            f"{purpose}: {path} is not there. `sparrow weights list` says where it comes from; put it there, or set "
            "SPARROW_WEIGHTS to the folder that has it"
        )
    return path


def identity(weights: str, purpose: str) -> str:
    """What a stage's version says about its weights: 12 digits of the file's sha256, or "seeded"."""
    if is_seeded(weights):
        return "seeded"
    path = locate(weights, purpose)
    if path.is_dir():
        files = sorted(
            p for p in path.iterdir() if p.suffix in (".safetensors", ".bin", ".txt", ".json")
        )
        return "-".join(sha256(p)[:6] for p in files)[:40]
    return sha256(path)[:12]


@lru_cache(maxsize=64)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(path: str | Path) -> str:
    """Of a file, remembered for this process as long as size and mtime stay."""
    stat = Path(path).stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)
