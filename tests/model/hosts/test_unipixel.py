"""UniPixel's preprocessing, words and positions, and the behaviour of the tiny host."""

from typing import Any

import numpy as np
import pytest
import torch

from model.hosts import build
from model.hosts.base import BOX_TOKEN, IGNORE, IMAGE, TSF, select
from model.hosts.unipixel import mrope
from model.hosts.unipixel_inputs import UniPixelConfig, patchify, sample_frames
from model.hosts.unipixel_reference import Pointed, region_cells
from model.sam import to_frame


@pytest.fixture(scope="module")
def host():
    torch.manual_seed(0)
    return build("unipixel", "tiny", device="cpu")


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(0).integers(0, 256, (6, 72, 100, 3), dtype=np.uint8)


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
