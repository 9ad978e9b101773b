"""The command line: contracts that scripts rely on, and messages for people."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import complete
from flows.cli import app
from tests.model.evaluate.test_table import done

SPARROW = str(Path(sys.executable).with_name("sparrow"))
VERBS = [
    "demo",
    "plan",
    "curate",
    "shards",
    "status",
    "verify",
    "sql",
    "doctor",
    "quarantine list",
    "quarantine show",
    "quarantine retry",
    "weights list",
    "weights check",
    "weights fetch",
    "weights convert",
    "bench",
    "repair",
    "reshard",
    "report",
    "stats",
    "browse",
    "export",
    "card",
    "ground",
    "train",
    "study",
    "eval mevis",
    "eval table",
    "model describe",
]


def sparrow(*words: object, code: int = 0) -> str:
    done = subprocess.run([SPARROW, *map(str, words)], capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


@pytest.fixture(scope="module")
def out(tiny_root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "out"
    text = sparrow(
        "curate",
        "hcstvg",
        "--data-root",
        tiny_root,
        "--out",
        out,
        "--preset",
        "lite",
        "--executor",
        "inline",
    )
    assert str(out) in text
    return out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb):
    assert "Example: sparrow" in " ".join(sparrow(*verb.split(), "--help").split())


def test_help_answers_at_once():
    """Nothing heavy is imported for it, and it needs less than twice the processor time of the smallest typer
    program: a limit in seconds would measure what else the machine does."""
    code = "import typer; app = typer.Typer(); app.command()(lambda: None); app(['--help'])"

    def seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    ours, least = (
        min(seconds(*words) for _ in range(4))
        for words in ((SPARROW, "--help"), (sys.executable, "-c", code))
    )
    assert ours < 2 * least, (ours, least)
    heavy = (
        "torch",
        "ray",
        "prefect",
        "transformers",
        "pyarrow",
        "duckdb",
        "cv2",
        "numpy",
        "starlette",
        "pydantic",
    )
    code = f"import sys, flows.cli; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "[]"
    )


def test_plan_json_has_the_promised_keys(tiny_root):
    plan = json.loads(sparrow("plan", "hcstvg", "--data-root", tiny_root, "--json"))
    assert (plan["clips"], plan["referents"], plan["quarantined"], plan["shards"]) == (6, 6, 2, 1)
    table = sparrow("plan", "hcstvg", "--data-root", tiny_root)
    assert "1 media_missing" in table
    assert "10,105" in table


def test_limit_curates_so_many_clips(tiny_root, tmp_path):
    sparrow(
        "curate",
        "hcstvg",
        "--data-root",
        tiny_root,
        "--out",
        tmp_path,
        "--limit",
        2,
        "--executor",
        "inline",
    )
    rows = json.loads(
        sparrow("sql", tmp_path, "SELECT sum(n_referents) AS n FROM shards", "--json")
    )
    assert int(rows[0]["n"]) == 2


def test_status_verify_and_quarantine(out):
    (row,) = json.loads(sparrow("status", out, "--json"))
    assert (row["state"], row["samples"], row["quarantined"]) == ("done", 5, 2)
    assert "0 problems (deep check)" in sparrow("verify", out, "--deep")
    rows = json.loads(sparrow("quarantine", "list", out, "--json"))
    assert {r["reason"] for r in rows} == {"malformed_row", "media_missing"}
    missing = next(r for r in rows if r["reason"] == "media_missing")
    assert "3_video.mp4" in sparrow("quarantine", "show", out, missing["clip_id"])


def test_verify_fails_on_damage(out, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    tar = next(copy.rglob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-512])
    assert "problem: " in sparrow("verify", copy, code=1)


def test_the_contact_sheet_is_a_picture(out):
    from PIL import Image

    with Image.open(out / "report" / "hcstvg.png") as sheet:
        assert sheet.width > 800
        assert sheet.height > 400


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "coco", "--data-root", "."], "choose one of hcstvg"),
        (["curate", "lasot", "--data-root", "/nowhere", "--out", "x"], "does not exist"),
        (["shards", "--data-root", "/nowhere", "--out", "x"], "has none of the folders hcstvg"),
        (["verify", "/nowhere"], "not an output of sparrow"),
        (["status", "/nowhere"], "holds no plan"),
        (["sql", "/nowhere", "SELECT 1"], "no committed shards"),
        (["plan", "hcstvg", "--data-root", ".", "--set", "media.x=1"], "no such field"),
    ],
)
def test_errors_are_one_clear_message_without_a_traceback(words, message):
    text = sparrow(*words, code=1)
    assert text.startswith("error: ")
    assert message in text
    assert "Traceback" not in text


def test_a_query_with_a_mistake_gets_duckdbs_message_and_no_traceback(out):
    text = sparrow("sql", out, "SELECT nothing FROM clips", code=1)
    assert "nothing" in text
    assert "Traceback" not in text


LISTINGS = {
    "plan": ("plan", "hcstvg", "--data-root", "{root}", "--json"),
    "plan config": ("plan", "hcstvg", "--data-root", "{root}", "--show-config"),
    "status": ("status", "{out}", "--json"),
    "verify": ("verify", "{out}", "--deep", "--json"),
    "sql": ("sql", "{out}", "SELECT *, 'nan'::FLOAT AS n, now() AS t FROM clips", "--json"),
    "sql, nothing": ("sql", "{out}", "SELECT * FROM clips WHERE false", "--json"),
    "quarantine list": ("quarantine", "list", "{out}", "--json"),
    "quarantine show": ("quarantine", "show", "{out}", "hcstvg", "--json"),
    "report": ("report", "{copy}", "--json"),
    "stats": ("stats", "{copy}", "--json"),
    "card": ("card", "{copy}", "--json"),
    "export": ("export", "{out}", "--format", "fiftyone", "--to", "{to}", "--json"),
    "weights list": ("weights", "list", "--json"),
    "weights check": ("weights", "check", "--json"),
    "eval table": ("eval", "table", "{runs}", "--format", "json"),
}
"""`doctor` is in test_doctor.py, and `model describe`, which counts for half a minute, in tests/model/test_describe.py."""


@pytest.fixture(scope="module")
def places(tiny_root, out, tmp_path_factory) -> dict[str, Path]:
    """What the listings are shown. `copy` may be written to."""
    folder = tmp_path_factory.mktemp("listings")
    shutil.copytree(out, folder / "copy")
    run = done("run")
    (folder / "runs" / run.name).mkdir(parents=True)
    (folder / "runs" / run.name / "results.json").write_text(json.dumps(run.results))
    return {
        "root": tiny_root,
        "out": out,
        "copy": folder / "copy",
        "to": folder / "to",
        "runs": folder / "runs",
    }


@pytest.mark.parametrize("words", LISTINGS.values(), ids=LISTINGS)
def test_json_is_all_there_is_on_stdout(words, places, tmp_path, monkeypatch):
    """Progress goes to stderr; NaN, which is no JSON, is null."""
    monkeypatch.setenv("SPARROW_WEIGHTS", str(tmp_path))
    ended = CliRunner().invoke(app, [word.format(**places) for word in words])
    assert ended.exit_code == (1 if words[:2] == ("weights", "check") else 0), ended.output

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    found = json.loads(ended.stdout, parse_constant=refuse)
    assert isinstance(found, dict | list | str)
    if words[0] == "sql" and "false" not in words[2]:
        assert {row["n"] for row in found} == {None}


def test_progress_of_a_real_process_is_on_stderr(places):
    words = [
        SPARROW,
        "export",
        str(places["out"]),
        "--format",
        "fiftyone",
        "--to",
        str(places["to"]),
    ]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0
    assert "export fiftyone" in ended.stderr
    assert "export fiftyone" not in ended.stdout


def completions(*words: str) -> list[str]:
    """What bash is offered for the last of the words."""
    names = {"COMP_WORDS": " ".join(("sparrow", *words)), "COMP_CWORD": str(len(words))}
    environment = {"_SPARROW_COMPLETE": "complete_bash", **names}
    return CliRunner().invoke(app, [], env=environment, prog_name="sparrow").stdout.split()


def test_bash_gets_completions_from_the_program():
    names = {
        "_SPARROW_COMPLETE": "complete_bash",
        "COMP_WORDS": "sparrow curate m",
        "COMP_CWORD": "2",
    }
    ended = subprocess.run([SPARROW], capture_output=True, text=True, env={**os.environ, **names})
    assert ended.stdout.split() == ["mevis"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("plan", ""), [*complete.SOURCES, "all"]),
        (("curate", "me"), ["mevis"]),
        (("curate", "mevis", "--preset", "full"), ["full", "full-tiny"]),
        (("demo", "--executor", ""), ["ray", "inline"]),
        (("ground", "a.mp4", "--host", "g"), ["glus"]),
        (("train", ""), ["proposer", "stage1", "stage2", "check"]),
        (("train", "stage1", "--preset", "re"), ["release", "reconstructed"]),
        (("eval", "ref"), ["ref-ytvos", "ref-davis17"]),
        (("export", "o", "--format", ""), ["sparrow", "artemis", "coco", "ytvis", "fiftyone"]),
        (("export", "o", "--source", "a"), ["a2d"]),
    ],
)
def test_the_shell_completes_names(words, expected):
    assert completions(*words) == expected


def test_completed_names_are_those_that_exist():
    """They are written down twice, so that a press of Tab imports nothing."""
    from manifests.export import FORMATS
    from model.config import PRESETS as MODEL_PRESETS
    from model.hosts import HOSTS
    from pipeline.presets import PRESETS
    from pipeline.sources import SOURCES
    from pipeline.weights import WEIGHTS

    assert list(complete.SOURCES) == list(SOURCES)
    assert sorted(complete.PRESETS) == sorted(PRESETS)
    assert list(complete.FORMATS) == list(FORMATS)
    assert sorted(complete.MODEL_PRESETS) == sorted(MODEL_PRESETS)
    assert sorted(complete.HOSTS) == sorted(HOSTS)
    assert complete.weights("") == [entry.name for entry in WEIGHTS]
    assert complete.weights("sam2") == [
        entry.name for entry in WEIGHTS if entry.name.startswith("sam2")
    ]


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_the_completion_script_is_shown_and_installed(shell, tmp_path):
    """Into a home of its own; what is installed is what is shown."""
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    environment.pop("XDG_CONFIG_HOME", None)
    shown, installed = (
        subprocess.run([SPARROW, option, shell], capture_output=True, text=True, env=environment)
        for option in ("--show-completion", "--install-completion")
    )
    assert "_SPARROW_COMPLETE" in shown.stdout, shown.stderr
    assert installed.returncode == 0, installed.stderr
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(shown.stdout.strip() in text for text in texts)


def test_annotations_without_videos_are_told_where_the_rest_is(tiny_root):
    text = sparrow("plan", "hcstvg", "--data-root", tiny_root / "anno_v2")
    assert f"try: --data-root {tiny_root}, which has videos or pictures too" in text
