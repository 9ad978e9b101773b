"""Features of a frozen image encoder on disk, float16: 0.4 MB an image at 448 px and one level.

    <folder>/cache.json · <hash of its keys>.safetensors, one per batch that was put

Right only for pictures that are the same each time. What the features depend on beside the picture (encoder weights,
side, levels) is in `cache.json`, and a cache of anything else is refused.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FORMAT = 1


class FeatureCache:
    """Maps an image's key to its feature maps. Several processes may put into one folder."""

    def __init__(self, folder: str | Path, identity: dict[str, Any]):
        """identity: plain values; see `model.proposer.pretrain.cache_identity`. ValueError if the folder is a cache
        of something else."""
        self.folder, about = Path(folder), {"format": FORMAT} | identity
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "cache.json"
        if not path.exists():
            _write(path, lambda place: place.write_text(json.dumps(about, indent=2) + "\n"))
        there = json.loads(path.read_text())
        if wrong := sorted(name for name in {*about, *there} if about.get(name) != there.get(name)):
            rows = ", ".join(
                f"{name} {there.get(name)} (needed {about.get(name)})" for name in wrong
            )
            raise ValueError(
                f"{self.folder} caches other features: {rows}; use another folder, or delete this one"
            )
        self.places: dict[str, tuple[Path, int]] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            with safe_open(shard, "pt") as file:
                self._know(shard, json.loads(file.metadata()["keys"]))

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def __len__(self) -> int:
        return len(self.places)

    def put(self, keys: Sequence[str], maps: Sequence[Tensor]) -> None:
        """maps: [len(keys), C, h, w] per level. One file, whole or not there at all."""
        shard = (
            self.folder
            / f"{hashlib.sha256(json.dumps(list(keys)).encode()).hexdigest()[:24]}.safetensors"
        )
        tensors = {
            str(level): one.detach().half().cpu().contiguous() for level, one in enumerate(maps)
        }
        about = {"keys": json.dumps(list(keys))}
        _write(shard, lambda place: save_file(tensors, place, about))
        self._know(shard, keys)

    def get(self, keys: Sequence[str]) -> list[Tensor]:
        """float32 [len(keys), C, h, w] per level, on the CPU. KeyError for a key that was never put."""
        rows: list[list[Tensor]] = []
        for key in keys:
            shard, row = self.places[key]
            with safe_open(shard, "pt") as file:
                rows.append(
                    [file.get_slice(level)[row : row + 1] for level in sorted(file.keys(), key=int)]
                )
        return [torch.cat(level).float() for level in zip(*rows, strict=True)]

    def _know(self, shard: Path, keys: Sequence[str]) -> None:
        self.places |= {key: (shard, row) for row, key in enumerate(keys)}


def digest_of(module: nn.Module) -> str:
    """16 hex digits of a hash of all weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def _write(path: Path, write: Any) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    write(part)
    os.replace(part, path)
