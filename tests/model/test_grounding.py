"""From a video and words to masks, on every host: untrained, so the masks mean nothing and everything else does."""

import gc
import tracemalloc

import numpy as np
import pytest
import torch

from model.hosts.base import BOX_TOKEN
from model.video import Video
from tests.model.made import HOSTS, clip, tiny, tiny_host


@pytest.fixture(scope="module", params=HOSTS)
def host(request):
    return tiny_host(request.param)


@pytest.fixture(scope="module")
def video():
    return clip(6, 96, 160)[0]


def grounded(host, video, phrases="square", prompt_frames=(0,), **changes):
    sparrow = tiny(
        host.spec.name,
        host=host,
        **(
            {
                "proposals.threshold": 0.0,
                "filter.threshold": 0.0,
                "filter.top_k": 3,
                "filter.nms": 1.0,
            }
            | changes
        ),
    )
    return sparrow.ground(video, phrases, prompt_frames=prompt_frames, answer="force")


def test_every_box_becomes_an_instance_through_the_whole_video(host, video):
    found = grounded(host, video)
    assert found.forced
    assert host.spec.seg_token in found.texts["square"]
    assert BOX_TOKEN in found.texts["square"]
    assert len(found.instances) == 3
    for one in found.instances:
        assert one.masks_thw.shape == video.shape[:3]
        assert one.masks_thw.dtype == np.bool_
        assert np.isfinite(one.scores_t).all()
        assert list(one.boxes) == [0] == list(one.confidence)
        x1, y1, x2, y2 = one.boxes[0]
        assert 0 <= x1 <= x2 <= 160
        assert 0 <= y1 <= y2 <= 96
        assert not one.fallback
    union = found.union("square")
    np.testing.assert_array_equal(
        union, np.logical_or.reduce([one.masks_thw for one in found.instances])
    )


def test_it_is_repeatable(host, video):
    first, second = grounded(host, video), grounded(host, video)
    for a, b in zip(first.instances, second.instances, strict=True):
        np.testing.assert_array_equal(a.masks_thw, b.masks_thw)
        np.testing.assert_array_equal(a.boxes[0], b.boxes[0])


def test_prompting_again_corrects_what_is_followed(host, video):
    once, twice = grounded(host, video), grounded(host, video, prompt_frames=(0, 3))
    assert len(twice.instances) == len(once.instances)
    for a, b in zip(once.instances, twice.instances, strict=True):
        assert list(a.boxes) == [0]
        assert list(b.boxes) == [0, 3]
    assert any(
        (a.scores_t[3:] != b.scores_t[3:]).any()
        for a, b in zip(once.instances, twice.instances, strict=True)
    )


def test_a_prompt_in_the_middle_reaches_both_ends(host, video):
    found = grounded(host, video, prompt_frames=(3,))
    assert all(np.isfinite(one.scores_t).all() for one in found.instances)
    assert all(list(one.boxes) == [3] for one in found.instances)


def test_phrases_do_not_disturb_each_other(host, video):
    both = grounded(host, video, ["square", "circle"])
    alone = grounded(host, video, "square")
    mine = [one for one in both.instances if one.phrase == "square"]
    assert {one.phrase for one in both.instances} == {"square", "circle"}
    for a, b in zip(mine, alone.instances, strict=True):
        np.testing.assert_allclose(a.scores_t, b.scores_t, atol=1e-4)
        np.testing.assert_allclose(a.boxes[0], b.boxes[0], atol=1e-3)


@pytest.mark.parametrize("prompts", ["seg", "box", "box+seg"])
@pytest.mark.parametrize("mode", ["memory", "frame"])
def test_what_the_mask_model_is_given_is_a_choice(host, video, prompts, mode):
    found = grounded(host, video, **{"decode.prompts": prompts, "decode.mode": mode})
    assert len(found.instances) == (1 if prompts == "seg" else 3)
    assert all(bool(one.boxes) == (prompts != "seg") for one in found.instances)


def test_without_a_confident_box_the_best_one_is_used_and_says_so(host, video):
    found = grounded(host, video, **{"filter.threshold": 1.0})
    assert [one.fallback for one in found.instances] == [True]


def test_an_untrained_model_says_nothing_and_finds_nothing(host, video):
    sparrow = tiny(host.spec.name, host=host)
    with torch.no_grad():
        found = sparrow.ground(video, "square", max_new_tokens=3)
    assert not found.forced
    if host.spec.seg_granularity == "video":
        assert found.instances == []
        assert found.union("square") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": np.zeros((6, 96, 160), np.uint8)}, "T, H, W, 3"),
        ({"prompt_frames": (3, 0)}, "ascend"),
        ({"prompt_frames": (9,)}, "outside"),
        ({"prompt_frames": ()}, "ascend"),
        ({"answer": "maybe"}, "generate"),
        ({"frames": np.zeros((2, 96, 160, 3), np.float32)}, "uint8"),
        ({"frames": "missing.mp4"}, "no such video"),
    ],
)
def test_bad_requests_say_what_is_wrong(video, change, message):
    arguments = {"frames": video, "phrases": "square"} | change
    with pytest.raises(ValueError, match=message):
        tiny("videoglamm").ground(arguments.pop("frames"), **arguments)


def test_the_release_goes_frame_by_frame_and_keeps_one_box(video):
    host = tiny_host("videoglamm")
    found = tiny("videoglamm", "release", host=host).ground(video, "square", answer="force")
    assert len(found.instances) == 1
    assert found.texts["square"].index(BOX_TOKEN) < found.texts["square"].index("[SEG]")


def test_tsf_at_inference_changes_what_the_model_is_asked(host, video):
    changes = {"filter.threshold": 0.0, "proposals.threshold": 0.0, "filter.top_k": 1}
    sparrow, short = tiny(host.spec.name, host=host, **changes, **{"tsf.infer": True}), video[:2]
    plain = tiny(host.spec.name, host=host, **changes)

    def confidence(sparrow, **crops):
        return [
            one.confidence
            for one in sparrow.ground(short, "square", answer="force", **crops).instances
        ]

    crops = [video[t, 10:50, 20:80] for t in range(4)]
    found = confidence(sparrow, crops={"square": crops})
    assert found
    assert found != confidence(sparrow, crops={"square": [255 - crop for crop in crops]})
    assert confidence(sparrow, crops={"square": ()}) == confidence(
        plain
    )  # nothing was found: asked without
    with pytest.raises(ValueError, match="give crops"):
        confidence(sparrow)
    with pytest.raises(ValueError, match=r"tsf\.infer is off"):
        confidence(plain, crops={"square": crops})


def test_without_a_box_the_prompt_is_the_hosts_own(host, video, monkeypatch):
    seen = []
    sparse = host.sam.sparse
    monkeypatch.setattr(host.sam, "sparse", lambda prompt: seen.append(prompt) or sparse(prompt))
    grounded(host, video, **{"decode.prompts": "seg"})
    assert [prompt.pads for prompt in seen[:1]] == [host.spec.pads]
    seen.clear()
    grounded(host, video, **{"decode.prompts": "seg", "decode.mode": "frame"})
    assert {prompt.pads for prompt in seen} == {host.spec.train_pads}


# --- frame by frame ---


class Noise:
    """A made video: notes which frames it was asked for."""

    def __init__(self, length, height=192, width=320):
        self.length, self.height, self.width, self.fps = length, height, width, 10.0
        self.ground, self.asked = (
            np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8),
            [],
        )

    def __call__(self, t):
        self.asked.append(t)
        return np.roll(self.ground, 3 * t, 1)


def one_by_one(host, video, phrases=("square",), **options):
    changes = {
        "proposals.threshold": 0.0,
        "filter.threshold": 0.0,
        "filter.top_k": 2,
        "filter.nms": 1.0,
    }
    return tiny(host.spec.name, host=host, **changes).stream(
        video, phrases, answer="force", **options
    )


def test_a_stream_gives_what_arrays_hold(host, video):
    """Also from a video that is read on demand, with prompts in its middle, which come both ways."""
    steps = one_by_one(host, Video(_Array(video)), ("square", "circle"), prompt_frames=(2, 4))
    assert set(steps.texts) == {"square", "circle"}
    whole = grounded(host, video, ["square", "circle"], prompt_frames=(2, 4), **{"filter.top_k": 2})
    seen = []
    for step in steps:
        seen.append(step.frame)
        assert not torch.is_autocast_enabled("cpu")
        for name, mask, score in zip(step.targets, step.masks_nhw, step.scores_n, strict=True):
            np.testing.assert_array_equal(mask, whole.instances[name].masks_thw[step.frame])
            assert score == whole.instances[name].scores_t[step.frame]
    assert seen == [2, 3, 4, 5, 1, 0]
    assert [(one.phrase, list(one.boxes)) for one in steps.targets] == [
        (one.phrase, list(one.boxes)) for one in whole.instances
    ]


class _Array:
    def __init__(self, frames):
        self.frames, self.fps = frames, 10.0
        self.length, self.height, self.width = frames.shape[:3]

    def __call__(self, t):
        return self.frames[t]


@pytest.mark.parametrize("name", ["videoglamm", "glus"])
def test_memory_does_not_grow_with_the_video(name):
    """numpy by tracemalloc, torch by the tensors that are alive; a mask of these frames has 61 kB. SAM2 and GLUS look
    back 16 and 18 frames."""
    traced, tensors = {}, {}
    for step in one_by_one(tiny_host(name), Video(Noise(32))):
        if step.frame == 18:
            tracemalloc.start()
        if step.frame in (20, 31):
            gc.collect()
            traced[step.frame] = tracemalloc.get_traced_memory()[0]
            tensors[step.frame] = sum(
                x.numel() * x.element_size() for x in gc.get_objects() if type(x) is torch.Tensor
            )
    tracemalloc.stop()
    assert traced[31] - traced[20] < 61_000
    assert tensors[31] - tensors[20] < 61_000


def test_the_language_model_is_asked_when_its_frame_has_come():
    """GLUS is asked about every frame, and must not run ahead of the masks."""
    noise = Noise(12, 96, 160)
    for step in one_by_one(tiny_host("glus"), Video(noise)):
        assert max(noise.asked[4:]) <= step.frame + 1  # after the four context pictures
        if step.frame == 6:
            break
