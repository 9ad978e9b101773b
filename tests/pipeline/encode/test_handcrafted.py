"""Features: fixed length, equal for equal pictures, nearer for pictures that look alike."""

import numpy as np
import pytest

from pipeline.encode.handcrafted import HandcraftedConfig, HandcraftedEncoder

rng = np.random.default_rng(0)


def plain(colour, size=(40, 30)):
    return np.clip(np.array(colour) + rng.integers(-8, 8, (*size, 3)), 0, 255).astype(np.uint8)


def test_any_size_gives_the_same_length():
    encoder = HandcraftedEncoder()
    crops = [
        rng.integers(0, 255, (h, w, 3), np.uint8) for h, w in ((1, 1), (1, 90), (500, 3), (32, 32))
    ]
    features = encoder.encode(crops)
    assert features.shape == (4, encoder.dim)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_both_blocks_weigh_the_same():
    encoder = HandcraftedEncoder()
    [feature] = encoder.encode([rng.integers(0, 255, (50, 60, 3), np.uint8)])
    colours = int(np.prod(encoder.bins))
    assert np.sqrt(np.mean(feature[:colours] ** 2)) == pytest.approx(1, abs=1e-5)
    assert np.sqrt(np.mean(feature[colours:] ** 2)) == pytest.approx(1, abs=1e-5)


def test_a_flat_crop_has_no_gradients_and_no_nan():
    [feature] = HandcraftedEncoder().encode([np.full((20, 20, 3), 128, np.uint8)])
    assert np.isfinite(feature).all()


def test_features_fit_into_halves():
    """Shards keep float16."""
    [feature] = HandcraftedEncoder().encode([np.full((20, 20, 3), 128, np.uint8)])
    assert np.isfinite(feature.astype(np.float16)).all()


def test_alike_is_near():
    red, red_again, blue = HandcraftedEncoder().encode(
        [plain((200, 30, 30)), plain((200, 30, 30), (90, 20)), plain((20, 30, 200))]
    )
    assert np.linalg.norm(red - red_again) < np.linalg.norm(red - blue)
    edge = np.zeros((40, 40, 3), np.uint8)
    edge[:, 20:] = 255
    upright, upright_again, lying = HandcraftedEncoder().encode(
        [edge, edge[5:35, 3:37], edge.transpose(1, 0, 2)]
    )
    assert np.linalg.norm(upright - upright_again) < np.linalg.norm(upright - lying)


def test_a_crop_does_not_depend_on_its_neighbours():
    crops = [rng.integers(0, 255, (20 + i, 30, 3), np.uint8) for i in range(4)]
    encoder = HandcraftedEncoder()
    assert np.array_equal(encoder.encode(crops)[2], encoder.encode(crops[2:3])[0])


def test_a_strided_crop_is_read_right():
    frame = rng.integers(0, 255, (60, 60, 3), np.uint8)
    encoder = HandcraftedEncoder()
    assert np.array_equal(
        encoder.encode([frame[3:40, ::-1]]), encoder.encode([frame[3:40, ::-1].copy()])
    )


def test_the_length_follows_the_config():
    encoder = HandcraftedEncoder(HandcraftedConfig(hue=8, saturation=2, value=2))
    assert encoder.dim == HandcraftedEncoder().dim - 16 * 4 * 4 + 8 * 2 * 2


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (5, 5), (5, 5, 4)])
def test_what_is_no_crop_is_named(shape):
    with pytest.raises(ValueError, match="crop 0"):
        HandcraftedEncoder().encode([np.zeros(shape, np.uint8)])
