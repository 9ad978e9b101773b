"""What an exporter is given, and names that become folders."""

import numpy as np
import pytest

from manifests.export.read import read_clips, safe
from tests.manifests.made import AWAY, FRAMES, LOST, boxes


def test_a_clip_comes_with_its_targets_in_order(whole):
    n, clips = read_clips(whole, ["got10k"], [], "true")
    (clip,) = clips
    assert (n, clip.key, clip.size) == (2, "got10k-val-v", (97, 161))
    assert [t.key for t in clip.targets] == ["got10k-val-v-0", "got10k-val-v-1"]
    first = clip.targets[0]
    np.testing.assert_array_equal(first.boxes_t4, boxes(0))  # the dropped frame's box too
    assert np.flatnonzero(first.absent_t).tolist() == list(AWAY)
    assert np.flatnonzero(~first.kept_t).tolist() == [*AWAY, LOST]
    assert len(clip.pictures()) == FRAMES


def test_a_clip_without_media_says_how_to_get_some(whole):
    (clip,) = read_clips(whole, ["got10k"], [], "true")[1]
    clip.media = None
    with pytest.raises(ValueError, match=r"curate with --set media\.media=mp4"):
        clip.pictures()


def test_masks_of_another_size_are_found_before_anything_is_written(whole):
    (clip,) = read_clips(whole, ["got10k"], [], "true")[1]
    clip.row["height"] += 1
    with pytest.raises(ValueError, match="differs from the frame's 98x161"):
        clip.pictures()


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("kite-3", "kite-3"),
        ("../../etc", "_.._etc"),
        ("..", "_"),
        (".hidden", "hidden"),
        ("a/b\\c\0", "a_b_c_"),
        ("ä" * 300, "_" * 120),
    ],
)
def test_a_name_stays_one_folder(name, folder):
    assert safe(name) == folder
