"""Small good corpora in the seven official layouts, as files in memory: what the cases spoil.

Two videos per source where the layout allows, so that a case can show that its neighbour survives.
"""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from pipeline.demo.corpus import LAYOUTS
from pipeline.demo.parts import Spec
from pipeline.demo.render import render

FRAMES, SIZE = 12, (72, 96)
SPLIT = "train"

Content = bytes | Callable[[Path, Path], None]
"""Bytes, or a function that makes something else at (path, a folder outside the data root): a link, a pipe."""
Files = dict[str, Content]

SCENES: dict[str, list[tuple]] = {
    "hcstvg": [
        ("1_b11d59350ca.mp4", "easy", ("woman", "cat"), 25.0),
        ("2_956c5F844eb.mkv", "easy", ("man",), 25.0),
    ],
    "vid_sentence": [
        ("ILSVRC2015_train_00000006", "easy", ("cat",), 25.0),
        ("ILSVRC2015_train_00000007", "easy", ("horse",), 25.0),
    ],
    "a2d": [("f10ba829F9c", "easy", ("woman",), 25.0), ("b498e4948cc", "easy", ("cat",), 25.0)],
    "lasot": [
        ("cat-2", "easy", ("cat", "flower"), 30.0),
        ("coin-2", "easy", ("coin", "cup"), 30.0),
    ],
    "mevis": [
        ("afdd3c5da858", "easy", ("rocket",), 25.0),
        ("e3d322bcf272", "easy", ("flower",), 25.0),
    ],
    "got10k": [
        ("GOT-10k_Train_000022", "easy", ("flower",), 10.0),
        ("GOT-10k_Train_000023", "easy", ("cup",), 10.0),
    ],
    "refsav": [
        ("sav_000026", "easy", ("motorcycle",), 24.0),
        ("sav_000027", "easy", ("man",), 24.0),
    ],
}
"""Source -> its videos: name, kind of scene, things in it, frames per second. The first is the one to spoil."""


@cache
def good(source: str) -> Files:
    """The files of the unspoilt corpus: relative path -> bytes. Copy it before changing it."""
    write_video, write_tables = LAYOUTS[source]
    with tempfile.TemporaryDirectory() as folder:
        root, parts = Path(folder), []
        for name, kind, things, fps in SCENES[source]:
            scene = render(7, kind, FRAMES, *SIZE, fps=fps, names=things)
            parts.append(
                write_video(
                    root, Spec(source, SPLIT, name, kind, things, 7, FRAMES, *SIZE, fps), scene
                )
            )
        write_tables(root, parts)
        if source == "lasot":  # no list of test sequences would make the split "all"
            (root / "testing_set.txt").write_text("dog-1")
        return {
            p.relative_to(root).as_posix(): p.read_bytes()
            for p in sorted(root.rglob("*"))
            if p.is_file()
        }


def write(files: Files, root: Path, outside: Path) -> None:
    """Put the files into `root`, a fresh folder."""
    for relative, content in files.items():
        path = root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path, outside)
