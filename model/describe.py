"""Counted, not claimed: parameters and operations of a host with and without SPARROW, beside Tables 11 and 15.

Everything runs on the meta device: shapes go through the real modules, no number is computed. An operation count is
PyTorch's own (`FlopCounterMode`): two per multiply-add of matrix products, convolutions and attention; sampling,
norms and activations are not counted. As the paper's Appendix F.2 has it, the vision side is counted (encoders,
projectors, mask model, SPARROW's modules) and the language model is not.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model.config import SparrowConfig
from model.hosts import build
from model.hosts.base import Host, PromptState
from model.proposer import ProposerConfig, build_proposer
from model.sam import Decoded
from model.sparrow import Sparrow
from model.tables.ablations import SELECTOR
from model.tables.registry import added_parameters, sizes

TABLE_11 = added_parameters()
"""The paper's millions of added parameters, by kind of proposer."""
TABLE_15 = sizes()
"""The paper's billions of parameters and GFLOPs per frame, by host: of the host, and with SPARROW."""

WHY = {
    "params": "the paper has +0.017 B for every host, but W_LV^BOX grows with the host's width; proposer, filtration "
    "head and adapter as described add up to it for UniPixel's 2048 only",
    "flops": "the paper has +35 GFLOPs for every host. A 6-layer deformable decoder without encoder on three levels "
    "is 36 GMACs; the network of Table 11's size is what is counted here, once per prompted frame",
    "videoglamm": "38,927 is no frame: CLIP, InternVideo2 and SAM2's image encoder over 16 frames, without attention "
    "products, are 39,552",
    "unipixel": "no combination of modules that we tried comes within 5 % of 1,530",
    "glus": "2,680 fits one CLIP picture and one frame of the mask model with full memory",
}


@dataclass
class Component:
    """One part: parameters, and GFLOPs in a clip of `frames` frames."""

    name: str
    parameters: int
    gflops_clip: float
    what: str
    """What is counted, and how often."""


@dataclass
class Description:
    """What `sparrow model describe` prints. GFLOPs are 2 x GMACs."""

    host: str
    preset: str
    frames: int
    components: list[Component] = field(default_factory=list)
    sparrow: list[Component] = field(default_factory=list)

    def parameters(self, *, sparrow: bool) -> int:
        return sum(c.parameters for c in self.components + (self.sparrow if sparrow else []))

    def gflops(self, *, sparrow: bool) -> float:
        """Of the whole clip."""
        return sum(c.gflops_clip for c in self.components + (self.sparrow if sparrow else []))

    def as_dict(self) -> dict:
        table = {
            f"{kind}_{which}": value
            for which, sparrow in (("host", False), ("sparrow", True))
            for kind, value in (
                ("parameters", self.parameters(sparrow=sparrow)),
                ("gflops_per_clip", self.gflops(sparrow=sparrow)),
                ("gflops_per_frame", self.gflops(sparrow=sparrow) / self.frames),
                ("gmacs_per_frame", self.gflops(sparrow=sparrow) / self.frames / 2),
            )
        }
        paper = dict(
            zip(
                ("params", "gflops", "params_sparrow", "gflops_sparrow"),
                TABLE_15[self.host],
                strict=True,
            )
        )
        return asdict(self) | {"table_15": table | {"paper": paper}}


def describe(name: str, config: SparrowConfig | None = None, frames: int = 16) -> Description:
    """Count host `name` and SPARROW on it, for a clip of `frames` frames with one object, prompted on its first."""
    config = config or SparrowConfig()
    host = build(name).to("meta").requires_grad_(False)
    base = {child: _parameters(module) for child, module in host.named_children()}
    sam = host.sam
    pixels = {
        key: value.to("meta") if value.is_floating_point() else value
        for key, value in host.everything(np.zeros((frames, 480, 854, 3), np.uint8)).items()
    }
    flops = host.visual_flops(pixels)
    seen = (
        _count(host, lambda: host.visual_tokens(pixels)) if flops is None else {"llm": flops / 1e9}
    )
    picture = torch.empty(1, 3, host.spec.sam_size, host.spec.sam_size, device="meta")
    features = sam.features(picture)
    encoder = _count(sam, lambda: sam.features(picture))[""]
    prompt = host.prompt(torch.empty(1, host.spec.llm_dim, device="meta"), None)
    decoding = _count(
        sam, lambda: _exhaust(host.propagate(lambda _: features, frames, {0: ([0], prompt)}))
    )

    found = Description(name, config.preset, frames)
    add = found.components.append
    for child, parameters in base.items():
        if child == "sam":
            continue
        what = "not counted (Appendix F.2)" if child == "llm" else f"a clip of {frames} frames"
        add(Component(child, parameters, 0.0 if child == "llm" else seen.get(child, 0.0), what))
    if vision := seen.get("llm", 0.0):
        add(
            Component("llm.visual", 0, vision, f"a clip of {frames} frames (parameters are in llm)")
        )
    parts = {part: _parameters(module) for part, module in sam.named_children()}
    add(
        Component(
            "sam.image_encoder",
            parts["image_encoder"],
            frames * encoder,
            f"{frames} frames, once each",
        )
    )
    for part in ("memory_attention", "memory_encoder", "sam_mask_decoder"):
        add(
            Component(
                f"sam.{part}", parts[part], decoding.get(part, 0.0), f"{frames} frames, one object"
            )
        )
    add(
        Component(
            "sam (rest)",
            base["sam"] - sum(c.parameters for c in found.components if c.name[:4] == "sam."),
            0.0,
            "",
        )
    )
    loose = _parameters(host) - found.parameters(sparrow=False)
    if loose:
        add(Component("(other)", loose, 0.0, "parameters of the host itself"))
    found.sparrow = _sparrow(host, config)
    return found


def _sparrow(host: Host, config: SparrowConfig) -> list[Component]:
    sparrow = Sparrow(host, config).to("meta")
    rows = (
        2
        if host.llm.get_input_embeddings().weight is not host.llm.get_output_embeddings().weight
        else 1
    )
    features = host.sam.features(
        torch.empty(1, 3, host.spec.sam_size, host.spec.sam_size, device="meta")
    )
    extra: list[Component] = []
    parts: list[tuple[str, nn.Module, Callable[[], object], str]] = []
    said = torch.empty(1, host.spec.llm_dim, device="meta")
    state = PromptState(0, said, said, "", forced=True)
    if isinstance(sparrow.proposer, nn.Module) and config.proposer.kind != "coords":
        proposer, side = sparrow.proposer, config.proposals.input
        maps = features.fpn
        if side != "shared":
            picture = torch.empty(1, 3, side, side, device="meta")
            again = _count(host.sam, lambda: host.sam.features(picture))[""]
            extra = [Component("image encoder again", 0, again, f"one prompted frame at {side} px")]
            maps = host.sam.features(picture).fpn
        parts.append(("proposer", proposer, lambda: proposer(maps), "one prompted frame"))
    if sparrow.box_adapter is not None:
        parts.append(
            ("box_adapter", sparrow.box_adapter, lambda: sparrow.box_vectors(state), "one [BOX]")
        )
    if (head := sparrow.filter) is not None:
        keep = min(config.proposals.keep, config.proposer.queries)
        boxes, scores = torch.empty(keep, 4, device="meta"), torch.empty(keep, device="meta")
        inputs = torch.empty(1, 256, device="meta"), sparrow.pyramid(features), boxes, scores
        embeddings = torch.empty(keep, 256, device="meta")
        parts.append(("filter", head, lambda: head(*inputs, embeddings), f"{keep} proposals"))
    found = extra + [
        Component(n, _parameters(m), _count(m, run)[""], what) for n, m, run, what in parts
    ]
    if sparrow.tsf.bridge is not None:
        found.append(Component("tsf", _parameters(sparrow.tsf), 0.0, "training only"))
    if config.box.enabled:
        found.append(
            Component("[BOX] rows", rows * host.spec.llm_dim, 0.0, "one row per embedding table")
        )
    return found


def proposers() -> list[tuple[str, int, int, float]]:
    """Table 11: kind, parameters, with the released selector, GFLOPs on a 64 x 64 map; the paper's are `TABLE_11`."""
    rows = []
    maps = [torch.empty(1, 256, side, side, device="meta") for side in (256, 128, 64)]
    for kind in TABLE_11:
        with torch.device("meta"):
            proposer = build_proposer(ProposerConfig(kind=kind)).eval().requires_grad_(False)  # type: ignore[arg-type]
        flops = 0.0 if kind == "coords" else _count(proposer, lambda p=proposer: p(maps))[""]  # type: ignore[misc]
        own = _parameters(proposer)
        rows.append((kind, own, own + (SELECTOR if kind in ("detr", "deformable") else 0), flops))
    return rows


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def _count(module: nn.Module, run: Callable[[], object]) -> dict[str, float]:
    """GFLOPs by name of the module's children; "" is all of it."""
    names = {id(child): name for name, child in module.named_children()}
    found: dict[str, float] = dict.fromkeys(names.values(), 0.0)
    stack: list[str] = []
    counter = FlopCounterMode(display=False)
    hooks = []
    for child in module.children():

        def enter(m: nn.Module, *_: object) -> None:
            stack.append(names[id(m)])
            found[stack[-1]] -= counter.get_total_flops()

        def leave(m: nn.Module, *_: object) -> None:
            found[stack.pop()] += counter.get_total_flops()

        hooks += [child.register_forward_pre_hook(enter), child.register_forward_hook(leave)]
    try:
        with counter:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: flops / 1e9 for name, flops in found.items()} | {
        "": counter.get_total_flops() / 1e9
    }


def _exhaust(steps: Iterator[tuple[int, list[int], Decoded]]) -> None:
    for _ in steps:
        pass
