"""Doctor: what this machine can do, what is missing, and the command that mends it."""

import importlib
import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

CORE = (
    "numpy",
    "pyarrow",
    "duckdb",
    "cv2",
    "sklearn",
    "skimage",
    "decord",
    "av",
    "h5py",
    "pycocotools",
    "webdataset",
    "ray",
    "prefect",
)
FULL = ("torch", "torchvision", "transformers", "groundingdino", "sam2", "open_clip", "peft", "timm")
PACKAGES = {
    "cv2": "opencv-contrib-python-headless", "sklearn": "scikit-learn", "skimage": "scikit-image",
    "groundingdino": "groundingdino-py", "open_clip": "open_clip_torch",
}  # fmt: skip


def examine() -> list[dict[str, str]]:
    """One entry per check: state (ok, absent, broken), what, found, fix. `absent` is fine for the lite preset."""
    checks = [_python(), *(_module(name, needed=True) for name in CORE), _csrt(), _h264()]
    checks += [_module(name, needed=False) for name in FULL]
    checks += [_cores(), _disk(), _gpu(), _weights(), _ray()]
    return checks


def _check(state: str, what: str, found: str, fix: str = "") -> dict[str, str]:
    return {"state": state, "what": what, "found": found, "fix": "" if state == "ok" else fix}


def _python() -> dict[str, str]:
    found = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] < (3, 13)
    return _check("ok" if good else "broken", "Python 3.11 or 3.12", found, "PYTHON=python3.11 make setup")


def _module(name: str, *, needed: bool) -> dict[str, str]:
    fix = "make setup" if needed else "make setup (the full preset needs it)"
    try:
        found = version(PACKAGES.get(name, name))
    except PackageNotFoundError:
        return _check("broken" if needed else "absent", name, "not installed", fix)
    if not needed:  # importing torch takes seconds: its metadata will do
        return _check("ok", name, found)
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:
        return _check("broken", name, f"{found}, but does not import: {error}", fix)
    return _check("ok", name, found)


def _csrt() -> dict[str, str]:
    import cv2

    good = hasattr(cv2, "TrackerCSRT_create")
    fix = "another OpenCV shadows opencv-contrib-python-headless: rm -rf .venv && make setup"
    return _check("ok" if good else "broken", "CSRT tracker", f"OpenCV {cv2.__version__}", fix)


def _h264() -> dict[str, str]:
    import numpy as np

    from pipeline.video import encode_mp4

    try:
        size = len(encode_mp4(np.zeros((2, 16, 16, 3), np.uint8), 10.0))
    except (OSError, ValueError) as error:
        return _check("broken", "h264 encoder", str(error), "rm -rf .venv && make setup")
    return _check("ok", "h264 encoder", f"libx264 ({size} bytes)")


def _cores() -> dict[str, str]:
    count = len(os.sched_getaffinity(0))
    return _check("ok", "cores", f"{count}; --workers {count} is the most that helps the lite preset")


def _disk() -> dict[str, str]:
    free = shutil.disk_usage(".").free / 1e9
    return _check(
        "ok" if free > 5 else "absent", "free disk here", f"{free:.0f} GB", "the demo needs 1 GB, make setup 6 GB"
    )


def _gpu() -> dict[str, str]:
    found = shutil.which("nvidia-smi")
    return _check("ok" if found else "absent", "NVIDIA GPU", found or "no nvidia-smi", "only the full preset needs one")


def _weights() -> dict[str, str]:
    from pipeline.weights import WEIGHTS
    from trackers.runtime import weights_root

    root = weights_root()
    needed = [entry for entry in WEIGHTS if entry.needed]
    there = sum(entry.found(root) is not None for entry in needed)
    found = f"{there} of {len(needed)} in {root}"
    return _check("ok" if there == len(needed) else "absent", "weights of the full preset", found, "docs/weights.md")


def _ray() -> dict[str, str]:
    address = os.environ.get("RAY_ADDRESS")
    return _check("ok", "Ray cluster", address or "none set: a local Ray is started (RAY_ADDRESS chooses another)")
