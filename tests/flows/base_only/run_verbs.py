"""Runs many commands of `sparrow` in one go, each in a child of this process: what they import is there already.

    python run_verbs.py CASES ANSWERS

CASES: JSON, a list of {"words", "folder"}; each runs in its folder, after the one before it. ANSWERS: JSON, for each
its exit code, its output, and its processor time in seconds.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import sklearn.cluster  # noqa: F401 - here, since it takes long, and several commands need it

import flows.cli
import flows.demo
from pipeline.demo.corpus import write_corpus
from tests.small_corpus import SMALL

SERVES = "Ctrl-C stops"
"""What a verb prints that runs until it is stopped."""


def shorten_demo() -> None:
    """One source of seven, and small videos."""
    flows.demo.SOURCES = ("refsav",)
    flows.demo.write_corpus = lambda place, **options: write_corpus(place, config=SMALL, **options)


def run(words: list[str], folder: Path, output: Path) -> dict:
    """One command in a child."""
    folder.mkdir(parents=True, exist_ok=True)
    out, err = output.with_suffix(".out"), output.with_suffix(".err")
    child = os.fork()
    if child == 0:
        os._exit(command(words, folder, out, err))
    done, status, usage = 0, 0, None
    while not done:
        time.sleep(0.01)
        done, status, usage = os.wait4(child, os.WNOHANG)
        if not done and out.is_file() and SERVES in out.read_text():
            os.kill(child, signal.SIGINT)
            done, status, usage = os.wait4(child, 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "out": out.read_text(),
        "err": err.read_text(),
        "seconds": usage.ru_utime + usage.ru_stime,
    }


def command(words: list[str], folder: Path, out: Path, err: Path) -> int:
    """What the console script does, in this process; its exit code."""
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.chdir(folder)
    sys.argv = ["sparrow", *words]
    code: object = 0
    try:
        flows.cli.main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - as Python ends
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


def main() -> None:
    cases, answers = map(Path, sys.argv[1:])
    shorten_demo()
    found = [
        run(case["words"], Path(case["folder"]), answers.with_name(f"{number:03}"))
        for number, case in enumerate(json.loads(cases.read_text()))
    ]
    answers.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
