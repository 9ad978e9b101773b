"""Evaluation sets on disk, in their official layouts, as the leak check wants them: names, texts, and where pixels are.

A folder may hold several. Read are the evaluation splits of the seven sources, the benchmarks of `sparrow eval`, and
lists without annotations (the test splits of GOT-10k, HC-STVG, MeViS and Ref-YouTube-VOS, Ref-SAV's validation set,
DAVIS's training videos, which Ref-DAVIS17's training set is about).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from manifests.leaks import HELD_OUT, Known
from manifests.leaks.looks import Footage, Pictures, of_files, of_video
from pipeline.sources.base import DataRoot, clean, first_of, load_source, locate
from schemas.records import Media, Planned, Quarantined
from schemas.video.order import in_picture_order

_TOPS = (
    "",
    "GOT-10k/",
    "got10k/",
    "GOT10k/",
    "HC-STVG/",
    "hcstvg/",
    "mevis/",
    "MeViS/",
    "MeViS_release/",
    "ref-davis/",
    "DAVIS/",
    "ref-youtube-vos/",
    "ref_youtube_vos/",
    "ref_sav/",
    "valid/",
)
_MEVIS = {"val_u": "valid_u", "val": "valid"}
"""The benchmark's names of its splits -> their folders, as the source has them."""
_HEX = re.compile(r"[0-9a-f]{10}")


@dataclass(frozen=True)
class Reference:
    """One video of an evaluation set with what is said about it. media: None where there are only names."""

    evaluation: str
    video: str
    texts: tuple[str, ...]
    root: DataRoot
    media: Media | None = None

    def known(self) -> Iterator[Known]:
        for text in self.texts or ("",):
            yield Known(self.evaluation, self.video, text)

    def footage(self) -> Footage | None:
        """Its frames, if there are any on disk."""
        try:
            if self.media is None or not self.root.has(self.media.path):
                return None
            place = self.root.file(self.media.path)
            if self.media.kind == "video":
                return self._of(place, lambda: of_video(place))
            listed = self.root.listdir(self.media.path)
            names = self.media.names or in_picture_order(listed)
            files = [self.root.file(f"{self.media.path}/{name}") for name in names]
        except (Quarantined, OSError):
            return None
        return (
            self._of(files[0], lambda: of_files(files), len(files))
            if files and files[0].exists()
            else None
        )

    def _of(self, file: Path, read: Callable[[], Pictures], files: int = 1) -> Footage:
        stat = file.stat()
        return Footage(
            f"{self.evaluation}/{self.video}", f"{files}-{stat.st_size}-{stat.st_mtime_ns}", read
        )


def read_references(folder: Path, *, follow_links: bool = False) -> list[Reference]:
    """All evaluation sets under a folder, each video once. ValueError says what was looked for if there is none, or
    which file is damaged."""
    if not folder.is_dir():
        raise ValueError(f"--against {folder}: no such folder")
    root = DataRoot(folder, follow_links=follow_links)
    found: dict[tuple[str, str], Reference] = {}
    try:
        for one in (*_held_out(root), *_benchmarks(root), *_lists(root)):
            known = found.get((one.evaluation, one.video))
            texts = tuple(dict.fromkeys((*(known.texts if known else ()), *one.texts)))
            media = known.media if known and known.media else one.media
            found[one.evaluation, one.video] = Reference(
                one.evaluation, one.video, texts, root, media
            )
    except Quarantined as problem:
        raise ValueError(f"--against {folder}: {problem.message}") from problem
    if not found:
        raise ValueError(
            f"--against {folder}: no evaluation set in an official layout. Looked for: the val and test splits of "
            f"{', '.join(HELD_OUT)}; MeViS valid_u and valid; meta_expressions/valid (Ref-YouTube-VOS, Ref-DAVIS17); "
            "DAVIS ImageSets/2017; vidstg_annotations. docs/datasets/ has the trees"
        )
    return list(found.values())


def _held_out(root: DataRoot) -> Iterator[Reference]:
    """The sources' own evaluation splits. MeViS's is a benchmark."""
    for name in (name for name in HELD_OUT if name != "mevis"):
        source = load_source(name, "")
        for split in source.available(root):
            if split in HELD_OUT[name]:
                for item in source.plan(root, split):
                    if isinstance(item, Planned):
                        texts = tuple(r.caption for r in item.referents if r.caption)
                        yield Reference(
                            f"{name} {split}", item.clip.video_id, texts, root, item.clip.media
                        )


def _benchmarks(root: DataRoot) -> Iterator[Reference]:
    from model.evaluate.benchmarks import BENCHMARKS, open_benchmark

    hexes = _meta_names(root)
    for name, cls in BENCHMARKS.items():
        if name == "regions":
            continue  # not a dataset: a curated output
        if hexes is not None and name == ("ref-davis17" if hexes else "ref-ytvos"):
            continue  # both keep their texts in a file of the same name
        for split in cls.splits:
            try:
                benchmark = open_benchmark(name, root.path, split, follow_links=root.follow_links)
            except ValueError as error:
                if "Expected" in str(error):
                    continue
                raise
            evaluation = f"{name} {_MEVIS[split] if name == 'mevis' else split}"
            for video in benchmark.videos():
                place = (
                    video.media.path.removesuffix("/frames").removesuffix(".mp4").rsplit("/", 1)[-1]
                )
                texts = tuple(
                    query.text for query in benchmark.queries(video) if query.kind != "gcg"
                )
                yield Reference(evaluation, place, texts, root, video.media)


def _meta_names(root: DataRoot) -> bool | None:
    """Whether `meta_expressions/valid` is about Ref-YouTube-VOS, whose videos have hexadecimal names; None without."""
    top = locate(root, _TOPS, ["meta_expressions/valid/meta_expressions.json"])
    videos = _videos(root, f"{top}meta_expressions/valid/meta_expressions.json")
    return all(_HEX.fullmatch(name) for name in videos) if videos else None


def _lists(root: DataRoot) -> Iterator[Reference]:
    """Sets of which the official files have names and texts, and nothing to score with."""
    top = locate(root, _TOPS, ["test/list.txt"])
    for name in (
        root.read_text(f"{top}test/list.txt").split() if root.has(f"{top}test/list.txt") else ()
    ):
        if name.startswith("GOT-10k_"):
            yield Reference("got10k test", name, (), root, Media("frames", f"{top}test/{name}"))
    file = first_of(
        root,
        [
            f"{top}{folder}{name}"
            for top in _TOPS
            for folder in ("anno_v2/", "annotations/", "")
            for name in ("query_v2.json", "queryv2.json")
        ],
    )
    if file:
        entries = root.read_json(file)
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            text = (
                (entry.get("English") or entry.get("caption")) if isinstance(entry, dict) else entry
            )
            yield Reference(
                "hcstvg test", name, (clean(text),) if isinstance(text, str) else (), root
            )
    top = locate(root, _TOPS, ["ImageSets/2017/train.txt"])
    if root.has(f"{top}ImageSets/2017/train.txt"):
        for name in root.read_text(f"{top}ImageSets/2017/train.txt").split():
            yield Reference(
                "ref-davis17 train", name, (), root, Media("frames", f"{top}JPEGImages/480p/{name}")
            )
    meta = "meta_expressions.json"
    youtube = _meta_names(root)
    for evaluation, file, images, suffix in (
        ("mevis test", f"test/{meta}", "test/JPEGImages", ""),
        ("ref-ytvos test", f"meta_expressions/test/{meta}", "valid/JPEGImages", ""),
        *(
            [("ref-davis17 train", f"meta_expressions/train/{meta}", "train/JPEGImages", "")]
            if youtube is False
            else []
        ),
        ("refsav valid", "meta_expressions_valid.json", "videos", ".mp4"),
    ):
        top = locate(root, _TOPS, [file])
        for name, texts in _videos(root, top + file).items():
            media = Media("video" if suffix else "frames", f"{top}{images}/{name}{suffix}")
            yield Reference(evaluation, name, texts, root, media)


def _videos(root: DataRoot, file: str) -> dict[str, tuple[str, ...]]:
    """Video -> expressions of a `meta_expressions.json`; nothing where there is none."""
    if not root.has(file):
        return {}
    content = root.read_json(file)
    videos = content.get("videos") if isinstance(content, dict) else None
    return {
        name: tuple(_texts(entry))
        for name, entry in (videos if isinstance(videos, dict) else {}).items()
    }


def _texts(entry: object) -> Iterable[str]:
    expressions = entry.get("expressions") if isinstance(entry, dict) else None
    for one in expressions.values() if isinstance(expressions, dict) else ():
        if isinstance(one, dict) and isinstance(one.get("exp"), str):
            yield clean(one["exp"])
