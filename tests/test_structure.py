"""The house: imports only go down, and what should be light is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
BELOW = {
    "schemas": set(),
    "trackers": {"schemas"},
    "pipeline": {"schemas", "trackers"},
    "manifests": {"schemas"},
    "model": {"schemas", "trackers", "pipeline"},
    "flows": {"schemas", "trackers", "pipeline", "manifests", "model"},
}
FILES = sorted(p for room in BELOW for p in (REPO / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPO)))
def test_imports_only_go_down(path):
    room = path.relative_to(REPO).parts[0]
    assert imported(path) & BELOW.keys() <= BELOW[room] | {room}


@pytest.mark.parametrize("room", ["schemas", "trackers", "pipeline", "manifests", "model"])
def test_below_flows_nobody_knows_prefect_or_ray(room):
    guests = {p: imported(p) & {"prefect", "ray"} for p in (REPO / room).rglob("*.py")}
    assert not {p: g for p, g in guests.items() if g}


def test_nothing_unpickles():
    users = [p for p in FILES if imported(p) & {"pickle", "dill", "joblib", "shelve"}]
    assert users == []


def test_help_loads_no_heavy_package():
    code = "import sys, flows.cli; print(*(m for m in ('torch','ray','prefect','cv2','duckdb','pyarrow','numpy') if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_files_tell_one_story():
    long = {
        str(p.relative_to(REPO)): n for p in FILES if (n := len(p.read_text().splitlines())) > 500
    }
    assert long == {}
