"""Rendered scenes: exact truth, expressions that are true of one thing only, the same pixels every time."""

import numpy as np
import pytest

from pipeline.demo.describe import CLAIMS, expressions
from pipeline.demo.motion import SCENE_KINDS
from pipeline.demo.render import render
from pipeline.demo.scene import SLIVER, Scene, SceneObject, mask_boxes
from pipeline.demo.sprites import BACKGROUNDS, KINDS, TINTS, backgrounds_for, colour, cutout, photo

HEIGHT, WIDTH, FRAMES = 120, 214, 40


@pytest.fixture(
    scope="module", params=[(kind, seed) for kind in SCENE_KINDS for seed in range(3)], ids=str
)
def scene(request: pytest.FixtureRequest) -> Scene:
    kind, seed = request.param
    return render(seed, kind, FRAMES, HEIGHT, WIDTH)


def test_shapes(scene: Scene) -> None:
    assert scene.frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert scene.frames.dtype == np.uint8
    for thing in scene.objects:
        assert thing.masks.shape == (FRAMES, HEIGHT, WIDTH)
        assert thing.masks.dtype == bool
        assert thing.name in KINDS


def test_boxes_are_those_of_the_masks_and_masks_do_not_overlap(scene: Scene) -> None:
    for thing in scene.objects:
        for box, mask in zip(thing.boxes, thing.masks, strict=True):
            rows, columns = np.nonzero(mask)
            if rows.size == 0:
                assert np.isnan(box).all()
            else:
                assert box.tolist() == [
                    columns.min(),
                    rows.min(),
                    columns.max() + 1,
                    rows.max() + 1,
                ]
    assert np.sum([thing.masks for thing in scene.objects], axis=0).max() <= 1


def test_no_sliver_counts_as_visible(scene: Scene) -> None:
    for thing in scene.objects:
        areas = thing.masks.sum((1, 2))
        assert (areas[thing.visible] >= SLIVER * thing.full[thing.visible]).all()
        assert (areas <= thing.inside + 1).all()


def test_kinds_show_what_they_are_called(scene: Scene) -> None:
    target = scene.objects[0]
    if scene.kind == "leave":
        seen = np.flatnonzero(target.visible)
        assert not target.visible.all()
        assert seen[0] == 0
        assert seen[-1] == FRAMES - 1
    if scene.kind == "scale":
        assert target.full.max() / target.full.min() > 2
    if scene.kind == "occlude":
        assert scene.scenery
        assert (target.covered > 0.3 * target.inside).any()
    if scene.kind == "distract":
        assert scene.objects[1].name == target.name
    if scene.kind == "pan":
        assert np.ptp(target.world_x - target.centre[:, 0]) > 0.4 * WIDTH


def test_masks_fit_the_pixels() -> None:
    """The same scene without its object differs from it inside the mask and the shadow, and nowhere else."""
    with_it = render(
        3, "easy", 6, HEIGHT, WIDTH, names=("flower", "coin"), tints=("", ""), background="grass"
    )
    flower = with_it.objects[0]
    red = with_it.frames[..., 0].astype(int) - with_it.frames[..., 1]
    assert np.median(red[flower.masks]) > 20  # an orange flower
    assert np.median(red[~flower.masks & ~with_it.objects[1].masks]) < -20  # on green grass


# --- expressions ---------------------------------------------------------------------------------------------------


def said_is_true(text: str, thing: SceneObject, scene: Scene) -> bool:
    """Check the words against masks and boxes alone, without the facts that the sentences were made from."""
    words, width = text.replace(".", ""), scene.size[1]
    if not any(word in words.split() for word in (thing.name, thing.plural)):
        return False
    colours = {colour(name, tint) for name in KINDS for tint in TINTS.get(name, ("",))} & set(
        words.split()
    )
    if colours and colours != {thing.colour}:
        return False
    area, seen = thing.masks.sum((1, 2)), np.flatnonzero(thing.visible)
    if not seen.size:
        return False
    x = thing.boxes[:, [0, 2]].mean(1)
    moved = (x[seen[-1]] - x[seen[0]]) / width
    whole = area[area > 0.85 * thing.full]
    first, last = (np.median(whole[:3]), np.median(whole[-3:])) if whole.size else (1, 1)
    checks = {
        "to the left": moved < -0.06,
        "to the right": moved > 0.06,
        "closer": last > 1.3 * first,
        "away": last < first / 1.3,
        "on the left": x[seen[0]] < 0.48 * width,
        "on the right": x[seen[0]] > 0.52 * width,
        "behind the": bool((thing.covered[seen[0] : seen[-1]] > 0).any())
        and area[seen].min() < 0.6 * area[seen].max(),
        "comes back": not thing.visible[seen[0] : seen[-1]].all() and bool(thing.visible[-1]),
        "leaves the picture": not thing.visible.all(),
    }
    rivals = [o for o in scene.objects if o is not thing and o.name == thing.name]
    if "larger" in words:
        checks["larger"] = all(thing.full.mean() > o.full.mean() for o in rivals)
    if "smaller" in words:
        checks["smaller"] = all(thing.full.mean() < o.full.mean() for o in rivals)
    return all(true for phrase, true in checks.items() if phrase in words)


def test_expressions_are_true_of_their_target_and_of_no_look_alike(scene: Scene) -> None:
    for thing in scene.objects:
        others = [o for o in scene.objects if o is not thing]
        for text in thing.expressions:
            assert said_is_true(text, thing, scene), text
            assert not any(said_is_true(text, o, scene) for o in others), text


def test_a_lone_target_can_always_be_described(scene: Scene) -> None:
    if len(scene.objects) == 1:
        assert scene.objects[0].expressions


def test_twins_are_told_apart_only_by_what_differs() -> None:
    for seed in range(4):
        scene = render(seed, "distract", FRAMES, HEIGHT, WIDTH)
        one, two = scene.objects
        assert one.colour == two.colour
        assert not set(one.expressions) & set(two.expressions)
        plain = {f"the {one.name}", f"the {one.colour} {one.name}"}
        assert not plain & {*one.expressions, *two.expressions}


def test_several_targets_share_one_expression() -> None:
    scene = render(1, "distract", FRAMES, HEIGHT, WIDTH, names=("cat", "cat", "cup"))
    assert "the two cats" in [e.text for e in expressions(scene, (0, 1))]
    with pytest.raises(ValueError, match="several categories"):
        expressions(scene, (0, 2))


def test_words() -> None:
    scene = render(0, "scale", FRAMES, HEIGHT, WIDTH, names=("woman",))
    said = next(e for e in expressions(scene, (0,)) if e.colour and len(e.claims) == 1)
    moves, _, moving = CLAIMS[said.claims[0]]
    assert said.text == f"the woman in the orange suit who {moves}"
    assert said.sentence == f"The woman in the orange suit {moves}."
    assert said.query == f"woman in the orange suit {moving}"


# --- determinism, ingredients ----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_scene_and_another_does_not() -> None:
    one, two, other = (render(seed, "mixed", 8, HEIGHT, WIDTH) for seed in (7, 7, 8))
    assert (one.frames == two.frames).all()
    assert all((a.masks == b.masks).all() for a, b in zip(one.objects, two.objects, strict=True))
    assert (one.frames != other.frames).any()


def test_pictures_come_from_installed_packages() -> None:
    for background in BACKGROUNDS.values():
        assert photo(background.photo).ndim == 3
    for name in KINDS:
        for tint in TINTS.get(name, ("",)):
            picture, alpha = cutout(name, tint)
            assert picture.shape[:2] == alpha.shape
            filled = (alpha > 127).mean()
            assert 0.3 < filled < 0.9, name  # a silhouette, not a rectangle
    with pytest.raises(FileNotFoundError, match="no bundled photograph"):
        photo("nothing")


def test_tints_change_the_colour_word() -> None:
    assert colour("woman") == "orange"
    assert colour("man") == "black"
    assert [colour("flower", tint) for tint in TINTS["flower"]] == [
        "orange",
        "pink",
        "blue",
        "purple",
    ]
    assert [colour("cup", tint) for tint in TINTS["cup"]] == ["red", "blue", "green"]


def test_a_background_never_shows_another_target() -> None:
    assert "garage" not in backgrounds_for(("motorcycle",))
    assert "night" not in backgrounds_for(("cat", "rocket"))


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind of scene 'dance'"):
        render(0, "dance", 4, HEIGHT, WIDTH)


def test_mask_boxes_are_half_open() -> None:
    masks = np.zeros((2, 5, 6), bool)
    masks[1, 2, 3] = True
    assert np.isnan(mask_boxes(masks)[0]).all()
    assert mask_boxes(masks)[1].tolist() == [3, 2, 4, 3]
