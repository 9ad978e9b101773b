"""SPARROW on its three hosts, with and without: what do the box prompt and its proposals cost? (Table 15)

Random weights at the official sizes, so masks mean nothing and times are real. Answers are forced: [SEG] alone is the
host, [SEG] [BOX] with one instance is SPARROW, on the same video, with the key-value cache on. Paper (A100): frames per
second 2.40 and 2.40 (VideoGLaMM), 15.38 and 15.04 (UniPixel), 6.374 and 6.29 (GLUS).
"""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.measure import Peak, Row, Setting, moving_clip, seconds
from model.config import SparrowConfig, configure
from model.hosts import HOSTS, build
from model.sparrow import Sparrow

PAPER = {"videoglamm": 2.40 / 2.40, "unipixel": 15.38 / 15.04, "glus": 6.374 / 6.29}
"""Time with SPARROW over time without."""
NEW_TOKENS = 16
PHRASES = 10


def run(setting: Setting) -> Iterator[Row]:
    for name in HOSTS:
        yield from one_host(setting, name)
        gc.collect()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


def one_host(setting: Setting, name: str) -> Iterator[Row]:
    """Prefill, decoding, and a whole video without and with SPARROW."""
    small = setting.quick or setting.device.type == "cpu"
    size = "tiny, a CPU cannot hold more" if small else "official size, random weights"
    with Peak(setting.device).watching() as peak, torch.inference_mode():
        plain = make_random(
            name,
            setting,
            small,
            **{"box.enabled": False, "decode.prompts": "seg", "tsf.path": "none"},
        )
        host = plain.host
        frames = moving_clip(8 if small else 64)
        inputs = host.prepare(frames)
        ids, _ = host.conversation(host.question("textured block"))
        with _precision(setting):
            packed = host.pack([ids], [inputs])
            repeat = 3 if small else 7
            eyes = seconds(lambda: host.visual_tokens(inputs), setting.device, repeat=repeat)
            yield Row(f"{name}: eyes", eyes * 1e3, "ms/clip", note=size)
            prefill = seconds(lambda: host.lm(packed), setting.device, repeat=repeat)
            yield Row(
                f"{name}: prefill",
                len(packed) / prefill,
                "positions/s",
                note=f"{len(packed)} positions",
            )
            yield from _decoding(setting, name, host, packed, prefill, repeat)
            passes = _Passes(host.sam)
            without = seconds(
                lambda: plain.ground(frames, "block", answer="force"), setting.device, repeat=repeat
            )
            yield Row(f"{name}: whole video, host alone", len(frames) / without, "frames/s")
            # the same host, one token richer; weights stay where they are
            sparrow = _on(host, setting, small)
            passes.count = 0
            took = seconds(
                lambda: sparrow.ground(frames, "block", answer="force"),
                setting.device,
                repeat=repeat,
            )
            per_frame = passes.count / (repeat + 1) / len(frames)
            yield from _phrases(setting, name, sparrow, frames, repeat)
            more, paper = took / without - 1, PAPER[name] - 1
            note = f"time {more:+.1%} (goal 2.5 %, paper {paper:+.1%}); image encoder {per_frame:g} x a frame"
            what = f"{name}: whole video, with SPARROW"
            yield Row(what, len(frames) / took, "frames/s", "host alone", without / took, note=note)
    yield Row(
        f"{name}: peak memory",
        peak.on_device or peak.host,
        "MiB",
        note="device" if peak.on_device else "host",
    )


def _decoding(
    setting: Setting, name: str, host: Any, packed: Any, prefill: float, repeat: int
) -> Iterator[Row]:
    """A token with the cache, against running the whole prompt for each (what the release does)."""
    ends = host.tokenizer.eos_token_id
    host.tokenizer.eos_token_id = None  # an untrained model may stop at once
    took = seconds(
        lambda: host.generate(packed, NEW_TOKENS, stop=()), setting.device, repeat=repeat
    )
    host.tokenizer.eos_token_id = ends
    token = max(took - prefill, 1e-9) / (NEW_TOKENS - 1)
    yield Row(
        f"{name}: decoding", 1 / token, "tokens/s", "no cache: prefill per token", prefill / token
    )


def _phrases(
    setting: Setting, name: str, sparrow: Sparrow, frames: Any, repeat: int
) -> Iterator[Row]:
    """Ten phrases in one call, against ten calls. What the language model says (here nothing, so no mask follows), and
    all the way to masks."""
    phrases = [f"the block number {n}" for n in range(PHRASES)]
    for what, answer in (("words", "generate"), ("masks", "force")):

        def ground(*asked: str, answer: str = answer) -> None:
            sparrow.ground(frames, asked, answer=answer, max_new_tokens=NEW_TOKENS)

        def one_by_one() -> None:
            for phrase in phrases:
                ground(phrase)

        def first() -> None:
            ground(phrases[0])

        def all_together() -> None:
            ground(*phrases)

        one = seconds(first, setting.device, repeat=repeat)
        together = seconds(all_together, setting.device, repeat=repeat)
        apart = seconds(one_by_one, setting.device, repeat=1)
        yield Row(
            f"{name}: {PHRASES} phrases, {what}",
            together * 1e3,
            "ms",
            "a call for each",
            apart / together,
            note=f"{together / one:.2f} times one phrase",
        )


def make_random(name: str, setting: Setting, small: bool, **changes: Any) -> Sparrow:
    """SPARROW on a host with random weights, which the device can hold."""
    torch.manual_seed(0)
    host = build(name, "tiny" if small else "full", str(setting.device), tokenizer="bytes")
    if setting.dtype != torch.float32:
        for child, module in host.named_children():
            if child not in (
                "sam",
                "ref_encoder",
            ):  # memory and prompt codes are float32, under autocast
                module.to(setting.dtype)
    return Sparrow(host, _config(small, **changes)).to(setting.device)


def _on(host: Any, setting: Setting, small: bool) -> Sparrow:
    config = _config(
        small, **{"filter.top_k": 1, "filter.threshold": 0.0, "proposals.threshold": 0.0}
    )
    return Sparrow(host, config).to(setting.device)


def _config(small: bool, **changes: Any) -> SparrowConfig:
    shrunk = (
        {"proposer.queries": 32, "proposer.encoder_layers": 1, "proposer.decoder_layers": 1}
        if small
        else {}
    )
    return configure("paper", **(shrunk | changes))


def _precision(setting: Setting) -> Any:
    return torch.autocast(
        setting.device.type, setting.dtype, enabled=setting.dtype != torch.float32
    )


class _Passes:
    """How many frames went through the image encoder."""

    def __init__(self, sam: Any):
        self.count = 0
        sam.image_encoder.register_forward_pre_hook(self._add)

    def _add(self, _: Callable, inputs: tuple[torch.Tensor, ...]) -> None:
        self.count += len(inputs[0])
