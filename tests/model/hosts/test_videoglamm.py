"""VideoGLaMM: the tiny host's behaviour, and the size of the full one."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from model.hosts import build
from model.hosts.base import BOX_TOKEN, IGNORE, IMAGE, TSF, expanded, select
from model.hosts.videoglamm import VideoGLaMM
from model.hosts.videoglamm_inputs import sample_frames
from model.sam import to_frame


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    host = build("videoglamm", "tiny", "cpu")
    assert isinstance(host, VideoGLaMM)
    with torch.no_grad():  # a layer scale of 1e-5 would hide the video tower's blocks
        for name, scale in host.video_encoder.named_parameters():
            if name.endswith(".gamma"):
                scale.fill_(0.3)
    return host


def clip_of(frames, height=48, width=80, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@torch.no_grad()
def test_a_video_of_any_size_and_length_is_128_tokens_and_a_picture_16(tiny):
    for frames, height, width in ((5, 48, 80), (16, 80, 48), (40, 57, 57)):
        inputs = tiny.prepare(clip_of(frames, height, width))
        assert {name: tuple(x.shape) for name, x in inputs.items()} == dict.fromkeys(
            ("image", "video"), (16, 3, 56, 56)
        )
        (block,) = tiny.visual_tokens(inputs)
        assert block.shape == (16 * 4 + 16 * 4, 64)
    (block,) = tiny.visual_tokens(tiny.prepare(clip_of(1)))
    assert block.shape == (16, 64)


def test_frames_are_spread_evenly_and_a_short_clip_repeats_its_last():
    assert sample_frames(16, 16).tolist() == list(range(16))
    assert sample_frames(100, 16).tolist() == [int(99 * i / 15) for i in range(16)]
    assert sample_frames(3, 16).tolist() == [0, 1] + [2] * 14


def test_clip_sees_the_middle_as_its_own_processor_cuts_it():
    from transformers import CLIPImageProcessor

    from model.hosts.clip import centre_crops

    processor = CLIPImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
    )
    for height, width in ((90, 161), (200, 131), (40, 63), (56, 56)):
        frames = clip_of(2, height, width)
        theirs = processor(list(frames), return_tensors="pt")["pixel_values"]
        off = (centre_crops(frames, 56) - theirs).abs() * 255 * 0.26  # in grey levels
        assert off.max() < 2.1  # ours is PIL's rounding, theirs torchvision's
        assert off.mean() < 0.02


def test_the_video_tower_sees_the_margins_and_clip_does_not(tiny):
    frames = clip_of(16, 48, 96)
    other = frames.copy()
    other[:, :, :20] = 0
    before, after = tiny.prepare(frames), tiny.prepare(other)
    assert torch.equal(before["image"], after["image"])
    assert not torch.equal(before["video"], after["video"])
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    black = (after["video"] * std + mean)[:, :, :, :11]
    assert black.abs().max() < 1e-6


@torch.no_grad()
def test_video_tokens_keep_frames_in_order(tiny):
    inputs = tiny.prepare(clip_of(16))
    (block,) = tiny.visual_tokens(inputs)
    other = {name: x.clone() for name, x in inputs.items()}
    other["image"][5] = 0  # one picture changes four spatial tokens
    assert changed(tiny, block, other) == list(range(20, 24))
    other = {name: x.clone() for name, x in inputs.items()}
    other["video"][5] = 0  # one frame changes its chunk of four
    assert changed(tiny, block, other) == list(range(64 + 16, 64 + 32))


def changed(host, block, inputs):
    return (
        torch.nonzero((host.visual_tokens(inputs)[0] - block).abs().amax(1) > 1e-6)
        .flatten()
        .tolist()
    )


def test_phi3_turns_with_tsf_after_the_question(tiny):
    ids, begin = tiny.conversation("Where?", "Sure, it is [SEG].", tsf=4)
    assert begin < len(ids)
    system = "<|system|>\nYou are a helpful AI assistant.<|end|>\n<|user|>\n"
    where = ids.index(IMAGE)
    assert tiny.tokenizer.decode(ids[:where]) == system
    assert (
        tiny.tokenizer.decode([i for i in ids[where + 1 : begin] if i >= 0])
        == "\nWhere?\n<|end|>\n<|assistant|>\n"
    )
    assert ids.count(IMAGE) == 1
    slots = [i for i, token in enumerate(ids) if token == TSF]
    assert slots == list(range(slots[0], slots[0] + 4))
    assert ids[slots[-1] + 1] == tiny.token_id("<|end|>")
    assert tiny.tokenizer.decode(ids[begin:]) == "Sure, it is [SEG].<|end|>"
    without, begin = tiny.conversation("Where?")
    assert begin == len(without)
    assert tiny.conversation("Where?", "Yes.")[0][:begin] == without


def test_without_a_tokenizer_text_is_refused():
    host = build("videoglamm", "tiny", "meta", tokenizer="checkpoint")
    with pytest.raises(ValueError, match="no tokenizer"):
        host.conversation("Where?")


@pytest.mark.parametrize("shape", [(16, 48, 80), (0, 48, 80, 3), (16, 48, 80, 4)])
def test_wrong_frames_are_named(tiny, shape):
    with pytest.raises(ValueError, match=r"\[T, H, W, 3\] uint8"):
        tiny.prepare(np.zeros(shape, np.uint8))


def test_wrong_inputs_are_named(tiny):
    good = tiny.prepare(clip_of(16))
    for bad in (
        {"image": good["image"]},
        {"video": good["video"]},
        good | {"video": good["video"][:8]},
    ):
        with pytest.raises(ValueError, match="videoglamm looks at"):
            tiny.visual_tokens(bad)


def test_a_config_whose_frames_make_no_chunks_is_refused():
    with pytest.raises(ValueError, match="multiple of the 4"):
        build("videoglamm", "tiny", "meta", frames=14)


@pytest.mark.parametrize("window", [512, 40])
@torch.no_grad()
def test_generated_states_equal_the_ones_of_the_whole_sequence(tiny, window):
    """The cache changes nothing, also where the language model's window is shorter than the prompt."""
    host = build("videoglamm", "tiny", "cpu", sliding_window=window)
    host.load_state_dict(tiny.state_dict())
    inputs = host.prepare(clip_of(16))
    ids, _ = host.conversation("Where?")
    said = host.generate(host.pack([ids], [inputs]), 12, stop=[])
    assert len(said.answer) == 12
    whole = host.pack([ids + said.answer], [inputs])
    assert torch.equal(whole.ids_bl[0], said.ids_l)
    logits, states, _ = host.lm(whole)
    torch.testing.assert_close(states[0, :-1], said.hidden_ld, rtol=0, atol=1e-5)
    assert logits[0, -13:-1].argmax(1).tolist() == said.answer


@torch.no_grad()
def test_the_window_hides_what_is_far(tiny):
    host = build("videoglamm", "tiny", "cpu", sliding_window=8)
    host.load_state_dict(tiny.state_dict())
    packed = host.pack([host.conversation("Where?")[0]], [host.prepare(clip_of(16))])
    moved = packed.embeds_bld.clone()
    moved[0, 20] += 1
    _, before, _ = host.lm(packed)
    packed.embeds_bld.copy_(moved)
    _, after, _ = host.lm(packed)
    reached = torch.nonzero((after - before)[0].abs().amax(1)).flatten()
    assert (reached.min(), reached.max()) == (
        20,
        20 + 2 * 7,
    )  # two layers, the token itself counted


def test_a_turn_ends_with_its_marker(tiny, monkeypatch):
    ids, _ = tiny.conversation("Where?")
    end = tiny.token_id("<|end|>")
    real, spoken = tiny.lm, iter([65, end, 66])

    def lm(packed, cache=None):
        logits, states, cache = real(packed, cache)
        logits[0, -1, next(spoken)] = 1e4
        return logits, states, cache

    monkeypatch.setattr(tiny, "lm", lm)
    assert tiny.generate(tiny.pack([ids], [tiny.prepare(clip_of(16))]), 3).answer == [65, end]


def test_one_step_of_training_reaches_what_it_should(tiny):
    inputs = [tiny.prepare(clip_of(16)), tiny.prepare(clip_of(1, 60, 40))]
    rows = [
        tiny.conversation("What is it?", "It is [SEG]."),
        tiny.conversation("Where?", "[SEG]", tsf=2),
    ]
    features = tiny.crop_features([clip_of(1, 9, 30)[0], clip_of(1, 30, 9)[0]])
    assert features.shape == (2, 16, 32)
    assert not features.requires_grad
    tsf = tiny.project_spatial(features).mean(1)
    packed = tiny.pack(
        [ids for ids, _ in rows],
        inputs,
        tsf=[None, tsf],
        answer_begins=[begin for _, begin in rows],
    )
    assert packed.labels_bl is not None
    assert (packed.labels_bl[packed.ids_bl < 0] == IGNORE).all()
    for row, (ids, begin) in enumerate(rows):
        start = expanded(packed.ids_bl[row][packed.attention_bl[row]], ids, begin)
        assert (packed.labels_bl[row][:start] == IGNORE).all()
        assert packed.labels_bl[row, start : start + len(ids) - begin].tolist() == ids[begin:]
    logits, states, _ = tiny.lm(packed)
    seg = torch.cat([select(states[b], packed.ids_bl[b], tiny.seg_id) for b in range(2)])
    maps = tiny.sam_features(clip_of(2))
    masks = tiny.sam.decode(maps, tiny.prompt(seg, None, training=True), multimask=False)
    loss = cross_entropy(
        logits[:, :-1].flatten(0, 1), packed.labels_bl[:, 1:].flatten(), ignore_index=IGNORE
    )
    tiny.zero_grad()
    (loss + masks.logits_n1hw.mean()).backward()
    moved = {
        name for name, p in tiny.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    for part in (
        "llm.model.layers.0.self_attn.qkv_proj",
        "image_projector.0",
        "video_projector.2",
        "seg_head.0",
    ):
        assert f"{part}.weight" in moved
    assert not [
        name
        for name in moved
        if name.startswith(("image_encoder", "video_encoder", "sam", "vision_proj"))
    ]
    tiny.zero_grad()


@torch.no_grad()
def test_a_batch_gives_each_sample_what_it_gets_alone(tiny):
    inputs = [tiny.prepare(clip_of(16)), tiny.prepare(clip_of(1, 60, 40))]
    ids = [
        tiny.conversation("What is it?", "[SEG]")[0],
        tiny.conversation("Where?", "Here: [SEG]")[0],
    ]
    _, together, _ = tiny.lm(tiny.pack(ids, inputs))
    for row in range(2):
        _, alone, _ = tiny.lm(tiny.pack([ids[row]], [inputs[row]]))
        torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_from_a_clip_and_a_forced_answer_to_masks(tiny):
    host = build("videoglamm", "tiny", "cpu")
    host.load_state_dict(tiny.state_dict())
    host.add_tokens([BOX_TOKEN])
    frames = clip_of(6)
    question = host.template.format(phrase="the dog")
    states = list(
        host.states(frames, question, [0, 3], answer=host.answer.format(seg="[BOX] [SEG]"))
    )
    assert [
        (s.frame, len(s.seg_nd), s.box_nd is not None and len(s.box_nd), s.forced) for s in states
    ] == [
        (0, 1, 1, True),
        (3, 1, 1, True),
    ]
    maps = host.sam_features(frames)
    prompts = {s.frame: ([0], host.prompt(s.seg_nd, None)) for s in states}
    assert [p.pads for _, p in prompts.values()] == [2, 2]
    steps = list(host.propagate(lambda t: maps.rows([t]), 6, prompts))
    assert [t for t, _, _ in steps] == list(range(6))
    assert all(to_frame(step.logits_n1hw, 48, 80).shape == (1, 48, 80) for _, _, step in steps)
    boxed = host.prompt(states[0].seg_nd, torch.tensor([[0.1, 0.2, 0.5, 0.9]]))
    assert host.sam.sparse(boxed).shape == (1, 4, 256)  # two corners, one padding token, the vector


# --- the full host ---


@pytest.mark.parametrize(
    ("vocab", "total"), [(32012, 5_434_793_138), (32016, 5_434_817_714), (32064, 5_435_112_626)]
)
def test_the_full_host_has_the_official_size(vocab, total):
    host = build("videoglamm", "full", "meta", vocab=vocab)
    counts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in host.named_children()
    }
    assert counts == {
        "llm": 3_820_760_064 + (vocab - 32012) * 2 * 3072,
        "image_encoder": 303_507_456,
        "video_encoder": 1_049_117_056,
        "vision_proj": 393_728,
        "image_projector": 12_589_056,
        "video_projector": 13_768_704,
        "seg_head": 10_226_944,
        "sam": 224_430_130,
    }
    assert sum(counts.values()) == total
