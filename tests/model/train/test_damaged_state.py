"""A damaged state is noticed before anything is loaded, and the run resumes from the last good one if it is asked to."""

import contextlib
import json
import resource
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from model.checkpoints import CheckpointError
from model.train.export import describe
from model.train.log import Log, read
from model.train.resume import choose
from model.train.state import StateError, states
from schemas.json_checksum import DamagedError, dumps_checked, file_digests, load_checked
from tests.model.train.made_task import train

HOST, STAGE = "videoglamm", "stage1"
SHORT = {"steps": 2, "warmup": 1, "save_every": 1}
OLDER, NEWEST = "step-00000001", "step-00000002"


def zero_second_half(path: Path) -> None:
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(len(data) - half))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [
    ("model.safetensors", zero_second_half, "has changed since it was saved"),
    ("model.safetensors", cut, "has 1,000 bytes instead of "),
    ("model.safetensors", flip_bit, "has changed since it was saved"),
    ("optimizer.safetensors", empty, "has 0 bytes instead of "),
    ("rank-0.json", Path.unlink, "is missing"),
    ("rank-0.safetensors", flip_bit, "has changed since it was saved"),
    ("state.json", cut, "is not valid JSON"),
    ("state.json", empty, "is empty"),
    ("state.json", Path.unlink, "is missing"),
]
each_damage = pytest.mark.parametrize(("name", "damage", "words"), DAMAGES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing has happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(run, HOST, STAGE, **SHORT)
    return run


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def sparrow_train(run: Path, capfd, monkeypatch, *options: str) -> tuple[int, str]:
    """Exit code of the command, and what it prints."""
    from flows.cli import main

    words = ["stage1", "--data", "nowhere", "--out", str(run), "--size", "tiny", *options]
    monkeypatch.setattr(sys, "argv", ["sparrow", "train", *words])
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        with pytest.raises(SystemExit) as done:
            main()
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
    printed = capfd.readouterr()
    return done.value.code, printed.out + printed.err


@each_damage
def test_the_command_stops_with_one_line_and_changes_nothing(
    name, damage, words, run, capfd, monkeypatch
):
    damage(run / "states" / NEWEST / name)
    before = content(run)
    code, text = sparrow_train(run, capfd, monkeypatch)
    assert code == 1
    assert text.startswith(f"error: {run / 'states' / NEWEST} is damaged: {name} {words}")
    assert text.endswith("step 1: `--resume last-good` continues from step 1\n")
    assert text.count("\n") == 1
    assert content(run) == before


@each_damage
def test_the_last_good_state_ends_with_the_same_weights(name, damage, words, run, whole):
    damage(run / "states" / NEWEST / name)
    damaged = content(run / "states" / NEWEST)
    said: list[str] = []
    outcome = train(run, HOST, STAGE, resume="last-good", tell=said.append, **SHORT)
    assert outcome.steps == 2
    assert content(run / "states" / f"{NEWEST}.damaged") == damaged
    for folder in (f"states/{OLDER}", f"states/{NEWEST}", "export"):
        assert content(run / folder) == content(whole / folder), folder
    assert len(said) == 1
    assert f"{NEWEST} is damaged: {name} {words}" in said[0]
    assert said[0].endswith(f"It was set aside as {NEWEST}.damaged")


def test_every_bit_of_a_state_counts(run):
    """One bit of each byte of `state.json` that is not a space, and of some bytes of every other file."""
    place = run / "states" / NEWEST
    files = content(place)
    about = load_checked(place / "state.json")
    assert about["files"].keys() == files.keys() - {"state.json"}
    for name, data in files.items():
        path = place / name
        step = 1 if name == "state.json" else len(data) // 20
        for at in range(0, len(data), step):
            if data[at : at + 1].isspace():
                continue
            changed = bytearray(data)
            changed[at] ^= 1 << at % 8
            path.write_bytes(changed)
            if name == "state.json":
                with pytest.raises(DamagedError, match=r"^state\.json "):
                    load_checked(path)
            else:
                with pytest.raises(StateError, match=rf"damaged: {name} .* from step 1$"):
                    choose(run)
        path.write_bytes(data)
    assert choose(run).place == place


@pytest.mark.parametrize("options", [(), ("--resume", "last-good")])
def test_without_a_good_state_the_way_to_start_anew_is_said(options, run, capfd, monkeypatch):
    for place in states(run):
        empty(place / "model.safetensors")
    before = content(run)
    code, text = sparrow_train(run, capfd, monkeypatch, *options)
    advice = (
        f"There is no good state. To start anew, use another --out, or move {run / 'states'} away\n"
    )
    assert code == 1
    assert text.endswith(advice)
    assert text.count("\n") == 1
    assert content(run) == before


def test_an_older_damaged_state_does_not_matter(run):
    empty(run / "states" / OLDER / "model.safetensors")
    assert choose(run).passed_over == ()
    assert choose(run).place == run / "states" / NEWEST


def test_states_that_were_set_aside_are_kept_and_never_taken(run):
    folder = run / "states"
    for name in (f"{NEWEST}.damaged", "step-00000009.damaged", "step-5"):
        (folder / name).mkdir()
    empty(folder / NEWEST / "model.safetensors")
    leftovers = [folder / ".step-00000003.unfinished", run / ".export.removed"]
    for left in leftovers:
        left.mkdir()
        (left / "part").write_text("of what a killed process wrote")
    train(run, HOST, STAGE, resume="last-good", **(SHORT | {"keep": 1}))
    names = sorted(path.name for path in folder.iterdir())
    aside = [f"{NEWEST}.damaged", f"{NEWEST}.damaged-2", "step-00000009.damaged", "step-5"]
    assert names == [OLDER, NEWEST, *aside]  # the older one may become trusted
    assert not any(left.exists() for left in leftovers)


def test_a_state_without_checksums_is_resumed_and_that_is_said(run, whole):
    """As earlier versions saved it. What ends too early or is missing is noticed all the same."""
    for place in states(run):
        about = json.loads((place / "state.json").read_text())
        del about["files"], about["sha256"]
        (place / "state.json").write_text(json.dumps(about))
    shutil.rmtree(run / "states" / NEWEST)
    said: list[str] = []
    train(run, HOST, STAGE, tell=said.append, **SHORT)
    assert [line.partition(" holds ")[2][:12] for line in said] == ["no checksums"]
    assert content(run / "states" / NEWEST) == content(whole / "states" / NEWEST)
    shutil.rmtree(run / "states" / NEWEST)
    cut(run / "states" / OLDER / "optimizer.safetensors")
    (run / "states" / OLDER / "rank-0.safetensors").unlink()
    with pytest.raises(StateError, match=r"optimizer\.safetensors cannot be read .*; rank-0"):
        choose(run)


def test_a_state_whose_files_do_not_fit_is_an_error_of_one_line(run):
    """Whole by its checksums, but not what this model needs."""
    place = run / "states" / NEWEST
    tensors = load_file(place / "model.safetensors")
    tensors.popitem()
    save_file(tensors, place / "model.safetensors")
    about = load_checked(place / "state.json")
    del about["files"]
    others = [path for path in place.iterdir() if path.name != "state.json"]
    (place / "state.json").write_text(dumps_checked(about, file_digests(others)))
    with pytest.raises(StateError, match=r"^.* cannot be loaded: KeyError.*$"):
        train(run, HOST, STAGE, **SHORT)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("model.safetensors", zero_second_half, "has changed since it was saved"),
        ("config.json", Path.unlink, "is missing"),
        ("config.json", flip_bit, "has changed since it was saved"),
        ("stage.json", cut, "is not valid JSON|has changed since it was saved"),
        ("stage.json", empty, "is empty"),
    ],
)
def test_a_damaged_export_is_refused(name, damage, words, run):
    assert describe(run / "export") == {"stage": STAGE, "steps": 2, "after": []}
    if damage is cut:
        path = run / "export" / name
        path.write_bytes(path.read_bytes()[:100])
    else:
        damage(run / "export" / name)
    with pytest.raises(CheckpointError, match=rf"export is damaged: {name} ({words})") as error:
        describe(run / "export")
    assert "\n" not in str(error.value)
    train(run, HOST, STAGE, **SHORT)  # as the message advises
    assert describe(run / "export")["steps"] == 2


def test_rows_that_a_crash_has_left_in_part_are_dropped(tmp_path):
    rows = ["step,loss", "0,2.5", "1,2.25", "2,2.0", "1", "3,1.5,7", "\0\0\0"]
    (tmp_path / "steps.csv").write_text("\n".join(rows))
    Log(tmp_path, 2).close()
    assert read(tmp_path / "steps.csv") == [{"step": 0, "loss": 2.5}, {"step": 1, "loss": 2.25}]


@contextlib.contextmanager
def no_file_may_grow():
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_prints_no_traceback_of_a_thread(tmp_path, monkeypatch):
    """At the start and later."""
    printed: list[threading.ExceptHookArgs] = []
    hook = printed.append
    monkeypatch.setattr(threading, "excepthook", hook)
    with no_file_may_grow(), pytest.raises(OSError, match="File too large"):
        Log(tmp_path / "start")
    assert threading.excepthook == hook
    log = Log(tmp_path / "later")
    with no_file_may_grow():
        log._board.add_scalar("loss", 1.0, 0)
        with pytest.raises(OSError, match="File too large"):
            log._board.flush()
        with contextlib.suppress(OSError):
            log.close()
    assert threading.excepthook == hook
    assert printed == []
