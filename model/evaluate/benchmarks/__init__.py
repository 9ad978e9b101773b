"""The benchmarks by name."""

from pathlib import Path
from typing import Any

from model.evaluate.benchmarks.mevis import MeViS
from model.evaluate.benchmarks.ref_davis import RefDAVIS17
from model.evaluate.benchmarks.ref_ytvos import RefYTVOS
from model.evaluate.benchmarks.regions import Regions
from model.evaluate.benchmarks.videogcg import VideoGCG
from model.evaluate.benchmarks.vidstg import VidSTG
from model.evaluate.task import Benchmark
from pipeline.sources.base import DataRoot

BENCHMARKS: dict[str, Any] = {
    cls.name: cls for cls in (MeViS, RefYTVOS, RefDAVIS17, VidSTG, VideoGCG, Regions)
}
"""name -> class; `splits` of a class are its splits, the first is the default."""


def open_benchmark(
    name: str, root: Path, split: str | None = None, *, follow_links: bool = False, **options: Any
) -> Benchmark:
    """A benchmark over a folder in the official layout. options: see the class.

    Raises ValueError for unknown names, splits and options, and for a root that does not hold the layout, with what
    was expected and what was found.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}")
    cls = BENCHMARKS[name]
    split = cls.splits[0] if split is None else split
    if split not in cls.splits:
        raise ValueError(f"{name} has no split {split!r}: choose one of {', '.join(cls.splits)}")
    if not Path(root).is_dir():
        raise ValueError(f"{name}: {root} is not a folder: give the dataset's folder as data root")
    try:
        return cls(DataRoot(root, follow_links=follow_links), split, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ValueError(f"{name}: {str(error).partition('()')[2].strip() or error}") from error
