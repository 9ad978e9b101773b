"""UniPixel against the official model's numbers (README_hosts.md, section 5.3), and the tiny host's behaviour."""

import copy
import importlib
import json
import sys
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from model.hosts import build
from model.hosts.base import BOX_TOKEN, IGNORE, IMAGE, TSF, select
from model.hosts.unipixel import UniPixel, UniPixelConfig, mrope, patchify, sample_frames
from model.hosts.unipixel_reference import Pointed, region_cells, region_tokens, window_order
from model.sam import to_frame
from trackers.seeded import seeded

MERGED, HIDDEN, LOGITS, VIDEO, PIXELS = 2e-5, 1e-4, 5e-4, 1e-3, 1e-3
"""The golden vectors' own tolerances (README_hosts.md, section 5)."""
CONFIG = UniPixelConfig(
    vocab=128,
    llm_dim=64,
    llm_layers=3,
    llm_heads=4,
    llm_kv_heads=2,
    llm_mlp=128,
    rope_section=(2, 3, 3),
    max_len=4096,
    vit_dim=32,
    vit_layers=4,
    vit_heads=4,
    vit_mlp=64,
    vit_window=56,
    vit_full=(1, 3),
    sam="2.1-tiny",
    sam_size=256,
)


def our_name(official: str) -> str:
    prefixes = {"model.": "llm.model.", "lm_head.": "llm.lm_head.", "sam2.": "sam."}
    for theirs, ours in prefixes.items():
        if official.startswith(theirs):
            official = ours + official.removeprefix(theirs)
            break
    fuser = official.startswith("sam.memory_encoder.fuser.layers.") and official.count(".") == 5
    return (
        official.removesuffix("weight") + "gamma"
        if fuser and official.endswith(".weight")
        else official
    )


class Golden:
    """The reference's numbers, and runs of our host on the same inputs."""

    def __init__(self, shared):
        folder = shared / "golden/hosts/unipixel"
        self.values = np.load(folder / "unipixel.npz")
        self.meta = json.loads((folder / "unipixel.json").read_text())
        self.keys = {k["name"]: k for k in json.loads((folder / "keys.json").read_text())}
        sys.path.insert(0, str(shared / "golden"))
        try:
            self.inputs = importlib.import_module("golden_inputs")
        finally:
            sys.path.pop(0)
        self.host = UniPixel(CONFIG).eval()
        state = {
            our_name(n): seeded(k.get("alias_of") or n, tuple(k["shape"]))
            for n, k in self.keys.items()
        }
        assert {n: tuple(t.shape) for n, t in self.host.state_dict().items()} == {
            n: v.shape for n, v in state.items()
        }
        self.host.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
        words = {f"<|{word}|>": self.meta["tokens"][word] for word in ("seg", "ref", "mem")}
        self.host.tokenizer = SimpleNamespace(
            convert_tokens_to_ids=words.get, unk_token_id=None, pad_token_id=None, eos_token_id=2
        )
        patches = torch.from_numpy(
            self.inputs.gaussian("hosts/unipixel/pixel_values", (240, 1176), "s0:")
        )
        self.pixels = {"patches": patches, "grid": torch.tensor([self.meta["video_grid_thw"]])}

    def pack(self, case):
        video = self.meta["tokens"]["video_token_id"]
        ids = self.meta["cases"][case]["input_ids"]
        ids = [
            IMAGE if one == video else one
            for i, one in enumerate(ids)
            if one != video or ids[i - 1] != video
        ]
        return self.host.pack([ids], [self.pixels])

    def check(self, ours, name, tolerance):
        theirs = self.values[name]
        assert tuple(ours.shape) == theirs.shape
        np.testing.assert_allclose(
            ours.detach().numpy(), theirs, rtol=0, atol=tolerance, err_msg=name
        )

    def check_language(self, packed, case):
        self.check(packed.embeds_bld[0], f"{case}/merged", MERGED)
        np.testing.assert_array_equal(
            packed.positions[:, 0].numpy(), self.values[f"{case}/position_ids"]
        )
        logits, hidden, _ = self.host.lm(packed)
        self.check(hidden[0], f"{case}/hidden_pre_norm", HIDDEN)
        self.check(self.host.final_norm(hidden)[0], f"{case}/hidden_post_norm", HIDDEN)
        self.check(logits[0, -8:], f"{case}/logits_last8", LOGITS)
        return hidden[0]

    def regions(self):
        """[objects, t, h / 2, w / 2]"""
        cells = torch.zeros(self.meta["references"]["mask_grid_shape"], dtype=torch.bool)
        cells[tuple(torch.tensor(self.meta["references"]["mask_grid_true_t_obj_h_w"]).T)] = True
        return cells.transpose(0, 1)

    def pointed(self):
        said = self.meta["references"]
        places = [[x / 256 for xy in points[0] for x in xy] for points in said["point_coords"]]
        return [
            Pointed(frame, tuple(xy))
            for (frame,), xy in zip(said["point_frames"], places, strict=True)
        ]


@pytest.fixture(scope="module")
def golden(shared):
    with torch.no_grad():
        return Golden(shared)


@pytest.fixture(scope="module")
def host():
    torch.manual_seed(0)
    return build("unipixel", "tiny", device="cpu")


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(0).integers(0, 256, (6, 72, 100, 3), dtype=np.uint8)


# --- the reference's numbers ---


def test_weights_are_the_reference_ones(golden):
    for name, crc in golden.meta["weights_check"].items():
        assert zlib.crc32(seeded(name, tuple(golden.keys[name]["shape"])).tobytes()) == crc, name


@torch.no_grad()
def test_tower_equals_the_reference(golden):
    blocks = golden.host.visual.blocks
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in blocks]
    tokens = golden.host.visual_tokens(golden.pixels)[0]
    for hook in hooks:
        hook.remove()
    for i, out in enumerate(seen):
        golden.check(out[::5], f"vision/block{i}_every5", HIDDEN)
    golden.check(tokens, "vision/merger_output", HIDDEN)
    rows = golden.host.visual.merger.ln_q(seen[-1]).reshape(60, -1)
    golden.check(rows, "vision/pre_merger_mlp_window_order", HIDDEN)
    raster = golden.host.visual.merger.mlp(rows)[window_order(golden.pixels["grid"], 2).argsort()]
    golden.check(raster, "vision/merger_output", HIDDEN)


@torch.no_grad()
def test_language_and_masks_equal_the_reference(golden):
    packed = golden.pack("two_objects")
    hidden = golden.check_language(packed, "two_objects")
    states = select(hidden, packed.ids_bl[0], golden.host.seg_id)
    prompt = golden.host.prompt(states, None)
    golden.check(prompt.vectors_nk256, "two_objects/seg_vectors", HIDDEN)
    golden.check(golden.host.sam.sparse(prompt)[:1], "two_objects/sparse_first_call", HIDDEN)

    square = golden.inputs.moving_square(
        "hosts/unipixel/sam", 6, 256, 256, 96, 80, 48, 64, 14, 8, salt="s0:"
    )
    assert zlib.crc32(square.tobytes()) == golden.meta["sam_crc32"]
    maps = golden.host.sam.features(
        torch.from_numpy(np.stack([golden.inputs.normalised(frame) for frame in square]))
    )
    steps = list(golden.host.propagate(lambda t: maps.rows([t]), 6, {0: ([0, 1], prompt)}))
    assert [(t, names) for t, names, _ in steps] == [(t, [0, 1]) for t in range(6)]
    low = torch.stack([out.logits_n1hw[:, 0] for _, _, out in steps], 1)
    golden.check(low[:, 0], "two_objects/low_res_logits_frame0", LOGITS)
    golden.check(low[:, :, ::2, ::2], "two_objects/low_res_logits_every2", VIDEO)
    golden.check(
        torch.stack([out.object_score_n for _, _, out in steps], 1),
        "two_objects/object_scores",
        HIDDEN,
    )
    np.testing.assert_allclose(
        torch.stack([out.ious_nm for _, _, out in steps], 1),
        golden.meta["cases"]["two_objects"]["predicted_iou"],
        rtol=0,
        atol=HIDDEN,
    )
    sized = interpolate(low, (120, 160), mode="bilinear")
    golden.check(sized[:, :, ::2, ::2], "two_objects/mask_logits_every2", VIDEO)
    masks = torch.stack([to_frame(one[:, None], 120, 160) for one in low])
    theirs = np.unpackbits(golden.values["two_objects/masks_packed"])[: masks.numel()].reshape(
        masks.shape
    )
    assert (masks.numpy() != theirs).mean() <= PIXELS


@torch.no_grad()
def test_points_boxes_and_regions_equal_the_reference(golden):
    packed = golden.host.refer(
        golden.pack("references"),
        golden.pixels,
        pointed=golden.pointed(),
        regions_otyx=golden.regions(),
    )
    at = packed.ids_bl[0]
    golden.check(packed.embeds_bld[0, at == 111], "references/ref_embeddings", MERGED)
    golden.check(packed.embeds_bld[0, at == 112], "references/mem_embeddings", MERGED)
    golden.check_language(packed, "references")


@torch.no_grad()
def test_regions_in_raster_order_are_the_cells_under_the_mask(golden):
    """The reference's rows are another place's; `region_order="raster"` picks the right ones."""
    rows = torch.from_numpy(golden.values["vision/pre_merger_mlp_window_order"])
    right = rows[window_order(golden.pixels["grid"], 2).argsort()].reshape(3, 4, 5, -1)
    regions = golden.regions()
    means = [
        right[t][regions[o, t]].mean(0) for o in range(2) for t in range(3) if regions[o, t].any()
    ]
    mended = copy.copy(golden.host)
    mended.config = CONFIG.model_copy(update={"region_order": "raster"})
    patches = golden.host.visual(
        golden.pixels["patches"], grid_thw=golden.pixels["grid"]
    ).last_hidden_state
    ours = region_tokens(mended, patches, golden.pixels["grid"], regions)
    assert ours.allclose(golden.host.msk_proj(torch.stack(means)), atol=HIDDEN)
    released = region_tokens(golden.host, patches, golden.pixels["grid"], regions)
    assert (ours - released).abs().max() > 0.01


@torch.no_grad()
def test_the_frame_rate_is_not_looked_at(golden):
    """The reference always says one second per frame pair, and collapses time for anything less."""
    ours, theirs = (
        golden.pack("half_rate").positions[:, 0].numpy(),
        golden.values["half_rate/position_ids"],
    )
    np.testing.assert_array_equal(ours[1:], theirs[1:])
    np.testing.assert_array_equal(
        ours[0, 5:65].reshape(3, 20), 5 + np.repeat([[0], [2], [4]], 20, 1)
    )
    assert set(theirs[0, 5:65]) == {5}


# --- full size ---


@pytest.fixture(scope="module")
def full() -> Any:
    return build("unipixel", "full", device="meta")


def test_full_size_has_the_official_parameters(full):
    sizes = {
        name: sum(p.numel() for p in full.get_submodule(name).parameters())
        for name, _ in full.named_children()
    }
    sizes["visual"] = sum(p.numel() for p in full.visual.parameters())
    sizes["language"] = sizes.pop("llm") - sizes["visual"]
    sizes["references"] = sum(
        sizes.pop(name) for name in list(sizes) if name.startswith(("ref_", "tem_"))
    )
    assert sizes == {
        "language": 3_085_938_688,
        "visual": 668_684_288,
        "sam": 80_850_178,
        "msk_proj": 36_707_328,
        "seg_head": 5_247_488,
        "references": 4_336_204,
    }
    assert (
        sum(p.numel() for p in full.parameters()) == 3_881_764_174
    )  # 3,881,764,814 with three position codes
    assert full.llm.lm_head.weight is full.token_embeddings().weight


def test_full_size_names_are_the_official_ones(full, shared):
    listed = json.loads((shared / "golden/keys/unipixel_3b.json").read_text())["tensors"]
    official = {our_name(k["in_memory_name"]): tuple(k["shape"]) for k in listed}
    assert {name: tuple(t.shape) for name, t in full.state_dict().items()} == official


def test_full_size_needs_a_checkpoints_tokenizer(full):
    with pytest.raises(ValueError, match="no tokenizer"):
        full.conversation("Where?")


# --- eyes ---


@pytest.fixture(scope="module")
def eyes():
    """The full size's preprocessing."""
    full = UniPixelConfig()
    return build("unipixel", "tiny", min_tokens=full.min_tokens, max_tokens=full.max_tokens)


@pytest.mark.parametrize(
    ("frames", "height", "width", "grid"),
    [
        (60, 480, 854, (8, 22, 42)),  # DAVIS: 308 x 588
        (60, 720, 1280, (8, 24, 42)),  # 336 x 588
        (9, 720, 1280, (5, 24, 42)),
        (8, 720, 1280, (4, 32, 60)),  # half the frames, twice the tokens
        (1, 480, 854, (1, 34, 60)),  # a picture at its own size
        (60, 120, 160, (8, 20, 28)),  # small frames grow to 128 cells
    ],
)
def test_frames_are_sized_as_the_reference_sizes_them(eyes, frames, height, width, grid):
    inputs = eyes.prepare(np.zeros((frames, height, width, 3), np.uint8))
    assert tuple(inputs["grid"][0].tolist()) == grid
    assert inputs["patches"].shape == (np.prod(grid), 1176)


@pytest.mark.parametrize("total", [1, 2, 15, 16, 17, 24, 31, 47, 66, 200, 1001])
def test_frames_are_even_with_both_ends(total):
    chosen = sample_frames(total, 16)
    step = (total - 1) / 15
    expected = (
        np.arange(0, total, step)[:16].round() if total > 16 else np.arange(total)
    )  # the reference's line
    np.testing.assert_array_equal(chosen, expected)


def test_patches_are_laid_out_as_qwens_processor_does():
    from transformers import Qwen2VLVideoProcessor

    frames = np.random.default_rng(1).integers(0, 256, (3, 56, 84, 3), dtype=np.uint8)
    even = np.concatenate([frames, frames[-1:]])
    theirs = Qwen2VLVideoProcessor(do_resize=False, do_sample_frames=False)(
        [torch.from_numpy(even).permute(0, 3, 1, 2)], return_tensors="pt"
    )
    ours = patchify(frames)
    assert ours["grid"].tolist() == theirs["video_grid_thw"].tolist() == [[2, 4, 6]]
    assert ours["patches"].allclose(theirs["pixel_values_videos"], atol=1e-5)


def test_wrong_shapes_are_refused(host, clip):
    with pytest.raises(ValueError, match=r"\[T, H, W, 3\] uint8"):
        host.prepare(clip[0])
    with pytest.raises(ValueError, match="1176"):
        host.visual_tokens({"patches": torch.zeros(12, 1176), "grid": torch.tensor([[1, 4, 4]])})
    with pytest.raises(ValueError, match="fours"):
        host.project_spatial(torch.zeros(2, 6, 32))


@torch.no_grad()
def test_crops_of_any_size_become_patches_and_merge_into_tokens(host, clip):
    crops = [clip[0, :30, :80], clip[1, 10:60, 5:17]]
    patches = host.crop_features(crops)
    assert patches.shape == (2, 16, 32)
    assert host.crop_features([]).shape == (0, 16, 32)
    assert host.crop_features(crops[1:]).allclose(
        patches[1:], atol=1e-5
    )  # a crop does not see its neighbours
    tokens = host.project_spatial(patches)
    assert tokens.shape == (2, 4, 64)
    assert host.project_spatial(patches.mean(1, keepdim=True)).shape == (2, 1, 64)
    stretched = patchify(np.array([[[[7, 8, 9]]]], np.uint8).repeat(56, 1).repeat(56, 2))
    flat = host.crop_features([np.array([[[7, 8, 9]]], np.uint8)])
    assert (
        host.project_spatial(flat)[0]
        .mean(0)
        .allclose(host.visual_tokens(stretched)[0].mean(0), atol=1e-5)
    )


# --- words and positions ---


def test_phrases_are_put_as_the_evaluation_script_puts_them(host):
    assert host.question("The man in Red.") == "Please segment the man in Red in this video."
    assert host.question("another dog") == "Please segment the another dog in this video."


def test_conversation_is_chatml_with_the_slots_in_place(host):
    ids, begin = host.conversation("Where is it?", "Here: <|seg|>.", tsf=4)
    places = [i for i, token in enumerate(ids) if token < 0]
    assert [ids[i] for i in places] == [IMAGE] + [TSF] * 4
    assert host.tokenizer.decode(ids[: places[0]]) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    )
    assert host.tokenizer.decode(ids[places[0] + 1 : places[1]]) == "<|vision_end|>Where is it?\n"
    assert (
        host.tokenizer.decode(ids[places[-1] + 1 : begin]) == "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert host.tokenizer.decode(ids[begin:]) == "Here: <|seg|>.<|im_end|>"
    assert host.conversation("Where is it?", tsf=4) == (ids[:begin], begin)
    assert ids.count(host.seg_id) == 1


def test_positions_equal_transformers_where_rows_outnumber_time(host):
    grid = torch.tensor([[2, 8, 12]])
    ids = torch.tensor([1, 2, *[IMAGE] * 48, 3, TSF, TSF, 4])
    theirs, _ = host.llm.model.get_rope_index(
        ids[None], (ids == IMAGE)[None].int() * 2, video_grid_thw=grid
    )
    assert mrope(ids, grid).equal(theirs[:, 0])


def test_text_goes_on_after_the_video_in_time_too():
    """Eight frame pairs of 2 x 2 cells last until 2 + 14; the reference's next position is one more."""
    ids = torch.tensor([1, 2, *[IMAGE] * 32, 3, 4])
    positions = mrope(ids, torch.tensor([[8, 4, 4]]))
    assert positions[:, -2:].tolist() == [[17, 18]] * 3
    assert positions[0, 2:34].tolist() == [2 + 2 * t for t in range(8) for _ in range(4)]
    assert positions[1:, 2:6].tolist() == [[2, 2, 3, 3], [2, 3, 2, 3]]


# --- the tiny host ---


def test_counts_labels_and_slots_of_a_packed_batch(host, clip):
    inputs = [host.prepare(clip), host.prepare(clip[:3])]
    said = [
        host.conversation("What moves?", "<|seg|>", tsf=2),
        host.conversation("And what not?", "No, <|seg|>."),
    ]
    tsf = torch.randn(2, 64)
    packed = host.pack(
        [s[0] for s in said], inputs, tsf=[tsf, None], answer_begins=[s[1] for s in said]
    )
    assert [tuple(one["grid"][0].tolist()) for one in inputs] == [(3, 6, 8), (2, 6, 8)]
    assert (packed.ids_bl == IMAGE).sum(1).tolist() == [36, 24]
    assert packed.embeds_bld[0][packed.ids_bl[0] == TSF].equal(tsf)
    for row, (ids, begin) in enumerate(said):
        kept = packed.labels_bl[row] != IGNORE
        assert packed.labels_bl[row][kept].tolist() == ids[begin:]
        assert packed.positions[:, row, ~packed.attention_bl[row]].sum() == 0
        assert packed.positions[0, row].max() == packed.positions[2, row].max()
    with torch.no_grad():  # a sample is the same alone and in a batch
        alone = host.pack([said[0][0]], inputs[:1], tsf=[tsf])
        both, one = host.lm(packed)[1][0, : len(alone)], host.lm(alone)[1][0]
    assert both.allclose(one, atol=1e-5)
    with pytest.raises(ValueError, match="1 visual slots, but 0"):
        host._fill(said[1][0], [], None, None)


@torch.no_grad()
def test_generated_and_teacher_forced_states_are_equal(host, clip):
    """The key-value cache, and M-RoPE positions of new tokens, against one pass over everything."""
    inputs = host.prepare(clip)
    ids, _ = host.conversation("What moves?")
    said = host.generate(host.pack([ids], [inputs]), max_new_tokens=6, stop=[])
    forced = host.pack([ids + said.answer], [inputs])
    assert len(said.answer) == 6
    assert said.ids_l.equal(forced.ids_bl[0])
    _, hidden, _ = host.lm(forced)
    assert said.hidden_ld.allclose(hidden[0, :-1], atol=1e-5)
    assert len(said.hidden_ld) == len(said.ids_l) - 1


@torch.no_grad()
def test_generation_ends_with_the_turn(host, clip):
    end = host.token_id("<|im_end|>")

    class Ends(torch.nn.Module):
        def forward(self, hidden):
            return torch.nn.functional.one_hot(torch.full(hidden.shape[:2], end), 320).float()

    head, host.llm.lm_head = host.llm.lm_head, Ends()
    try:
        ids, _ = host.conversation("What moves?")
        assert host.generate(host.pack([ids], [host.prepare(clip)]), 20).answer == [end]
    finally:
        host.llm.lm_head = head


def test_gradients_reach_projector_language_model_and_head(clip):
    torch.manual_seed(0)
    host: Any = build("unipixel", "tiny", device="cpu").train()
    torch.nn.init.constant_(
        host.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 5
    )  # masks of the absent: none
    ids, begin = host.conversation(host.question("dog"), host.answer.format(seg="<|seg|>"), tsf=2)
    tsf = host.project_spatial(host.crop_features([clip[0], clip[1]])).mean(1)
    packed = host.pack([ids], [host.prepare(clip)], tsf=[tsf], answer_begins=[begin])
    logits, hidden, cache = host.lm(packed)
    assert cache is None
    prompt = host.prompt(select(hidden[0], packed.ids_bl[0], host.seg_id), None, training=True)
    assert host.sam.sparse(prompt).shape == (1, 4, 256)
    features = host.sam_features(clip[:2])
    steps = host.propagate(lambda t: features.rows([t]), 2, {0: ([0], prompt)})
    masks = torch.stack([out.logits_n1hw for _, _, out in steps])
    (masks.square().mean() + logits.logsumexp(-1).mean()).backward()
    reached = {
        "merger": host.visual.merger.mlp[2].weight,
        "language model": host.llm.model.language_model.layers[0].self_attn.q_proj.weight,
        "seg head": host.seg_head[1].weight,
    }
    for name, weight in reached.items():
        assert weight.grad.abs().max() > 0, name
    assert not any(p.requires_grad for p in host.sam.parameters())


@torch.no_grad()
def test_a_forced_answer_prompts_and_follows_every_frame(host, clip):
    answer = f"{BOX_TOKEN} <|seg|>"
    host.add_tokens([BOX_TOKEN])
    assert host.llm.lm_head.weight is host.token_embeddings().weight  # still tied
    states = list(
        host.states(clip, host.question("dog"), [0, 3], answer=answer, tsf_nd=torch.randn(4, 64))
    )
    assert [(s.frame, s.forced) for s in states] == [(0, True), (3, True)]
    assert all(s.seg_nd.shape == s.box_nd.shape == (1, 64) for s in states)
    prompts = {s.frame: ([7], host.prompt(s.seg_nd, None)) for s in states}
    seen = {}
    for t, names, out in host.propagate(
        lambda t: host.sam_features(clip[t : t + 1]), len(clip), prompts
    ):
        seen[t] = (names, to_frame(out.logits_n1hw, 72, 100).shape)
    assert seen == {t: ([7], (1, 72, 100)) for t in range(6)}


@torch.no_grad()
def test_pointing_needs_as_many_tokens_as_references(host, clip):
    inputs = host.prepare(clip)
    ids, _ = host.conversation("What is <|ref|>, and where is it next to <|mem|>?")
    packed = host.pack([ids], [inputs])
    regions = torch.zeros(1, 3, 3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"1 <\|mem\|>, but 0"):
        host.refer(packed, inputs, regions_otyx=regions)
    regions[0, 1, 2, 3] = True
    with pytest.raises(ValueError, match=r"1 <\|ref\|>, but 2"):
        host.refer(
            packed, inputs, pointed=[Pointed(0, (0.5, 0.5)), Pointed(1, (0.1, 0.1, 0.2, 0.3))]
        )
    with pytest.raises(ValueError, match="frames"):
        host.refer(packed, inputs, pointed=[Pointed(6, (0.5, 0.5))])
    with pytest.raises(ValueError, match="neither a point"):
        Pointed(0, (0.5,))
    with pytest.raises(ValueError, match="regions must be"):
        host.refer(packed, inputs, regions_otyx=regions[:, :2])
    said = host.refer(packed, inputs, pointed=[Pointed(5, (0.5, 0.5))], regions_otyx=regions)
    changed = (said.embeds_bld != packed.embeds_bld).any(2)[0]
    assert host.tokenizer.decode(packed.ids_bl[0][changed]) == "<|ref|><|mem|>"


def test_masks_become_the_cells_they_touch_in_either_frame():
    masks = torch.zeros(1, 3, 60, 100, dtype=torch.bool)
    masks[0, 0, 0, 0] = masks[0, 1, 59, 99] = True
    masks[0, 2, 34:, :44] = True
    cells = region_cells(masks, torch.tensor([[2, 4, 8]]))
    assert cells[0, 0].nonzero().tolist() == [[0, 0], [1, 3]]
    assert cells[0, 1].nonzero().tolist() == [[1, 0], [1, 1]]
    with pytest.raises(ValueError, match="do not fit"):
        region_cells(masks, torch.tensor([[3, 4, 8]]))
