"""The registry says what the stages open; `check` finds what is wrong with a file; `preflight` says it all at once."""

import importlib
import re
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch

from pipeline.weights import WEIGHTS, WeightFile, check, choose, preflight
from trackers.runtime import CheckpointError

REPO = Path(__file__).resolve().parents[2]
STAGES = [
    ("pipeline.detect.grounding_dino", "GroundingDINOConfig", ("weights", "text_encoder")),
    ("trackers.cldtracker.config", "CLDTrackerStageConfig", ("weights",)),
    ("pipeline.segment.sam2", "SAM2Config", ("weights",)),
    ("pipeline.encode.clip", "CLIPConfig", ("weights",)),
]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPARROW_WEIGHTS", str(tmp_path))
    return tmp_path


def entry(name: str) -> WeightFile:
    return choose([name])[0]


# --- the registry -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "config", "fields"), STAGES)
def test_what_a_stage_opens_by_default_is_a_needed_entry(module, config, fields):
    defaults = getattr(importlib.import_module(module), config).model_fields
    needed = {e.path for e in WEIGHTS if e.needed}
    assert {defaults[field].default for field in fields} <= needed


def test_needed_entries_are_just_what_the_stages_open():
    opened = set()
    for module, config, fields in STAGES:
        defaults = getattr(importlib.import_module(module), config).model_fields
        opened |= {defaults[field].default for field in fields}
    assert {e.path for e in WEIGHTS if e.needed} == opened


def test_entries_are_complete_and_distinct():
    assert len({e.name for e in WEIGHTS}) == len({e.path for e in WEIGHTS}) == len(WEIGHTS)
    for e in WEIGHTS:
        assert urlparse(e.source).scheme == "https"
        assert all((e.purpose, e.licence, e.published_as))
        assert e.sha256 is None or re.fullmatch("[0-9a-f]{64}", e.sha256)
        module, _, function = e.loader.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
        for path in (e.path, e.original, *(path for path, _, _ in e.files)):
            assert not Path(path).is_absolute()
            assert ".." not in Path(path).parts


def test_nothing_without_a_licence_is_fetched():
    assert [e.name for e in WEIGHTS if not e.fetchable] == [
        e.name for e in WEIGHTS if "none stated" in e.licence
    ]


def test_the_page_names_every_entry_its_path_and_its_source():
    page = (REPO / "docs" / "weights.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(WEIGHTS)
    for e, row in zip(WEIGHTS, rows, strict=True):
        for word in (f"`{e.name}`", f"`{e.path}", e.original, e.source, e.licence):
            assert word in row
        assert ("needed" in row) == e.needed


def test_choose():
    assert [e.name for e in choose()] == [e.name for e in WEIGHTS if e.needed]
    assert [e.name for e in choose(["sam2.1-t", "cldtracker"])] == ["sam2.1-t", "cldtracker"]
    with pytest.raises(
        ValueError,
        match=r"no weights are called 'sam': choose from groundingdino-swint, .*clip-l-14-336",
    ):
        choose(["sam"])


# --- preflight --------------------------------------------------------------------------------------------------------


def test_preflight_names_everything_that_is_missing_in_one_message(root):
    (root / "sam2.1_hiera_large.pt").touch()
    words = [e.path for e in WEIGHTS if e.needed]
    with pytest.raises(CheckpointError) as caught:
        preflight(words)
    text = str(caught.value)
    assert text.startswith(f"{len(words) - 1} missing in the weights folder {root}")
    assert "sam2" not in text
    for e in choose():
        if e.name != "sam2.1-l":
            assert str(root / e.path) in text
            assert e.source in text
    assert "sparrow weights fetch clip-l-14-336 --from URL" in text
    assert "sparrow weights convert" in text
    assert "fetch cldtracker" not in text


def test_preflight_takes_names_paths_and_seeded_weights(root):
    (root / "sam2.1_hiera_tiny.pt").touch()
    (root / "my").mkdir()
    (root / "my" / "own.pt").touch()
    preflight(["sam2.1-t", "sam2.1_hiera_tiny.pt", "my/own.pt", "seeded:s0:"])
    with pytest.raises(
        CheckpointError, match=r"my/other\.pt\n    put it there, or name another file with --set"
    ):
        preflight(["my/other.pt"])


def test_preflight_knows_a_file_that_was_not_converted(root):
    (root / "cldtracker.pth.tar").touch()
    preflight(["cldtracker.pth.tar"])
    with pytest.raises(
        CheckpointError, match="is there, but not converted: sparrow weights convert"
    ):
        preflight(["cldtracker.safetensors"])


def test_a_folder_is_there_when_all_its_files_are(root):
    folder = root / "bert-base-uncased"
    folder.mkdir()
    (folder / "config.json").touch()
    with pytest.raises(CheckpointError, match=r"vocab\.txt"):
        preflight(["bert-base-uncased"])
    for name, _ in entry("bert-base-uncased").members:
        (folder / name).touch()
    preflight(["bert-base-uncased"])


# --- check: small models, the stages' own loaders ---------------------------------------------------------------------


def small(path: str, loader: str, **options: str) -> WeightFile:
    return WeightFile(
        "small", path, "test", path, "https://example.org/page", "MIT", 0, loader, options
    )


@pytest.fixture(scope="module")
def sam2_state() -> dict[str, torch.Tensor]:
    from pipeline.segment.sam2_model import build
    from trackers.seeded import seed_module

    return seed_module(build("tiny")).state_dict()


SAM2 = small("small.pt", "pipeline.weights:load_sam2", architecture="tiny")


def test_a_good_file(root, sam2_state):
    torch.save({"model": sam2_state}, root / "small.pt")
    steps: list[str] = []
    result = check(SAM2, steps.append)
    assert result.good, result.problems
    assert result.tensors == len(sam2_state)
    assert result.elements == sum(t.numel() for t in sam2_state.values())
    assert sum(result.dtypes.values()) == result.tensors
    assert result.bytes == (root / "small.pt").stat().st_size
    assert re.fullmatch("[0-9a-f]{64}", result.sha256["small.pt"])
    assert [step.split(": ")[1].split()[0] for step in steps] == ["sha256", "reading", "loading"]


def test_nan_is_a_problem_and_zeros_are_told(root, sam2_state):
    state = {name: tensor.clone() for name, tensor in sam2_state.items()}
    first, second = list(state)[:2]
    state[first].view(-1)[:3] = torch.tensor([float("nan"), float("inf"), 0.0])
    state[second].zero_()
    torch.save({"model": state}, root / "small.pt")
    result = check(SAM2)
    assert result.not_finite == {first: 2}
    assert result.all_zero == [second]
    assert len(result.problems) == 1
    for word in (str(root / "small.pt"), f"{first} (2)", "https://example.org/page"):
        assert word in result.problems[0]


def test_a_file_of_another_model_is_a_problem_with_the_names(root, sam2_state):
    state = dict(sam2_state)
    name = next(iter(state))
    state["stranger.weight"] = state.pop(name)
    torch.save({"model": state}, root / "small.pt")
    [problem] = check(SAM2).problems
    for word in (name, "stranger.weight", "1 missing, 1 unknown", "https://example.org/page"):
        assert word in problem


@pytest.mark.parametrize("content", [b"", b"<html>sign in</html>", b"PK\x03\x04 half a zip"])
def test_what_is_no_checkpoint_is_a_problem(root, content):
    (root / "small.pt").write_bytes(content)
    [problem] = check(SAM2).problems
    assert "cannot be read as a checkpoint" in problem


def test_what_is_missing_is_a_problem(root):
    [problem] = check(SAM2).problems
    assert "is not there" in problem
    assert "https://example.org/page" in problem


def test_a_known_digest_is_compared(root, sam2_state):
    torch.save({"model": sam2_state}, root / "sam2.1_hiera_tiny.pt")
    result = check(entry("sam2.1-t"))
    assert "sha256 is NOT that of the file as published" in result.notes
    assert "does not fit" in result.problems[0]  # the small model is none of the official ones


def test_clip_in_the_layout_of_its_page(root):
    """`open_clip_model.safetensors` holds the picture tower under `visual.`, beside the text tower."""
    from safetensors.torch import save_file

    from pipeline.encode.clip import build_tower

    state = {f"visual.{name}": tensor for name, tensor in build_tower("tiny").state_dict().items()}
    state |= {
        "visual.proj": torch.ones(64, 32),
        "logit_scale": torch.tensor(4.6),
        "text_projection": torch.ones(2, 2),
    }
    save_file(state, root / "clip.safetensors")
    clip = small("clip.safetensors", "pipeline.weights:load_clip", architecture="tiny")
    result = check(clip)
    assert result.good, result.problems
    save_file(dict(list(state.items())[1:]), root / "clip.safetensors")
    assert "1 missing" in check(clip).problems[0]


# --- check: CLDTracker in all its layouts, made small -----------------------------------------------------------------


class Settings:
    """Stands for the authors' own classes inside their checkpoints."""


@pytest.fixture
def tracker_state(monkeypatch) -> dict[str, torch.Tensor]:
    from trackers.cldtracker import checkpoint
    from trackers.cldtracker.config import CLDTrackerConfig
    from trackers.cldtracker.network import CLDTrackerNet
    from trackers.seeded import seed_module

    monkeypatch.setattr(
        checkpoint, "CLDTrackerConfig", CLDTrackerConfig.tiny
    )  # the official size takes seconds
    return dict(seed_module(CLDTrackerNet(CLDTrackerConfig.tiny()), extra=False).state_dict())


def with_text(state: dict[str, torch.Tensor], scale: float = 1.0) -> dict[str, torch.Tensor]:
    """The four layers of the text branch as torch initialises them, times `scale`."""
    torch.manual_seed(0)
    linear, one, two = (
        torch.nn.Linear(512, 768),
        torch.nn.Linear(512, 128),
        torch.nn.Linear(128, 512),
    )
    layers = {"convert_vector.weight": linear.weight, "convert_vector.bias": linear.bias}
    layers |= {"adapter.fc.0.weight": one.weight, "adapter.fc.2.weight": two.weight}
    return state | {
        f"category_embedding.{name}": tensor.data * scale for name, tensor in layers.items()
    }


def test_the_published_file_has_to_be_converted_and_says_what_its_text_is_worth(
    root, tracker_state
):
    from trackers.cldtracker.checkpoint import convert_checkpoint

    published = {
        "epoch": 300,
        "net": with_text(tracker_state),
        "settings": Settings(),
        "optimizer": {},
    }
    torch.save(published, root / "cldtracker.pth.tar")
    result = check(entry("cldtracker"))
    assert result.tensors == len(tracker_state) + 4
    assert any("never trained" in note for note in result.notes)
    [problem] = result.problems
    assert (
        "as published, but the stage opens cldtracker.safetensors: sparrow weights convert"
        in problem
    )
    convert_checkpoint(root / "cldtracker.pth.tar", root / "cldtracker.safetensors")
    result = check(entry("cldtracker"))
    assert result.good, result.problems
    assert "language branch: no text branch in this file" in result.notes


def test_a_trained_text_branch_is_told(root, tracker_state):
    torch.save({"net": with_text(tracker_state, 2.0)}, root / "cldtracker.pth.tar")
    assert any("may have been trained" in note for note in check(entry("cldtracker")).notes)


def test_ostrack_is_not_taken_for_cldtracker(root, tracker_state):
    from trackers.cldtracker.checkpoint import convert_checkpoint

    torch.save({"net": tracker_state, "settings": Settings()}, root / "OSTrack_ep0300.pth.tar")
    result = check(entry("ostrack-384"))
    assert result.good, result.problems
    convert_checkpoint(root / "OSTrack_ep0300.pth.tar", root / "cldtracker.safetensors")
    [problem] = check(entry("cldtracker")).problems
    assert "these are the weights of ostrack, not of cldtracker" in problem


# --- check: the text encoder ------------------------------------------------------------------------------------------


@pytest.fixture
def bert(root) -> Path:
    """A folder in the published layout; only the marks are where bert-base-uncased has them."""
    folder = root / "bert-base-uncased"
    folder.mkdir()
    words = [f"word{i}" for i in range(30522)]
    for i, word in {
        0: "[PAD]",
        100: "[UNK]",
        101: "[CLS]",
        102: "[SEP]",
        103: "[MASK]",
        1012: ".",
        1029: "?",
    }.items():
        words[i] = word
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text(
        '{"do_lower_case": true, "model_max_length": 512}'
    )
    (folder / "config.json").write_text(
        '{"model_type": "bert", "vocab_size": 30522, "hidden_size": 768}'
    )
    return folder


def test_the_text_encoder(bert):
    result = check(entry("bert-base-uncased"))
    assert result.good, result.problems
    assert set(result.sha256) == {"config.json", "vocab.txt", "tokenizer_config.json"}


def test_a_vocabulary_in_another_order_is_found(bert):
    words = (bert / "vocab.txt").read_text().splitlines()
    (bert / "vocab.txt").write_text("\n".join([*words[:500], *words[501:], words[500]]) + "\n")
    [problem] = check(entry("bert-base-uncased")).problems
    assert "marks [CLS] [SEP] . ? as [101, 102, 1011, 1028]" in problem
    assert "https://huggingface.co/google-bert/bert-base-uncased" in problem


def test_a_damaged_text_encoder_is_found(bert):
    (bert / "config.json").write_text("{")
    assert not check(entry("bert-base-uncased")).good
