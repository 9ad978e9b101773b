"""Numbered videos and the readers that must agree on them: for the tests of decoding.

`../shared/cases` makes the videos and reads the number that a picture shows; these tests say what a reader gives.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from model.evaluate.task import Video as EvaluationVideo
from model.video import Video
from pipeline.sources.base import DataRoot
from pipeline.video import DecodeConfig, decode
from schemas.records import Clip, Media, Quarantined
from tests.conftest import SHARED

Read = Callable[[Path, Sequence[int]], list[np.ndarray]]
"""A file and the numbers of pictures that are wanted -> those pictures. Raises ValueError where they are refused."""


def load_case_module(name: str) -> ModuleType:
    """A Python file of `../shared/cases`, imported under its own name."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, SHARED / "cases" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def upright(picture: np.ndarray, name: str) -> np.ndarray:
    """The stored picture of one that was turned or mirrored as the file asks, so that its number can be read."""
    if name.startswith("turned_90"):
        return np.rot90(picture, 1)
    if name.startswith("rot90"):
        return np.rot90(picture, -1)
    return picture[:, ::-1] if name.startswith("mirrored") else picture


def read_by_curation(path: Path, wanted: Sequence[int]) -> list[np.ndarray]:
    """As `sparrow curate` reads."""
    if not isinstance(wanted, range) or wanted.step < 0:  # a clip is an ascending range
        return read_by_evaluation(path, wanted)
    media = Media("video", path.name)
    clip = Clip("c", "hcstvg", "train", "v", media, wanted.start, wanted.stop, wanted.step)
    try:
        return list(decode(DataRoot(path.parent), clip, DecodeConfig()).frames)
    except Quarantined as problem:
        raise ValueError(problem.message) from problem


def read_by_grounding(path: Path, wanted: Sequence[int]) -> list[np.ndarray]:
    """As `sparrow ground` reads: one picture after the other, in any order."""
    video = Video.open(path)
    return [video[t] for t in wanted]


def read_by_evaluation(path: Path, wanted: Sequence[int]) -> list[np.ndarray]:
    """As a benchmark reads: picked frames, all at once."""
    names = tuple(f"{t:05d}" for t in wanted)
    root, media = DataRoot(path.parent), Media("video", path.name)
    return list(EvaluationVideo("v", names, None, root, media, tuple(wanted)).read())


READERS: dict[str, Read] = {
    "curation": read_by_curation,
    "grounding": read_by_grounding,
    "evaluation": read_by_evaluation,
}
