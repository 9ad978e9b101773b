"""Doctor: what this machine can do, what is missing, and the command that mends it."""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

ABILITIES = {
    "lite": "plan, curate, verify, browse and export with the lite preset; the demo",
    "full": "curate with the paper's models; ground, train and evaluate the MLLMs at full size",
    "tests": "make test",
    "captions": "METEOR and CIDEr of VideoGCG",
}
"""What a machine may be used for. Only `lite` is basic."""

_NATIVE = ("numpy", "pyarrow", "duckdb", "cv2", "h5py", "pycocotools")
_PLAIN = (
    "pydantic",
    "typer",
    "rich",
    "sklearn",
    "skimage",
    "webdataset",
    "PIL",
    "httpx",
    "starlette",
)
_FULL = (
    "torch",
    "torchvision",
    "transformers",
    "groundingdino",
    "sam2",
    "open_clip",
    "peft",
    "timm",
    "accelerate",
)
_TESTS = ("pytest", "hypothesis", "mypy", "playwright", "mlcroissant", "datasets")
_PACKAGES = {
    "cv2": "opencv-contrib-python-headless",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "PIL": "pillow",
    "groundingdino": "groundingdino-py",
    "open_clip": "open_clip_torch",
}
_SETUP = {"lite": "make .venv/.base", "tests": "make .venv/.dev", "full": "make setup"}
_MEANS = {
    "lite": "nothing works without it",
    "full": "lite works; the full preset and the models do not",
    "tests": "some tests are skipped or fail",
}
_ANEW = "rm -rf .venv && make setup"
_PINS = Path(__file__).parents[1] / "constraints.txt"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. state: ok; optional, not there and not basic; missing, so that the basics do not work.

    needed: the ability that it is for. means: what follows from it not being there. fix: the command that mends it.
    """

    section: str
    what: str
    state: Literal["ok", "optional", "missing"]
    needed: str
    found: str
    means: str = ""
    fix: str = ""


def examine(out: Path = Path("outputs")) -> list[Check]:
    """Every check, by section. out: whose disk is looked at. It takes seconds: native code is imported."""
    return [
        _python(),
        *(_imported("environment", name) for name in _NATIVE),
        *(_installed("environment", name, "lite") for name in _PLAIN),
        _pins(),
        _cores(),
        _memory(),
        _shared_memory(),
        _disk(out),
        _gpu(),
        _cuda(),
        *(_imported("decoders", name) for name in ("decord", "av")),
        *_round_trip(),
        _csrt(),
        *(_installed("full preset", name, "full") for name in _FULL),
        *_weights(),
        _imported("orchestration", "ray"),
        _cluster(),
        _installed("orchestration", "prefect", "lite"),
        _server(),
        *(_installed("tools", name, "tests") for name in _TESTS),
        _chromium(),
        *_captions(),
    ]


def abilities(checks: list[Check]) -> dict[str, list[str]]:
    """What each ability lacks; what lite lacks, all but the captions lack too. Empty: it works."""
    lacks = {
        name: [c.what for c in checks if c.needed == name and c.state != "ok"] for name in ABILITIES
    }
    return {
        name: lacks["lite"] * (name in ("full", "tests")) + found for name, found in lacks.items()
    }


def _check(
    section: str, what: str, needed: str, good: bool, found: str, means: str = "", fix: str = ""
) -> Check:
    if good:
        return Check(section, what, "ok", needed, found)
    return Check(
        section, what, "missing" if needed == "lite" else "optional", needed, found, means, fix
    )


# --- environment ----------------------------------------------------------------------------------------------------


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] < (3, 13)
    means = "no versions are pinned for others, and some packages have no wheels"
    return _check(
        "environment",
        "Python 3.11 or 3.12",
        "lite",
        good,
        found,
        means,
        f"PYTHON=python3.11 {_ANEW}",
    )


def _installed(section: str, name: str, needed: str) -> Check:
    """By its metadata alone: importing torch takes seconds, and so does what imports it."""
    what = _PACKAGES.get(name, name)
    try:
        return _check(section, what, needed, True, version(what))
    except PackageNotFoundError:
        return _check(section, what, needed, False, "not installed", _MEANS[needed], _SETUP[needed])


def _imported(section: str, name: str) -> Check:
    """Native code may be there and not load: a library of the system lacks, or it was built for another NumPy."""
    check = _installed(section, name, "lite")
    if check.state != "ok":
        return check
    try:
        importlib.import_module(name)
    except (ImportError, OSError, AttributeError) as error:
        found = f"{check.found} does not import: {error}"
        return _check(section, check.what, "lite", False, found, _MEANS["lite"], _ANEW)
    return check


def _pins() -> Check:
    """Versions beside constraints.txt. Others may work; these are the ones that were tested."""
    what = "versions as tested"
    if not _PINS.is_file():
        return _check("environment", what, "lite", True, "no constraints.txt here: not compared")
    from packaging.requirements import Requirement

    same, other = 0, []
    for line in _PINS.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        try:
            have = version(pin.name)
        except PackageNotFoundError:
            continue
        if pin.specifier.contains(have, prereleases=True):
            same += 1
        else:
            other.append(f"{pin.name} {have} (tested: {str(pin.specifier).lstrip('=')})")
    more = f" and {len(other) - 3} more" if other[3:] else ""
    found = f"{same} packages as in constraints.txt" + (
        f"; not: {', '.join(other[:3])}{more}" if other else ""
    )
    means = "it may work; nobody has tested these together"
    return _check(
        "environment",
        what,
        "tests",
        not other,
        found,
        means,
        "rm -f .venv/.base .venv/.dev && make setup",
    )


# --- devices --------------------------------------------------------------------------------------------------------


def _cores() -> Check:
    count = len(os.sched_getaffinity(0))
    return _check(
        "devices",
        "cores",
        "lite",
        True,
        f"{count}: no more than --workers {count} helps the lite preset",
    )


def _memory() -> Check:
    """Of the machine, or of the container where that has less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    capped = limit.read_text().strip() if limit.is_file() else "max"
    total = min(total, int(capped)) if capped.isdecimal() else total
    means = "curation may be killed; it resumes, and one worker needs the least"
    return _check(
        "devices",
        "memory",
        "full",
        total > 3.5e9,
        f"{total / 1e9:.1f} GB",
        means,
        "use --workers 1",
    )


def _shared_memory() -> Check:
    place = Path("/dev/shm")
    size = shutil.disk_usage(place).total if place.is_dir() else 0
    means = "Ray falls back to the disk and is slow; data loaders with workers die of a bus error"
    fix = "docker run --shm-size=4g ..., or: mount -o remount,size=4G /dev/shm"
    return _check(
        "devices",
        "shared memory",
        "full",
        size >= 1e9,
        f"{size / 1e9:.1f} GB in {place}",
        means,
        fix,
    )


def _disk(out: Path) -> Check:
    place = out.resolve()
    while not place.exists():
        place = place.parent
    free, writable = shutil.disk_usage(place).free / 1e9, os.access(place, os.W_OK)
    found = f"{free:.0f} GB free in {place}" + ("" if writable else ", which cannot be written")
    means = "no room for the demo (1 GB)" if writable else "output cannot be written there"
    good = free > 1 and writable
    return _check(
        "devices",
        "disk of the output",
        "lite",
        good,
        found,
        means,
        "name another folder with --out",
    )


def _gpu() -> Check:
    means, fix = (
        "lite works; the full preset and full-size models need one",
        "use a machine with one",
    )
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return _check("devices", "NVIDIA GPU", "full", False, "no nvidia-smi", means, fix)
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _check(
            "devices",
            "NVIDIA GPU",
            "full",
            False,
            f"nvidia-smi: {error}",
            means,
            "restart the driver",
        )
    cards = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not cards:
        said = " ".join((done.stderr or done.stdout).split())[:120]
        return _check(
            "devices",
            "NVIDIA GPU",
            "full",
            False,
            f"nvidia-smi: {said}",
            means,
            "restart the driver",
        )
    return _check("devices", "NVIDIA GPU", "full", True, "; ".join(cards))


def _cuda() -> Check:
    """What torch was built for, from its version file: importing it takes seconds."""
    what, means = "CUDA in torch", "torch cannot use a GPU"
    spec = find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if file is None or not file.is_file():
        return _check(
            "devices", what, "full", False, "torch is not installed", means, _SETUP["full"]
        )
    lines = [line for line in file.read_text().splitlines() if line.startswith("cuda")]
    built = lines[-1].rpartition("=")[2].strip().strip("'\"") if lines else "None"
    return _check("devices", what, "full", built != "None", f"built for {built}", means, _ANEW)


# --- decoders -------------------------------------------------------------------------------------------------------


def _round_trip() -> Iterator[Check]:
    """Two pictures written as h264 and read back by both decoders."""
    import numpy as np

    means = "videos cannot be " + "{}: every clip that is one would be quarantined"
    try:
        from schemas.video.stored import encode_mp4

        data = encode_mp4(np.zeros((2, 16, 16, 3), np.uint8), 10.0)
    except (ImportError, OSError, ValueError) as error:
        yield _check(
            "decoders", "h264 encoder", "lite", False, str(error), means.format("written"), _ANEW
        )
        return
    yield _check("decoders", "h264 encoder", "lite", True, "libx264 writes")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "two.mp4")
        path.write_bytes(data)
        for name, count in (("decord", _decord), ("PyAV", _av)):
            try:
                n = count(path)
                good, found = n == 2, f"{n} of 2 frames read"
            except (ImportError, OSError, RuntimeError, ValueError) as error:
                good, found = False, str(error)
            yield _check(
                "decoders", f"h264 by {name}", "lite", good, found, means.format("read"), _ANEW
            )


def _decord(path: Path) -> int:
    import decord

    return len(decord.VideoReader(str(path), num_threads=1))


def _av(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def _csrt() -> Check:
    what, means = (
        "CSRT tracker",
        "the lite preset cannot track; another OpenCV may shadow the one with contrib",
    )
    try:
        import cv2
    except ImportError as error:
        return _check("decoders", what, "lite", False, str(error), means, _ANEW)
    return _check(
        "decoders",
        what,
        "lite",
        hasattr(cv2, "TrackerCSRT_create"),
        f"OpenCV {cv2.__version__}",
        means,
        _ANEW,
    )


# --- full preset, orchestration, tools ------------------------------------------------------------------------------


def _weights() -> Iterator[Check]:
    """The files that the full preset opens by default; `sparrow weights check` looks into them."""
    from pipeline.weights import WEIGHTS
    from trackers.runtime import weights_root

    root = weights_root().absolute()
    for entry in (entry for entry in WEIGHTS if entry.needed):
        place = entry.found(root)
        fix = (
            f"sparrow weights fetch {entry.name} --from URL-OF-A-MIRROR"
            if entry.fetchable
            else f"get {entry.source}"
        )
        found = str(place) if place else f"not in {root}"
        means = f"lite works; the full preset cannot {entry.purpose.partition(':')[0]}"
        yield _check(
            "full preset", f"weights {entry.name}", "full", place is not None, found, means, fix
        )


def _cluster() -> Check:
    address = os.environ.get("RAY_ADDRESS")
    return _check(
        "orchestration",
        "Ray cluster",
        "lite",
        True,
        address or "a local one; RAY_ADDRESS names another",
    )


def _server() -> Check:
    from flows.serve import HOST, PORT, is_up

    found = (
        f"answers on {HOST}:{PORT}"
        if is_up()
        else "none runs; `sparrow shards` starts one, `make serve` keeps one"
    )
    return _check("orchestration", "Prefect server", "lite", True, found)


def _chromium() -> Check:
    found = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    means, fix = "pages are not tested in a browser", "apt-get install -y chromium"
    return _check(
        "tools", "chromium", "tests", found is not None, found or "not on PATH", means, fix
    )


def _captions() -> Iterator[Check]:
    means, java = "VideoGCG is scored without METEOR and CIDEr", shutil.which("java")
    fix = "apt-get install -y default-jre-headless"
    yield _check("tools", "java", "captions", java is not None, java or "not on PATH", means, fix)
    there = find_spec("pycocoevalcap") is not None
    found = "installed" if there else "not installed"
    yield _check("tools", "pycocoevalcap", "captions", there, found, means, _SETUP["full"])
