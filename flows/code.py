"""Which code a process runs. Ray's workers import it from wherever they find it, and must find the driver's."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder that this code is imported from."""
PACKAGES = ("flows", "manifests", "pipeline", "schemas", "trackers")
"""What a worker imports of ours."""


@dataclass(frozen=True, slots=True)
class Code:
    """folder: where it is; digest: sha256 of the names and bytes of all modules, shortened."""

    folder: str
    digest: str

    def __str__(self) -> str:
        return f"{self.folder} (sha256 {self.digest})"


@lru_cache(maxsize=1)
def own_code() -> Code:
    """Of this process, as it is on disk at the first call."""
    whole = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            whole.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode())
            whole.update(path.read_bytes())
    return Code(str(ROOT), whole.hexdigest()[:16])
