"""`sparrow weights`: what a user types."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flows.weights import app
from pipeline.weights import WEIGHTS, WeightFile
from tests.mirror import DIGEST, names, say, serve

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def weights_root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPARROW_WEIGHTS", str(tmp_path / "w"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "w"


def sparrow_weights(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done.stdout


def two_files(monkeypatch, loader: str) -> None:
    small = WeightFile(
        "one",
        "one.pth",
        "for a test",
        "one.pth",
        "https://example.org",
        "MIT",
        1000,
        loader,
        needed=True,
    )
    bound = WeightFile(
        "two",
        "two.pth",
        "",
        "2.pth",
        "https://example.org/two",
        "none stated",
        9,
        loader,
        fetchable=False,
    )
    monkeypatch.setattr("pipeline.weights.WEIGHTS", (small, bound))


def test_list_names_every_file_its_place_and_its_source(weights_root):
    text = sparrow_weights("list")
    assert str(weights_root) in text
    assert "SPARROW_WEIGHTS" in text
    rows = json.loads(sparrow_weights("list", "--json"))["weights"]
    assert [row["name"] for row in rows] == [entry.name for entry in WEIGHTS]
    assert {row["there"] for row in rows} == {"no"}
    weights_root.mkdir()
    (weights_root / "cldtracker.pth.tar").write_bytes(b"x" * 7)
    (weights_root / "sam2.1_hiera_tiny.pt").write_bytes(b"x" * 9)
    rows = {row["name"]: row for row in json.loads(sparrow_weights("list", "--json"))["weights"]}
    assert (rows["cldtracker"]["there"], rows["cldtracker"]["on_disk"]) == ("not converted", 7)
    assert (rows["sam2.1-t"]["there"], rows["sam2.1-t"]["on_disk"]) == ("yes", 9)


def test_fetch_takes_what_it_may_and_says_what_it_may_not(mirror, weights_root, monkeypatch):
    two_files(monkeypatch, "")
    mirror.answer = serve(sums=f"{DIGEST}  one.pth\n")
    text = sparrow_weights("fetch", "--from", mirror.url)
    assert "one.pth: 0.3 MB, sha256 as in SHA256SUMS" in text
    assert names(weights_root) == ["one.pth"]
    text = sparrow_weights("fetch", "two", "one", "--from", mirror.url.rstrip("/"), code=1)
    assert (
        "problem: two has to be downloaded by hand (none stated): https://example.org/two" in text
    )
    assert "one.pth: is there already" in text


def test_fetch_reports_every_problem_and_fails(mirror, weights_root, monkeypatch):
    two_files(monkeypatch, "")
    mirror.answer = lambda request: say(request, 404)
    assert "problem: " in (text := sparrow_weights("fetch", "--from", mirror.url, code=1))
    assert "one.pth: HTTP 404: not on the mirror" in text


@pytest.mark.parametrize(
    "words", [[], ["--from", "ftp://x/"], ["--from", "file:///tmp"], ["--from", "http:///"]]
)
def test_fetch_needs_the_url_of_a_mirror(words, weights_root, monkeypatch):
    monkeypatch.delenv("SPARROW_MIRROR", raising=False)
    done = CliRunner().invoke(app, ["fetch", *words])
    assert "is not an http(s) URL" in str(done.exception)


def test_unknown_names_are_answered_with_the_known_ones():
    for verb in (["check"], ["fetch", "--from", "http://127.0.0.1:1"]):
        done = CliRunner().invoke(app, [*verb, "sam3"])
        assert "no weights are called 'sam3': choose from groundingdino-swint" in str(
            done.exception
        )


def test_check_prints_what_it_found_and_fails_on_a_bad_file(weights_root, monkeypatch):
    two_files(monkeypatch, "trackers.checkpoints:read_state_dict")
    weights_root.mkdir()
    torch.save(
        {"model": {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.float16)}},
        weights_root / "one.pth",
    )
    text = sparrow_weights("check")
    assert "one: good" in text
    assert "2 tensors (1 float32, 1 float16), 5 elements, 0 of them not finite" in text
    assert hashlib.sha256((weights_root / "one.pth").read_bytes()).hexdigest() in text
    assert "all zero: b" in text
    (weights_root / "two.pth").write_bytes(b"no checkpoint")
    text = sparrow_weights("check", "one", "two", code=1)
    assert "one: good" in text
    assert "two: NOT GOOD" in text
    assert "cannot be read as a checkpoint" in text
    found = json.loads(sparrow_weights("check", "two", "--json", code=1))
    assert [(result["name"], result["good"]) for result in found] == [("two", False)]


def test_convert_prints_what_it_wrote_and_what_the_text_branch_is_worth(weights_root, monkeypatch):
    from trackers.cldtracker import checkpoint
    from trackers.cldtracker.config import CLDTrackerConfig
    from trackers.cldtracker.network import CLDTrackerNet

    monkeypatch.setattr(
        checkpoint, "CLDTrackerConfig", CLDTrackerConfig.tiny
    )  # the official size takes seconds
    weights_root.mkdir()
    source, out = weights_root / "a.pth.tar", weights_root / "b.safetensors"
    torch.save({"epoch": 300, "net": CLDTrackerNet(CLDTrackerConfig.tiny()).state_dict()}, source)
    text = sparrow_weights("convert", str(source), "--out", str(out))
    assert re.search(r"tensors +\d+\n", text)
    assert "no text branch in this file" in text
    assert out.stat().st_size
    done = CliRunner().invoke(
        app, ["convert", str(weights_root / "none.pth.tar"), "--out", str(out)]
    )
    assert isinstance(done.exception, ValueError)
    assert "no such file" in str(done.exception)


@pytest.mark.parametrize("verb", ["list", "check", "fetch", "convert"])
def test_every_verb_has_help_with_an_example(verb):
    assert "Example: sparrow weights" in " ".join(sparrow_weights(verb, "--help").split())


def test_help_and_list_load_no_heavy_package():
    code = (
        "import sys, flows.weights, pipeline.weights;"
        "print(*(m for m in ('torch', 'ray', 'prefect', 'cv2', 'httpx', 'numpy', 'transformers') if m in sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == []
