"""Scenes that the released loaders can read: every rule is broken once, and short clips are made long enough."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from manifests.export import export
from manifests.export.sparrow import with_repeats
from manifests.export.sparrow_rules import FRAMES_FOR_SAM, scene_problems


@pytest.fixture(scope="module")
def to(whole, tmp_path_factory) -> Path:
    to = tmp_path_factory.mktemp("rules") / "to"
    export(whole, to, "sparrow")
    return to


def scenes(to: Path) -> list[Path]:
    return sorted(path.parent for path in to.rglob("groundtruth.txt"))


def test_every_scene_of_an_export_obeys_the_rules(to):
    assert len(scenes(to)) == 10
    assert [scene_problems(scene) for scene in scenes(to)] == [[]] * 10


def leave_seven(scene: Path) -> None:
    for picture in sorted((scene / "img").iterdir())[7:]:
        picture.unlink()


def lose_a_mask(scene: Path) -> None:
    sorted((scene / "mask").iterdir())[3].unlink()


def add_a_box(scene: Path) -> None:
    with (scene / "groundtruth.txt").open("a") as file:
        file.write("\n1,2,3,4\n")


BREAKS = {
    "no folder mask": lambda scene: shutil.rmtree(scene / "mask"),
    "no file nlp.txt": lambda scene: (scene / "nlp.txt").unlink(),
    "7 pictures, the loaders need 8": leave_seven,
    "boxes for": add_a_box,
    "no mask of": lose_a_mask,
    "nlp.txt is empty": lambda scene: (scene / "nlp.txt").write_text("\n \n"),
    "the caption has '[a dog](2)'": lambda scene: (scene / "nlp.txt").write_text("see [a dog](2)"),
}


@pytest.mark.parametrize("problem", BREAKS)
def test_every_rule_can_be_broken(to, tmp_path, problem):
    scene = shutil.copytree(scenes(to)[0], tmp_path / "scene")
    BREAKS[problem](scene)
    assert any(problem in found for found in scene_problems(scene))


def test_a_line_that_is_no_box_is_found(to, tmp_path):
    scene = shutil.copytree(scenes(to)[0], tmp_path / "scene")
    lines = (scene / "groundtruth.txt").read_text().splitlines()
    lines[2] = "1,2,nan,inf"
    (scene / "groundtruth.txt").write_text("\n".join(lines))
    assert scene_problems(scene) == ["groundtruth.txt, line 3: not four numbers"]


@pytest.mark.parametrize("n", range(1, 12))
def test_short_scenes_have_their_frames_several_times_in_order(n):
    frames = [3 * t + 1 for t in range(n)]
    named = with_repeats(frames, FRAMES_FOR_SAM)
    assert len(named) == max(n, FRAMES_FOR_SAM)
    names = [f"{name}.jpg" for name, _ in named]
    assert names == sorted(set(names))  # the order of the loaders is that of texts
    assert [t for _, t in named] == sorted(t for _, t in named)
    assert {t for _, t in named} == set(frames)
    assert all(name.startswith(f"{t:06d}") for name, t in named)


def test_a_clip_of_few_frames_is_exported_with_repeated_ones(whole, tmp_path, monkeypatch, truth):
    """Three frames with a mask, and none that is absent."""
    real = export.__globals__["read_clips"]

    def short(*given):
        total, clips = real(*given)

        def shortened():
            for clip in clips:
                for target in clip.targets:
                    target.masks = {t: target.masks[t] for t in sorted(target.masks)[:3]}
                    target.absent_t[:] = False
                yield clip

        return total, shortened()

    monkeypatch.setattr("manifests.export.read_clips", short)
    export(whole, tmp_path / "to", "sparrow", sources=["hcstvg"])
    scene = scenes(tmp_path / "to")[0]
    assert scene_problems(scene) == []
    images = sorted((scene / "img").iterdir())
    assert len(images) == FRAMES_FOR_SAM
    lines = (scene / "groundtruth.txt").read_text().splitlines()
    row = next(row for key, row in sorted(truth.items()) if row["source"] == "hcstvg")
    assert {int(path.stem[:6]) for path in images} == set(sorted(row["masks"])[:3])
    for path, line in zip(images, lines, strict=True):
        t = int(path.stem[:6])
        mask = cv2.imread(str(scene / "mask" / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE) > 127
        np.testing.assert_array_equal(mask, row["masks"][t])
        box = np.array(line.split(","), np.float32)
        np.testing.assert_array_equal(box, row["boxes"][t])
        assert path.read_bytes() == (scene / "img" / f"{t:06d}.jpg").read_bytes()
