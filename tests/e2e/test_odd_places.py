"""The whole product in a folder whose name is a pattern and a partition, and holds modules with our names."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from flows.browse.flags import Flags
from flows.browse.server import make_app
from manifests.catalog import query
from model.data.index import Index
from model.data.read import Reader
from tests.e2e.conftest import BIN

PLACE = "source=x/a b [1]*?'"
BESIDE = ("a b 1xx'", "a b 1q'")
"""Folders that the name would fit as a pattern."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / PLACE
    (folder / "flows").mkdir(parents=True)
    trap = "raise RuntimeError('imported from the working folder')"
    (folder / "flows" / "__init__.py").write_text(trap)
    for name in ("model.py", "pipeline.py", "schemas.py", "duckdb.py"):
        (folder / name).write_text(trap)
    return folder


def sparrow(place: Path, *words: object) -> str:
    command = [str(BIN / "sparrow"), *map(str, words)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    return done.stdout


@pytest.fixture(scope="module")
def out(place, tiny_root) -> Path:
    """Curated by Ray's workers, beside other outputs that its name would fit as a pattern."""
    sparrow(place, "curate", "hcstvg", "--data-root", tiny_root, "--out", "out", "--workers", 1)
    for name in BESIDE:
        other = place.with_name(name) / "out"
        shutil.copytree(place / "out", other)
        for part in (other / "manifests" / "clips").iterdir():
            part.unlink()
    return place / "out"


def test_every_reader_finds_its_own_rows(place, out):
    rows = json.loads(
        sparrow(place, "sql", "out", "SELECT DISTINCT source, split FROM clips", "--json")
    )
    assert rows == [{"source": "hcstvg", "split": "train"}]
    assert query(out, "SELECT count(*) AS n FROM referents") == [{"n": 5}]
    index = Index.open(str(out))
    assert len(index.referents) == 5
    assert "mp4" in Reader(str(out)).members(index.entry(0))
    client = TestClient(make_app(out, Flags(place / "flags.txt", out)), base_url="http://127.0.0.1")
    key = index.referents["referent_id"][0].as_py()
    for page in ("/", "/gallery", f"/clip/{key}", f"/clip/{key}/data.json", f"/member/{key}/mp4"):
        assert client.get(page).status_code == 200


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "out", "--deep"),
        ("status", "out"),
        ("quarantine", "list", "out"),
        ("quarantine", "retry", "out", "--executor", "inline"),
        ("reshard", "out", "--count", 2),
        ("repair", "out"),
        ("report", "out"),
        ("card", "out"),
        ("stats", "out"),
        ("export", "out", "--format", "coco", "--to", "exported"),
        ("verify", "out"),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_every_verb_works_there(place, out, words):
    sparrow(place, *words)
    assert query(out, "SELECT count(*) AS n FROM referents") == [{"n": 5}]


def test_a_path_with_a_backslash_is_refused_before_any_work(tmp_path, tiny_root):
    out = tmp_path / "a\\b"
    words = ["sparrow", "curate", "hcstvg", "--data-root", tiny_root, "--out", out]
    done = subprocess.run([BIN / words[0], *words[1:]], capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot have a backslash" in done.stderr
    assert not out.exists()
