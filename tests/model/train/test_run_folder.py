"""A run folder is what it says: another request or other content is refused by name, a finished run is left as it is, and
one training works in it at a time."""

import fcntl
import json
import shutil
from pathlib import Path

import pytest

from flows import train as training
from flows.locks import training_lock
from model.train.export import describe
from model.train.state import StateError, states
from model.train.state import describe as describe_state
from schemas.json_checksum import FILES, dumps_checked, load_checked
from tests.model.data.made import make_output
from tests.model.proposer.made import coco_like

COMMON = {"size": "tiny", "workers": 0, "frames": 2}
TRAIN = {"steps": 2, "batch": 2, "lr": 1e-3, "save_every": 1, "warmup": 0}
CHANGES = {"proposer.queries": 16}
COCO = [(f"{k}.jpg", f"train2017/{k}.jpg") for k in range(4)]


def run(what, data, out, *, train=None, changes=None, **options) -> str:
    """What was printed."""
    said: list[str] = []
    request = training.Request(
        what=what,
        data=str(data),
        out=str(out),
        train=TRAIN | (train or {}),
        changes=CHANGES | (changes or {}),
        **(COMMON | options),
    )
    assert training.run(request, said.append) == 0
    return "\n".join(said)


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of change of every file, but for the parsed annotations of detection datasets."""
    files = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and "tables" not in str(path)
    ]
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in files
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_output(tmp_path_factory.mktemp("folder") / "data", {"a": (1, 2)})


@pytest.fixture(scope="module")
def other_data(tmp_path_factory) -> Path:
    return make_output(tmp_path_factory.mktemp("folder") / "data", {"b": (1, 2)})


@pytest.fixture(scope="module")
def stage1(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("folder") / "stage1"
    run("stage1", data, out)
    return out


@pytest.fixture
def copy(stage1, tmp_path) -> Path:
    shutil.copytree(stage1, tmp_path / "run")
    return tmp_path / "run"


def refused(folder: Path, *words: str, what="stage1", data, **changes) -> None:
    """The request is refused in these words, and changes nothing."""
    before = content(folder)
    with pytest.raises(StateError) as error:
        run(what, data, folder, **changes)
    for word in words:
        assert word in str(error.value)
    assert content(folder) == before


CHANGED = [
    ({"changes": {"loss.dice": 3.0}}, "  loss.dice: now 3.0, then 1.0"),
    ({"changes": {"decode.mode": "frame"}}, "  decode.mode: now frame, then memory"),
    ({"changes": {"filter.threshold": 0.9}}, "  filter.threshold: now 0.9, then "),
    ({"changes": {"tsf.dropout": 0.25}}, "  tsf.dropout: now 0.25, then "),
    ({"train": {"lr": 1e-4}}, "  train.lr: now 0.0001, then 0.001"),
    ({"train": {"steps": 3}}, "  train.steps: now 3, then 2"),
    ({"frames": 3}, "  frames: now 3, then 2"),
    ({"host": "unipixel"}, "  host: now unipixel, then videoglamm"),
    ({"what": "proposer"}, "  stage: now proposer, then stage1"),
]


CASES = [(*one, "finished") for one in CHANGED]
CASES += [(*one, left) for one in CHANGED[:2] for left in ("states", "export")]


@pytest.mark.parametrize(("changes", "words", "left"), CASES, ids=lambda one: str(one)[:40])
def test_another_request_is_refused_with_its_fields(changes, words, left, copy, data):
    if left == "export":
        shutil.rmtree(copy / "states")
    if left == "states":
        shutil.rmtree(copy / "export")
    refused(copy, "was made by another training", words, data=data, **changes)


def test_other_content_is_refused_and_another_place_is_not(copy, data, other_data, tmp_path):
    refused(copy, "  data: another content", data=other_data)
    shutil.copytree(data, tmp_path / "moved")
    assert "nothing is changed" in run("stage1", tmp_path / "moved", copy)


def test_a_finished_stage_2_takes_no_other_parent(copy, data, tmp_path):
    out, parent = tmp_path / "stage2", copy / "export"
    run("stage2", data, out, start=str(parent))
    other = tmp_path / "other"
    run("stage1", data, other, train={"seed": 1})
    refused(out, "  --from: another content", what="stage2", data=data, start=str(other / "export"))
    shutil.move(parent, tmp_path / "moved")
    assert "nothing is changed" in run("stage2", data, out, start=str(tmp_path / "moved"))


def test_other_weights_are_refused(data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for seed, folder in enumerate((first, second)):
        run("stage1", data, folder, train={"seed": seed, "steps": 1})
    out = tmp_path / "out"
    request = {"size": "tiny", "frames": 2, "workers": 0}

    def train(weights: Path) -> int:
        return training.run(
            training.Request(
                what="stage1",
                data=str(data),
                out=str(out),
                checkpoints=(str(weights / "export-full"),),
                train=TRAIN,
                changes=CHANGES,
                **request,
            ),
            lambda text: None,
        )

    assert train(first) == 0
    shutil.copytree(first, tmp_path / "moved")
    assert train(tmp_path / "moved") == 0
    with pytest.raises(StateError, match=r"  --checkpoint 1: another content \(now \w{16}, then"):
        train(second)


def test_boxes_of_the_proposer_are_compared_not_only_counted(tmp_path):
    place = tmp_path / "detection" / "coco"
    coco_like(place, "annotations/instances_train2017.json", COCO)
    run("proposer", tmp_path / "detection", tmp_path / "run")
    annotations = place / "annotations" / "instances_train2017.json"
    about = json.loads(annotations.read_text())
    about["annotations"][0]["bbox"][2] -= 1
    annotations.write_text(json.dumps(about))
    refused(
        tmp_path / "run",
        "  data: coco: another content",
        what="proposer",
        data=tmp_path / "detection",
    )


def test_a_finished_run_is_left_as_it_is(copy, data):
    before = content(copy)
    text = run("stage1", data, copy, train={"keep": 5, "save_minutes": 1}, workers=1)
    assert "is finished: 2 steps are trained, and nothing is changed" in text
    assert content(copy) == before


def test_what_is_missing_of_a_finished_run_is_made_again(copy, data):
    whole = content(copy)
    shutil.rmtree(copy / "export-full")
    run("stage1", data, copy)
    again = content(copy)
    for name in ("export/stage.json", "export-full/config.json", "export-full/model.safetensors"):
        assert again[name][0] == whole[name][0], name


def test_the_request_is_in_every_state_and_in_the_export(stage1):
    records = [describe_state(place)["run"] for place in states(stage1)]
    records.append(describe(stage1 / "export")["run"])
    for record in records:
        assert record == records[0]
        assert record["settings"]["loss.dice"] == 1.0
        assert record["settings"]["train.lr"] == 1e-3
        assert "preset" not in record["settings"]
        assert len(record["inputs"]["data"]) == 16


def test_a_second_training_is_told_who_works_in_the_folder(copy, data):
    before = content(copy)
    with training_lock(copy):
        holder = (copy / ".lock" / "train").read_text()
        with pytest.raises(ValueError, match="another training is at work in this folder: process"):
            run("stage1", data, copy)
        assert holder.startswith("process ")
    assert content(copy) == before
    assert not (copy / ".lock").exists()


def test_the_lock_of_a_dead_training_holds_nobody_up(copy, data):
    (copy / ".lock").mkdir()
    (copy / ".lock" / "train").write_text("process 1 on nowhere")
    assert "nothing is changed" in run("stage1", data, copy)
    (copy / ".lock").mkdir()
    (copy / ".lock" / "train").symlink_to(copy / "config.json")
    with pytest.raises(ValueError, match="link"):
        run("stage1", data, copy)
    assert (copy / "config.json").read_text()


def test_the_lock_is_one_of_the_kernel(tmp_path):
    """So it ends with its holder, and two that come at once cannot both have it."""
    with (
        training_lock(tmp_path),
        (tmp_path / ".lock" / "train").open() as file,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_run_of_an_earlier_version_is_resumed(copy, data):
    """Its states have no record, and its export neither."""
    for path in [*(place / "state.json" for place in states(copy)), copy / "export" / "stage.json"]:
        about = load_checked(path)
        del about["run"]
        files = about.pop(FILES)
        path.write_text(dumps_checked(about, files))
    assert "resumes after 2 steps" in run("stage1", data, copy)
    assert describe(copy / "export")["run"]["settings"]["stage"] == "stage1"
