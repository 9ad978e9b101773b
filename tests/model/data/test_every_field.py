"""Every field that a shard writes has a reader in training, or a line in docs/training.md that says why it has none."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model.data import online, record
from model.data.collate import collate
from model.data.index import Index
from model.data.loader import LoaderOptions
from model.data.questions import Drawn, ask
from model.data.read import Reader
from model.data.record import make_record
from model.tsf import TSFConfig
from pipeline.corrupt import Corruption
from pipeline.sample import TRACK_DTYPE
from tests.model.made import tiny

DOCS = Path(__file__).parents[3] / "docs" / "training.md"


class Watched(dict):
    """A dictionary that remembers which of its keys are read, by their path."""

    def __init__(self, values: dict, path: str, seen: set[str]):
        super().__init__(values)
        self.path, self.seen = path, seen

    def _note(self, key):
        self.seen.add(f"{self.path}{key}")

    def __getitem__(self, key):
        self._note(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self._note(key)
        return super().get(key, default)


def watched(value, path: str, seen: set[str]):
    """JSON whose objects are `Watched`; members of a list have the path of the list."""
    if isinstance(value, dict):
        inner = {k: watched(v, f"{path}{k}.", seen) for k, v in value.items()}
        return Watched(inner, path, seen)
    if isinstance(value, list):
        return [watched(one, path, seen) for one in value]
    return value


class WatchedTrack:
    """A structured array that remembers which of its fields are read."""

    def __init__(self, track: np.ndarray, seen: set[str]):
        self.track, self.seen = track, seen

    def __getitem__(self, name: str):
        self.seen.add(f"track.npy: {name}")
        return self.track[name]

    def __len__(self) -> int:
        return len(self.track)


def paths(value, path: str) -> Iterator[str]:
    """All fields of JSON, as `Watched` names them; of an object inside, the fields and not the object."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, dict) or (
                inner and isinstance(inner, list) and isinstance(inner[0], dict)
            ):
                yield from paths(inner, f"{path}{key}.")
            else:
                yield f"{path}{key}"
    elif isinstance(value, list):
        for one in value:
            yield from paths(one, path)


def member(name: str) -> str:
    """The name of a member without its number."""
    return re.sub(r"crop\d+\.jpg", "crop<n>.jpg", name)


@pytest.fixture
def fields(curated, monkeypatch) -> tuple[set[str], set[str]]:
    """(written, read) of a curated shard, by a training with stored crops and one that cuts its own."""
    written: set[str] = set()
    read: set[str] = set()
    load = json.loads
    original = online.read_track

    def loads(text):
        found = load(text)
        return (
            watched(found, "json: ", read)
            if isinstance(found, dict) and "referent" in found
            else found
        )

    def read_track(data):
        return WatchedTrack(original(data), read)

    monkeypatch.setattr(record, "read_track", read_track)
    monkeypatch.setattr(online, "read_track", read_track)
    monkeypatch.setattr(record.json, "loads", loads)
    index = Index.open(str(curated))
    reader = Reader(index.out)
    sparrow = tiny("videoglamm")
    switch = Corruption(kind="id_switch", level=0.5)
    for row in range(len(index)):
        entry = index.entry(row)
        members = reader.members(entry)
        written |= {member(name) for name in members}
        written |= set(paths(load(members["json"]), "json: "))
        written |= {f"track.npy: {name}" for name in TRACK_DTYPE.names or ()}
        for selection in ("offline", "online"):
            names: set[str] = set()
            found = make_record(
                entry,
                Watched(members, "", names),
                np.random.default_rng(0),
                frames=2,
                tsf=TSFConfig(dropout=0.0, selection=selection),
                corruption=switch if selection == "online" else Corruption(),
                others=lambda members=members: [members["track.npy"]],
            )
            read |= {member(name) for name in names}
            drawn = Drawn("region_mask", "host", "0/0")
            found.asked = ask(
                drawn, index.templates(row), entry.key, 0, found.answer(0), has_tsf=True
            )
            if selection == "offline":
                collate([found], sparrow)
    assert LoaderOptions().questions.with_tsf.region > 0
    return written, read


def documented() -> set[str]:
    """The first column of the table under "Fields that training does not read"."""
    section = (
        DOCS.read_text().partition("## Fields that training does not read")[2].partition("\n## ")[0]
    )
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_field_has_a_reader_or_a_line_that_says_why_not(fields):
    written, read = fields
    unread = written - read
    lost = documented() - written
    assert unread - documented() == set(), "neither read nor explained"
    assert documented() & read == set(), "explained although it is read"
    assert lost == set(), "explained but not written"
    assert {"json", "track.npy", "masks.json", "crop<n>.jpg", "json: referent.caption"} <= read
