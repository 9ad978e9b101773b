"""Commands with a fault at the n-th change of the disk: see faults.c. They run in forks of one server, which has loaded
everything once.

    with Faults() as faults:
        done = faults.run(["curate", ...], root=out, at=7, kind="kill")
"""

import ctypes
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

KINDS = ("count", "kill", "tear", "full")
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WARM = ["flows.cli", "flows.driver", "cv2", "duckdb", "sklearn.cluster", "skimage.feature", "PIL"]


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended. code: its exit status, minus the signal that ended it; steps: changes of the disk that it
    has made, where it ended by itself."""

    code: int
    steps: int
    output: str


class Faults:
    """The server, while in the `with` block. modules: what it loads beside the command line. The test is skipped where
    there is no C compiler."""

    def __init__(self, *modules: str):
        self.modules = [*WARM, *modules]

    def __enter__(self) -> Self:
        if shutil.which("cc") is None:
            pytest.skip("no C compiler on this machine: apt-get install gcc libc6-dev")
        self._folder = tempfile.TemporaryDirectory(prefix="faults")
        library = Path(self._folder.name) / "faults.so"
        build = ["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"]
        subprocess.run(build, check=True)
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.faults", library, *self.modules],
            env=os.environ | one_thread | {"LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait(30)
        self._folder.cleanup()

    def run(
        self,
        words: list[str],
        *,
        root: Path | str,
        at: int = -1,
        kind: str = "count",
        before: str = "",
    ) -> Done:
        """A command of `sparrow` with one fault. at: the number of the step; root: below it are the steps.

        before: "module:function argument", called in the process first; words may begin with such a one instead of a
        verb.
        """
        assert self._server.stdin
        assert self._server.stdout
        task = {"words": words, "root": str(root), "at": at, "kind": kind, "before": before}
        print(json.dumps(task), file=self._server.stdin, flush=True)
        return Done(**json.loads(self._server.stdout.readline()))


# --- in the server --------------------------------------------------------------------------------------------------


def serve(library: ctypes.CDLL, answer: Any) -> None:
    """Run a task for each line, each in a fork of its own."""
    for line in sys.stdin:
        task = json.loads(line)
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as steps:
            if not (pid := os.fork()):
                _child(library, task, output.fileno(), steps.fileno())
            _, status = os.waitpid(pid, 0)
            output.seek(0)
            steps.seek(0)
            done = {
                "code": os.waitstatus_to_exitcode(status),
                "steps": int(steps.read() or b"-1"),
                "output": output.read().decode(errors="replace"),
            }
        print(json.dumps(done), file=answer, flush=True)


def _child(library: ctypes.CDLL, task: dict[str, Any], output: int, steps: int) -> None:
    """Never returns."""
    code = 70
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        if task["before"]:
            _call(*task["before"].split(" "))
        where = ctypes.c_char_p(task["root"].encode())
        library.fault_arm(where, ctypes.c_long(task["at"]), KINDS.index(task["kind"]))
        try:
            code = _command(task["words"])
        finally:
            library.fault_disarm()
        os.write(steps, str(library.fault_count()).encode())
    except BaseException:  # noqa: BLE001 - whatever it is, the parent shall see it
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _command(words: list[str]) -> int:
    """Exit status of `sparrow ...`, or of a call."""
    from flows.cli import main
    from flows.locks import explain_write_error

    if ":" in words[0]:
        try:
            _call(*words)
        except OSError as error:
            print(explain_write_error(error))
            return 1
        return 0

    sys.argv = ["sparrow", *words]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def without_exchange() -> None:
    """As on a file system where two folders cannot change places in one step."""
    from schemas import folders

    folders._exchange = lambda fresh, place: False


def _call(name: str, *words: str) -> None:
    module, _, function = name.partition(":")
    getattr(importlib.import_module(module), function)(*map(Path, words))


if __name__ == "__main__":
    mine = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    loaded = ctypes.CDLL(sys.argv[1])
    loaded.fault_count.restype = ctypes.c_long
    for module in sys.argv[2:]:
        importlib.import_module(module)
    serve(loaded, mine)
