"""Write the synthetic corpus: seven official layouts, a share of their documented faults, and the exact truth.

    <root>/{hcstvg,vid_sentence,a2d,lasot,mevis,got10k,refsav}/   data roots
    <root>/truth/<source>.json    {"<split>/<video id>": [{expression, boxes, masks, size}]}, one entry per video frame
    <root>/corpus.json            written last: seed, scale, version, and every planted fault with what it should cause

The same seed and scale give the same bytes, however often the writing was interrupted.
"""

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from pydantic import Field

from pipeline.demo import layouts_frames as frames
from pipeline.demo import layouts_video as video
from pipeline.demo.parts import Part, Spec, sayable, write_json
from pipeline.demo.render import render
from pipeline.demo.scene import Scene
from schemas.config import Config, digest

VERSION = 1
"""Raise it when the same seed and scale give another corpus."""

_ATTEMPTS = 12
_PARTS = ".parts"
LAYOUTS: dict[
    str, tuple[Callable[[Path, Spec, Scene], Part], Callable[[Path, list[Part]], None]]
] = {
    "hcstvg": (video.write_hcstvg_video, video.write_hcstvg_tables),
    "vid_sentence": (frames.write_vid_sentence_video, frames.write_vid_sentence_tables),
    "a2d": (video.write_a2d_video, video.write_a2d_tables),
    "lasot": (frames.write_lasot_video, frames.write_lasot_tables),
    "mevis": (frames.write_mevis_video, frames.write_mevis_tables),
    "got10k": (frames.write_got10k_video, frames.write_got10k_tables),
    "refsav": (video.write_refsav_video, video.write_refsav_tables),
}
"""Source -> what writes one video of it, and what writes the tables over all of them."""

FAULTS = {
    "missing_video": ("the video file is not there", "media_missing"),
    "negative_boxes": ("three boxes inside the tube have a negative width", None),
    "truncated_image": ("an image ends early", "media_unreadable"),
    "gap_frames": ("the track skips the frames in which the object is away", None),
    "copied_row": ("a row with instance id `1 (copy)`", "malformed_row"),
    "missed_video": ("the video is listed in a2d_missed_videos.txt", "known_bad"),
    "truncated_video": ("the mp4 ends early", "media_unreadable"),
    "stale_boxes": ("absent frames are flagged and keep a normal-looking box", None),
    "null_masks": ("the mask is null where the object is absent", None),
    "minus_one_boxes": ("absent frames have boxes of -1", None),
    "zero_cover": ("cover.label is zero in every frame", None),
    "repeated_directory": ("video_path and anno_path repeat a directory", None),
    "object_out_of_range": ("an object index beyond the masklet's objects", "annotation_invalid"),
}
"""Fault -> what is wrong, and the quarantine reason that it should cause (None: the source must cope)."""


_FRAMES = {
    "hcstvg": 100,
    "vid_sentence": 80,
    "a2d": 60,
    "lasot": 240,
    "mevis": 60,
    "got10k": 70,
    "refsav": 120,
    "broken": 24,
}


class CorpusConfig(Config):
    """Sizes of the corpus; the defaults curate in about a minute on two cores.

    frames: per video of each source; `broken` for the one with a broken image. LaSOT sequences are meant for three
        segments of a quarter of their length (`seconds = 2.0` of the source's config for 240 frames).
    """

    size: tuple[int, int] = (360, 640)
    a2d_size: tuple[int, int] = (320, 568)
    lasot_size: tuple[int, int] = (180, 320)
    frames: dict[str, int] = Field(default_factory=lambda: dict(_FRAMES))


_WHAT: tuple[tuple, ...] = (
    ("hcstvg", "train", "{n}_{yt}.mp4", "easy", ("woman", "cat")),
    ("hcstvg", "train", "{n}_{yt}.mkv", "occlude", ("woman",)),
    ("hcstvg", "train", "{n}_{yt}.mp4", "distract", ("man", "man"), "negative_boxes"),
    ("hcstvg", "train", "{n}_{yt}.mp4", "pan", ("man",), "missing_video"),
    ("hcstvg", "val", "{n}_{yt}.mp4", "mixed", ("woman", "man")),
    ("vid_sentence", "train", "ILSVRC2015_train_{n:08d}", "distract", ("cat", "cat"), "two_tracks"),
    ("vid_sentence", "train", "ILSVRC2015_train_{n:08d}", "leave", ("horse",), "gap_frames"),
    ("vid_sentence", "train", "ILSVRC2015_train_{n:08d}", "scale", ("motorcycle",)),
    ("vid_sentence", "train", "ILSVRC2015_train_{n:08d}", "easy", ("cat",), "truncated_image"),
    ("vid_sentence", "val", "ILSVRC2015_val_{n:08d}", "occlude", ("horse", "motorcycle")),
    ("a2d", "train", "{yt}", "distract", ("woman", "man"), "copied_row"),
    ("a2d", "train", "{yt}", "scale", ("cat",)),
    ("a2d", "train", "{yt}", "mixed", ("cat", "cat")),
    ("a2d", "train", "{yt}", "easy", ("man",), "missed_video"),
    ("a2d", "train", "{yt}", "easy", ("woman",), "truncated_video"),
    ("a2d", "test", "{yt}", "pan", ("man",)),
    ("lasot", "train", "cat-{k}", "leave", ("cat", "flower"), "stale_boxes"),
    ("lasot", "test", "coin-{k}", "occlude", ("coin", "cup"), "stale_boxes"),
    ("mevis", "train", "{hex}", "distract", ("rocket", "rocket")),
    ("mevis", "train", "{hex}", "leave", ("flower", "flower", "cup"), "null_masks"),
    ("mevis", "valid_u", "{hex}", "mixed", ("coin", "coin")),
    ("got10k", "train", "GOT-10k_Train_{n:06d}", "easy", ("flower",)),
    ("got10k", "train", "GOT-10k_Train_{n:06d}", "leave", ("cup",), "minus_one_boxes"),
    ("got10k", "train", "GOT-10k_Train_{n:06d}", "occlude", ("rocket",), "zero_cover"),
    ("got10k", "val", "GOT-10k_Val_{n:06d}", "pan", ("horse",)),
    (
        "refsav",
        "train",
        "sav_{n:06d}",
        "distract",
        ("motorcycle", "motorcycle"),
        "repeated_directory",
    ),
    (
        "refsav",
        "train",
        "sav_{n:06d}",
        "mixed",
        ("man", "woman"),
        "repeated_directory",
        "object_out_of_range",
    ),
)
"""source, split, pattern of the video's name, kind of scene, things in it, faults."""
_FPS = {"hcstvg": 25.0, "lasot": 30.0, "got10k": 10.0, "refsav": 24.0}


def corpus_plan(seed: int, scale: int, config: CorpusConfig) -> list[Spec]:
    """Every video of the corpus, by source and in the order of its tables."""
    sizes = {"a2d": config.a2d_size, "lasot": config.lasot_size}
    specs = []
    for copy in range(scale):
        for number, (source, split, pattern, kind, names, *faults) in enumerate(_WHAT):
            n = 1 + copy * len(_WHAT) + number
            name = hashlib.sha256(f"{source} {n}".encode()).hexdigest()
            known = pattern.format(
                n=n, k=2 + copy, yt=f"{name[:5]}{name[5:9].upper()}{name[9:11]}", hex=name[:12]
            )
            drawn = int.from_bytes(hashlib.sha256(f"{seed} {known}".encode()).digest()[:4], "big")
            height, width = sizes.get(source, config.size)
            length = config.frames["broken" if "truncated_image" in faults else source]
            specs.append(
                Spec(
                    source,
                    split,
                    known,
                    kind,
                    names,
                    drawn,
                    length,
                    height,
                    width,
                    _FPS.get(source, 25.0),
                    (),
                    tuple(faults),
                    copy,
                )
            )
    return sorted(
        specs, key=lambda spec: list(LAYOUTS).index(spec.source)
    )  # stable: keeps the order within a source


def write_corpus(
    root: Path,
    *,
    seed: int = 0,
    scale: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
    workers: int = 1,
    config: CorpusConfig | None = None,
) -> None:
    """The corpus under `root`; returns at once if it is there. Resumes what was interrupted.

    progress: called with (videos done, videos in all, name of the last). workers: processes that render.
    Raises ValueError if `root` holds anything that this function has not written.
    """
    config = config or CorpusConfig()
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    specs = corpus_plan(seed, scale, config)
    stamp = {"seed": seed, "scale": scale, "version": VERSION, "config": config.digest()}
    if not _prepare(root, stamp):
        return
    todo = [spec for spec in specs if not _part_file(root, spec).exists()]
    done = len(specs) - len(todo)
    for finished in _render_all(root, todo, workers):
        done += 1
        if progress is not None:
            progress(done, len(specs), f"{finished.source} {finished.video}")
    planted = []
    for source, (_, write_tables) in LAYOUTS.items():
        parts = [Part.load(_part_file(root, spec)) for spec in specs if spec.source == source]
        write_tables(root / source, parts)
        write_json(root / "truth" / f"{source}.json", {part.spec.key: part.truth for part in parts})
        planted += [
            _fault(part.spec, name) for part in parts for name in part.spec.faults if name in FAULTS
        ]
    videos = {source: sum(s.source == source for s in specs) for source in LAYOUTS}
    shown = {source: sum(s.frames for s in specs if s.source == source) for source in LAYOUTS}
    summary = {**stamp, "synthetic": True, "videos": videos, "frames": shown, "faults": planted}
    write_json(root / "corpus.json", summary, indent=1)
    _remove(root / _PARTS)


def _prepare(root: Path, stamp: dict) -> bool:
    """Whether there is something to do. Clears away an older corpus or the beginnings of another one."""
    finished, begun = root / "corpus.json", root / _PARTS / "stamp.json"
    for path in (finished, begun):
        if path.is_file():
            found = json.loads(path.read_text())
            if {key: found.get(key) for key in stamp} == stamp:
                if path is finished:
                    _remove(root / _PARTS)
                return path is begun
            for name in (_PARTS, "truth", *LAYOUTS, "corpus.json"):
                _remove(root / name)
    foreign = [name for name in ("truth", *LAYOUTS) if (root / name).exists()]
    if foreign:
        raise ValueError(
            f"{root} holds {', '.join(foreign)} of something else: choose an empty folder for the corpus"
        )
    write_json(begun, stamp)
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _part_file(root: Path, spec: Spec) -> Path:
    return root / _PARTS / f"{spec.source}-{spec.split}-{spec.video}-{digest(asdict(spec))}.json"


def _render_all(root: Path, specs: list[Spec], workers: int) -> Iterator[Spec]:
    if workers <= 1 or len(specs) <= 1:
        for spec in specs:
            yield render_video(root, spec)
        return
    context = multiprocessing.get_context(
        "spawn"
    )  # a forked child would inherit whatever threads the caller runs
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        for future in as_completed([pool.submit(render_video, root, spec) for spec in specs]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def render_video(root: Path, spec: Spec) -> Spec:
    """Render one video into its layout and leave its part; the scene is drawn again until it can be described."""
    for attempt in range(_ATTEMPTS):
        scene = render(
            spec.seed + attempt,
            spec.kind,
            spec.frames,
            spec.height,
            spec.width,
            fps=spec.fps,
            names=spec.names,
            tints=spec.tints,
        )
        if sayable(scene, spec):
            write_video, _ = LAYOUTS[spec.source]
            write_video(root / spec.source, spec, scene).save(_part_file(root, spec))
            return spec
    raise ValueError(
        f"{spec.source} {spec.key}: no scene of {_ATTEMPTS} can be described: use longer or larger videos"
    )


def _fault(spec: Spec, name: str) -> dict:
    what, reason = FAULTS[name]
    return {
        "source": spec.source,
        "split": spec.split,
        "video_id": spec.video,
        "fault": name,
        "what": what,
        "quarantine": reason,
    }
