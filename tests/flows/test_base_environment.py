"""Every verb in an environment without the extras: it works, or says in one line what is missing, at once.

The base is simulated: a subprocess whose import system does not find what the base does not need (`base_only`).
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from flows.cli import app
from tests.eval_results import eval_results
from tests.flows.installed import outside_the_base

REPO = Path(__file__).resolve().parents[2]
PLACE = Path(__file__).with_name("base_only")

WORKS = ""
FULL = ("torch", "make setup", "'sparrow-tsf[full]'")
S3 = ("s3fs", "make setup", "'sparrow-tsf[s3]'")
"""What the one line has to name."""

# Verb -> (its other words, WORKS, or what the line names) as often as it takes different ways. They run in this order.
# {root}: HC-STVG, tiny; {data}: the folder that has it; {out}: what `curate` makes of it; {runs}: of an evaluation.
TINY = "--data {out} --out run --size tiny --steps 2"
EVAL = "--data-root {root} --out run --size tiny --answer force"
CASES: dict[str, list[tuple[str, str | tuple[str, ...]]]] = {
    "demo": [("--out demo --executor inline", WORKS)],
    "curate": [
        ("hcstvg --data-root {root} --out {out} --executor inline", WORKS),
        ("hcstvg --data-root {root} --out o --preset full-tiny", FULL),
        ("hcstvg --data-root {root} --out o --preset full-tiny --executor inline", FULL),
        ("hcstvg --data-root {root} --out o --set segment=sam2", ("torch", "sam2")),
        ("hcstvg --data-root {root} --out o --set track=cldtracker", ("open_clip_torch",)),
        ("hcstvg --data-root {root} --out o --set encode=clip", ("open_clip_torch",)),
    ],
    "shards": [("--data-root {data} --out o --preset full-tiny", FULL)],
    "plan": [
        ("hcstvg --data-root {root}", WORKS),
        ("hcstvg --data-root {root} --preset full", WORKS),
    ],
    "status": [("{out}", WORKS)],
    "browse": [("{out} --port 0 --no-open", WORKS)],
    "ground": [("{root}/part_1/0_video.mp4 square --size tiny --answer force", FULL)],
    "train": [
        (f"proposer {TINY}", FULL),
        (f"stage1 {TINY}", FULL),
        (f"stage2 {TINY} --from run/export", FULL),
        (f"stage1 {TINY} --ray 2", FULL),
        (f"proposer {TINY} --recall", FULL),
        (f"stage1 {TINY} --data s3://bucket/prefix", ("torch", "s3fs", "'sparrow-tsf[full,s3]'")),
    ],
    "study": [("--out study", FULL)],
    "eval mevis": [(EVAL, FULL)],
    "eval ref-ytvos": [(EVAL, FULL)],
    "eval ref-davis17": [(EVAL, FULL)],
    "eval vidstg": [(EVAL, FULL)],
    "eval videogcg": [(EVAL, FULL)],
    "eval regions": [(EVAL, FULL)],
    "eval table": [("{runs}", WORKS)],
    "eval rows": [("", WORKS)],
    "eval cost": [("{out}", WORKS)],
    "model describe": [("videoglamm", FULL)],
    "weights list": [("", WORKS)],
    "weights check": [("", FULL)],
    "weights fetch": [("--from nowhere", ("not an http(s) URL",))],
    "weights convert": [("{root}/anno_v2/train_v2.json --out w.safetensors", FULL)],
    "verify": [("{out} --deep --workers 1 --against-source", WORKS)],
    "sql": [("{out} SELECT*FROM(funnel)", WORKS)],
    "quarantine list": [("{out}", WORKS)],
    "quarantine show": [("{out} hcstvg", WORKS)],
    "quarantine retry": [("{out} --executor inline", WORKS)],
    "repair": [("{out} --executor inline", WORKS)],
    "reshard": [("{out} --count 2", WORKS)],
    "report": [("{out}", WORKS)],
    "stats": [("{out} --leaks --videos", WORKS)],
    "export": [
        (f"{{out}} --format {form} --to {form}", WORKS)
        for form in ("sparrow", "artemis", "coco", "ytvis", "fiftyone")
    ],
    "card": [("{out}", WORKS)],
    "publish": [
        ("{out} s3://bucket/prefix", S3),
        ("{out} memory://bucket/prefix --unconditional", WORKS),
    ],
    "doctor": [("", WORKS)],
    "bench": [("browse --quick", FULL), ("--quick", FULL)],
}


def verbs(command: Any, name: str = "") -> Iterator[str]:
    """Every command of the program, below groups too."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name
    else:
        for word, part in below.items():
            yield from verbs(part, f"{name} {word}".strip())


VERBS = list(verbs(get_command(app)))


@dataclass(frozen=True)
class Ended:
    """A command that has run. left: what is in its folder, which was empty."""

    code: int
    out: str
    err: str
    seconds: float
    left: list[str]


@pytest.fixture(scope="module")
def ended(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """All commands, by what follows `sparrow`."""
    place = tmp_path_factory.mktemp("base")
    (place / "data").mkdir()
    (place / "data" / "hcstvg").symlink_to(tiny_root)
    (place / "runs").mkdir()
    (place / "runs" / "results.json").write_text(json.dumps(eval_results()))
    (place / "hidden.json").write_text(json.dumps(outside_the_base()))
    names = {"root": tiny_root, **{name: place / name for name in ("data", "out", "runs")}}
    said = [*(f"{verb} {words}" for verb in CASES for words, _ in CASES[verb])]
    said += [f"{verb} --help" for verb in VERBS] + ["--help", "--version"]
    cases = [
        {"words": words.format(**names).split(), "folder": str(place / "in" / str(number))}
        for number, words in enumerate(said)
    ]
    (place / "cases.json").write_text(json.dumps(cases))
    answers = place / "answers.json"
    environment = os.environ | {
        "PYTHONPATH": f"{PLACE}{os.pathsep}{REPO}",
        "BASE_ONLY": str(place / "hidden.json"),
        "SPARROW_WEIGHTS": str(place / "weights"),
    }
    subprocess.run(
        [sys.executable, str(PLACE / "run_verbs.py"), str(place / "cases.json"), str(answers)],
        env=environment,
        check=True,
        timeout=280,
    )
    return {
        words: Ended(**answer, left=sorted(os.listdir(case["folder"])))
        for words, case, answer in zip(said, cases, json.loads(answers.read_text()), strict=True)
    }


def test_every_verb_has_a_case():
    assert set(CASES) == set(VERBS)


@pytest.mark.parametrize(
    ("words", "names"),
    [(f"{verb} {words}", names) for verb, cases in CASES.items() for words, names in cases],
)
def test_a_verb_works_or_says_what_is_missing(words, names, ended):
    found = ended[words]
    assert "Traceback" not in found.out + found.err
    if names == WORKS:
        assert found.code == 0, found.err
        return
    assert found.code == 1, found.err
    assert len(found.err.splitlines()) == 1, found.err
    assert found.err.startswith("error: ")
    assert [name for name in names if name not in found.err] == [], found.err
    assert found.out == ""
    assert found.left == []
    assert found.seconds < 3


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_needs_no_extra(verb, ended):
    found = ended[f"{verb} --help".strip()]
    assert found.code == 0, found.err
    assert "Usage: sparrow" in found.out


def test_version_needs_no_extra(ended):
    found = ended["--version"]
    assert (found.code, found.err) == (0, "")
    assert found.out.startswith("sparrow-tsf ")
