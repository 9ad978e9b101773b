"""GLUS at its tiny size: dialogues, states of every frame, masks through its own memory, and one step of training."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from model.hosts import build
from model.hosts.base import BOX_TOKEN, IGNORE, IMAGE, TSF, select
from model.hosts.clip import centre_crops
from model.hosts.glus_inputs import context_frames
from model.hosts.glus_memory import MemoryBank
from model.sam import Prompt, to_frame


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    host = build("glus", "tiny", "cpu")
    host.add_tokens([BOX_TOKEN])
    return host


def clip_of(frames, height=48, width=80, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def spoken(host, ids):
    return host.tokenizer.decode([i for i in ids if i >= 0])


@torch.no_grad()
def test_every_picture_is_four_tokens_whatever_the_size_of_the_video(tiny):
    for frames, height, width in ((1, 48, 80), (3, 80, 48), (9, 57, 57)):
        inputs = tiny.prepare(clip_of(frames, height, width))
        assert {name: tuple(x.shape) for name, x in inputs.items()} == {
            "context": (4, 3, 56, 56),
            "query": (1, 3, 56, 56),
        }
        tokens = tiny.visual_tokens(inputs)
        assert [tuple(block.shape) for block in tokens] == [(4, 64)] * 5


def test_context_frames_are_in_the_middle_of_each_quarter():
    assert context_frames(100, 4) == [12, 37, 62, 87]
    assert context_frames(7, 4) == [0, 2, 4, 6]
    assert context_frames(2, 4) == [0, 0, 0, 1]
    assert context_frames(1, 4) == [0, 0, 0, 0]


def test_chosen_frames_are_asked_about(tiny):
    frames = clip_of(9)
    query = tiny.prepare(frames, query=[5, 2])["query"]
    assert torch.equal(query, centre_crops(frames[[5, 2]], 56))


@torch.no_grad()
def test_pooling_takes_neighbours_in_a_row_before_projection(tiny):
    patches = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(1))
    tokens = tiny.project_spatial(patches)
    expected = torch.stack(
        [tiny.image_projector(patches[:, i : i + 4].mean(1)) for i in range(0, 16, 4)], 1
    )
    torch.testing.assert_close(tokens, expected)
    mean = patches.mean(1, keepdim=True)
    torch.testing.assert_close(tiny.project_spatial(mean), tiny.image_projector(mean))
    with pytest.raises(ValueError, match=r"pools 4 patches into a token: \[2, 6, 32\]"):
        tiny.project_spatial(patches[:, :6])


@torch.no_grad()
def test_what_was_looked_at_once_is_as_good_as_pixels(tiny):
    inputs = tiny.prepare(clip_of(5), query=[1, 2])
    seen = {name: tiny.look(pixels) for name, pixels in inputs.items()}
    for mine, theirs in zip(tiny.visual_tokens(seen), tiny.visual_tokens(inputs), strict=True):
        assert torch.equal(mine, theirs)


def test_a_dialogue_is_vicunas_with_context_and_tsf_in_the_first_turn(tiny):
    ids, begins = tiny.dialogue(
        [("Where?", "It is [SEG]."), ("And now?", "[SEG]."), ("Now?", None)], tsf=2
    )
    assert spoken(tiny, ids) == (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed,"
        " and polite answers to the human's questions. USER: "
        + "<im_start><im_end>"
        * 4
        + "\nPlease finished the "
        "following tasks on the context frames above.\n<im_start><im_end>\nWhere?\n ASSISTANT: It is [SEG].</s>"
        "USER: <im_start><im_end>\nAnd now? ASSISTANT: [SEG].</s>USER: <im_start><im_end>\nNow? ASSISTANT:"
    )
    assert ids.count(IMAGE) == 4 + 3
    slots = [i for i, token in enumerate(ids) if token == TSF]
    assert len(slots) == 2
    assert spoken(tiny, ids[: slots[0]]).endswith("\nWhere?\n")
    assert [spoken(tiny, ids[begin:])[:9] for begin in begins] == [" It is [S", " [SEG].</", ""]
    question, begin = tiny.conversation("Where?")
    assert begin == len(question)
    answered, same = tiny.conversation("Where?", "[SEG]")
    assert same == begin
    assert answered[:begin] == question


def test_phrases_are_lower_case_without_a_full_stop(tiny):
    assert tiny.question(" The Dog. ") == "Can you segment the the dog in this frame?"


def test_without_a_tokenizer_text_is_refused():
    host = build("glus", "tiny", "meta", tokenizer="checkpoint")
    with pytest.raises(ValueError, match="no tokenizer"):
        host.conversation("Where?")


def test_wrong_inputs_are_named(tiny):
    with pytest.raises(ValueError, match=r"\[T, H, W, 3\] uint8"):
        tiny.prepare(np.zeros((4, 48, 80), np.uint8))
    good = tiny.prepare(clip_of(4))
    for bad in (
        {"context": good["context"]},
        good | {"context": good["context"][:3]},
        good | {"query": good["query"][..., 1:]},
        good | {"query": good["query"][:0]},
    ):
        with pytest.raises(ValueError, match="glus looks at 4 context"):
            tiny.visual_tokens(bad)


@torch.no_grad()
def test_generated_states_equal_the_ones_of_the_whole_sequence(tiny, monkeypatch):
    monkeypatch.setattr(
        type(tiny.tokenizer), "eos_token_id", -1, raising=False
    )  # it would stop by chance
    inputs = tiny.prepare(clip_of(6))
    ids, _ = tiny.conversation("Where?")
    said = tiny.generate(tiny.pack([ids], [inputs]), 8)
    assert len(said.answer) == 8
    whole = tiny.pack([ids + said.answer], [inputs])
    assert torch.equal(whole.ids_bl[0], said.ids_l)
    logits, states, _ = tiny.lm(whole)
    torch.testing.assert_close(states[0, :-1], said.hidden_ld, rtol=0, atol=1e-5)
    assert logits[0, -9:-1].argmax(1).tolist() == said.answer


# --- states of every frame ---


@pytest.fixture
def asked(tiny, monkeypatch):
    """Collects the dialogues that the language model is given: (text, pictures)."""
    seen = []
    row = tiny._row

    def spy(ids, begin, visual, inputs, tsf):
        seen.append((spoken(tiny, ids), inputs["query"]))
        return row(ids, begin, visual, inputs, tsf)

    monkeypatch.setattr(tiny, "_row", spy)
    return seen


@torch.no_grad()
def test_states_are_a_window_of_turns_and_a_box_where_it_is_asked_for(tiny, asked):
    frames, question = clip_of(6), tiny.question("the dog")
    answer = tiny.answer.format(seg="[SEG] [BOX]")
    states = list(tiny.states(frames, question, [0, 4], answer=answer))
    assert [(s.frame, len(s.seg_nd), s.box_nd is not None, s.forced) for s in states] == [
        (t, 1, t in (0, 4), True) for t in range(6)
    ]
    plain = "Sure, the segmentation result is [SEG]."
    assert [s.text for s in states] == [answer, plain, plain, plain, answer, plain]
    pictures = tiny.look(centre_crops(frames, 56))
    for t, (text, query) in enumerate(asked):
        window = list(range(max(0, t - 3), t + 1))
        torch.testing.assert_close(query, pictures[window], rtol=0, atol=1e-6)
        assert text.count("Can you segment the the dog in this frame?") == len(window)
        assert text.count("context frames above") == 1
        assert [a.split("</s>")[0] for a in text.split("ASSISTANT: ")[1:]] == [
            states[i].text for i in window
        ]


@torch.no_grad()
def test_states_are_read_before_their_tokens_of_the_last_turn(tiny):
    frames, question = clip_of(3), "Where?"
    states = list(tiny.states(frames, question, [0, 2], answer="[BOX] [SEG]"))
    texts = ["[BOX] [SEG]", "[SEG]", "[BOX] [SEG]"]
    ids, _ = tiny.dialogue([(question, text) for text in texts])
    packed = tiny.pack([ids], [tiny.prepare(frames, query=[0, 1, 2])])
    _, hidden, _ = tiny.lm(packed)
    seg = select(hidden[0], packed.ids_bl[0], tiny.seg_id)
    box = select(hidden[0], packed.ids_bl[0], tiny.token_id(BOX_TOKEN))
    assert (len(seg), len(box)) == (3, 2)
    torch.testing.assert_close(states[2].seg_nd, seg[2:], rtol=0, atol=1e-5)
    torch.testing.assert_close(states[2].box_nd, box[1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(states[1].seg_nd, seg[1:2], rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_dialogue_begins_at_the_first_prompted_frame(tiny, asked):
    frames = clip_of(6)
    states = list(tiny.states(frames, "Where?", [3, 5], answer="[SEG] [BOX]"))
    assert [(s.frame, s.box_nd is not None) for s in states] == [(3, True), (4, False), (5, True)]
    assert [text.count("Where?") for text, _ in asked] == [1, 2, 3]
    packed = tiny.pack(
        [tiny.conversation("Where?", "[SEG] [BOX]")[0]], [tiny.prepare(frames, query=[3])]
    )
    at_seg = select(tiny.lm(packed)[1][0], packed.ids_bl[0], tiny.seg_id)
    torch.testing.assert_close(
        states[0].seg_nd, at_seg, rtol=0, atol=1e-5
    )  # context is the whole video's


@torch.no_grad()
def test_tsf_tokens_stay_with_the_window(tiny, asked):
    tsf = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    frames = clip_of(6)
    states = list(tiny.states(frames, "Where?", [0], answer="[SEG]", tsf_nd=tsf))
    without = list(tiny.states(frames, "Where?", [0], answer="[SEG]"))
    assert all(
        (a.seg_nd - b.seg_nd).abs().max() > 1e-6 for a, b in zip(states, without, strict=True)
    )
    assert all(text.count("Where?\n ASSISTANT") == 1 for text, _ in asked[:6])


def speak(monkeypatch, host, wanted):
    """Have the language model want to say `wanted[t]` wherever the t-th answer's first own token stands."""
    real = host.lm
    heard = iter(wanted)
    grounding = torch.tensor([host.seg_id, host.token_id(BOX_TOKEN)])

    def lm(packed, cache=None):
        logits, states, cache = real(packed, cache)
        begin = int((packed.ids_bl[0] == IMAGE).nonzero()[-1])
        here = begin + int(torch.isin(packed.ids_bl[0, begin:], grounding).nonzero()[0])
        logits[0, here - 1, next(heard)] = 1e4
        return logits, states, cache

    monkeypatch.setattr(host, "lm", lm)


@torch.no_grad()
def test_the_model_decides_whether_and_in_which_order_it_grounds(tiny, asked, monkeypatch):
    seg, box, other = tiny.seg_id, tiny.token_id(BOX_TOKEN), 65
    # frame 0, prompted: [BOX] first, tried after [SEG] first; frame 1: neither; frame 2: [SEG]; frame 3, prompted: no
    speak(monkeypatch, tiny, [box, box, other, seg, other, other])
    states = list(tiny.states(clip_of(4), "Where?", [0, 3]))
    prefix = "Sure, the segmentation result is "
    assert [s.text for s in states] == [
        f"{prefix}[BOX] [SEG].",
        prefix + tiny.tokenizer.decode([other]),
        f"{prefix}[SEG].",
        prefix + tiny.tokenizer.decode([other]),
    ]
    assert [(len(s.seg_nd), s.box_nd is not None) for s in states] == [
        (1, True),
        (0, False),
        (1, False),
        (0, False),
    ]
    assert not any(s.forced for s in states)
    before = asked[-1][0].split(" ASSISTANT: ")[1:-1]  # what was not said is put right
    assert [turn.split("</s>")[0] for turn in before] == [
        f"{prefix}{said}." for said in ("[BOX] [SEG]", "[SEG]", "[SEG]")
    ]


@torch.no_grad()
def test_without_box_in_the_vocabulary_a_prompted_frame_is_like_any_other(asked, tiny):
    host = build("glus", "tiny", "cpu")
    states = list(host.states(clip_of(2), "Where?", [0]))
    assert all(s.box_nd is None for s in states)


# --- masks ---


@pytest.fixture(scope="module")
def scene(tiny):
    """Nine frames of features, and two objects' states on each."""
    with torch.no_grad():
        return tiny.sam_features(clip_of(9)), torch.randn(
            9, 2, 64, generator=torch.Generator().manual_seed(3)
        )


def follow(host, scene, frames, prompts):
    with torch.no_grad():
        return {
            (t, name): logits
            for t, names, step in host.propagate(lambda t: scene[0].rows([t]), frames, prompts)
            for name, logits in zip(names, step.logits_n1hw, strict=True)
        }


BOX = torch.tensor([[0.1, 0.2, 0.5, 0.9]])


def test_objects_are_followed_alike_alone_and_together(tiny, scene, monkeypatch):
    """The second one comes at frame 2 with a box, of which the first one has none."""
    monkeypatch.setattr(
        tiny, "config", tiny.config.model_copy(update={"memory_stride": 1})
    )  # no grid to start on
    states = scene[1]
    own = {
        "a": {t: (["a"], tiny.prompt(states[t, :1], None)) for t in range(7)},
        "b": {t: (["b"], tiny.prompt(states[t, 1:], BOX if t == 2 else None)) for t in range(2, 7)},
    }
    both = own["a"] | {t: (["b", "a"], tiny.prompt(states[t].flip(0), None)) for t in range(3, 7)}
    both[2] = own["b"][2]  # the first one is not asked about then
    own["a"] = {t: prompt for t, prompt in own["a"].items() if t != 2}
    together = follow(tiny, scene, 7, both)
    assert sorted(together) == [(t, n) for t in range(7) for n in ("ab" if t >= 2 else "a")]
    for name in "ab":
        alone = follow(tiny, scene, 7, own[name])
        for key in [key for key in together if key[1] == name]:
            torch.testing.assert_close(together[key], alone[key], rtol=0, atol=1e-4)


def test_a_frame_without_a_prompt_is_decoded_from_memory_alone(tiny, scene):
    prompts = {t: ([0], tiny.prompt(scene[1][t, :1], None)) for t in (0, 1, 3)}
    found = follow(tiny, scene, 4, prompts)
    assert sorted(found) == [(t, 0) for t in range(4)]
    embedding = {}

    def features(t):
        return scene[0].rows([t])

    with torch.no_grad():
        bank = MemoryBank(tiny.sam, 3)
        for t in (0, 1):
            embedding[t] = bank.condition(t, features(t), [0])
            step = tiny.sam.decode(
                features(t), prompts[t][1], multimask=False, embedding=embedding[t]
            )
            bank.add(t, [0], embedding[t], step.logits_n1hw)
        nothing = Prompt(None, torch.full((1, 4), torch.nan))
        step = tiny.sam.decode(
            features(2), nothing, multimask=False, embedding=bank.condition(2, features(2), [0])
        )
    torch.testing.assert_close(found[2, 0], step.logits_n1hw[0], rtol=0, atol=1e-5)


def test_frames_before_the_first_prompt_come_last_and_backwards(tiny, scene):
    prompts = {t: ([0], tiny.prompt(scene[1][t, :1], None)) for t in range(3, 6)}
    assert list(follow(tiny, scene, 6, prompts)) == [(t, 0) for t in (3, 4, 5, 2, 1, 0)]


def test_memories_are_read_on_a_grid_and_forgotten_off_it(tiny, scene):
    assert sorted(p for p in MemoryBank(tiny.sam, 1).reads(9)) == [2, 3, 4, 5, 6, 7, 8]
    assert sorted(p for p in MemoryBank(tiny.sam, 3).reads(24)) == [6, 9, 12, 15, 18, 21, 23]
    for stride in (1, 3):
        bank = MemoryBank(tiny.sam, stride)
        frame = scene[0].rows([0])
        with torch.no_grad():
            embedding = bank.condition(0, frame, [0])
            logits = torch.zeros(1, 1, 32, 32)
            for t in range(40):
                read = {p for p in bank.reads(t) if p >= 0}
                assert read <= set(bank.memories)
                bank.add(t, [0], embedding, logits)
                assert len(bank.memories) <= 9


def test_training_remembers_every_frame(tiny, scene, monkeypatch):
    strides = []

    class Spy(MemoryBank):
        def __init__(self, sam, stride):
            super().__init__(sam, stride)
            strides.append(stride)

    monkeypatch.setattr("model.hosts.glus.MemoryBank", Spy)
    prompts = {0: ([0], tiny.prompt(scene[1][0, :1], None))}
    follow(tiny, scene, 1, prompts)
    tiny.train()
    try:
        follow(tiny, scene, 1, prompts)
    finally:
        tiny.eval()
    assert strides == [3, 1]


@torch.no_grad()
def test_from_a_clip_and_a_forced_answer_to_masks(tiny):
    frames = clip_of(6)
    answer = tiny.answer.format(seg="[BOX] [SEG]")
    states = list(tiny.states(frames, tiny.question("the dog"), [0, 3], answer=answer))
    prompts = {
        s.frame: ([0], tiny.prompt(s.seg_nd, None if s.box_nd is None else BOX)) for s in states
    }
    assert [tiny.sam.sparse(p).shape[1] for _, p in prompts.values()] == [4, 1, 1, 4, 1, 1]
    maps = tiny.sam_features(frames)
    steps = list(tiny.propagate(lambda t: maps.rows([t]), 6, prompts))
    assert [t for t, _, _ in steps] == list(range(6))
    assert all(step.ious_nm.shape == (1, 1) for _, _, step in steps)
    assert all(to_frame(step.logits_n1hw, 48, 80).shape == (1, 48, 80) for _, _, step in steps)


# --- training ---


def test_one_step_of_training_reaches_what_it_should(tiny):
    """Three frames of two samples, each a dialogue; [BOX] in the first turn of one of them."""
    frames = clip_of(8)
    inputs = [
        tiny.prepare(frames, query=[2, 3, 4]),
        tiny.prepare(clip_of(5, 60, 40), query=[0, 1, 2]),
    ]
    plain = [("Where?", "It is [SEG].")] * 3
    rows = [tiny.dialogue([("What?", "[SEG] [BOX]."), *plain[1:]], tsf=2), tiny.dialogue(plain)]
    features = tiny.crop_features([clip_of(1, 9, 30)[0], clip_of(1, 30, 9)[0]])
    assert features.shape == (2, 16, 32)
    assert not features.requires_grad
    tsf = tiny.project_spatial(features).mean(1)
    packed = tiny.pack(
        [ids for ids, _ in rows],
        inputs,
        tsf=[tsf, None],
        answer_begins=[begins[0] for _, begins in rows],
    )
    logits, hidden, _ = tiny.lm(packed)
    states = []
    for row in range(2):
        length = int(packed.attention_bl[row].sum())
        begin = int((packed.labels_bl[row] != IGNORE).nonzero()[0])
        ids = packed.ids_bl[row, :length]
        states.append(tiny.prompt_state(0, ids, hidden[row, : length - 1], begin, "", forced=True))
        assert torch.equal(states[row].seg_nd, select(hidden[row], ids, tiny.seg_id))
    assert [(len(s.seg_nd), s.box_nd is not None) for s in states] == [(3, True), (3, False)]
    assert torch.equal(
        states[0].box_nd, select(hidden[0], packed.ids_bl[0], tiny.token_id(BOX_TOKEN))
    )

    maps = tiny.sam_features(frames[2:5])
    prompts = {
        t: ([0], tiny.prompt(states[0].seg_nd[t : t + 1], None, training=True)) for t in range(3)
    }
    tiny.train()
    try:
        masks = list(tiny.propagate(lambda t: maps.rows([t]), 3, prompts))
    finally:
        tiny.eval()
    tiny.zero_grad()
    labels = packed.labels_bl.where(packed.labels_bl == tiny.seg_id, IGNORE)
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
    (loss + sum(step.logits_n1hw.mean() for _, _, step in masks)).backward()
    moved = {
        name for name, p in tiny.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    for part in (
        "llm.model.layers.0.self_attn.q_proj",
        "image_projector",
        "seg_head.0",
        "seg_head.2",
        "llm.lm_head",
    ):
        assert f"{part}.weight" in moved
    assert not [name for name in moved if name.startswith(("image_encoder", "sam"))]
    tiny.zero_grad()


@torch.no_grad()
def test_a_batch_gives_each_sample_what_it_gets_alone(tiny):
    inputs = [tiny.prepare(clip_of(8), query=[0, 1]), tiny.prepare(clip_of(1, 60, 40))]
    ids = [
        tiny.dialogue([("What is it?", "[SEG]")] * 2)[0],
        tiny.conversation("Where?", "Here: [SEG]")[0],
    ]
    _, together, _ = tiny.lm(tiny.pack(ids, inputs))
    for row in range(2):
        _, alone, _ = tiny.lm(tiny.pack([ids[row]], [inputs[row]]))
        torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], rtol=0, atol=1e-5)


# --- the full host ---


@pytest.mark.parametrize(("vocab", "total"), [(32003, 7_288_079), (32004, 7_288_087)])
def test_the_full_host_has_the_official_size(vocab, total):
    host = build("glus", "full", "meta", vocab=vocab)
    counts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in host.named_children()
    }
    assert {name: round(count / 1e3) for name, count in counts.items() if name != "llm"} == {
        "image_encoder": 303_180,
        "image_projector": 4_198,
        "seg_head": 17_830,
        "sam": 224_430,
    }
    assert counts["llm"] == 6_738_415_616 + 2 * 4096 * (vocab - 32000)
    assert round(sum(counts.values()) / 1e3) == total
