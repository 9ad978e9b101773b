"""Where a reader's commands run: a folder with a small demo output, and with made datasets instead of /data.

What stands in for what a reader has:

| in the docs | here |
|---|---|
| `outputs/demo` | four splits of a small synthetic corpus, curated by the lite preset; `outputs/demo/corpus` is whole |
| `/data`, `/data/HC-STVG`, `<root>` | that corpus, in the official layouts |
| `/data/ref-davis17` | two made videos in the official layout |
| `outputs/NAME`, `runs/NAME` of a command that is only parsed | the demo's output; a tiny model's run on one video |
| `--limit 20` | `--limit 1`, of the first split |
| workers on Ray | this process |
"""

import os
import re
import shutil
import sys
from pathlib import Path

from typer.testing import CliRunner

from flows import driver, executors
from flows.cli import app
from flows.demo import demo_jobs
from flows.executors import Inline
from flows.progress import Quiet
from pipeline.demo.corpus import write_corpus
from pipeline.sources import SOURCES
from tests.docs.pages import Command
from tests.small_corpus import SMALL

CURATED = ("hcstvg-val", "mevis-train", "mevis-valid_u", "refsav-train")
RUN = ["eval", "ref-davis17", "--size", "tiny", "--answer", "force", "--host", "glus"]
"""The evaluation that evaluation.md runs; one for all pages, of one video."""


class World:
    """What all pages share; made once."""

    def __init__(self, place: Path):
        self.demo, self.data, self.runs = place / "demo", place / "data", place / "run"
        write_corpus(self.demo / "corpus", config=SMALL)
        driver.run([job for job in demo_jobs(self.demo) if job.name in CURATED], Inline(), Quiet())
        self.data.mkdir()
        for source in SOURCES:
            (self.data / source).symlink_to(self.demo / "corpus" / source)

    def benchmark(self) -> Path:
        """Ref-DAVIS17, two videos."""
        root = self.data / "ref-davis17"
        if not root.exists():
            from tests.model.evaluate.made import MAKERS

            MAKERS["ref-davis17"](root)
        return root

    def run(self) -> Path:
        """A finished run of `sparrow eval`, tiny."""
        if not self.runs.exists():
            invoke(
                [
                    *RUN,
                    "--limit",
                    "1",
                    "--data-root",
                    str(self.benchmark()),
                    "--out",
                    str(self.runs),
                ]
            )
        return self.runs


class Desk:
    """A reader's folder while one page is read."""

    def __init__(self, world: World, place: Path, page: str):
        self.world, self.place, self.page = world, place, page
        (place / "outputs").mkdir(parents=True)
        (place / "outputs" / "demo").symlink_to(world.demo)

    def stand_in(self, words: tuple[str, ...]) -> list[str]:
        """The words with what they name put in place."""
        said = list(words)
        for i, word in enumerate(said):
            source = Path(self.page).stem
            word = word.replace("<root>", f"/data/{source}")
            if word == "/data" or word.startswith("/data/"):
                word = str(self.data(word))
            elif i and said[i - 1] == "--limit":
                word = "1"
            elif i and said[i - 1] not in ("--out", "--to", "--archive"):
                self.have(word)
            said[i] = word
        if said[0] == "curate" and "--limit" in said and "--split" not in said:
            said += ["--split", SOURCES[said[1]].splits[0]]
        return said

    def data(self, path: str) -> Path:
        name = path.removeprefix("/data").strip("/").lower()
        if name == "ref-davis17":
            return self.world.benchmark()
        found = self.world.data / name.replace("-", "").replace("vidsentence", "vid_sentence")
        assert found.is_dir(), (
            f"{path} stands for no made dataset: {', '.join(SOURCES)}, ref-davis17"
        )
        return found

    def have(self, word: str) -> None:
        """Put something where a command that was only parsed would have left it."""
        path = self.place / word
        if re.fullmatch(r"outputs/\w+", word) and not path.exists():
            shutil.copytree(self.world.demo, path, ignore=shutil.ignore_patterns("corpus"))
        elif word == "runs" and not path.exists():
            self.have("runs/made")
        elif re.fullmatch(r"runs/[\w-]+", word) and not path.exists():
            shutil.copytree(self.world.run(), path)

    def run(self, command: Command) -> str:
        """What a `sparrow` command prints. AssertionError if it fails."""
        back = Path.cwd()
        os.chdir(self.place)
        try:
            if list(command.words[1 : 1 + len(RUN)]) == RUN:
                self.have(command.words[command.words.index("--out") + 1])
                return ""
            return invoke(self.stand_in(command.words[1:]))
        finally:
            os.chdir(back)


def invoke(words: list[str]) -> str:
    """`sparrow WORDS` in this process, without Ray. AssertionError with what it printed if it fails."""
    made, suited = executors.make_executor, executors.executor_for
    executors.make_executor = executors.executor_for = lambda *_, **__: Inline()  # type: ignore[assignment]
    try:
        done = CliRunner().invoke(app, words)
    finally:
        executors.make_executor, executors.executor_for = made, suited
    assert done.exit_code == 0, f"sparrow {' '.join(words)}\n{done.output}\n{done.exception!r}"
    return done.output


def main() -> None:
    """For the copy of the project that test_extend makes: `python -m tests.docs.desk FOLDER`, commands a line on stdin.

    `sparrow` runs in FOLDER, on a corpus that is rendered there; `pytest` here.
    """
    import shlex

    import pytest

    here, place = Path.cwd(), Path(sys.argv[1])
    write_corpus(place / "outputs" / "demo" / "corpus", config=SMALL)
    for line in sys.stdin:
        print(f"$ {line.strip()}", flush=True)
        program, *words = shlex.split(line)
        if program == "pytest":
            os.chdir(here)
            assert pytest.main(["-q", *words]) == 0
        else:
            os.chdir(place)
            print(invoke(words), flush=True)


if __name__ == "__main__":
    main()
