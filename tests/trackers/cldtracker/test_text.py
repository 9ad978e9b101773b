"""The text branch: CLIP's numbers, the table, the choice; nothing of one target in another."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from trackers.cldtracker.text import TextBranch, TextState, target_patch
from trackers.seeded import seeded


@pytest.fixture(scope="module")
def golden(shared):
    sys.path.insert(0, str(shared / "golden"))
    return shared / "golden" / "cldtracker"


@pytest.fixture(scope="module")
def tracking(golden):
    return json.loads((golden / "tracking.json").read_text())


@pytest.fixture(scope="module")
def branch() -> TextBranch:
    """Seeded under the names it has in a checkpoint."""
    branch = TextBranch()
    with torch.no_grad():
        for name, tensor in branch.state_dict().items():
            tensor.copy_(
                torch.from_numpy(
                    seeded(f"category_embedding.{name}", tuple(tensor.shape), extra=False)
                )
            )
    return branch.eval()


@pytest.fixture(scope="module")
def table(branch, tracking):
    return branch.table(tracking["text_bag"])


def test_golden_table(golden, branch, tracking, table):
    wanted = np.load(golden / "text_table.npz")
    prompts = [tracking["prompt"].replace("{v}", text) for text in tracking["text_bag"]]
    assert branch._tokenize(prompts).tolist() == wanted["token_ids"].tolist()
    np.testing.assert_allclose(table.features, wanted["text_features"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(table.vectors, wanted["table"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(table.vectors.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["seqA", "seqB"])
def test_golden_choices(golden, branch, tracking, table, name):
    from golden_inputs import moving_square

    info = tracking["sequences"][name]
    shape = (
        info[k] for k in ("frames", "height", "width", "obj_h", "obj_w", "x0", "y0", "dx", "dy")
    )
    frames = moving_square(f"track/{name}", *shape, salt="s0:")
    want = np.load(golden / f"track_{name}_text.npz")
    state = TextState(branch, tracking["text_bag"], frames[0], info["init_box_xywh"])
    np.testing.assert_allclose(
        state.template_feature[0], want["template_image_feature"], rtol=0, atol=1e-5
    )
    logits = branch.logits(state.template_feature, table)
    np.testing.assert_allclose(logits[0], want["template_logits"], rtol=0, atol=1e-3)
    assert set(want["template_idx"].tolist()) == {int(logits[0].argmax())}

    features = branch.image_feature(
        [target_patch(f, b) for f, b in zip(frames[1:], want["state_in"], strict=True)]
    )
    logits = branch.logits(features, table)
    np.testing.assert_allclose(logits, want["search_logits"], rtol=0, atol=1e-3)
    assert logits.argmax(1).tolist() == want["search_idx"].tolist()
    np.testing.assert_allclose(
        branch.choose(features, table), want["search_text"], rtol=0, atol=1e-6
    )
    template, search = state(frames[1], want["state_in"][0])
    np.testing.assert_allclose(template[0], want["template_text"][0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(search[0], want["search_text"][0], rtol=0, atol=1e-6)


def test_the_table_follows_the_weights_and_targets_share_nothing(branch):
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    first = TextState(branch, ["a dog"], image, (5, 5, 20, 20))
    second = TextState(branch, ["a cat", "a horse"], image, (30, 30, 20, 20))
    assert (first.table.vectors.shape, second.table.vectors.shape) == ((1, 768), (2, 768))
    assert not torch.equal(first.template_feature, second.template_feature)
    again = TextState(branch, ["a dog"], image, (5, 5, 20, 20))
    assert torch.equal(first.template_text, again.template_text)
    before = branch.table(["a dog"]).vectors
    with torch.no_grad():
        branch.convert_vector.bias[0] += 1
        after = branch.table(["a dog"]).vectors
        branch.convert_vector.bias[0] -= 1
    assert after[0, 0] > 2 * before[0, 0]


def test_an_array_is_a_picture(branch):
    image = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
    found = branch.image_feature([image, Image.fromarray(image)])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_the_scale_is_one_parameter_under_two_names(branch):
    assert branch.logit_scale is branch.clip_model.logit_scale
    assert {"logit_scale", "clip_model.logit_scale"} <= branch.state_dict().keys()


def test_target_patches_are_rounded_half_to_even_and_black_outside():
    image = np.full((20, 30, 3), 9, np.uint8)
    assert target_patch(image, (2.5, 3.5, 10.0, 5.0)).size == (10, 4)  # 2..12, 4..8
    assert target_patch(image, (5.0, 5.0, 0.1, 0.1)).size == (1, 1)
    patch = np.asarray(target_patch(image, (-4, 16, 8, 8)))
    assert patch.shape == (8, 8, 3)
    assert (patch[:4, 4:] == 9).all()
    assert not patch[4:].any()
    assert not patch[:, :4].any()


def test_empty_and_overlong_bags(branch):
    with pytest.raises(ValueError, match="at least one"):
        branch.table([])
    assert branch.table(["word " * 200]).vectors.isfinite().all()
