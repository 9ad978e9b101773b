"""Small data roots written by hand, and the real annotations where a machine has them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.demo.corpus import CorpusConfig, write_corpus
from pipeline.sources import SOURCES
from pipeline.sources.base import DataRoot
from schemas.geometry import RLE, rle_encode
from schemas.records import Planned, Referent, Rejected

TINY = CorpusConfig(
    size=(48, 80),
    a2d_size=(48, 80),
    lasot_size=(48, 80),
    frames={**dict.fromkeys(SOURCES, 8), "broken": 6},
)
SHARED = Path(__file__).parents[3].parent / "shared" / "data"


@pytest.fixture
def make_root(tmp_path: Path) -> Callable[..., DataRoot]:
    """make_root({"a/b.txt": "text", "c.json": {...}, "d.bin": b""}) -> the root that holds these files."""

    def make(files: dict[str, object], **options: bool) -> DataRoot:
        for relative, content in files.items():
            path = tmp_path / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(
                    content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
                )
        return DataRoot(tmp_path, **options)

    return make


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real sample data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(
            "real annotations are not on this machine (expected beside the repository, in shared/data)"
        )
    return SHARED


@pytest.fixture
def split_plan() -> Callable[..., tuple[list[Planned], list[Rejected]]]:
    """(planned, rejected) of one split."""

    def run(source, root: DataRoot, split: str) -> tuple[list[Planned], list[Rejected]]:
        items = list(source.plan(root, split))
        return [i for i in items if isinstance(i, Planned)], [
            i for i in items if isinstance(i, Rejected)
        ]

    return run


@pytest.fixture
def annotate_one() -> Callable:
    """The annotation of the only referent of the only clip of a split."""

    def run(source, root: DataRoot, split: str):
        [item] = source.plan(root, split)
        assert isinstance(item, Planned), item
        [referent] = item.referents
        assert isinstance(referent, Referent)
        return source.annotate(root, item.clip, referent)

    return run


@pytest.fixture
def square() -> Callable[..., RLE]:
    """square(height, width, x1, y1, x2, y2): an RLE of one filled rectangle; without corners, an empty one."""

    def make(height: int, width: int, *corners: int) -> RLE:
        mask = np.zeros((height, width), bool)
        if corners:
            x1, y1, x2, y2 = corners
            mask[y1:y2, x1:x2] = True
        return rle_encode(mask)

    return make


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("nearly") / "a" / "b" / "corpus"
    write_corpus(root, config=TINY)
    return root


@pytest.fixture
def altered(corpus, tmp_path):
    """altered("mevis", {"train/x": "train/y"}) -> a root of that corpus in which these files have been moved."""

    def make(source: str, moves: dict[str, str]) -> Path:
        root = tmp_path / "alone" / "deep" / source
        shutil.copytree(corpus / source, root)
        for old, new in moves.items():
            (root / new).parent.mkdir(parents=True, exist_ok=True)
            (root / old).rename(root / new)
        return root

    return make
