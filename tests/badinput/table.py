"""All cases, how one is judged, and the table of outcomes."""

import tempfile
from pathlib import Path

from tests.badinput import json_cases, media_cases, text_cases
from tests.badinput.corpora import good, write
from tests.badinput.harness import bounded, outcome
from tests.badinput.spoil import Case

_MADE: list[Case] = [
    *json_cases.hcstvg(),
    *json_cases.vid_sentence(),
    *json_cases.mevis(),
    *json_cases.refsav(),
    *text_cases.a2d(),
    *text_cases.lasot(),
    *text_cases.got10k(),
    *media_cases.all_cases(),
]
CASES = {case.id: case for case in _MADE}
assert len(CASES) == len(_MADE), "two cases share an id"
OUTCOMES = Path(__file__).with_name("outcomes.txt")


def judge(case: Case) -> str:
    """The outcome of a case in a fresh data root. AssertionError if it broke a rule that holds for all of them."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        root, out, outside = place / "root", place / "out", place / "outside"
        outside.mkdir()
        (outside / "secret.mp4").write_bytes(b"x")
        files = dict(good(case.source))
        case.spoil(files)
        write(files, root, outside)
        before = sorted(root.rglob("*"))
        # with --follow-links the user says that links may lead out
        with bounded(place / "nowhere" if case.follow_links else outside, out):
            words, rows = outcome(case.source, root, out, follow_links=case.follow_links)
        assert sorted(root.rglob("*")) == before, "the data root was written to"
        assert {path.name for path in place.iterdir()} <= {"root", "out", "outside"}, (
            "written outside the output"
        )
        assert "stage_error" not in words, [row for row in rows if row["reason"] == "stage_error"]
        for row in rows:
            assert 0 < len(row["message"]) <= 2000, row
            assert str(place) not in row["message"], f"a path of this machine in {row['message']!r}"
        return words or "nothing"


def spelt(outcomes: dict[str, str]) -> str:
    """Case -> outcome as a table: one line per group and outcome, `group | outcome | name, name`."""
    lines: dict[tuple[str, str], list[str]] = {}
    for name, words in outcomes.items():
        group, _, value = name.partition("=")
        lines.setdefault((group, words), []).append(value)
    return "".join(
        f"{group} | {words} | {' ; '.join(values)}\n" for (group, words), values in lines.items()
    )


def read() -> dict[str, str]:
    """The inverse of `spelt`, of outcomes.txt."""
    rows = [line.split(" | ") for line in OUTCOMES.read_text(encoding="utf-8").splitlines()]
    return {
        f"{group}={value}": words for group, words, values in rows for value in values.split(" ; ")
    }
