"""The house: imports only go down, and what should be light is light."""

import ast
import subprocess
import sys
import token
import tokenize
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
LAYOUT = {
    token.COMMENT,
    token.NL,
    token.NEWLINE,
    token.INDENT,
    token.DEDENT,
    token.ENCODING,
    token.ENDMARKER,
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


MOST_TOKENS = 3_500
TOO_LONG = {"flows/cli.py"}
"""Files over the limit, to be cut into folders."""


def tokens_of(path: Path) -> int:
    """Python tokens of a file, without layout and comments."""
    with path.open("rb") as file:
        kinds = [token.type for token in tokenize.tokenize(file.readline)]
    return sum(kind not in LAYOUT for kind in kinds)


def test_files_tell_one_story():
    long = {str(path.relative_to(REPO)) for path in FILES if tokens_of(path) > MOST_TOKENS}
    assert long == TOO_LONG
