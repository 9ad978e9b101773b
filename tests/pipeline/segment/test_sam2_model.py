"""SAM2 built by us against the official package's numbers, and a stream that forgets against one that does not."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from pipeline.segment.sam2_model import (
    LazyFrames,
    Stream,
    boxes_to_masks,
    build,
    make_sam2,
    prepare,
    to_frame,
)
from schemas.geometry import rle_decode, rle_encode
from trackers.checkpoints import CheckpointError
from trackers.sam2 import read_config
from trackers.seeded import normal, seed_module

VERSIONS = {"v21": "tiny", "v20": "2.0-tiny"}
BOX = [48, 64, 128, 160]
FPN, LOGITS, VIDEO, VIDEO_F32, SCORES, PIXELS = 2e-4, 5e-4, 2e-3, 5e-4, 1e-4, 1e-3
"""The golden vectors' own tolerances (README, section 4)."""


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden/sam2/sam2.npz"), json.loads(
        (shared / "golden/sam2/sam2.json").read_text()
    )["versions"]


@pytest.fixture(scope="module")
def pictures(shared):
    """[4, 3, 256, 256]: the golden clip, already at model size."""
    sys.path.insert(0, str(shared / "golden"))
    try:
        inputs = importlib.import_module("golden_inputs")
    finally:
        sys.path.pop(0)
    clip = inputs.moving_square("sam2/video256", 4, 256, 256, 96, 80, 48, 64, 20, 12, salt="s0:")
    return torch.from_numpy(np.stack([inputs.normalised(frame) for frame in clip]))


_models: dict = {}


def model(version, *, postprocess=False):
    """Seeded video predictors, built once: two versions, official switches off or on."""
    key = version, postprocess
    if key not in _models:
        _models[key] = seed_module(
            build(VERSIONS[version], video=True, postprocess=postprocess), "s0:"
        )
    return _models[key]


def close(found, expected, tolerance):
    error = np.abs(np.asarray(found, np.float64) - expected).max()
    assert error <= tolerance, f"largest error {error:.2e}, allowed {tolerance:.0e}"


def leaves(config, prefix=""):
    for name, value in config.items():
        yield from (
            leaves(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else [(prefix + name, value)]
        )


# --- building and loading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_names_and_shapes_are_the_official_ones(version, shared):
    keys = json.loads((shared / f"golden/sam2/keys_{version}.json").read_text())
    expected = {key["name"]: tuple(key["shape"]) for key in keys}
    assert {
        name: tuple(value.shape) for name, value in model(version).state_dict().items()
    } == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_tiny_is_the_golden_architecture(version, golden):
    _, spec = golden
    ours = {
        name: value
        for name, value in leaves(read_config(VERSIONS[version]))
        if not name.endswith("_target_")
    }
    assert ours | {"fill_hole_area": 0} == dict(
        leaves(spec[f"{version[1]}.{version[2]}"]["config"])
    )


@pytest.mark.parametrize(
    ("architecture", "millions"),
    [
        ("2.1-t", 38.96),
        ("2.1-s", 46.06),
        ("2.1-b+", 80.85),
        ("2.1-l", 224.45),
        ("2.0-t", 38.95),
        ("2.0-l", 224.43),
    ],
)
def test_official_sizes(architecture, millions):
    assert sum(p.numel() for p in build(architecture).parameters()) / 1e6 == pytest.approx(
        millions, abs=0.01
    )


def test_an_official_checkpoint_loads_and_nothing_else(tmp_path, monkeypatch):
    from pipeline.segment.sam2 import SAM2Config

    monkeypatch.setenv("SPARROW_WEIGHTS", str(tmp_path))
    state = dict(model("v21").state_dict())
    config = SAM2Config.tiny().model_copy(update={"weights": "sam2.pt"})
    torch.save({"model": state}, tmp_path / "sam2.pt")
    loaded = make_sam2(config, torch.device("cpu"), video=False)
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())

    torch.save({"model": model("v20").state_dict()}, tmp_path / "sam2.pt")
    with pytest.raises(CheckpointError, match=r"3 missing[\s\S]*no_obj_embed_spatial"):
        make_sam2(config, torch.device("cpu"), video=False)


# --- pictures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_features(version, golden, pictures):
    numbers, _ = golden
    net = model(version)
    with torch.inference_mode():
        stages = net.image_encoder.trunk(pictures[:1])
        fpn = net.forward_image(pictures[:1])["backbone_fpn"]
    for i, stage in enumerate(stages):
        close(
            stage[0, ::2, ::4, ::4] if i == 0 else stage[0, ::4],
            numbers[f"{version}/stage{i}"],
            FPN,
        )
    for i, step in enumerate((4, 2, 1)):
        close(fpn[i][0, ::4, ::step, ::step], numbers[f"{version}/fpn{i}"], FPN)
    close(
        (fpn[2] + net.no_mem_embed.view(1, -1, 1, 1))[0, ::4],
        numbers[f"{version}/image_embedding_every4"],
        FPN,
    )


def sparse_tokens(net, prompt):
    """The sparse prompt tokens of a golden case, made by the package's prompt encoder, the extra token appended."""
    corners = (
        torch.tensor(BOX, dtype=torch.float32).reshape(1, 2, 2),
        torch.tensor([[2, 3]], dtype=torch.int32),
    )
    nowhere = torch.zeros(1, 1, 2), -torch.ones(1, 1, dtype=torch.int32)
    extra = torch.from_numpy(normal("sam2/extra", (1, 1, 256), "s0:"))
    encode = net.sam_prompt_encoder
    if prompt.startswith("box_pad"):
        tokens, dense = encode(points=corners, boxes=None, masks=None)
    elif prompt.startswith("box"):
        tokens, dense = encode(points=None, boxes=corners[0].reshape(1, 4), masks=None)
    elif prompt.startswith("pad_pad"):
        tokens, dense = encode(points=nowhere, boxes=None, masks=None)
    else:
        tokens, dense = encode(points=None, boxes=None, masks=None)
    return (torch.cat([tokens, extra], 1) if "extra" in prompt else tokens), dense


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_prompts(version, golden):
    numbers, _ = golden
    net = model(version)
    with torch.inference_mode():
        for prompt, name in (
            ("box", "box_corners"),
            ("box_pad", "box_as_points_with_pad"),
            ("pad_pad", "no_prompt"),
        ):
            close(sparse_tokens(net, prompt)[0], numbers[f"{version}/sparse_{name}"], 1e-5)
        close(sparse_tokens(net, "box")[1][0, :, 0, 0], numbers[f"{version}/dense_no_mask"], 1e-6)
        code = net.sam_prompt_encoder.get_dense_pe()[0]
        close(code[::8, ::4, ::4], numbers[f"{version}/dense_position_code_every8"], 1e-5)


@pytest.mark.parametrize(
    "prompt", ["box", "box_pad", "box_extra", "box_pad_extra", "extra_only", "pad_pad_extra"]
)
@pytest.mark.parametrize("version", VERSIONS)
def test_golden_masks_of_a_picture(version, prompt, golden, pictures):
    numbers, _ = golden
    net = model(version)
    with torch.inference_mode():
        *fine, top = net.forward_image(pictures[:1])["backbone_fpn"]
        sparse, dense = sparse_tokens(net, prompt)
        for multi in (False, True):
            logits, iou, tokens, score = net.sam_mask_decoder(
                top + net.no_mem_embed.view(1, -1, 1, 1),
                net.sam_prompt_encoder.get_dense_pe(),
                sparse,
                dense,
                multi,
                False,
                fine,
            )
            case = f"{version}/image/{prompt}/{'multi' if multi else 'single'}"
            close(
                logits[0, :, ::2, ::2] if multi else logits[0],
                numbers[f"{case}/low_res_logits"],
                LOGITS,
            )
            close(iou, numbers[f"{case}/iou"], SCORES)
            close(score, numbers[f"{case}/object_score"], SCORES)
            close(tokens, numbers[f"{case}/tokens"], LOGITS)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_box_per_picture_is_the_official_answer(version, golden, pictures):
    numbers, _ = golden
    boxes = torch.tensor([BOX, [150, 20, 230, 90]], dtype=torch.float32)
    with torch.inference_mode():
        logits, iou, score = boxes_to_masks(model(version), pictures[[0, 1]], boxes)
    case = f"{version}/image/box_pad/single"
    close(logits[0], numbers[f"{case}/low_res_logits"], LOGITS)
    close(iou[0], numbers[f"{case}/iou"][0], SCORES)
    close(score[0], numbers[f"{case}/object_score"][0], SCORES)


def test_postprocessing_falls_back_to_the_best_of_three(golden, pictures):
    numbers, spec = golden
    with torch.inference_mode():
        logits, iou, _ = boxes_to_masks(
            model("v21", postprocess=True), pictures[:1], torch.tensor([BOX]).float()
        )
    close(logits[0, :, ::2, ::2], numbers["v21/video/box_defaults/low_res_logits"][:, 0], LOGITS)
    assert float(iou[0]) == pytest.approx(
        spec["2.1"]["video_cases"]["box_defaults"]["predicted_ious"][0][0], abs=SCORES
    )


def test_pictures_are_prepared_as_by_the_package():
    from sam2.utils.transforms import SAM2Transforms

    frame = np.random.default_rng(0).integers(0, 256, (90, 161, 3), dtype=np.uint8)
    close(prepare(frame, 64, torch.device("cpu")), SAM2Transforms(64, 0.0)(frame).numpy(), 1e-6)


def test_masks_leave_at_the_size_of_the_frame():
    logits = torch.from_numpy(normal("logits", (16, 16)))
    mask = to_frame(logits, 40, 70)
    assert mask.flags.f_contiguous
    assert mask.dtype == np.uint8
    large = interpolate(logits[None, None], (40, 70), mode="bilinear")[0, 0].numpy()
    assert (rle_decode(rle_encode(mask)) == (large > 0)).all()


# --- clips ---------------------------------------------------------------------------------------------------------

CASES = [
    "box",
    "box_extra",
    "two_objects",
    "box_f32memory",
    "box_extra_f32memory",
    "box_defaults",
    "box_extra_defaults",
    "box_defaults_f32memory",
    "box_extra_defaults_f32memory",
    "absent_f32memory",
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", VERSIONS)
def test_golden_clip(version, case, golden, pictures, monkeypatch):
    numbers, spec = golden
    net = model(version, postprocess="defaults" in case)
    if case.endswith("f32memory"):
        monkeypatch.setattr(
            torch, "bfloat16", torch.float32
        )  # the package rounds memories to torch.bfloat16
    if case.startswith("absent"):
        monkeypatch.setattr(
            net.sam_mask_decoder.pred_obj_score_head.layers[2].bias, "data", torch.tensor([-8.0])
        )
    frames = [
        follow(net, pictures, box, extra="extra" in case)
        for box in spec[f"{version[1]}.{version[2]}"]["video_cases"][case]["boxes"]
    ]
    found = {
        name: np.stack([[f[name] for f in per_object] for per_object in frames])
        for name in frames[0][0]
    }
    name = f"{version}/video/{case}"
    tolerance = VIDEO_F32 if case.endswith("f32memory") else VIDEO

    close(
        found["logits"].swapaxes(0, 1)[..., ::4, ::4],
        numbers[f"{name}/mask_logits_every4"],
        tolerance,
    )
    close(found["low_res"][..., ::2, ::2], numbers[f"{name}/low_res_logits"], tolerance)
    close(found["score"], numbers[f"{name}/object_scores"], SCORES)
    close(found["pointer"], numbers[f"{name}/object_pointers"], tolerance)
    for t in (0, 1):
        expected = numbers[f"{name}/memory_frame{t}_every4"].astype(np.float64)
        # bfloat16 memories may be one rounding step apart: another number of threads, another last digit before it
        step = np.exp2(np.floor(np.log2(np.abs(expected) + 1e-9)) - 7) * (
            not case.endswith("f32memory")
        )
        assert (np.abs(found["memory"][0, t, ::4] - expected) <= tolerance + step).all()
    masks = (
        np.unpackbits(numbers[f"{name}/masks_packed"])[: found["logits"].size]
        .reshape(4, -1, 256, 256)
        .astype(bool)
    )
    assert (masks != (found["logits"].swapaxes(0, 1) > 0)).mean() <= PIXELS
    for t, ious in enumerate(
        spec[f"{version[1]}.{version[2]}"]["video_cases"][case]["predicted_ious"][:: len(frames)]
    ):
        assert found["iou"][0, t] == pytest.approx(max(ious), abs=SCORES)


def follow(net, pictures, box, *, extra=False):
    """What our stream yields per frame, and what its state holds then."""
    stream = Stream(net, pictures, 256, 256)
    token = torch.from_numpy(normal("sam2/extra", (1, 1, 256), "s0:"))
    hook = net.sam_prompt_encoder.register_forward_hook(
        lambda _m, _i, output: (torch.cat([output[0], token], 1), output[1]) if extra else output
    )
    stream.prompt(0, np.asarray(box, np.float32))
    hook.remove()
    frames = []
    for t, logits, iou, score in stream.follow(0, 0, len(pictures) - 1):
        entry = stream._entry(t)
        frames.append(
            {
                "logits": logits,
                "iou": iou,
                "score": score,
                "low_res": entry["pred_masks"][0, 0].clone(),
                "pointer": entry["obj_ptr"][0],
                "memory": entry["maskmem_features"][0].float(),
            }
        )
    return frames


def long_clip(frames=60, side=96):
    rng = np.random.default_rng(3)
    ground = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
    clip = np.repeat(ground[None], frames, 0)
    for t in range(frames):
        clip[t, 20:50, t // 2 : t // 2 + 30] = (220, 30, t * 4)
    return clip, [np.asarray([t // 2, 20, t // 2 + 30, 50], np.float32) for t in range(frames)]


def test_a_stream_that_forgets_equals_one_that_does_not(monkeypatch):
    """Sixty frames with three prompts, from the middle both ways: the package's own state, loader and loops against
    ours, which holds no more at the end than after the first few frames."""
    predictor, (clip, boxes) = model("v21", postprocess=True), long_clip()
    prompts, start = (10, 24, 50), 24
    everything = torch.stack(list(LazyFrames(clip, 256, torch.device("cpu"))))
    monkeypatch.setattr(
        "sam2.sam2_video_predictor.load_video_frames", lambda **_: (everything, *clip.shape[1:3])
    )
    state = predictor.init_state("a clip")
    for t in prompts:
        predictor.add_new_points_or_box(state, t, 1, box=boxes[t])
    expected = {
        t: masks[0, 0].numpy() for t, _, masks in predictor.propagate_in_video(state, start)
    }
    expected |= {
        t: masks[0, 0].numpy()
        for t, _, masks in predictor.propagate_in_video(state, start, reverse=True)
    }

    stream, kept, order = (
        Stream(predictor, LazyFrames(clip, 256, torch.device("cpu")), *clip.shape[1:3]),
        [],
        [],
    )
    for t in prompts:
        stream.prompt(t, boxes[t])
    for t, logits, _, _ in stream.follow(start, 0, 59):
        assert (logits.numpy() == expected[t]).all()
        kept.append(stream.kept)
        order.append(t)
    assert order == [*range(24, 60), *range(23, -1, -1)]
    assert (
        len(state["output_dict_per_obj"][0]["non_cond_frame_outputs"]) == 57
    )  # what the package keeps
    # two directions' 6 memories and 15 pointers, three prompts, and the frame at hand
    assert max(k["memories"] for k in kept) <= 2 * 6 + 3 + 1
    assert max(k["pointers"] for k in kept) <= 2 * 15 + 3 + 1
    assert max(k["masks"] for k in kept) <= 3 + 1
    assert max(k["notes"] for k in kept) <= 1
    assert {k["pictures"] for k in kept} == {1}
    assert [k["memories"] for k in kept[20:26]] == [kept[20]["memories"]] * 6


def test_a_stream_starts_at_a_prompt():
    clip, boxes = long_clip(3)
    stream = Stream(model("v21"), LazyFrames(clip, 256, torch.device("cpu")), *clip.shape[1:3])
    stream.prompt(1, boxes[1])
    with pytest.raises(ValueError, match="prompted \\[1\\]"):
        next(stream.follow(0, 0, 2))
    assert [t for t, *_ in stream.follow(1, 0, 1)] == [1, 0]
