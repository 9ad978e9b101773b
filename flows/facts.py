"""What a run writes down of the machine it ran on: versions, host, GPUs."""

import os
import platform
import shutil
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    "sparrow-tsf",
    "numpy",
    "opencv-contrib-python-headless",
    "decord",
    "av",
    "scikit-learn",
    "pyarrow",
    "duckdb",
    "ray",
    "prefect",
    "torch",
    "transformers",
    "sam2",
    "open_clip_torch",
)


def versions() -> dict[str, str]:
    """Python and the packages that decide what comes out; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def host() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "name": socket.gethostname(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": memory,
        "gpus": gpus(),
    }


_GPU_FIELDS = ("name", "driver_version", "memory.total", "memory.used", "utilization.gpu")


def gpus() -> list[dict[str, str]]:
    """This host's NVIDIA GPUs as `nvidia-smi` tells it (MiB and percent); none where there is no such tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        dict(zip(_GPU_FIELDS, map(str.strip, line.split(",")), strict=False))
        for line in said.splitlines()
        if line
    ]
