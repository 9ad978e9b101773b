"""Exports: curated samples in the layouts of other projects. A format is one file and one line of FORMATS.

An export is built beside its place and put there when it is whole (`place`); a clip that cannot be exported is reported
and does not stop the others.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import av

from manifests.export.artemis import Artemis
from manifests.export.coco import Coco
from manifests.export.fiftyone import FiftyOne
from manifests.export.read import Clip, read_clips
from manifests.export.sparrow import Sparrow
from manifests.export.ytvis import YouTubeVIS
from manifests.noise import sample_noise_words
from schemas.folders import replacing_folder
from schemas.members import EXPORT_MARKER


class Exporter(Protocol):
    """A format. It writes below the folder it was made with, and nothing of a clip for which it raises.

    add: returns the targets that it leaves out, each with the reason.
    """

    def add(self, clip: Clip) -> dict[str, str]: ...

    def close(self) -> None: ...


FORMATS: dict[str, Callable[[Path], Exporter]] = {
    "sparrow": Sparrow,
    "artemis": Artemis,
    "coco": Coco,
    "ytvis": YouTubeVIS,
    "fiftyone": FiftyOne,
}


@dataclass(slots=True)
class Exported:
    """What was written. samples: by `<source>-<split>`. skipped: clip or referent, and why. noisy: samples whose TSF
    was made with noise on purpose; no format has TSF, and the tracks and masks that were written are clean."""

    format: str
    clips: int = 0
    licences: dict[str, str] = field(default_factory=dict)
    samples: Counter[str] = field(default_factory=Counter)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    noisy: int = 0


def export(
    out: Path,
    to: Path,
    format: str,
    *,
    sources: Sequence[str] = (),
    splits: Sequence[str] = (),
    where: str = "true",
    start: Callable[[int], Any] = lambda total: None,
    tick: Callable[[int], Any] = lambda n: None,
) -> Exported:
    """Export the samples of `out` that match to the folder `to`, replacing an earlier export there.

    sources, splits: empty for all. where: an SQL condition over `referents`. start: called with the number of samples;
    tick: with those done since. ValueError for an unknown format, a folder that is not ours, or if nothing is left.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}: choose one of {', '.join(FORMATS)}")
    _check_target(to)
    total, clips = read_clips(out, sources, splits, where)
    start(total)
    with replacing_folder(to) as temporary:
        done = Exported(format)
        exporter = FORMATS[format](temporary)
        for clip in clips:
            try:
                left = exporter.add(clip)
                done.clips += 1
                done.samples[f"{clip.row['source']}-{clip.row['split']}"] += len(
                    clip.targets
                ) - len(left)
                done.licences[clip.row["source"]] = clip.row["licence"] or "not stated"
                done.noisy += sum(
                    bool(sample_noise_words(target.info))
                    for target in clip.targets
                    if target.key not in left
                )
                done.skipped += left.items()
            except (
                ValueError,
                KeyError,
                EOFError,
                FileNotFoundError,
                av.FFmpegError,
                tarfile.TarError,
            ) as error:
                done.skipped.append((clip.key, str(error) or type(error).__name__))
            tick(len(clip.targets))
        exporter.close()
        if not done.clips:
            raise ValueError(
                f"none of the {len(done.skipped)} clips could be exported; {': '.join(done.skipped[0])}"
            )
        _describe(temporary, out, done, where)
    return done


def _check_target(to: Path) -> None:
    if not to.exists():
        return
    if not to.is_dir():
        raise ValueError(f"--to {to} is a file; name a folder")
    there = {path.name for path in to.iterdir()}
    if not there:
        return
    try:
        mine = json.loads((to / EXPORT_MARKER).read_text())["holds"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"--to {to} holds other things already ({min(there)}); name an empty or new folder"
        ) from None
    if strange := there - {*mine, EXPORT_MARKER}:
        raise ValueError(
            f"--to {to} holds an export, and {min(strange)}, which is not of it; move that away first"
        )


def noise_note(done: Exported) -> str:
    """What became of noise on purpose."""
    return (
        f"the TSF of {done.noisy:,} samples was made with noise; an export has no TSF, and its boxes and masks are "
        "clean"
    )


def _describe(folder: Path, out: Path, done: Exported, where: str) -> None:
    about = {
        "format": done.format,
        "from": out.resolve().name,
        "where": where,
        "clips": done.clips,
        "samples": dict(sorted(done.samples.items())),
        "licences": done.licences,
        "skipped": [list(one) for one in done.skipped],
        **({"noise": noise_note(done)} if done.noisy else {}),
        "holds": sorted(path.name for path in folder.iterdir()),
    }
    (folder / EXPORT_MARKER).write_text(json.dumps(about, indent=2) + "\n")
