"""What a user is told of packages that are not installed, and what a developer still sees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from flows import driver
from flows.executors import Inline
from flows.extras import (
    EXTRAS,
    MODEL,
    NETWORKS,
    PACKAGES,
    MissingPackage,
    missing_package,
    require,
    require_networks,
)
from flows.progress import Quiet
from flows.repair import repair
from pipeline.presets import NETWORKS as STAGES
from pipeline.presets import PRESETS, configure
from tests.flows.installed import direct, modules_of, needed, outside_the_base

REPO = Path(__file__).resolve().parents[2]
OURS = {"schemas", "trackers", "pipeline", "manifests", "model", "flows", "benchmarks"}
KNOWN = {module for modules in EXTRAS.values() for module in modules}
DIRECT = {
    module for extra in EXTRAS for module in modules_of(direct(extra)) if not module.startswith("_")
}
"""Modules of the packages that an extra names itself, not of those which they bring along."""


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere; of `from a import b` both a and a.b."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def reached(*modules: str) -> set[str]:
    """Top-level modules of others that our modules import, through other ones of ours too."""
    seen, others, todo = set[Path](), set[str](), list(modules)
    while todo:
        name = todo.pop()
        parts = name.split(".")
        if parts[0] not in OURS:
            others.add(parts[0])
            continue
        for length in range(1, len(parts) + 1):
            place = REPO.joinpath(*parts[:length])
            for path in (place / "__init__.py", place.with_suffix(".py")):
                if path.is_file() and path not in seen:
                    seen.add(path)
                    todo += imported(path)
    return others


@pytest.fixture
def without(monkeypatch):
    """`without("torch")` hides modules from this process, as if they were not installed."""

    def hide(*modules: str) -> None:
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)

    return hide


def test_the_table_has_every_module_that_the_base_lacks():
    files = [path for room in OURS for path in (REPO / room).rglob("*.py")]
    used = {name.split(".")[0] for path in files for name in imported(path)}
    lacking = used & set(outside_the_base()["modules"])
    assert lacking - KNOWN == set()


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_module_is_listed_with_the_extra_that_brings_it(extra):
    brought = modules_of(needed([extra]) - needed())
    assert set(EXTRAS[extra]) - brought == set()


def test_packages_are_named_as_they_are_installed():
    named = {PACKAGES.get(module, module).replace("_", "-") for module in KNOWN & DIRECT}
    assert named <= {name for extra in EXTRAS for name in direct(extra)}


def test_what_networks_need_is_what_they_import():
    full = PRESETS["full"]
    configs = (full.detect, full.track, full.segment, full.encode)
    assert {config.kind for config in configs} == set(NETWORKS)
    for config in configs:
        module = STAGES[type(config).__name__].partition(":")[0]
        assert set(NETWORKS[config.kind]) == reached(module) & DIRECT & KNOWN


def test_what_a_model_needs_is_what_it_imports():
    assert set(MODEL) == reached("model.make", "model.describe") & DIRECT & KNOWN


def test_what_is_installed_is_not_missing():
    require(*MODEL)
    require_networks(PRESETS["full"])


def test_one_line_names_all_packages_and_how_to_install_them(without):
    without("torch", "open_clip")
    with pytest.raises(MissingPackage) as raised:
        require("torch", "peft", "open_clip")
    words = str(raised.value)
    assert "torch and open_clip_torch, which are not installed" in words
    assert "`make setup`" in words
    assert "pip install 'sparrow-tsf[full]'" in words
    assert "peft" not in words
    assert "\n" not in words


@pytest.mark.parametrize(
    ("sets", "needs"),
    [([], False), (["segment=sam2"], True), (["track=cldtracker"], False)],
)
def test_a_curation_needs_what_its_steps_need(sets, needs, without):
    without("sam2")
    config = configure("lite", sets)
    if not needs:
        require_networks(config)
        return
    with pytest.raises(MissingPackage, match="needs sam2, which is not installed"):
        require_networks(config)


def test_a_missing_package_is_found_behind_the_error_that_was_raised_from_it(without):
    without("botocore")
    error = RuntimeError("s3:// needs s3fs")
    error.__cause__ = ModuleNotFoundError("No module named 'botocore'", name="botocore")
    found = missing_package(error)
    assert found is not None
    assert "needs s3fs, which is not installed" in str(found)
    assert "'sparrow-tsf[s3]'" in str(found)


def files_of(out: Path) -> dict[str, bytes]:
    """Contents by name, without the locks, which count who has held them."""
    paths = (path for path in out.rglob("*") if path.is_file() and ".lock" not in path.parts)
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def test_a_run_begins_only_with_what_it_needs(tiny_job, without):
    without("sam2")
    job = tiny_job.model_copy(update={"config": configure("lite", ["segment=sam2"])})
    with pytest.raises(MissingPackage):
        driver.run([job], Inline(), Quiet())
    assert not Path(job.out).exists()


@pytest.mark.parametrize(
    "again",
    [
        lambda out: driver.retry(out, "true", Inline(), Quiet()),
        lambda out: repair(out, Inline(), Quiet()),
    ],
    ids=["retry", "repair"],
)
def test_what_cannot_be_made_again_stays(again, tiny_job, without):
    """An output of networks, where they are no longer installed."""
    config = configure("full-tiny", ["track=csrt", "segment=grabcut", "encode=handcrafted"])
    job = tiny_job.model_copy(update={"config": config})
    driver.run([job], Inline(), Quiet())
    out = Path(job.out)
    tar = next(out.rglob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-512])
    before = files_of(out)
    without("groundingdino")
    with pytest.raises(MissingPackage):
        again(out)
    assert files_of(out) == before


@pytest.mark.parametrize("name", ["no_such_module", "duckdb", "flows.nothing", "torch.nothing"])
def test_bugs_and_broken_installations_are_no_missing_packages(name):
    assert missing_package(ModuleNotFoundError(f"No module named {name!r}", name=name)) is None


def test_a_part_of_a_package_that_is_there_is_a_broken_installation():
    assert missing_package(ModuleNotFoundError("No module named 'torch'", name="torch")) is None


@pytest.mark.parametrize("module", ["no_such_module", "torch.no_such_module", "duckdb.nothing"])
def test_other_failed_imports_keep_their_traceback(module):
    code = (
        f"import flows.cli\nflows.cli.app = lambda **_: __import__({module!r})\nflows.cli.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback (most recent call last)")
    assert "ModuleNotFoundError" in ended.stderr


def test_a_checkout_that_is_not_installed_has_a_version_too():
    code = (
        "import importlib.metadata as m, sys, flows.cli\n"
        "def missing(name): raise m.PackageNotFoundError(name)\n"
        "m.version = missing\n"
        "sys.argv = ['sparrow', '--version']\n"
        "flows.cli.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("sparrow-tsf of unknown version")
