"""Presets: overrides reach the field they name, or say what there is."""

import pytest

from pipeline.presets import PRESETS, build_stages, configure


def test_override_replaces_one_field():
    config = configure("lite", ["media.media=none", "shard.max_referents=7"])
    assert config.media.media == "none"
    assert config.shard.max_referents == 7
    assert config.track == PRESETS["lite"].track


@pytest.mark.parametrize("assignment", ["media.medium=none", "medium.media=none", "media.media", "media=none"])
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
