"""SPARROW: a host video MLLM that holds on to an object (paper section 3).

host            frames + question -> states of [BOX] and [SEG]                        Eq. 1-3
tsf             crops of a tracked target -> a few more tokens of the prompt          Eq. 3-5   model.tsf
proposer        the mask model's features -> boxes of anything                        Table 11  model.proposer
box_adapter     state of [BOX] -> h                                                             model.adapters
filter          h, boxes, features -> which boxes, and where exactly                  Eq. 6-10  model.filtration
host.propagate  {box, [SEG] vector} -> a mask per frame and instance                            model.sam, .grounding
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from model.adapt import LORA, ROWS, add_lora, train_rows
from model.adapters import BoxAdapter
from model.config import Part, SparrowConfig, StageConfig
from model.filtration import Selected
from model.grounding import Grounding, GroundingQuestion, K, Stream, ask_together, ground, stream
from model.hosts.base import BOX_TOKEN, Frames, Host, PromptState
from model.instances import Answers
from model.proposer import CoordinatesProposer, Proposals, build_proposer, propose
from model.sam import Features, Prompt, prepare
from model.sample import Sample
from model.stage_losses import stage_losses
from model.tsf import TSFInjector
from model.video import Video


class Sparrow(nn.Module):
    """A host with SPARROW's modules beside it. Everything is frozen until `train_stage` says what trains."""

    def __init__(self, host: Host, config: SparrowConfig | None = None):
        super().__init__()
        self.config = config = config or SparrowConfig()
        self.host = host
        spec, boxes = host.spec, config.box.enabled
        self.tsf = TSFInjector(config.tsf, spec.patch_dim, spec.llm_dim, spec.temporal_dim)
        self.proposer = build_proposer(config.proposer) if boxes else None
        self.box_adapter = (
            BoxAdapter(spec.llm_dim) if boxes and config.box.adapter == "own" else None
        )
        self.filter = config.filter.build() if boxes else None
        self.lora_names: dict[Part, list[str]] = {}
        self.learn_tokens()
        self.requires_grad_(False).eval()

    def learn_tokens(self) -> None:
        """[BOX] joins the host's vocabulary, as the mean of its rows; again when a tokenizer has been loaded."""
        if self.config.box.enabled and self.host.tokenizer is not None:
            self.host.add_tokens([BOX_TOKEN])

    # --- inference ---

    def ground(
        self, frames: Frames | Video | str | Path, phrases: str | Sequence[str], **options: Any
    ) -> Grounding:
        """Masks of everything that `phrases` refer to: see `model.grounding.ground`."""
        return ground(self, frames, phrases, **options)

    def stream(
        self, frames: Frames | Video | str | Path, phrases: str | Sequence[str], **options: Any
    ) -> Stream:
        """The same frame by frame, for videos of any length: see `model.grounding.stream`."""
        return stream(self, frames, phrases, **options)

    def ask_together(
        self, frames: Frames | Video, questions: Mapping[K, GroundingQuestion], **options: Any
    ) -> dict[K, Answers]:
        """Answers to several questions about a video, asked together: see `model.grounding.ask_together`."""
        return ask_together(self, frames, questions, **options)

    def grounding_tokens(self) -> str:
        """The tokens that stand for one object in an answer, in the configured order."""
        seg = self.host.spec.seg_token
        if not self.config.box.enabled:
            return seg
        return f"{seg} {BOX_TOKEN}" if self.config.box.order == "seg_box" else f"{BOX_TOKEN} {seg}"

    def tsf_tokens(self, crops: Tensor) -> Tensor:
        """`Host.crop_features` of the representatives -> tokens for the prompt's TSF slots [n, D] (Eq. 5)."""
        return self.tsf(crops, self.host.project_spatial, self.host.project_temporal)

    def locate(
        self, state: PromptState, features: Features, frame: Frames
    ) -> list[Selected] | None:
        """What each [BOX] of an answer means on a frame (Eq. 6-10); None if this model or answer has no [BOX].

        features: of that one frame; frame: [H, W, 3].
        """
        return self.locate_all([state], features, frame)[0]

    def locate_all(
        self, states: Sequence[PromptState], features: Features, frame: Frames
    ) -> list[list[Selected] | None]:
        """As `locate`, of several answers about a frame: its proposals are made once, and all tokens filtered at once.
        Boxes that are spelled out in an answer are that answer's own."""
        vectors = [self.box_vectors(state) for state in states]
        there = [k for k, h_nd in enumerate(vectors) if h_nd is not None]
        spelled = isinstance(self.proposer, CoordinatesProposer)
        found: list[list[Selected] | None] = [None] * len(states)
        for group in [[k] for k in there] if spelled else [there] if there else []:
            h_nd = torch.cat([h for k in group if (h := vectors[k]) is not None])
            proposals = self.propose(features, frame, states[group[0]].text)
            assert self.filter is not None
            output = self.filter(h_nd, self.pyramid(features), *proposals[:3])
            selected = iter(self.filter.select(output, self._masks_of(features)))
            for k in group:
                found[k] = [next(selected) for _ in vectors[k]]  # type: ignore[union-attr]
        return found

    def box_vectors(self, state: PromptState) -> Tensor | None:
        """h of each object: W_LV^BOX of its [BOX] state, or of its [SEG] state (Table 5A)."""
        if self.filter is None:
            return None
        chosen = state.box_nd if self.config.filter.supervision_token == "box" else state.seg_nd
        if chosen is None:
            return None
        return (
            self.host.seg_prompt(chosen)[:, 0]
            if self.box_adapter is None
            else self.box_adapter(chosen)
        )

    def propose(self, features: Features, frame: Frames | None, text: str = "") -> Proposals:
        """Class-agnostic proposals of one frame: see `propose_each`."""
        return self.propose_each(features, [frame], [text])[0]

    @torch.no_grad()
    def propose_each(
        self, features: Features, frames: Sequence[Frames | None], texts: Sequence[str]
    ) -> list[Proposals]:
        """Class-agnostic proposals of B frames. frames: [H, W, 3] each, read only where `proposals.input` is a number;
        texts: the answers, read only where boxes are spelled out in them."""
        options, maps = self.config.proposals, features.fpn
        if isinstance(self.proposer, CoordinatesProposer):
            found = propose(self.proposer(list(texts)), keep=1)
            return [Proposals(*(x.to(maps[0].device) for x in one)) for one in found]
        if options.input != "shared":
            if any(frame is None for frame in frames):
                raise ValueError(f"proposals.input={options.input} needs the frame itself")
            small = torch.cat(
                [prepare(f[None], options.input, maps[0].device) for f in frames if f is not None]
            )
            maps = self.host.sam.features(small.to(maps[0].dtype)).fpn
        assert self.proposer is not None
        return propose(
            self.proposer(maps), options.keep, options.nms, options.threshold, options.clip
        )

    def pyramid(self, features: Features) -> list[Tensor]:
        """The maps that the filter pools: the feature pyramid (paper), or what the mask decoder reads (release)."""
        assert self.filter is not None
        if self.filter.reads == "fpn":
            return features.fpn
        return [*features.maps[:2], self.host.sam.without_memory(features)]

    def _masks_of(self, features: Features) -> Callable[[Tensor], Tensor]:
        def masks(boxes_m4: Tensor) -> Tensor:
            rows = features.rows([0] * len(boxes_m4))
            return (
                self.host.sam.decode(
                    rows, Prompt(None, boxes_m4, pads=1), multimask=False
                ).logits_n1hw[:, 0]
                > 0
            )

        return masks

    # --- training ---

    def adapt(self) -> None:
        """Put LoRA on what any stage trains through it, and make the new rows trainable. Once, before training.

        ValueError if it was done already, or the tokenizer that knows [BOX]'s id is not there yet.
        """
        if self.lora_names:
            raise ValueError("this model has its adapters already")
        stages = (self.config.stage1, self.config.stage2)
        self.lora_names = {part: self._linears(part) for stage in stages for part in stage.lora}
        add_lora(
            self.host,
            [name for names in self.lora_names.values() for name in names],
            self.config.lora,
        )
        if self.config.box.enabled and any("rows" in stage.full for stage in stages):
            train_rows(self.host.llm, [self.host.token_id(BOX_TOKEN)])
        self.requires_grad_(False)

    def train_stage(self, stage: StageConfig) -> list[str]:
        """Make exactly what `stage` trains trainable; returns the names of those parameters. `adapt` comes first."""
        lora = tuple(f"host.{name}." for part in stage.lora for name in self.lora_names[part])
        names = []
        for name, parameter in self.named_parameters():
            if f".{LORA}." in name:
                chosen = name.startswith(lora)
            elif name.endswith(f"trainable_tokens_delta.{ROWS}"):
                chosen = "rows" in stage.full
            else:
                chosen = any(
                    name.startswith(tuple(f"{m}." for m in self._modules_of(part)))
                    for part in stage.full
                )
            parameter.requires_grad_(chosen)
            names += [name] if chosen else []
        return names

    def _modules_of(self, part: Part) -> list[str]:
        modules = {
            "projectors": [f"host.{name}" for name in self.host.spec.projectors],
            "seg_head": ["host.seg_head"],
        }
        return modules.get(part, [] if part == "rows" else [part])

    def _linears(self, part: Part) -> list[str]:
        """Names within the host of the linear layers of a part that LoRA wraps."""
        spec, layers = self.host.spec, dict(self.host.named_modules())
        if part == "llm":
            norm = next(name for name, module in layers.items() if module is self.host.final_norm)
            prefixes, suffixes = [norm.rpartition(".")[0] + ".layers."], spec.lora_targets
        else:
            prefixes, suffixes = [m.removeprefix("host.") for m in self._modules_of(part)], ("",)
        return [
            name
            for name, module in layers.items()
            if isinstance(module, nn.Linear)
            and name.startswith(tuple(prefixes))
            and name.endswith(suffixes)
        ]

    def forward(
        self, samples: list[Sample], stage: StageConfig, *, by_family: bool = False
    ) -> dict[str, Tensor]:
        """Losses of a stage: see `model.stage_losses.stage_losses`."""
        return stage_losses(self, samples, stage, by_family=by_family)

    def train(self, mode: bool = True) -> "Sparrow":
        """Training mode, except for frozen parts whose dropout would only add noise: the proposer, the mask model's
        memory attention, and LoRA that this stage does not train."""
        super().train(mode)
        if self.proposer is not None:
            self.proposer.eval()
        self.host.sam.memory_attention.eval()
        for module in self.host.modules():
            if isinstance(module, LoraLayer):
                module.train(mode and any(p.requires_grad for p in module.parameters()))
        return self
