"""A state that is being saved, while the power fails or the disk is full, at every change of the disk.

With a loss of power the process is killed too, and what it had not synced is cut to half.
"""

import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from model.train.resume import choose, state_damage
from model.train.state import disk_errors, save_file, states, step_of
from schemas.folders import remove_leftovers, temporary_folder
from tests.chaos.faults import Faults
from tests.model.train.saving import save_next

MODULE = "tests.model.train.saving"
KINDS = ("tear", "full")


@pytest.fixture(scope="module")
def faults():
    server = Faults()
    server.modules = ["flows.cli", "flows.locks", MODULE]
    with server:
        yield server


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run after 2 steps, and the same run after 3."""
    before, after = (tmp_path_factory.mktemp("saved") / str(steps) for steps in (2, 3))
    save_next(before)
    save_next(before)
    shutil.copytree(before, after)
    save_next(after)
    return before, after


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_save_that_ends_anywhere_leaves_a_run_that_resumes(kind, faults, saved, tmp_path):
    before, after = saved
    call = f"{MODULE}:save_next"
    shutil.copytree(before, tmp_path / "counted")
    counted = faults.run([call, str(tmp_path / "counted")], root=tmp_path / "counted")
    assert counted.steps > 20
    for at in range(counted.steps):
        run = tmp_path / str(at)
        shutil.copytree(before, run)
        done = faults.run([call, str(run)], root=run, at=at, kind=kind)
        if kind != "full":
            assert done.code == -9, done.output
        elif done.code:  # to remove an old state needs no room
            assert done.output.count("\n") == 1, done.output
            assert "the disk is full" in done.output
            assert hidden(run) == [], at
        left = states(run)
        assert [state_damage(place) for place in left] == [""] * len(left), at
        assert step_of(left[0]) in (2, 3)
        if step_of(left[0]) == 2:
            save_next(run)
        else:
            choose(run)
        assert content(states(run)[0]) == content(states(after)[0]), at
        save_next(run)
        assert [step_of(place) for place in states(run)] == [4, 3]
        assert hidden(run) == [], at
        shutil.rmtree(run)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_is_replaced_is_the_old_one_or_the_new_one(kind, faults, tmp_path):
    """Or, between two renames, none; never a part of one."""
    call = f"{MODULE}:replace"
    faults.run([call, str(tmp_path / "new")], root=tmp_path)
    new = content(tmp_path / "new")
    old = {"one": b"old"}
    steps = faults.run([call, str(tmp_path / "new")], root=tmp_path).steps
    for at in range(steps):
        folder = tmp_path / str(at) / "export"
        folder.mkdir(parents=True)
        (folder / "one").write_bytes(b"old")
        faults.run([call, str(folder)], root=folder.parent, at=at, kind=kind)
        assert content(folder) in ({}, old, new), at
        remove_leftovers(folder.parent, "export*")
        assert hidden(folder.parent) == []


def test_a_folder_that_a_live_process_writes_is_left_alone(tmp_path):
    with temporary_folder(tmp_path / "step-00000001") as fresh:
        remove_leftovers(tmp_path, "step-*")
        assert fresh.is_dir()
        with pytest.raises(FileExistsError, match="another process is writing"):
            temporary_folder(tmp_path / "step-00000001").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_safetensors_names_the_errors_of_the_disk(tmp_path):
    """A real one: this file may not grow so large."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"), disk_errors(tmp_path):
            save_file({"large": torch.zeros(1 << 16)}, tmp_path / "large.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
