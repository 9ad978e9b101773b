"""Several questions about a video: the towers look once, the answers are those of each question alone."""

from collections import Counter

import numpy as np
import pytest
import torch

from model.hosts import build
from model.hosts.asking import VideoQuestion, shared_out
from model.hosts.base import PromptState
from model.hosts.videoglamm import VideoGLaMM
from tests.model.made import HOSTS, clip, tiny, tiny_host

PHRASES = [f"the {word} square" + " that moves" * k for k, word in enumerate("abcdefghij")]
TOWERS = ("image_encoder", "video_encoder", "visual", "proposer")
CLOSE = {"atol": 1e-4, "rtol": 1e-4}

each_host = pytest.mark.parametrize("name", HOSTS)


@pytest.fixture(scope="module")
def frames():
    return clip(6)[0]


def counted(sparrow, monkeypatch) -> Counter:
    """How often each tower, the mask model's image encoder and the language model are called."""
    calls: Counter[str] = Counter()
    host = sparrow.host
    for name in TOWERS:
        module = getattr(host, name, None) or getattr(sparrow, name, None)
        if module is not None:
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    for name in ("sam_features", "lm", "prepare"):
        real = getattr(host, name)
        monkeypatch.setattr(
            host,
            name,
            lambda *words, name=name, real=real, **options: (
                calls.update([name]) or real(*words, **options)
            ),
        )
    return calls


@each_host
def test_no_tower_is_called_more_often_for_more_phrases(name, frames, monkeypatch):
    sparrow = tiny(name, host=tiny_host(name))
    calls = counted(sparrow, monkeypatch)
    found = []
    for count in (1, 3, 10):
        calls.clear()
        phrases = [f"the {letter} square" for letter in "abcdefghij"[:count]]
        result = sparrow.ground(frames, phrases, prompt_frames=[0, 3], answer="force")
        assert len({one.phrase for one in result.instances}) == count
        found.append(dict(calls))
    one, three, ten = found
    assert (
        three == ten
    )  # two calls of the language model a round: the common beginning, and the rest
    rounds = len(frames) if name == "glus" else 2
    assert (one.pop("lm"), three.pop("lm")) == (rounds, 2 * rounds)
    assert one == three
    assert one["sam_features"] == len(frames)
    assert one["proposer"] == 2


def states_alone(host, frames, asks, **options):
    return [list(host.states(frames, a.question, [0, 3], tsf_nd=a.tsf_nd, **options)) for a in asks]


def states_together(host, frames, asks, **options):
    return [list(one) for one in host.states_of_all(frames, asks, [0, 3], **options)]


def assert_same_states(together, alone):
    for mine, theirs in zip(together, alone, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert (one.frame, one.text, one.forced) == (other.frame, other.text, other.forced)
            torch.testing.assert_close(one.seg_nd, other.seg_nd, **CLOSE)
            assert (one.box_nd is None) == (other.box_nd is None)
            if one.box_nd is not None:
                torch.testing.assert_close(one.box_nd, other.box_nd, **CLOSE)


def asks_of(host, phrases=PHRASES, tsf=False):
    """With TSF tokens for every second one, if any."""
    drawn = torch.Generator().manual_seed(0)
    tokens = [torch.randn(4, host.spec.llm_dim, generator=drawn) for _ in phrases]
    return [
        VideoQuestion(host.question(phrase), tokens[k] if tsf and k % 2 else None)
        for k, phrase in enumerate(phrases)
    ]


@torch.no_grad()
@each_host
@pytest.mark.parametrize("tsf", [False, True])
@pytest.mark.parametrize("most", [16, 3])
def test_forced_answers_have_the_states_of_each_alone(name, tsf, most, frames, monkeypatch):
    monkeypatch.setattr("model.hosts.base.TOGETHER", most)
    sparrow = tiny(name)
    host = sparrow.host
    asks = asks_of(host, tsf=tsf)
    answer = host.answer.format(seg=sparrow.grounding_tokens())
    together = states_together(host, frames, asks, answer=answer)
    assert_same_states(together, states_alone(host, frames, asks, answer=answer))
    assert {len(one.seg_nd) for states in together for one in states} == {1}


def wants(host, monkeypatch, words):
    """Have the language model want to say one of `words` after each position, whatever else it has in mind."""
    real = host.lm

    def lm(packed, cache=None):
        logits, states, cache = real(packed, cache)
        places = packed.positions if packed.positions.ndim == 2 else packed.positions[0]
        chosen = torch.tensor(words)[places * 5 % 7 % len(words)]
        return logits.scatter(2, chosen[..., None], 1e4), states, cache

    monkeypatch.setattr(host, "lm", lm)


@torch.no_grad()
@pytest.mark.parametrize("name", ["videoglamm", "unipixel"])
def test_generated_answers_of_different_lengths_are_those_of_each_alone(name, frames, monkeypatch):
    host = tiny(name).host

    def state(frame, ids_l, hidden_ld, answer_from, text, *, forced):
        """Its words, and the states of all of them."""
        words = ids_l[answer_from:, None].float()
        return PromptState(frame, hidden_ld[answer_from - 1 :], words, text, forced)

    monkeypatch.setattr(host, "prompt_state", state)
    wants(host, monkeypatch, [70, 71, 72, 73, 74, 75, host.token_id("[BOX]")])
    monkeypatch.setattr(type(host), "ends", property(lambda self: {70}))
    asks = asks_of(host, tsf=True)
    alone = states_alone(host, frames, asks, max_new_tokens=12)
    assert len({len(one.box_nd) for states in alone for one in states}) > 2
    assert_same_states(states_together(host, frames, asks, max_new_tokens=12), alone)


@torch.no_grad()
def test_glus_decides_for_each_question_what_it_would_say(frames, monkeypatch):
    host = tiny("glus").host
    wants(host, monkeypatch, [host.seg_id, host.token_id("[BOX]"), 65])
    asks = asks_of(host)
    alone = states_alone(host, frames, asks)
    assert len({(one.text, len(one.seg_nd)) for states in alone for one in states}) > 2
    assert_same_states(states_together(host, frames, asks), alone)


@torch.no_grad()
def test_a_sliding_window_counts_the_same_distance_as_alone(frames):
    """A window that ends in the middle of the common beginning, and questions of very different lengths."""
    torch.manual_seed(0)
    config = VideoGLaMM.configs()["tiny"].model_copy(update={"sliding_window": 64})
    host = VideoGLaMM(config)
    host.add_tokens(["[BOX]"])
    asks = asks_of(host)
    alone = states_alone(host, frames, asks, answer="It is [SEG].")
    assert_same_states(states_together(host, frames, asks, answer="It is [SEG]."), alone)
    wide = build("videoglamm", "tiny", "cpu")
    wide.load_state_dict(host.state_dict())
    other = states_alone(wide, frames, asks[:1], answer="It is [SEG].")
    assert not torch.allclose(other[0][0].seg_nd, alone[0][0].seg_nd, **CLOSE)


@each_host
def test_masks_are_those_of_each_phrase_alone(name, frames):
    sparrow = tiny(name)
    together = sparrow.ground(frames, PHRASES[:4], prompt_frames=[0, 3], answer="force")
    for phrase in PHRASES[:4]:
        alone = sparrow.ground(frames, phrase, prompt_frames=[0, 3], answer="force")
        assert together.texts[phrase] == alone.texts[phrase]
        mine = [one for one in together.instances if one.phrase == phrase]
        for one, other in zip(mine, alone.instances, strict=True):
            assert (one.masks_thw != other.masks_thw).mean() < 1e-3
            assert one.boxes.keys() == other.boxes.keys()
            for t, box in one.boxes.items():
                np.testing.assert_allclose(box, other.boxes[t], atol=1e-2)


@each_host
def test_a_question_that_is_too_long_costs_itself_only(name, frames):
    host = tiny(name).host
    spec = host.spec
    long = "very " * spec.max_len
    questions = [VideoQuestion("Where is it?"), VideoQuestion(long), VideoQuestion("Who is there?")]
    with torch.no_grad():
        first, second, third = host.states_of_all(frames, questions, [0], answer="It is [SEG].")
        with pytest.raises(ValueError, match=rf"does not fit {spec.name}'s {spec.max_len}"):
            next(second)
        assert next(first).frame == next(third).frame == 0


@torch.no_grad()
def test_where_memory_is_too_small_a_batch_is_halved(frames, monkeypatch):
    host = tiny("videoglamm").host
    real, sizes = host.lm, []

    def lm(packed, cache=None):
        sizes.append(len(packed.ids_bl))
        if len(packed.ids_bl) > 3:
            raise torch.OutOfMemoryError("no")
        return real(packed, cache)

    asks = asks_of(host)
    alone = states_alone(host, frames, asks, answer="It is [SEG].")
    monkeypatch.setattr(host, "lm", lm)
    assert_same_states(states_together(host, frames, asks, answer="It is [SEG]."), alone)
    assert max(sizes) == 10


def test_answers_may_be_looked_for_in_any_order_and_a_failure_reaches_all():
    def rounds():
        yield [1, 2]
        yield [3, ValueError("too long")]
        raise RuntimeError("no memory")

    one, other = shared_out(rounds(), 2)
    assert [next(other), next(one), next(one)] == [2, 1, 3]
    with pytest.raises(ValueError, match="too long"):
        next(other)
    with pytest.raises(RuntimeError, match="no memory"):
        next(one)
