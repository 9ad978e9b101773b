"""Name-seeded weights: the golden vectors' rules, to the bit."""

import json
import sys
import zlib

import numpy as np
import pytest
import torch
from torch import nn

from trackers.seeded import normal, seed_module, seeded


@pytest.fixture(scope="module")
def golden(shared):
    sys.path.insert(0, str(shared / "golden"))
    return shared / "golden"


def test_checksums_of_tracker_weights(golden):
    tensors = json.loads((golden / "cldtracker/weights_check.json").read_text())["tensors"]
    assert len(tensors) >= 10
    for name, check in tensors.items():
        values = seeded(name, tuple(check["shape"]), "s0:", extra=False)
        assert values.dtype == np.float32
        assert zlib.crc32(np.ascontiguousarray(values).tobytes()) == check["crc32"], name


NAMES = [
    ("backbone.pos_embed_z", (1, 9, 8)),
    ("backbone.pos_embed", (1, 9, 8)),
    ("backbone.norm.bias", (8,)),
    ("backbone.norm.weight", (8,)),
    ("box_head.conv3_size.0.weight", (4, 8, 3, 3)),
    ("box_head.conv5_size.bias", (2,)),
    ("box_head.conv1_ctr.1.running_var", (8,)),
    ("box_head.conv1_ctr.1.running_mean", (8,)),
    ("a.logit_scale", ()),
    ("visual.proj", (8, 4)),
    ("text_projection", (4, 4)),
    ("token_embedding.weight", (9, 4)),
    ("cls_token", (1, 1, 8)),
    ("transformer.level_embed", (4, 8)),
    ("x.sampling_offsets.bias", (8,)),
    ("x.bbox_embed.3.layers.2.weight", (4, 8)),
    ("image.maskmem_tpos_enc", (7, 1, 1, 8)),
    ("trunk.blocks.0.ls1.gamma", (8,)),
    ("gamma_v", (8,)),
    ("pred_obj_score_head.layers.2.bias", (1,)),
    ("lm.embed_tokens.weight", (9, 8)),
    ("x.mask_tokens.weight", (4, 8)),
]


@pytest.mark.parametrize("salt", ["s0:", "another:"])
def test_both_sets_of_rules(golden, salt):
    import golden_weights
    import golden_weights_hosts

    for name, shape in NAMES:
        for extra, source in ((False, golden_weights), (True, golden_weights_hosts)):
            wanted = source.fill(name, shape, salt=salt)
            np.testing.assert_array_equal(
                seeded(name, shape, salt, extra=extra), wanted, err_msg=f"{name} {extra}"
            )


def test_values_depend_on_name_and_salt_only():
    np.testing.assert_array_equal(normal("a", (2, 3)), normal("a", (2, 3)))
    np.testing.assert_array_equal(normal("a", (2, 3)).ravel(), normal("a", (6,)))
    assert (normal("a", (6,)) != normal("b", (6,))).all()
    assert (normal("a", (6,)) != normal("a", (6,), "s1:")).all()


def test_a_module_is_filled_in_place():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 4)
            self.again = self.first
            self.norm = nn.BatchNorm2d(4)
            self.register_buffer("table", torch.arange(5))

    net = seed_module(Net(), "x:")
    np.testing.assert_array_equal(net.first.weight.detach(), seeded("first.weight", (4, 3), "x:"))
    np.testing.assert_array_equal(net.norm.running_var, seeded("norm.running_var", (4,), "x:"))
    assert net.again.weight is net.first.weight  # shared: the values of the first name
    assert net.table.tolist() == list(range(5))
    assert net.first.weight.requires_grad


def test_a_single_number_is_seeded_too():
    module = nn.Module()
    module.gamma = nn.Parameter(torch.zeros(()))
    assert seed_module(module).gamma.item() == pytest.approx(float(seeded("gamma", ())))
    assert module.gamma.item() != 0
