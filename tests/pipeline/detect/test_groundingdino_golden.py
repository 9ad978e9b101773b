"""Every stage of the network against the official one, from front to back.

The first stage that fails is where the fault is: each test is named after the part that made its numbers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

pytest.importorskip("groundingdino", reason="the `full` extra is not installed")

from pipeline.detect.captions import normalise
from pipeline.detect.groundingdino_model import GroundingDINO
from tests.pipeline.detect.groundingdino_golden import (
    BOXES,
    Golden,
    make_golden_model,
    package_forward,
)

CASES = [
    "period",
    "two_phrases",
    "inner_periods",
    "question",
    "unknown_words",
    "batch2_same_caption",
    "batch2_same_image",
    "batch2_second_without_period",
    "batch2_two_sizes",
]
TOKENS = {
    "input_ids": "token ids",
    "text_token_mask": "mask of padding",
    "text_self_attention_mask": "mask of phrases",
    "position_ids": "positions in phrases",
}
STATES = {
    "bert_hidden": "text encoder",
    "text_features": "linear map of text",
    "backbone0_every8": "backbone, stride 8",
    "backbone1_every8": "backbone, stride 16",
    "backbone2_every8": "backbone, stride 32",
    "encoder_memory_every23_head64": "encoder, picture",
    "encoder_text": "encoder, text",
    "decoder_last_hidden_every10": "decoder",
}
"""Of golden arrays, in the order of the network. `two_stage_indices` lie between the last two."""
STATE = 1e-4
"""The golden vectors' own for text. None is given for the rest: weights changed by 2e-7 move it by 1e-5 at most."""


class Run(NamedTuple):
    """One case in our network: its stages by golden name, and the score of every encoder token."""

    case: str
    stages: dict[str, torch.Tensor]
    encoder_scores: torch.Tensor


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: a second thread gains little, and waits long where others use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def golden(shared) -> Golden:
    return Golden(shared / "golden" / "groundingdino")


@pytest.fixture(scope="module")
def model(golden: Golden) -> GroundingDINO:
    return make_golden_model(golden)


@contextmanager
def watched(net: Any, seen: dict[str, Any]) -> Iterator[None]:
    """What the parts of the network take and give during one forward pass."""

    def gives(name: str) -> Callable:
        return lambda _, __, out: seen.__setitem__(name, out)

    def takes(name: str) -> Callable:
        return lambda _, args, kwargs: seen.__setitem__(name, (args, kwargs))

    parts = {
        "bert": net.bert,
        "text_features": net.feat_map,
        "backbone": net.backbone,
        "encoder": net.transformer.encoder,
        "encoder_logits": net.transformer.enc_out_class_embed,
        "decoder": net.transformer.decoder,
    }
    hooks = [part.register_forward_hook(gives(name)) for name, part in parts.items()]
    for name, part in (("bert_inputs", net.bert), ("encoder_inputs", net.transformer.encoder)):
        hooks.append(part.register_forward_pre_hook(takes(name), with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="module", params=CASES)
def run(request: pytest.FixtureRequest, model: GroundingDINO, golden: Golden) -> Run:
    """Captions are padded to 16 tokens here, and not at all in the reference.

    The reference's batch of different captions mixes their masks, and two sizes need padding: neither is in our
    forward. These cases run through the package's own, with text encoder, fusion and attention replaced.
    """
    case: str = request.param
    about = golden.json["cases"][case]
    captions, length = about["captions"], about["text_length"]
    second = "imageB" if case == "batch2_two_sizes" else "imageA"
    names = ["imageA", second][: len(captions)]
    pictures = [golden.picture(f"groundingdino/{name}") for name in names]
    seen: dict[str, Any] = {}
    with watched(model.net, seen):
        if len(set(captions)) == 1:
            out = model(torch.stack(pictures), captions)
            logits, boxes = out.logits, out.boxes_cxcywh
        else:
            logits, boxes = package_forward(model, pictures, captions)

    words, tokens = seen["bert_inputs"][1], seen["encoder_inputs"][1]
    memory, text = seen["encoder"]
    stages = {
        "input_ids": words["input_ids"][:, :length],
        "text_token_mask": ~tokens["text_attention_mask"][:, :length],
        "text_self_attention_mask": words["attention_mask"][:, :length, :length],
        "position_ids": words["position_ids"][:, :length],
        "bert_hidden": seen["bert"]["last_hidden_state"][:, :length],
        "text_features": seen["text_features"][:, :length],
        "encoder_memory_every23_head64": memory[:, ::23, :64],
        "encoder_text": text[:, :length],
        "decoder_last_hidden_every10": seen["decoder"][0][-1][:, ::10],
        "pred_logits": logits,
        "pred_boxes_cxcywh": boxes,
    }
    for level, features in enumerate(seen["backbone"][0]):
        stages[f"backbone{level}_every8"] = features.tensors[:, ::8, ::4, ::4]
    scores = seen["encoder_logits"].max(-1).values
    stages["two_stage_indices"] = scores.topk(logits.shape[1], dim=1).indices
    return Run(case, stages, scores)


def test_every_golden_array_is_a_stage(run: Run, golden: Golden):
    """A stage that is added to the golden vectors is not forgotten here."""
    of_case = {name for name in golden.arrays.files if name.startswith(f"{run.case}/")}
    assert of_case == {f"{run.case}/{stage}" for stage in run.stages}
    tested = {*TOKENS, *STATES, "two_stage_indices", "pred_logits", "pred_boxes_cxcywh"}
    assert run.stages.keys() == tested


@pytest.mark.parametrize("name", TOKENS, ids=TOKENS.get)
def test_tokens(name: str, run: Run, golden: Golden):
    np.testing.assert_array_equal(run.stages[name], golden.arrays[f"{run.case}/{name}"])


def check_state(name: str, run: Run, golden: Golden) -> None:
    wanted = golden.arrays[f"{run.case}/{name}"]
    assert tuple(run.stages[name].shape) == wanted.shape
    np.testing.assert_allclose(run.stages[name], wanted, rtol=0, atol=STATE)


@pytest.mark.parametrize("name", list(STATES)[:-1], ids=STATES.get)
def test_states_up_to_the_encoder(name: str, run: Run, golden: Golden):
    check_state(name, run, golden)


def test_two_stage_indices(run: Run, golden: Golden):
    """Padding of the smaller picture has one score everywhere, and so no order of its own."""
    wanted = torch.from_numpy(golden.arrays[f"{run.case}/two_stage_indices"])
    found = run.stages["two_stage_indices"]
    moved = found != wanted
    assert torch.equal(
        run.encoder_scores.gather(1, found)[moved], run.encoder_scores.gather(1, wanted)[moved]
    )
    assert run.case == "batch2_two_sizes" or not moved.any()


def test_states_of_the_decoder(run: Run, golden: Golden):
    check_state("decoder_last_hidden_every10", run, golden)


def test_logits(run: Run, golden: Golden):
    golden.check_logits(run.case, run.stages["pred_logits"])


def test_boxes(run: Run, golden: Golden):
    wanted = golden.arrays[f"{run.case}/pred_boxes_cxcywh"]
    np.testing.assert_allclose(run.stages["pred_boxes_cxcywh"], wanted, rtol=0, atol=BOXES)


def test_a_raw_caption_is_the_same_case(golden: Golden):
    about = golden.json["cases"]["no_period_raw"]
    assert (
        normalise(about["raw_captions"][0])
        == about["captions"][0]
        == golden.json["cases"]["period"]["captions"][0]
    )
    for stage in (*TOKENS, *STATES, "two_stage_indices", "pred_logits", "pred_boxes_cxcywh"):
        np.testing.assert_array_equal(
            golden.arrays[f"no_period_raw/{stage}"], golden.arrays[f"period/{stage}"]
        )
