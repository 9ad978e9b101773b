"""Presets: overrides reach the field they name, or say what there is."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.presets import PRESETS, CurateConfig, build_stages, configure


def test_override_replaces_one_field():
    config = configure("lite", ["media.media=none", "shard.max_referents=7"])
    assert config.media.media == "none"
    assert config.shard.max_referents == 7
    assert config.track == PRESETS["lite"].track


@pytest.mark.parametrize(
    "assignment", ["media.medium=none", "medium.media=none", "media.media", "media=none"]
)
def test_override_of_an_unknown_field_is_refused(assignment):
    with pytest.raises(ValueError, match=r"no such field|media"):
        configure("lite", [assignment])


def test_unknown_preset_names_the_choices():
    with pytest.raises(ValueError, match="choose one of lite"):
        configure("heavy")


def test_stages_have_names_and_versions():
    versions = build_stages(PRESETS["lite"]).versions
    assert set(versions) == {"detector", "tracker", "segmenter", "encoder"}
    assert all(len(v.split()) == 2 for v in versions.values())


def test_another_model_takes_a_steps_place_and_can_be_configured():
    config = configure("full", ["detect=annotation", "encode=handcrafted", "encode.hue=8"])
    assert (config.detect.kind, config.track.kind, config.encode.kind) == (
        "annotation",
        "cldtracker",
        "handcrafted",
    )
    assert config.encode.hue == 8
    assert configure("lite", ["track=cldtracker"]).track == PRESETS["full"].track
    with pytest.raises(ValueError, match="track=sort: no such model; there are cldtracker, csrt"):
        configure("lite", ["track=sort"])


def test_a_preset_by_name_alone_has_its_own_models():
    """As a Prefect parameter: the name must not be put on another preset's models."""
    assert CurateConfig.model_validate({"preset": "full"}) == PRESETS["full"]
    assert (
        CurateConfig.model_validate(PRESETS["full-tiny"].model_dump(mode="json"))
        == PRESETS["full-tiny"]
    )
    assert CurateConfig.model_json_schema()["required"] == ["preset"]  # what Prefect judges by
    with pytest.raises(ValueError, match="preset"):
        CurateConfig.model_validate({"preset": "heavy"})


def test_planning_with_the_full_preset_imports_no_torch():
    code = "import sys; from pipeline.presets import configure; configure('full'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_missing_weights_are_listed_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARROW_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match="5 missing in the weights folder"):
        build_stages(PRESETS["full"])
    with pytest.raises(ValueError, match="3 missing"):
        build_stages(configure("full", ["detect=annotation"]))


def test_what_needs_a_network_says_so():
    assert [name for name, config in PRESETS.items() if config.needs_torch] == ["full", "full-tiny"]
