"""Boxes, masks, crops and the mask model's squashed pictures speak of the same place, on frames of any shape."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model.hosts.clip import centre_crops
from model.instances import box_of
from model.sam import Prompt, build_sam, prepare, to_frame
from model.tsf import crop_boxes

SHAPES = [(90, 160), (160, 90), (96, 96), (61, 203)]


def planted(height, width, box):
    """A green rectangle on black; box in pixels."""
    frame = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    frame[y1:y2, x1:x2] = (0, 255, 0)
    return frame


@st.composite
def boxes(draw):
    height, width = draw(st.sampled_from(SHAPES))
    x1, y1 = draw(st.integers(0, width - 9)), draw(st.integers(0, height - 9))
    return (
        height,
        width,
        (x1, y1, draw(st.integers(x1 + 8, width)), draw(st.integers(y1 + 8, height))),
    )


@given(boxes())
@settings(max_examples=60, deadline=None)
def test_box_to_squashed_picture_to_mask_to_box(case):
    height, width, box = case
    assume(box != (0, 0, width, height))  # a picture of one colour has no edge to find
    share = torch.tensor(box) / torch.tensor([width, height, width, height])
    green = prepare(planted(height, width, box)[None], 512)[0, 1]
    logits = (green - (green.min() + green.max()) / 2)[None, None]
    inside = box_of(logits[0, 0] > 0)
    assert (inside - share).abs().max() <= 1.0 / min(height, width)
    mask = to_frame(logits, height, width)[0]
    back = box_of(mask) * torch.tensor([width, height, width, height])
    assert (back - torch.tensor(box)).abs().max() <= 1.0
    crop = crop_boxes([planted(height, width, box)], share[None].numpy())[0]
    assert crop.shape[:2] == (box[3] - box[1], box[2] - box[0])
    assert (crop == (0, 255, 0)).all()


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_a_box_prompt_points_where_the_box_is(height, width):
    """The corner tokens of a box equal those of the same place in pixels of the squashed picture."""
    net = build_sam("tiny", postprocess=False)
    pixels = torch.tensor([[10.0, 20.0, 50.0, 45.0]])
    share = pixels / torch.tensor([width, height, width, height])
    squashed = pixels * torch.tensor([256 / width, 256 / height] * 2)
    labels = torch.tensor([[2, 3]])
    points, _ = net.sam_prompt_encoder(
        points=(squashed.reshape(1, 2, 2), labels), boxes=None, masks=None
    )
    torch.testing.assert_close(
        net.sparse(Prompt(None, share, pads=1)), points, atol=1e-5, rtol=1e-5
    )


def test_clip_sees_the_middle_square_only():
    """What the margins hide is why crops are cut from raw frames."""
    frame = planted(90, 160, (0, 0, 30, 90))
    assert centre_crops(frame[None], 56)[0, 1].std() < 1e-5
    assert centre_crops(planted(90, 160, (60, 0, 100, 90))[None], 56)[0, 1].std() > 0.1
