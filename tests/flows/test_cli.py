"""The command line: contracts that scripts rely on, and messages for people."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

SPARROW = str(Path(sys.executable).with_name("sparrow"))
VERBS = ["demo", "plan", "curate", "shards", "status", "verify", "sql", "doctor", "quarantine list", "quarantine show",
         "quarantine retry", "weights list", "weights check", "weights fetch", "weights convert", "bench",
         "browse", "export", "card", "ground", "train", "study", "eval mevis", "eval table", "model describe"]  # fmt: skip


def sparrow(*words: object, code: int = 0) -> str:
    done = subprocess.run([SPARROW, *map(str, words)], capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


@pytest.fixture(scope="module")
def out(tiny_root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "out"
    text = sparrow(
        "curate", "hcstvg", "--data-root", tiny_root, "--out", out, "--preset", "lite", "--executor", "inline"
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
        min(seconds(*words) for _ in range(4)) for words in ((SPARROW, "--help"), (sys.executable, "-c", code))
    )
    assert ours < 2 * least, (ours, least)
    heavy = ("torch", "ray", "prefect", "transformers", "pyarrow", "duckdb", "cv2", "numpy", "starlette", "pydantic")
    code = f"import sys, flows.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_plan_json_has_the_promised_keys(tiny_root):
    plan = json.loads(sparrow("plan", "hcstvg", "--data-root", tiny_root, "--json"))
    assert (plan["clips"], plan["referents"], plan["quarantined"], plan["shards"]) == (6, 6, 2, 1)
    table = sparrow("plan", "hcstvg", "--data-root", tiny_root)
    assert "1 media_missing" in table
    assert "10,105" in table


def test_limit_curates_so_many_clips(tiny_root, tmp_path):
    sparrow("curate", "hcstvg", "--data-root", tiny_root, "--out", tmp_path, "--limit", 2, "--executor", "inline")
    rows = json.loads(sparrow("sql", tmp_path, "SELECT sum(n_referents) AS n FROM shards", "--json"))
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
    import shutil

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


def test_doctor_names_what_is_missing():
    checks = json.loads(sparrow("doctor", "--json"))
    assert {"torch", "CSRT tracker", "h264 encoder"} <= {c["what"] for c in checks}
    assert all(c["fix"] for c in checks if c["state"] != "ok")
