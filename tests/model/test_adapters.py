"""The [BOX] adapter: the shape of the hosts' own heads, and blind to the scale of a host's states."""

import pytest
import torch

from model.adapters import BoxAdapter


@pytest.mark.parametrize(
    ("width", "count"), [(2048, 4_720_896), (3072, 10_226_944), (4096, 17_830_144)]
)
def test_as_large_as_a_host_s_segmentation_head(width, count):
    with torch.device("meta"):
        plain, normed = BoxAdapter(width, norm=False), BoxAdapter(width)
    assert sum(p.numel() for p in plain.parameters()) == count
    assert sum(p.numel() for p in normed.parameters()) == count + width
    assert plain(torch.empty(3, width, device="meta")).shape == (3, 256)


def test_states_from_before_and_after_the_final_norm_fit_alike():
    torch.manual_seed(0)
    states = torch.randn(5, 64)
    normed, plain = BoxAdapter(64), BoxAdapter(64, norm=False)
    torch.testing.assert_close(normed(30 * states), normed(states), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain(30 * states), plain(states), atol=0.1)


def test_trains_in_bfloat16_and_under_autocast():
    states = torch.randn(2, 32)
    for adapter, given in (
        (BoxAdapter(32).bfloat16(), states.bfloat16()),
        (BoxAdapter(32), states),
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=given.dtype == torch.float32):
            adapter(given).float().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.parameters())


def test_refuses_another_width():
    with pytest.raises(ValueError, match=r"\[N, 32\], got \[2, 33\]"):
        BoxAdapter(32)(torch.zeros(2, 33))
    with pytest.raises(ValueError, match="got"):
        BoxAdapter(32)(torch.zeros(1, 2, 32))
