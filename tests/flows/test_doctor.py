"""Doctor: each check in both its states, on a machine that is whole and on one that is not."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from flows import doctor
from flows.cli import app
from flows.doctor import ABILITIES, Check, abilities, examine
from schemas.video import stored

SPARROW = str(Path(sys.executable).with_name("sparrow"))


@pytest.fixture(scope="module")
def told() -> dict:
    done = subprocess.run(
        [SPARROW, "doctor", "--json"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """tools(java="exit 0") -> PATH holds nothing but these scripts."""

    def make(**scripts: str) -> None:
        for name, body in scripts.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return make


def test_every_section_is_there_and_what_is_not_ok_says_what_follows_and_what_mends_it(told):
    checks = told["checks"]
    assert list(dict.fromkeys(check["section"] for check in checks)) == [
        "environment",
        "devices",
        "decoders",
        "full preset",
        "orchestration",
        "tools",
    ]
    assert {
        "numpy",
        "cores",
        "disk of the output",
        "h264 encoder",
        "CSRT tracker",
        "torch",
        "ray",
        "java",
    } <= {check["what"] for check in checks}
    assert told["lacks"].keys() == ABILITIES.keys()
    assert told["lacks"]["lite"] == [], "these tests run, so the basics work"
    for check in checks:
        assert check["state"] in ("ok", "optional")
        assert check["found"]
        assert bool(check["means"] and check["fix"]) == (check["state"] != "ok"), check


def test_a_basic_package_that_is_not_there_is_missing_and_the_exit_code_says_so(monkeypatch):
    real = doctor.version

    def version(name: str) -> str:
        if name in ("duckdb", "torch"):
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(
        doctor.importlib, "import_module", lambda name: None
    )  # the real ones take seconds
    found = {check.what: check for check in examine()}
    assert (found["duckdb"].state, found["duckdb"].fix) == ("missing", "make .venv/.base")
    assert (found["torch"].state, found["torch"].fix) == ("optional", "make setup")
    assert abilities([*found.values()])["lite"] == ["duckdb"]
    assert {"duckdb", "torch"} <= set(abilities([*found.values()])["full"]), (
        "full needs what lite needs"
    )
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    at = lines.index("missing duckdb not installed")
    assert lines[at + 1 : at + 3] == ["nothing works without it", "to mend it: make .venv/.base"]
    assert "lite needs duckdb" in lines


def test_a_package_that_does_not_import_is_missing_with_the_reason(monkeypatch):
    def broken(name: str) -> None:
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    check = doctor._imported("environment", "numpy")
    assert check.state == "missing"
    assert "libGL.so.1" in check.found


def test_versions_are_compared_with_the_constraints(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_PINS", tmp_path / "constraints.txt")
    assert doctor._pins().found == "no constraints.txt here: not compared"
    here = doctor.version("numpy")
    lines = [
        f"numpy=={here}",
        "rich==0.0.1",
        "nobody-has-this==1",
        "pyarrow==0.1 ; sys_platform == 'plan9'",
        "# x",
        "",
    ]
    (tmp_path / "constraints.txt").write_text("\n".join(lines))
    check = doctor._pins()
    assert check.state == "optional"
    assert (
        check.found
        == f"1 packages as in constraints.txt; not: rich {doctor.version('rich')} (tested: 0.0.1)"
    )


@pytest.mark.parametrize(
    ("script", "state", "found"),
    [
        (None, "optional", "no nvidia-smi"),
        (
            "echo 'NVIDIA H100 80GB HBM3, 81559 MiB, 550.54'",
            "ok",
            "NVIDIA H100 80GB HBM3, 81559 MiB, 550.54",
        ),
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
            "optional",
            "nvidia-smi: Failed to initialize NVML: Driver/library version mismatch",
        ),
    ],
)
def test_gpus_with_their_memory_come_from_nvidia_smi(tools, script, state, found):
    tools(**({} if script is None else {"nvidia-smi": script}))
    check = doctor._gpu()
    assert (check.state, check.found) == (state, found)


@pytest.mark.parametrize(
    ("line", "state"),
    [("cuda: Optional[str] = '13.0'", "ok"), ("cuda: Optional[str] = None", "optional")],
)
def test_what_torch_was_built_for_is_read_without_importing_it(tmp_path, monkeypatch, line, state):
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\nhip = None\n")
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(doctor, "find_spec", lambda name: spec)
    assert doctor._cuda().state == state
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert doctor._cuda().found == "torch is not installed"


def test_the_disk_is_that_of_the_nearest_folder_that_exists(tmp_path, monkeypatch):
    check = doctor._disk(tmp_path / "not" / "yet")
    assert check.found.endswith(f"free in {tmp_path}")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert doctor._disk(tmp_path).state == "missing"
    assert "cannot be written" in doctor._disk(tmp_path).found


def test_an_encoder_that_fails_breaks_the_basics(monkeypatch):
    def fails(*_: object) -> bytes:
        raise ValueError("no libx264 here")

    assert [check.state for check in doctor._round_trip()] == ["ok", "ok", "ok"]
    monkeypatch.setattr(stored, "encode_mp4", fails)
    [check] = doctor._round_trip()
    assert (check.state, check.found) == ("missing", "no libx264 here")


def test_tools_are_optional_and_the_command_that_brings_them_is_named(tools):
    tools()
    assert doctor._chromium().fix == "apt-get install -y chromium"
    java = next(check for check in doctor._captions() if check.what == "java")
    assert (java.state, java.fix) == ("optional", "apt-get install -y default-jre-headless")
    tools(java="exit 0", chromium="exit 0")
    assert doctor._chromium().state == "ok"
    assert next(check for check in doctor._captions() if check.what == "java").state == "ok"


def test_weights_name_the_file_and_the_way_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARROW_WEIGHTS", str(tmp_path))
    (tmp_path / "sam2.1_hiera_large.pt").write_bytes(b"x")
    found = {check.what: check for check in doctor._weights()}
    assert found["weights sam2.1-l"].state == "ok"
    assert found["weights cldtracker"].fix == "get https://github.com/HamadYA/CLDTracker"
    assert found["weights groundingdino-swint"].fix.startswith(
        "sparrow weights fetch groundingdino-swint --from"
    )
    assert found["weights groundingdino-swint"].means == "lite works; the full preset cannot detect"


def test_abilities_of_a_machine_that_has_everything():
    assert abilities([Check("tools", "java", "ok", "captions", "/usr/bin/java")]) == {
        name: [] for name in ABILITIES
    }
