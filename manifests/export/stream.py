"""JSON that is written as it comes, so that an export of any size fits in memory."""

import json
import shutil
from pathlib import Path
from typing import IO, Any


class Array:
    """A JSON array, an element a line; with `name` it is a field of an object, and `close` adds the other fields."""

    def __init__(self, path: Path, name: str = ""):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("w", encoding="utf-8")
        self._named = bool(name)
        self._file.write(f"{{{json.dumps(name)}: [" if name else "[")
        self._n = 0

    def add(self, value: Any) -> None:
        self._file.write(
            f"{',' if self._n else ''}\n{json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        )
        self._n += 1

    def close(self, *, arrays: dict[str, Path] | None = None, **fields: Any) -> None:
        """arrays: more fields, each the content of a file that holds an array."""
        self._file.write("\n]")
        for name, path in (arrays or {}).items():
            self._file.write(f",\n{json.dumps(name)}: ")
            with path.open(encoding="utf-8") as array:
                shutil.copyfileobj(array, self._file)
        for name, value in fields.items():
            self._file.write(
                f",\n{json.dumps(name)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
            )
        self._file.write("}\n" if self._named else "\n")
        self._file.close()
