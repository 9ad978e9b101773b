"""Checkpoint files: nothing in them runs, and every difference is named."""

import os
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trackers.checkpoints import (
    CheckpointError,
    Inert,
    load_strict,
    read_checkpoint,
    read_state_dict,
)


@pytest.fixture
def authors(monkeypatch):
    """A package that exists where the checkpoint is written and not where it is read."""
    module = types.ModuleType("lib.train.admin.settings")

    class Settings:
        def __init__(self):
            self.env, self.device = {"workspace": "/x"}, torch.device("cpu")

    class AverageMeter:
        __slots__ = ("history",)

        def __init__(self):
            self.history = [1.0, 2.0]

    for kind in (Settings, AverageMeter):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    for name in ("lib", "lib.train", "lib.train.admin"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def official(authors, **more) -> dict:
    """The layout of the OSTrack family's files."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))])
    return {
        "epoch": 300,
        "actor_type": "OSTrackActor",
        "net_type": "OSTrack",
        "net_info": None,
        "constructor": None,
        "net": OrderedDict(a=torch.ones(2), b=torch.zeros(3, dtype=torch.float16)),
        "optimizer": optimizer.state_dict(),
        "settings": authors.Settings(),
        "stats": OrderedDict(train=OrderedDict(loss=authors.AverageMeter())),
    } | more


def test_the_authors_own_classes_become_inert(authors, tmp_path, monkeypatch):
    path = tmp_path / "net.pth.tar"
    torch.save(official(authors), path)
    monkeypatch.delitem(sys.modules, authors.__name__)
    found = read_checkpoint(path)
    assert isinstance(found["settings"], Inert)
    assert vars(found["settings"]) == {}
    assert found["epoch"] == 300
    state = read_state_dict(path)
    assert list(state) == ["a", "b"]
    assert state["b"].dtype == torch.float16


class Shell:
    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("how", ["system", "eval", "subprocess", "getattr", "in net"])
def test_a_hostile_file_runs_nothing(tmp_path, how, old_format):
    """Refused with a clear text, or read with the attack as an inert thing that is left out."""
    mark = tmp_path / "ran"
    attack = {
        "system": Shell(os.system, f"touch {mark}"),
        "eval": Shell(eval, f"open({str(mark)!r}, 'w')"),
        "subprocess": Shell(subprocess.check_call, ["touch", str(mark)]),
        "getattr": Shell(getattr, "x", "upper"),
        "in net": Shell(eval, f"open({str(mark)!r}, 'w')"),
    }[how]
    content = {"net": {"a": torch.ones(2)}, "settings": attack}
    if how == "in net":
        content = {"net": {"a": torch.ones(2), "b": attack}}
    path = tmp_path / "hostile.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    if how == "system" or old_format:
        with pytest.raises(CheckpointError, match=r"posix|GLOBAL") as error:
            read_state_dict(path)
        assert str(path) in str(error.value)
        assert "weights_only" not in str(error.value)  # torch's advice: run it
    else:
        assert list(read_state_dict(path)) == ["a"]
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "content"), [("a.pth", b""), ("a.pth", b"garbage"), ("a.safetensors", b"garbage")]
)
def test_damaged_files(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        read_checkpoint(path)


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"net": s}, lambda s: {"model": s}, lambda s: {"state_dict": s}]
)
def test_where_tensors_may_be(tmp_path, wrap):
    state = {"module.a": torch.ones(2), "module.b.c": torch.zeros(1)}
    torch.save(wrap(state), tmp_path / "a.pth")
    assert list(read_state_dict(tmp_path / "a.pth")) == ["a", "b.c"]


def test_safetensors(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert read_state_dict(tmp_path / "a.safetensors")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(1)]])
def test_files_without_named_tensors(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="tensors"):
        read_state_dict(tmp_path / "a.pth")


def test_strict_loading_names_every_difference_and_copies_nothing():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = net[0].weight.clone()
    state = {
        "0.weight": torch.ones(3, 2),
        "0.bias": torch.ones(4),
        "extra": torch.ones(1),
        "1.weight": torch.ones(1, 3),
    }
    with pytest.raises(CheckpointError) as error:
        load_strict(net, state, "file.pth")
    text = str(error.value)
    assert "file.pth does not fit Sequential: 1 missing, 1 unknown, 1 mis-shaped" in text
    for words in (
        ("missing", "1.bias", "(1,)"),
        ("unknown", "extra", "(1,)"),
        ("mis-shaped", "0.bias", "(3,)", "(4,)"),
    ):
        assert any(all(w in line for w in words) for line in text.splitlines()), words
    assert torch.equal(net[0].weight, before)


def test_strict_loading_converts_and_ignores_what_it_is_told_to():
    net = nn.Linear(2, 1)
    state = {
        "weight": torch.full((1, 2), 0.5, dtype=torch.float16),
        "text.a": torch.ones(1),
        "text.b": torch.ones(1),
    }
    load_strict(net, state, "file", ignore=("text.", "bias"))
    assert net.weight.dtype == torch.float32
    assert net.weight.tolist() == [[0.5, 0.5]]


def test_long_tables_are_cut():
    with pytest.raises(CheckpointError, match="and 30 more"):
        load_strict(nn.Linear(2, 1), {f"x{i}": torch.ones(1) for i in range(48)}, "file")


def unpacking_to(path, size):
    """A checkpoint with a compressed record of `size` zeros."""
    torch.save({"w": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, bytes(size) if name.endswith("data/0") else data)
    return path


PEAK = """
import resource, sys
from trackers.checkpoints import CheckpointError, read_state_dict
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_state_dict(sys.argv[1])
except CheckpointError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_a_zip_bomb_is_refused_before_it_takes_memory(tmp_path):
    path = unpacking_to(tmp_path / "bomb.pth", 1 << 30)
    assert path.stat().st_size < 2 << 20
    done = subprocess.run(
        [sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True
    )
    message, megabytes = done.stdout.splitlines()
    assert "would unpack to 1,073,7" in message
    assert int(megabytes) < 100
    with pytest.raises(CheckpointError, match="would unpack to"):
        read_checkpoint(path, mmap=True)


def sparse():
    return torch.sparse_coo_tensor(
        torch.tensor([[0]]), torch.tensor([1.0]), (10**12,), check_invariants=True
    )


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (lambda: torch.zeros(1).expand(10**12), r"shape \(1000000000000,\)"),
        (lambda: torch.zeros(1).as_strided((10**6, 10**6), (0, 0)), "made to fill the memory"),
        (sparse, "is no plain tensor"),
        (lambda: torch.empty(10**12, device="meta"), "is no plain tensor"),
    ],
)
def test_a_tensor_of_more_than_the_file_holds_is_one_line(tensor, words, tmp_path):
    torch.save({"good": torch.ones(3), "large": tensor()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=words) as caught:
        read_state_dict(tmp_path / "x.pth")
    assert "large" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tied_weights_are_no_fault(tmp_path):
    weight = torch.rand(1 << 20, 8)
    torch.save({"embed": weight, "head": weight, "view": weight.T}, tmp_path / "x.pth")
    assert set(read_state_dict(tmp_path / "x.pth")) == {"embed", "head", "view"}
