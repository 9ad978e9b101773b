"""When a data root is not what a source expects: what was found, what was expected, and what probably helps.

Only names are looked at, and not many of them, so that the message comes at once on a disk of any size. A folder is
suggested only if the source finds its annotations there.
"""

import os
import re
import shlex
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path

from pipeline.sources import hcstvg
from pipeline.sources.base import DataRoot, Source, is_hidden
from schemas.records import Quarantined

ANNOTATIONS: dict[str, tuple[str, ...]] = {
    "hcstvg": (
        "anno_v2/train_v2.json",
        "anno_v2/val_v2.json",
        "annos/hcstvg_v1/train.json",
        "annos/hcstvg_v1/test.json",
    ),
    "vid_sentence": tuple(
        f"data/ILSVRC/Data/VID/annSamples/{split}_ann_list_v2.txt"
        for split in ("train", "val", "test")
    ),
    "a2d": ("text_annotations/a2d_annotation.txt", "Release/videoset.csv"),
    "lasot": ("testing_set.txt",),
    "mevis": ("train/meta_expressions.json", "valid_u/meta_expressions.json"),
    "got10k": ("train", "val"),
    "refsav": ("Ref-SAV.json", "sam_v_final_v3.json"),
}
"""The files, or folders, by which a source knows its splits, at their official places."""

NOT_CURATED: dict[str, dict[str, str]] = {
    "hcstvg": {r"query_?v2\.json": "captions of the test split, which has no boxes"},
    "mevis": {r"valid|test": "a split without masks; train and valid_u have them"},
    "got10k": {r"test": "a split with a box for the first frame only; train and val have all"},
    "refsav": {
        r"JPEGImages_24fps|Annotations_6fps": "SA-V's val or test; Ref-SAV describes videos of sav_train"
    },
}
"""Official names that do not help: pattern -> what it is."""

VERSION_OF: dict[str, Callable[[DataRoot, str], str]] = {"hcstvg": hcstvg.version_of}
"""For a source of several versions whose files have the same names: which version an annotation file is of."""

_ARCHIVE = re.compile(
    r"\.(zip|rar|7z|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst)|z\d\d"
    r"|(zip|7z|tar|tgz|tar\.(gz|bz2|xz|zst))\.(\d+|(part)?[a-z]{2}))$",
    re.I,
)
_TAR_FILTERS = {".gz": "-z", ".tgz": "-z", ".bz2": "-j", ".xz": "-J", ".zst": "--zstd"}
_COPY = re.compile(
    r"\s*\(\d+\)|[ _-]*\bcopy\b|\.(txt|json|part|crdownload)(?=\.(txt|json|csv)$)", re.I
)
_VERSION = re.compile(r"_?v(\d+)(?!\d)", re.I)
_MEDIA = (".mp4", ".mkv", ".jpg", ".jpeg")
_DATA = (*_MEDIA, ".json", ".txt", ".csv", ".js", ".h5", ".ini", ".label")
_LIKE = 0.8
"""How alike two names are, from 0 to 1, for one to be taken for the other."""
_LONGEST_PATH = 1000
_WIDE, _MANY, _DEEP = 100, 5000, 6
"""Entries that are looked at in one folder, in all, and folders below each other."""


def explain(source: Source, root: DataRoot, split: str = "") -> str:
    """Why `source` finds nothing, or not `split`, under `root`: what is there, what to try, the expected tree."""
    if not os.path.isdir(root.path):
        return _no_folder(source, root.path)
    first = f"no {source.name} annotations under {root.path}"
    if split and (has := _splits(source, root)):
        first = f"{source.name} has no split {split} under {root.path}: it has {', '.join(has)}"
    return f"{first}.\n{advice(source, root, split)}\nexpected:\n{source.expected.strip()}"


def advice(source: Source, root: DataRoot, split: str = "") -> str:
    """The lines `found: ...` and, for everything that may help, `try: ...`."""
    entries = list(_entries(root))
    has = _splits(source, root)
    tries = [f"--split {one}" for one in has] or [
        *refused_links(root),
        *_levels(source, root),
        *_other_sources(source, root),
    ]
    if has or not tries:
        tries += _names(source, root, entries, split)
    if not any(" down;" in line for line in tries):
        tries += _archives(root, entries)
    top = [path for path in entries if "/" not in path.rstrip("/")]
    listing = ", ".join(top[:8]) + (
        f" and {len(top) - 8}{'+' * (len(top) == _WIDE)} more" if top[8:] else ""
    )
    return "\n".join([f"found: {listing or 'nothing'}", *(f"try: {line}" for line in tries[:6])])


def media_advice(source: Source, root: DataRoot) -> list[str]:
    """What may help a plan whose videos or pictures are not all found: links, another level, archives."""
    lines = refused_links(root)
    if place := right_level(source, root):
        lines.append(f"--data-root {place}, which has videos or pictures too")
    return lines + list(_archives(root, list(_entries(root))))


def refused_links(root: DataRoot) -> list[str]:
    """The links near the top of a data root that are not followed, each with what to do about it.

    Also the text files that a checkout without links makes of them: a file without suffix that holds the path of
    something that exists.
    """
    lines = []
    for entry in _entries(root):
        relative = entry.rstrip("/")
        path = root.path / relative
        target = _link_target(path)
        if target and path.is_symlink() and not path.exists():
            continue  # leads nowhere: no option helps
        if target and not path.is_symlink():
            link = f"ln -sfn {shlex.quote(target)} {shlex.quote(str(path))}"
            lines.append(
                f"making the link again that {relative} was: {link}. The file holds only the path of what it led to. "
                "A link that leaves the data root needs --follow-links"
            )
        elif target and not root.follow_links and not root.has(relative):
            lines.append(
                f"--follow-links: {relative} is a link to {target}, outside the data root, and was not followed"
            )
    return lines[:3] + ([f"the same for {len(lines) - 3} more links"] if lines[3:] else [])


def _link_target(path: Path) -> str:
    """Where a link leads, or the text file that a checkout has made of a link; empty for all else."""
    try:
        if path.is_symlink():
            may_be_data = os.path.isdir(path) or path.suffix.lower() in _DATA
            return os.readlink(path) if may_be_data else ""
        if path.suffix or not path.is_file() or not 0 < path.stat().st_size <= _LONGEST_PATH:
            return ""
        target = path.read_text(encoding="utf-8").rstrip("\n")
        is_path = "/" in target and "\n" not in target and "\0" not in target
        return target if is_path and (path.parent / target).exists() else ""
    except (OSError, ValueError):
        return ""


def right_level(source: Source, root: DataRoot) -> Path | None:
    """The nearest folder above `root` where the source finds annotations too, and where there are videos or pictures
    outside `root`. For a root that is only a part of a dataset: its annotations without its media."""
    for path in _above(root):
        if not _splits(source, DataRoot(path)):
            continue
        own = f"{root.path.relative_to(path)}/"
        if any(
            one.lower().endswith(_MEDIA) and not one.startswith(own)
            for one in _entries(DataRoot(path))
        ):
            return path
    return None


def _no_folder(source: Source, path: Path) -> str:
    if os.path.isfile(path):
        what = (
            "an archive: unpack it, and name the folder"
            if _ARCHIVE.search(path.name)
            else "a file: name the folder"
        )
        return f"the data root {path} is {what} that holds\n{source.expected.strip()}"
    there = next(parent for parent in path.parents if os.path.isdir(parent))
    missing = path.relative_to(there).parts[0]
    names = [name for name in _listdir(there) if os.path.isdir(there / name)]
    like = get_close_matches(missing.lower(), [name.lower() for name in names], n=1, cutoff=0.6)
    hint = [
        f"try: --data-root {there / name}" for name in names if like and name.lower() == like[0]
    ]
    listing = ", ".join(names[:8]) or "no folders"
    return "\n".join(
        [f"the data root {path} does not exist.", f"found: {there}, with {listing}", *hint[:1]]
    )


def _splits(source: Source, root: DataRoot) -> list[str]:
    try:
        return source.available(root)
    except (Quarantined, ValueError, OSError):  # something is there that only looks like it
        return []


def _listdir(path: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(path) if not is_hidden(name))
    except OSError:
        return []


def _above(root: DataRoot) -> list[Path]:
    """One and two levels up, the file system's root left out."""
    return [path for path in (root.path.parent, root.path.parent.parent) if path != path.parent]


def _levels(source: Source, root: DataRoot) -> Iterator[str]:
    """Folders at most two levels away at which the source finds its annotations; above only the nearest."""
    children = _folders(root.path)
    grandchildren = [folder for child in children for folder in _folders(child)]
    places = [*zip(_above(root), ("one level up", "two levels up"), strict=False)]
    places += [(path, "one level down") for path in children] + [
        (path, "two levels down") for path in grandchildren
    ]
    shown: list[Path] = []
    for path, where in places[: 4 * _WIDE]:
        if path.is_symlink() or any(path.is_relative_to(other) for other in shown):
            continue
        if found := _splits(source, DataRoot(path, follow_links=root.follow_links)):
            yield f"--data-root {path}   ({where}; it has {', '.join(found)})"
            shown.append(path)
            if where.endswith("up") or len(shown) == 3:
                return


def _folders(path: Path) -> list[Path]:
    return [path / name for name in _listdir(path)[:_WIDE] if os.path.isdir(path / name)]


def _other_sources(source: Source, root: DataRoot) -> Iterator[str]:
    from pipeline.sources import SOURCES

    for name, other in SOURCES.items():
        if name != source.name and (found := _splits(other(), root)):
            yield f"{name} instead of {source.name}: this is its layout, with {', '.join(found)}"


def _entries(root: DataRoot) -> Iterator[str]:
    """Relative paths below the root, nearest first, folders with a slash; not more than the limits."""
    level, n = [""], 0
    for _ in range(_DEEP):
        deeper = []
        for folder in level:
            for name in _listdir(root.path / folder)[:_WIDE]:
                path = root.path / folder / name
                is_folder = os.path.isdir(path)
                yield f"{folder}{name}{'/' * is_folder}"
                if is_folder and not path.is_symlink():
                    deeper.append(f"{folder}{name}/")
                n += 1
                if n >= _MANY:
                    return
        level = deeper


def _names(source: Source, root: DataRoot, entries: list[str], split: str) -> Iterator[str]:
    """Files that are nearly what is expected: misplaced, misnamed, of another version; or not for curating."""
    official = ANNOTATIONS[source.name]
    expected = [path for path in official if split in path] or official
    said = set()
    for path in entries:
        folder, _, name = path.rstrip("/").rpartition("/")
        for pattern, what in NOT_CURATED.get(source.name, {}).items():
            if re.fullmatch(pattern, name, re.I) and name not in said:
                said.add(name)
                yield f"another split: {path} is {what}"
        own_version = _version(source, root, path) if name.endswith(".json") else ""
        possible = [one for one in expected if own_version in ("", *_VERSION.findall(one))]
        alike, best = max(((_like(folder, name, one), one) for one in possible), default=(0.0, ""))
        if _is_of_another_split(source, path, official) or _is_not_curated(source, folder):
            continue
        if sum(one.rsplit("/", 1)[-1] == name for one in official) > 1 and not _fits(folder, best):
            choices = ", ".join(one for one in official if one.endswith(f"/{name}"))
            yield f"placing {path}, and what lies beside it, as what it is: one of {choices}"
            continue
        if (
            alike < _LIKE
            or path.endswith("/") == ("." in best)
            or f"/{folder}/{name}".endswith(f"/{best}")
        ):
            continue
        wanted = best.rsplit("/", 1)[-1]
        named_version, wanted_version = _VERSION.findall(name), _VERSION.findall(wanted)
        if named_version != wanted_version and (named_version or not own_version):
            yield f"the other version: {path} looks like one of {best}, which is read"
        elif name == wanted:
            yield f"moving {path} to {best}"
        else:
            yield f"renaming {path}: it may be {best}"


def _is_of_another_split(source: Source, path: str, official: tuple[str, ...]) -> bool:
    """Whether a file lies where it belongs."""
    return any(f"/{path}".endswith(f"/{one}") for one in official)


def _is_not_curated(source: Source, folder: str) -> bool:
    """Whether a file is in the folder of a split that is not curated."""
    patterns = NOT_CURATED.get(source.name, {})
    own = folder.rsplit("/", 1)[-1]
    return any(re.fullmatch(pattern, own, re.I) for pattern in patterns)


def _fits(folder: str, official: str) -> bool:
    """Whether a file's folder has the name of the official one, but for case."""
    wanted = official.rsplit("/", 2)[-2] if "/" in official else ""
    return folder.rsplit("/", 1)[-1].lower() == wanted.lower()


def _version(source: Source, root: DataRoot, path: str) -> str:
    """The version that an annotation file is of, by its content where that shows it; else empty."""
    look = VERSION_OF.get(source.name)
    return look(root, path) if look else ""


def _like(folder: str, name: str, path: str) -> float:
    """How much a file is like an official path: 1 for the same name, nearly 1 but for case and copies, more than that
    in a folder of the same name."""
    place, _, official = path.rpartition("/")
    bonus = 0.01 * (folder.rsplit("/", 1)[-1] == place.rsplit("/", 1)[-1])
    if name == official:
        return 1.0 + bonus
    own, wanted = (re.sub(r"[^a-z0-9]", "", _COPY.sub("", one).lower()) for one in (name, official))
    if own == wanted:
        return 0.98 + bonus
    if min(len(own), len(wanted)) < 6 or own[:2] != wanted[:2]:
        return 0.0  # short names are like too much
    return SequenceMatcher(None, own, wanted).ratio() * 0.97 + bonus


def _archives(root: DataRoot, entries: list[str]) -> Iterator[str]:
    found = [path for path in entries if _ARCHIVE.search(path)]
    if found:
        more = f" and {len(found) - 3} more" if found[3:] else ""
        place = root.path / found[0]
        example = f"cd {shlex.quote(str(place.parent))} && {_unpack_command(place.name)}"
        yield f"unpacking {', '.join(found[:3])}{more}: {example}"


def _unpack_command(name: str) -> str:
    """The shell command that unpacks an archive; the parts of a split one are put together first."""
    stem, suffix = os.path.splitext(name)
    whole, part = shlex.quote(stem), shlex.quote(stem) + ".*"
    lower = suffix.lower()
    if re.fullmatch(r"\.z\d\d", lower):
        return f"zip -s 0 {whole}.zip --out {whole}-whole.zip && unzip {whole}-whole.zip"
    if stem.lower().endswith(".7z"):
        return f"7z x {shlex.quote(name)}"
    if _ARCHIVE.search(stem) and not _ARCHIVE.fullmatch(suffix):
        if stem.lower().endswith(".zip"):
            return f"cat {part} > {whole} && unzip {whole}"
        return f"cat {part} | tar -xf - {_TAR_FILTERS.get(Path(stem).suffix.lower(), '')}".rstrip()
    tool = {".zip": "unzip", ".rar": "7z x", ".7z": "7z x"}.get(lower, "tar -xf")
    return f"{tool} {shlex.quote(f'./{name}' if name.startswith('-') else name)}"
