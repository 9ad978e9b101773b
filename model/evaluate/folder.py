"""A run's folder: what it was asked, a part per video, what it cost.

<out>/run.json                what decides the numbers; a run goes on only with the same
<out>/parts/<video>.parquet   a row per query: scores, answer, masks as COCO RLE, or the reason why there are none
<out>/timings.csv             seconds per video: the only thing that differs between two runs

A part appears whole or not at all, and its bytes depend on run.json and the data alone.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from model.evaluate.task import Prediction, Video
from pipeline.sources.base import clip_key
from schemas.config import Config
from schemas.files import write_whole
from schemas.geometry import RLE, rle_decode

FORMAT = 2
"""Of run.json and parts; goes up when older runs cannot go on."""


class Settings(Config):
    """Everything that decides a run's numbers. How many videos, by how many workers, is not among it."""

    format: int = FORMAT
    version: str
    """Of this project."""
    benchmark: str
    split: str
    scoring: dict[str, str]
    """The benchmark's own settings."""
    host: str
    size: str
    preset: str
    changes: dict[str, Any] = Field(default_factory=dict)
    """Of the preset, as they were asked for."""
    model: dict[str, Any]
    """`SparrowConfig`, settled."""
    trained: dict[str, Any] | None = None
    """The one that the weights were trained with, where a checkpoint of this project states it."""
    weights: tuple[tuple[str, str], ...]
    """Name and sha256 of each checkpoint, in order; none: made-up weights."""
    asking: dict[str, Any]
    """`Asking`, settled; its name is the protocol's."""
    tsf: str = "off"
    """Curation preset that finds pictures of the target for the prompt."""
    seed: int

    @property
    def note(self) -> str:
        """What must be said beside every number of this run."""
        made_up = "random weights" if not self.weights else "tiny weights"
        return (
            f"tiny {self.host}, {made_up}: the numbers mean nothing" if self.size == "tiny" else ""
        )


class Folder:
    """A run's folder. Raises ValueError where it holds a run with other settings, and says which differ."""

    def __init__(self, out: Path, settings: Settings):
        self.out, self.settings, self.mark = out, settings, settings.digest()
        (out / "parts").mkdir(parents=True, exist_ok=True)
        known = out / "run.json"
        if not known.exists():
            write_whole(known, settings.model_dump_json(indent=2) + "\n")
        elif lines := differences(_read(known), settings.model_dump(mode="json")):
            advice = "Choose another --out, or delete that folder."
            raise ValueError("\n".join([f"{out} holds a run with other settings:", *lines, advice]))

    def finished(self, video: Video, *, retry: bool = False) -> bool:
        """Whether a video's part is there, whole and of this run; retry: and nothing in it failed."""
        try:
            mark = (
                (pq.read_schema(part_path(self.out, video)).metadata or {})
                .get(b"run", b"")
                .decode()
            )
            failed = retry and any(row["error"] for row in self.rows(video))
        except (OSError, pa.ArrowInvalid):
            return False
        return mark == self.mark and not failed

    def rows(self, video: Video, *, masks: bool = False) -> list[dict[str, Any]]:
        path = part_path(self.out, video)
        names = [name for name in pq.read_schema(path).names if masks or name != "masks"]
        return pq.read_table(path, columns=names).to_pylist()

    def add_timing(self, line: Mapping[str, Any]) -> None:
        """Append to timings.csv. A line that a kill cut off is ignored by readers, and closed by the next one."""
        path = self.out / "timings.csv"
        before = path.read_bytes() if path.exists() else b""
        with path.open("a", newline="") as file:
            if before and not before.endswith(b"\n"):
                file.write("\n")
            writer = csv.DictWriter(file, list(line), lineterminator="\n")
            if not before:
                writer.writeheader()
            writer.writerow(line)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path}: not JSON ({error}): delete that folder, or choose another --out"
        ) from error


def part_path(out: Path, video: Video) -> Path:
    return out / "parts" / f"{clip_key(video.id)}.parquet"


def write_part(out: Path, video: Video, rows: Sequence[Mapping[str, Any]], mark: str) -> None:
    """One part: same rows, same bytes. mark: of the run (`Folder.mark`)."""
    write_whole(part_path(out, video), parquet(rows, {"run": mark, "format": str(FORMAT)}))


def parquet(rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Rows as a Parquet file; a column that some rows have not is NULL there."""
    columns = {
        name: [row.get(name) for row in rows]
        for name in dict.fromkeys(name for row in rows for name in row)
    }
    form = pa.schema(
        [(name, column_kind(name, v)) for name, v in columns.items()], metadata=dict(metadata or {})
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pydict(columns, schema=form), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def column_kind(name: str, values: Sequence[Any]) -> pa.DataType:
    """Arrow's type of a column; numbers of a score are doubles, whole or not, so that all parts have one schema."""
    if name in _FIXED:
        return _FIXED[name]
    kinds = {type(value) for value in values} - {type(None)}
    if kinds and kinds <= {bool, np.bool_}:
        return pa.bool_()
    if kinds and kinds <= {str}:
        return pa.string()
    if kinds and kinds <= {list, tuple, np.ndarray}:
        return pa.list_(
            column_kind("", [inner for value in values if value is not None for inner in value])
        )
    return pa.float64()


def differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
    """Lines that say which fields of two nested settings differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [
            line
            for key in sorted({*theirs, *ours})
            for line in differences(
                theirs.get(key), ours.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if theirs == ours else [f"  {name}: there {theirs!s:.80}, now {ours!s:.80}"]


_LISTS = {"answer_phrases": pa.list_(pa.string()), "masks": pa.list_(pa.list_(pa.string()))}
_FIXED = {
    **dict.fromkeys(
        (
            "video",
            "query",
            "group",
            "kind",
            "text",
            "answer",
            "error",
            "unscored",
        ),
        pa.string(),
    ),
    **dict.fromkeys(("tracks", "frames", "height", "width"), pa.int32()),
    **_LISTS,
}


def prediction(row: Mapping[str, Any]) -> Prediction:
    """A part's row -> the prediction that it was made of."""
    size = (row["height"], row["width"])
    masks = np.zeros((row["tracks"], row["frames"], *size), np.bool_)
    for n, track in enumerate(row["masks"]):
        for t, counts in enumerate(track):
            masks[n, t] = rle_decode(RLE(size=list(size), counts=counts))
    return Prediction(masks, row["answer"], tuple(row["answer_phrases"]), error=row["error"])
