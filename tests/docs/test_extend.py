"""The two recipes, done word by word on a copy of the project: their files written, their changes made, their commands
run."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import REPO, SHELL, blocks, commands

COPIED = (
    "schemas",
    "trackers",
    "pipeline",
    "manifests",
    "model",
    "flows",
    "pyproject.toml",
    "prefect.yaml",
    "tests/conftest.py",
    "tests/made.py",
    "tests/docs",
    "tests/small_corpus.py",
    "tests/pipeline/sources/conftest.py",
)
FOUND = [
    block
    for name in ("add_a_dataset.md", "add_a_stage.md")
    for block in blocks(REPO / "docs" / name)
]


def change(text: str, diff: str) -> str:
    """The text with a diff of one hunk applied; its old lines must be there exactly once."""
    lines = [(line[:1], line[1:]) for line in diff.rstrip("\n").split("\n")]
    old, new = ("".join(f"{line}\n" for mark, line in lines if mark != other) for other in "+-")
    assert text.count(old) == 1, f"these lines are there {text.count(old)} times, not once:\n{old}"
    return text.replace(old, new)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The project with both recipes done."""
    place = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        source, target = REPO / name, place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    for block in (b for b in FOUND if b.title):
        path = place / block.title
        if block.language == "diff":
            path.write_text(change(path.read_text(), block.text))
        else:
            assert not path.exists(), block.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
    return place


def test_the_commands_of_both_recipes_run(copy, tmp_path):
    """In one process, as both need the same packages and the same small corpus."""
    said = [
        c.words for b in FOUND if b.language in SHELL for c in commands(b) if c.words[0] != "make"
    ]
    run = subprocess.run(
        [sys.executable, "-m", "tests.docs.desk", tmp_path / "desk"],
        cwd=copy,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        input="".join(f"{shlex.join(words)}\n" for words in said),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert run.stdout.count("0 problems (deep check)") == 2
    assert run.stdout.count("$ sparrow ") + run.stdout.count("$ pytest ") == len(said)


def test_their_files_are_in_the_house_style(copy):
    written = [b.title for b in FOUND if b.title and b.language == "python"]
    assert len(written) == 5
    for words in (["check"], ["format", "--check"]):
        ruff = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--no-cache", *written],
            cwd=copy,
            capture_output=True,
            text=True,
        )
        assert ruff.returncode == 0, ruff.stdout
