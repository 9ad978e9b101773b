"""CLIP's features: the right layer, whoever wrote the file, and the same numbers whoever else is asking."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig as HFConfig
from transformers import CLIPModel, CLIPVisionConfig, CLIPVisionModel

from pipeline.encode.clip import (
    ARCHITECTURES,
    MEAN,
    STD,
    CLIPConfig,
    CLIPEncoder,
    build_tower,
    hidden_tokens,
    make_tower,
    prepare,
    visual_state,
)
from trackers.checkpoints import CheckpointError
from trackers.seeded import normal, seed_module

CPU = torch.device("cpu")
VISION = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}


def crops(count=5, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, 256, (*rng.integers(5, 90, 2), 3), dtype=np.uint8) for _ in range(count)
    ]


def tiny(**changes):
    return CLIPConfig.tiny().model_copy(update=changes)


@pytest.fixture(scope="module")
def encoder():
    return CLIPEncoder(tiny(patch_tokens=True))


@pytest.fixture(scope="module")
def tower():
    return make_tower(tiny(), CPU)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARROW_WEIGHTS", str(tmp_path))
    return tmp_path


# --- which hidden state --------------------------------------------------------------------------------------------


def test_the_full_architecture_is_open_clips():
    from open_clip import get_model_config

    official, ours = (
        get_model_config("ViT-L-14-336-quickgelu"),
        ARCHITECTURES["ViT-L-14-336-quickgelu"],
    )
    assert official["quick_gelu"]
    assert official["vision_cfg"] == {
        key: ours[key] for key in ("image_size", "layers", "width", "patch_size")
    }
    with torch.device("meta"):
        full = build_tower("ViT-L-14-336-quickgelu")
    # 304.29 M with the projection to 768, which is left out
    assert sum(p.numel() for p in full.parameters()) + 1024 * 768 == pytest.approx(
        304.29e6, abs=1e4
    )


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_tokens_are_those_after_a_loop_over_the_blocks(tower, layer):
    images = torch.from_numpy(normal("images", (2, 3, 56, 56)))
    with torch.inference_mode():
        x = tower._embeds(images)
        for block in tower.transformer.resblocks[: 3 + layer + 1]:
            x = block(x)
        assert torch.equal(hidden_tokens(tower, images, layer), x[:, 1:])


def test_later_blocks_are_not_executed(tower):
    def fail(*_):
        raise AssertionError("the last block ran")

    hook = tower.transformer.resblocks[2].register_forward_hook(fail)
    hidden_tokens(tower, torch.zeros(1, 3, 56, 56), -2)
    hook.remove()


def test_a_layer_that_is_not_there():
    with pytest.raises(ValueError, match="layer -4: tiny has 3 layers"):
        make_tower(tiny(layer=-4), CPU)


def test_tokens_average_to_the_feature(encoder):
    features, tokens = encoder.encode(crops()), encoder.patch_tokens(crops())
    assert (features.shape, features.dtype) == ((5, 64), np.float32)
    assert (tokens.shape, tokens.dtype) == ((5, 16, 64), np.float16)
    np.testing.assert_allclose(tokens.astype(np.float32).mean(1), features, atol=2e-3)
    assert CLIPEncoder(tiny()).patch_tokens(crops()) is None


# --- crops ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 500), (500, 1), (7, 3), (56, 56), (200, 90), (1080, 1920)]
)
def test_crops_of_any_size_are_resized_as_clip_does(shape):
    crop = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = prepare(crop, 56, CPU).numpy().transpose(1, 2, 0) * np.float32(STD) + np.float32(MEAN)
    across = Image.fromarray(crop).resize(
        (56, shape[0]), Image.Resampling.BICUBIC
    )  # Pillow 13 chooses the order itself
    expected = np.asarray(across.resize((56, 56), Image.Resampling.BICUBIC), np.float32)
    assert np.abs(found * 255 - expected).max() <= 1.01


def test_views_and_read_only_crops(encoder):
    frame = np.random.default_rng(2).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    frame.setflags(write=False)
    view = frame[10:50, 20:70]
    np.testing.assert_array_equal(encoder.encode([view]), encoder.encode([view.copy()]))


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (5, 5), (5, 5, 4)])
def test_what_is_no_crop_is_refused(encoder, shape):
    for ask in (encoder.encode, encoder.patch_tokens):
        with pytest.raises(ValueError, match=r"crop 1: expected \[h, w, 3\] RGB"):
            ask([*crops(1), np.zeros(shape, np.uint8)])


def test_no_crops(encoder):
    assert encoder.encode([]).shape == (0, 64)
    assert encoder.patch_tokens([]).shape == (0, 16, 64)


# --- many at once --------------------------------------------------------------------------------------------------


def test_a_feature_does_not_depend_on_its_neighbours(encoder):
    together = encoder.encode(crops())
    for i, crop in enumerate(crops()):
        np.testing.assert_array_equal(encoder.encode([crop])[0], together[i])


@pytest.mark.parametrize("batch", [2, 5, 8])
def test_batches_are_filled_up(batch, encoder):
    batched = CLIPEncoder(tiny(batch=batch))
    seen = []
    batched._model().conv1.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    np.testing.assert_allclose(batched.encode(crops()), encoder.encode(crops()), atol=1e-5)
    assert set(seen) == {batch}


def test_threads_share_one_model(encoder):
    many = [crops(4, seed) for seed in range(6)]
    expected = [encoder.encode(one) for one in many]
    shared_encoder = CLIPEncoder(tiny())
    with ThreadPoolExecutor(6) as pool:
        for found, one in zip(pool.map(shared_encoder.encode, many), expected, strict=True):
            np.testing.assert_array_equal(found, one)


def test_bfloat16_changes_little(encoder):
    exact, rough = encoder.encode(crops()), CLIPEncoder(tiny(dtype="bfloat16")).encode(crops())
    assert rough.dtype == np.float32
    cosine = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    assert cosine.min() > 0.999
    assert not np.array_equal(exact, rough)


# --- weights -------------------------------------------------------------------------------------------------------


def hugging_face(kind):
    if kind == "CLIPVisionModel":
        return seed_module(CLIPVisionModel(CLIPVisionConfig(**VISION)), "s0:").eval()
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    return seed_module(
        CLIPModel(HFConfig(vision_config=VISION, text_config=text, projection_dim=32)), "s0:"
    ).eval()


def vision_names(state, prefix):
    """State dict names of transformers' picture tower as the published files have them, or without the prefix."""
    return {
        f"{prefix}{name.removeprefix('vision_model.')}": tensor for name, tensor in state.items()
    }


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("layout", ["CLIPVisionModel", "CLIPVisionModel, bare", "CLIPModel"])
def test_transformers_files_give_transformers_hidden_states(weights, layout, name):
    model = hugging_face(layout.partition(",")[0])
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    if layout.startswith("CLIPVisionModel"):
        state = vision_names(state, "" if "bare" in layout else "vision_model.")
    else:
        assert {
            "logit_scale",
            "visual_projection.weight",
            "vision_model.pre_layrnorm.weight",
        } <= state.keys()
        state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(state, weights / name) if name.endswith("safetensors") else torch.save(
        state, weights / name
    )

    images = torch.from_numpy(normal("images", (2, 3, 56, 56)))
    vision = model if layout.startswith("CLIPVisionModel") else model.vision_model
    with torch.inference_mode():
        expected = vision(images, output_hidden_states=True).hidden_states
        tower = make_tower(tiny(weights=name), CPU)
        assert len(expected) == 4
        for layer in (-1, -2, -3):
            torch.testing.assert_close(
                hidden_tokens(tower, images, layer), expected[layer][:, 1:], atol=2e-5, rtol=0
            )


@pytest.mark.parametrize("layout", ["whole model", "custom text", "tower alone"])
def test_open_clip_files_load(weights, tower, layout):
    state = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    state["proj"] = torch.zeros(64, 32)
    if layout != "tower alone":
        state = {f"visual.{name}": tensor for name, tensor in state.items()} | {
            "logit_scale": torch.tensor(4.6)
        }
        text = {
            "positional_embedding": torch.zeros(77, 32),
            "text_projection": torch.zeros(32, 32),
            "token_embedding.weight": torch.zeros(50, 32),
            "ln_final.weight": torch.zeros(32),
            "transformer.resblocks.0.attn.in_proj_weight": torch.zeros(96, 32),
        }
        state |= (
            {f"text.{name}": tensor for name, tensor in text.items()}
            if layout == "custom text"
            else text
        )
    save_file(state, weights / "clip.safetensors")
    loaded = make_tower(tiny(weights="clip.safetensors"), CPU).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in tower.state_dict().items())


def test_a_whole_open_clip_model_has_no_other_names():
    import open_clip

    with torch.device("meta"):
        whole = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None, device="meta")
    found = visual_state(whole.state_dict())
    assert {n for n in found if not re_matches_tower(n)} == set()
    assert len(found) == sum(n.startswith("visual.") for n in whole.state_dict())


def re_matches_tower(name):
    tops = (
        "class_embedding",
        "positional_embedding",
        "proj",
        "conv1.weight",
        "ln_pre.",
        "ln_post.",
        "transformer.resblocks.",
    )
    return name.startswith(tops)


@pytest.mark.parametrize("damage", ["unknown", "missing", "half a matrix", "another size"])
def test_other_files_are_refused(weights, tower, damage):
    state = {f"visual.{name}": tensor.clone() for name, tensor in tower.state_dict().items()}
    if damage == "unknown":
        state["audio.conv1.weight"], expected = (
            torch.zeros(1),
            r"1 unknown[\s\S]*audio\.conv1\.weight",
        )
    elif damage == "missing":
        del state["visual.ln_pre.bias"]
        expected = r"1 missing[\s\S]*ln_pre\.bias"
    elif damage == "another size":
        state["visual.positional_embedding"], expected = (
            torch.zeros(5, 64),
            r"1 mis-shaped[\s\S]*positional_embedding",
        )
    else:
        state = vision_names(hugging_face("CLIPVisionModel").state_dict(), "vision_model.")
        del state["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
        expected = r"1 missing, 2 unknown[\s\S]*resblocks\.1\.attn\.in_proj_weight"
    save_file(state, weights / "clip.safetensors")
    with pytest.raises(CheckpointError, match=expected):
        make_tower(tiny(weights="clip.safetensors"), CPU)


def test_name_version_and_missing_weights(weights):
    assert (CLIPEncoder(tiny()).name, CLIPEncoder(tiny()).version) == ("clip-tiny", "1+seeded")
    with pytest.raises(
        CheckpointError, match=r"CLIP: .*clip-vit-large-patch14-336\.safetensors is not there"
    ):
        CLIPEncoder()
    (weights / "clip-vit-large-patch14-336.safetensors").write_bytes(b"anything")
    encoder = CLIPEncoder()
    assert (encoder.name, encoder.dim, encoder.version[:2], len(encoder.version)) == (
        "clip-vit-l-14-336",
        1024,
        "1+",
        14,
    )


def test_a_version_costs_no_torch():
    code = "import sys, pipeline.encode.clip as c; c.CLIPEncoder(c.CLIPConfig.tiny()); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
