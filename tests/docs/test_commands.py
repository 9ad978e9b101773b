"""Every command on every page runs, or is read to its last option by the real parser, for a stated reason."""

import ast
import re
import shutil
import subprocess
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import typer.main

from flows.cli import app
from tests.docs.desk import Desk, World
from tests.docs.pages import (
    PAGES,
    REPO,
    SHELL,
    TOLD,
    Block,
    Command,
    blocks,
    commands,
    page_name,
    spans,
)

PARSED = {
    # pattern of a command: why it is only parsed
    "sparrow * --preset full *": "needs weights",
    "sparrow * --preset full": "needs weights",
    "sparrow * --preset full-tiny*": "builds four networks; tests/e2e/test_full_tiny.py runs it",
    "sparrow * --checkpoint *": "needs weights",
    "RAY_ADDRESS=*": "needs a cluster",
    "sparrow curate * --data-root <root> *": "tests/e2e/test_demo.py curates every source; here it is planned",
    "sparrow model describe *": "counts 3 to 7 billion parameters; tests/model/test_describe.py runs it",
    "sparrow ground *": "four models; tests/flows/test_ground.py runs it",
    "sparrow weights check*": "needs weights; tests/flows/test_weights.py runs it on made ones",
    "sparrow weights convert *": "needs weights; tests/flows/test_weights.py runs it on made ones",
    "sparrow weights fetch *": "needs a mirror; tests/flows/test_download.py runs it against one",
    "sparrow train *": "trains for minutes; tests/e2e/test_train.py runs it",
    "torchrun *": "trains for minutes, in several processes",
    "sparrow study *": "trains for minutes; tests/flows/test_study.py runs it",
    "sparrow publish *": "needs a store; tests/flows/test_publish.py runs the page against a local one",
    "sparrow shards *": "starts a Prefect server; tests/e2e/test_prefect.py runs it",
    "sparrow * --exclude *": "needs marks of samples; tests/pipeline/test_exclude.py runs it",
    "sparrow browse *": "serves until it is stopped; tests/flows/browse runs it",
    "sparrow bench *": "measures for minutes; tests/benchmarks runs it",
    "sparrow doctor": "imports every package; tests/flows/test_cli.py runs it",
    "make *": "sets up environments; `make -n` here",
    "prefect deployment run *": "needs `make serve`; tests/e2e/test_prefect.py runs it",
    "ray start *": "starts a cluster",
    "duckdb *": "another program; the file is opened here",
}
OTHERS = ("make", "prefect", "ray", "duckdb", "torchrun", "sparrow")
"""Programs of which something is checked here; what begins otherwise runs in bash."""
EXTEND = ("docs/add_a_dataset.md", "docs/add_a_stage.md")
"""tests/docs/test_extend.py does what these say."""
PYTHON_PARSED = {
    # what only that block says: why it is only compiled and its imports run
    'load_official("glus", "weights/GLUS-A"': "needs weights",
    'save(sparrow, "runs/stage1/last")': "needs a trained model; tests/model/test_checkpoints.py runs it",
    'open("outputs/ground/masks.jsonl")': "needs what `sparrow ground` leaves; tests/flows/test_ground.py reads it",
    'model.load("videoglamm", "WEIGHTS")': "needs weights",
    "import fiftyone": "needs FiftyOne, which is no part of this project",
    'Index.open("s3://bucket/tsf")': "needs a store; tests/flows/test_publish.py runs it",
    'gopen_schemes["s3"]': "needs a store; tests/flows/test_publish.py runs it",
    "connection.register_filesystem(": "needs a store; tests/flows/test_publish.py runs it",
    '.get("s3://bucket/tsf/"': "needs a store; tests/flows/test_publish.py runs it",
}
FOREIGN = {"--resume_dir", "--vot_data_root", "--param"}
"""Options of other people's programs that pages mention."""

FENCED = [block for page in PAGES for block in blocks(page)]
COMMANDS = [
    command
    for block in FENCED
    if block.language in SHELL and block.page not in EXTEND
    for command in commands(block)
]


def reason(command: Command) -> str | None:
    return next(
        (why for pattern, why in PARSED.items() if fnmatchcase(command.text, pattern)), None
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


# --- what is there ---


def test_every_block_says_what_it_is():
    unknown = [b.name for b in FENCED if b.language not in (*SHELL, *TOLD, "python", "sql")]
    assert not unknown


def test_no_reason_is_stale():
    said = [c.text for c in COMMANDS]
    stale = [p for p in PARSED if not any(fnmatchcase(text, p) for text in said)]
    code = [b.text for b in FENCED if b.language == "python"]
    stale += [words for words in PYTHON_PARSED if sum(words in text for text in code) != 1]
    assert not stale
    told = " ".join([*PARSED.values(), *PYTHON_PARSED.values()])
    assert all((REPO / path).exists() for path in re.findall(r"tests/[\w/.]+\w", told))


# --- shell ---


@pytest.mark.parametrize("page", sorted({c.page for c in COMMANDS if not reason(c)}))
def test_commands_run(page, world, tmp_path):
    """In the order of the page, as a reader types them."""
    desk = Desk(world, tmp_path / "desk", page)
    for command in (c for c in COMMANDS if c.page == page and not reason(c)):
        where = f"{page}:{command.line}"
        if command.words[0] == "sparrow":
            try:
                desk.run(command)
            except AssertionError as error:
                pytest.fail(f"{where}: {error}")
        else:
            assert command.words[0] not in OTHERS, f"{where}: {command.text}"
            done = subprocess.run(
                ["bash", "-ec", command.line_text], cwd=desk.place, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{where}: {done.stderr}"


def parse(words: list[str]) -> typer.Context:
    """The context of a sparrow command as the real parser leaves it; nothing runs. What `…` leaves out is filled in."""
    elided = "…" in words
    words = [w for i, w in enumerate(words) if w != "…" or words[i - 1].startswith("--")]
    group, name, rest = typer.main.get_command(app), "sparrow", words[1:]
    context = None
    while True:
        try:
            context = group.make_context(name, list(rest), parent=context)
        except Exception as error:
            param = getattr(error, "param", None)
            if (
                elided
                and type(error).__name__ == "MissingParameter"
                and param.opts[0].startswith("--")
            ):
                rest = [*rest, param.opts[0], "x"]
                continue
            raise AssertionError(
                f"{' '.join(words)}: {getattr(error, 'message', error)}"
            ) from error
        if not hasattr(group, "commands"):
            return context
        name, group, rest = group.resolve_command(
            context, [*context._protected_args, *context.args]
        )


def known_field(pair: str) -> bool:
    """Whether some config of the project takes `field=value`."""
    from flows.study import configure as study
    from model.config import configure as model
    from model.evaluate.protocols import Asking
    from model.train.config import TrainConfig
    from pipeline.corpora import Take
    from pipeline.plan import configured_source
    from pipeline.presets import PRESETS, configure, override
    from pipeline.sources import SOURCES
    from schemas.config import assignment

    name, value = assignment(pair)
    section, _, field = name.partition(".")
    if section in ("train", "asking"):
        kind = TrainConfig if section == "train" else Asking
        kind.model_validate({"name": "x", field: value} if section == "asking" else {field: value})
        return True
    if section == "benchmark":
        return True  # a keyword of one benchmark's class
    given, pairs = {name: value}, [pair]
    if section in (
        "corruption",
        "corrupt",
    ):  # a kind without a level is refused, and so is the other
        given = {f"{section}.kind": "jitter", f"{section}.level": 0.1} | given
        pairs = [f"{field}={value}" for field, value in given.items()]
    ways = [lambda: model("paper", **given), lambda: study("cpu", "glus", [pair])]
    ways += [lambda preset=preset: configure(preset, pairs) for preset in PRESETS]
    for source in SOURCES:
        config = configured_source(source, Take()).config
        ways.append(
            lambda c=config: type(c).model_validate(override(c.model_dump(mode="json"), [pair]))
        )
    for way in ways:
        try:
            way()
            return True
        except ValueError:
            continue
    return False


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if reason(c)], ids=lambda c: f"{c.page}:{c.line}"
)
def test_commands_that_do_not_run_are_parsed(command, world, tmp_path):
    words = list(command.words)
    program = words[0]
    if program == "torchrun":
        words, program = ["sparrow", *words[words.index("flows.cli") + 1 :]], "sparrow"
    if program == "sparrow":
        context = parse(words)
        sets = [*(context.params.get("sets") or ()), *(context.params.get("source_sets") or ())]
        assert [pair for pair in sets if not known_field(pair)] == []
        if "<root>" in words:
            Desk(world, tmp_path, command.page).run(
                Command(command.page, 0, ("sparrow", "plan", *words[2:5]))
            )
        made = [w for w in words if w.startswith("outputs/demo/")]
        assert [
            w for w in made if not (world.demo / w.removeprefix("outputs/demo/")).exists()
        ] == []
    elif program == "make":
        variables = [word.partition("=")[0] for word in words if "=" in word]
        text = (REPO / "Makefile").read_text()
        assert [v for v in variables if f"$({v})" not in text] == []
        done = subprocess.run(["make", "-n", *words[1:]], cwd=REPO, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif program == "prefect":
        deployments = re.findall(r"- name: (\S+)", (REPO / "prefect.yaml").read_text())
        assert words[3].split("/")[1] in deployments
    elif program == "duckdb":
        import duckdb

        desk = world.demo.parent / "duckdb"
        desk.mkdir(exist_ok=True)
        shutil.copy(world.demo / words[1].removeprefix("outputs/demo/"), desk)
        with duckdb.connect(str(desk / Path(words[1]).name), read_only=True) as catalog:
            assert catalog.sql("SELECT count(*) FROM shards").fetchall()[0][0] > 0
    else:
        assert program == "ray"


# --- Python and SQL ---


def run_python(block: Block, names: dict) -> None:
    tree = ast.parse("\n" * (block.line - 1) + block.text, block.page)
    if any(words in block.text for words in PYTHON_PARSED):
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        if "import fiftyone" in block.text and find_spec("fiftyone") is None:
            return
    exec(compile(tree, block.page, "exec"), names)


@pytest.mark.parametrize(
    "page", sorted({b.page for b in FENCED if b.language == "python"} - {*EXTEND})
)
def test_python_runs(page, world, tmp_path, monkeypatch):
    """The blocks of a page, one after the other, share their names. `frames` is a video."""
    import torch

    desk = Desk(world, tmp_path / "desk", page)
    monkeypatch.chdir(desk.place)
    desk.have("runs/tiny") if page == "docs/evaluation.md" else None
    threads = torch.get_num_threads()
    names = {"frames": np.zeros((6, 96, 160, 3), np.uint8)}
    for block in (b for b in FENCED if b.page == page and b.language == "python"):
        run_python(block, names)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("block", [b for b in FENCED if b.language == "sql"], ids=lambda b: b.name)
def test_sql_runs(block, world):
    import duckdb

    from manifests.catalog import connect

    statements = duckdb.extract_statements(block.text)
    assert statements
    with connect(world.demo) as catalog:
        for statement in statements:
            catalog.execute(statement).fetchall()


# --- commands in running text ---


def options_of(words: list[str]) -> set[str] | None:
    """Options of the command that the words begin with, None where a placeholder stands for it."""
    group = typer.main.get_command(app)
    for word in words:
        if not hasattr(group, "commands"):
            break
        if word.isupper() and word not in group.commands:
            return None
        assert word in group.commands, f"no command {word}: there are {', '.join(group.commands)}"
        group = group.commands[word]
    return {option for param in group.params for option in param.opts} | {"--help"}


def every_option() -> set[str]:
    found, todo = {"--help"}, [typer.main.get_command(app)]
    while todo:
        group = todo.pop()
        found |= {option for param in group.params for option in param.opts}
        todo += getattr(group, "commands", {}).values()
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_in_the_text_exist(page):
    targets = set(re.findall(r"^([a-z0-9-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    options = every_option()
    for line, span in spans(page):
        where = f"{page_name(page)}:{line}: `{span}`"
        said = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", span))
        if span.startswith("sparrow ") and re.match(r"sparrow [a-z]", span):
            words = re.split(r"\s+", span)[1:]
            first = [w for w in words if not w.startswith("-")][:2]
            for verb in first[-1].split("|") if "|" in first[-1] else [first[-1]]:
                try:
                    known = options_of([*first[:-1], verb])
                except AssertionError as error:
                    pytest.fail(f"{where}: {error}")
                assert known is None or said <= known, where
        elif re.match(r"make [a-z]", span):
            assert span.split()[1] in targets, where
        elif span.startswith("--"):
            assert said <= options | FOREIGN, where
            for pair in (
                re.findall(r"--(?:source-)?set ([\w.]+=\S+)", span)
                if page_name(page) not in EXTEND
                else ()
            ):
                assert known_field(pair), f"{where}: no config has {pair}"


def test_links_lead_to_files():
    """As GitHub follows them; the site's own check is in test_site."""
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", page.read_text()):
            if not (page.parent / link).exists():
                broken.append(f"{page_name(page)}: {link}")
    assert not broken
