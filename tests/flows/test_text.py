"""Text of the data is text: no markup, no control of the terminal, in tables, messages and errors."""

import io
import json
import shutil
import subprocess

import pytest
from rich.console import Console

from flows import show
from flows.progress import Bars
from flows.text import say, visible, visible_lines
from tests.conftest import ABSENT, SHARED
from tests.e2e.conftest import BIN

HOSTILE = "[/b][red]x[/red] \x1b[31m\x07\x9b2J\u202e\r\n\t\ud800 ü"


def test_what_is_visible():
    assert visible("a [b] ü 日本") == "a [b] ü 日本"
    assert visible("\x1b[2J\x07\n") == "\\u001b[2J\\u0007\\n"
    assert visible("\u202e\ud800") == "\\u202e\\ud800"
    assert visible_lines("a\n\tb\x1b") == "a\n\tb\\u001b"


def printed(call, monkeypatch) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(show, "console", console)
    call()
    return file.getvalue()


def test_a_table_shows_its_cells_as_they_are(monkeypatch):
    text = printed(lambda: show.table(HOSTILE, ["[/a]"], [[HOSTILE], ["[red] car"]]), monkeypatch)
    assert "[/b][red]x[/red]" in text
    assert "[red] car" in text
    assert "[/a]" in text
    body = text.split("[/a]", 1)[1]
    assert "\\u001b[31m\\u0007\\u009b2J\\u202e\\r\\n" in body
    for character in ("\x1b[31m", "\x07", "\x9b", "\u202e"):
        assert character not in body


def test_messages_show_their_words_as_they_are(capsys):
    say("skipped:", HOSTILE)
    out = capsys.readouterr().out
    assert out.startswith(
        "skipped: [/b][red]x[/red] \\u001b[31m\\u0007\\u009b2J\\u202e\\r\n\t\\ud800"
    )


def test_a_note_of_a_progress_bar_is_no_markup():
    bars = Bars()
    file = io.StringIO()
    bars.console.file = file
    with bars.stage("curate", unit="clips", total=1) as tick:
        tick(1, HOSTILE)
    bars.bars.refresh()
    bars.console.print(bars.bars)
    assert "\x07" not in file.getvalue()


@pytest.mark.skipif(not SHARED.is_dir(), reason=ABSENT)
def test_captions_and_names_with_markup_and_escapes_are_curated_and_shown(tmp_path):
    """Row X08: before, a traceback after the work."""
    root = SHARED / "cases" / "trees" / "markup_and_escapes"
    words = ["curate", "hcstvg", "--data-root", root, "--out", tmp_path / "out"]
    done = sparrow(*words, "--executor", "inline", "--workers", 1)
    assert done.returncode == 0, done.stderr[-1000:]
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    assert "\x1b" not in text
    for verb in (("quarantine", "list"), ("verify",), ("sql",), ("stats",), ("report",)):
        sql = ["SELECT caption FROM referents"] if verb == ("sql",) else []
        shown = sparrow(*verb, tmp_path / "out", *sql)
        assert shown.returncode == 0
        assert not {"\x1b", "\x07", "\x9b"} & set(shown.stdout + shown.stderr), verb


def test_markup_in_a_media_file_s_name_ends_no_run(tmp_path, tiny_root):
    root = tmp_path / "data"
    shutil.copytree(tiny_root, root)
    rows = json.loads((root / "anno_v2" / "train_v2.json").read_text())
    rows["[b]x\x1b[31m.mp4"] = next(iter(rows.values()))
    (root / "anno_v2" / "train_v2.json").write_text(json.dumps(rows))
    words = ["curate", "hcstvg", "--data-root", root, "--out", tmp_path / "out"]
    done = sparrow(*words, "--executor", "inline", "--workers", 1)
    assert done.returncode == 0, done.stderr[-1000:]
    listed = sparrow("quarantine", "list", tmp_path / "out")
    assert "[b]x\\u001b[31m.mp4" in "".join(listed.stdout.split())
    assert "\x1b" not in done.stdout + listed.stdout


@pytest.mark.parametrize("answer", ["[/b]", "[red] car", "\x1b[2J"])
def test_markup_in_an_answer_is_shown(answer, tmp_path, tiny_job):
    from flows import driver
    from flows.executors import Inline
    from flows.progress import Quiet

    job = tiny_job.model_copy(update={"out": str(tmp_path / "out")})
    driver.run([job], Inline(), Quiet())
    done = sparrow("sql", job.out, f"SELECT '{answer}' AS y")
    assert done.stdout.splitlines()[-1].rstrip() == visible(answer)


def sparrow(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "sparrow", *map(str, words)], capture_output=True, text=True)
