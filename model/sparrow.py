"""SPARROW: a host video MLLM that holds on to an object (paper section 3).

host            frames + question -> states of [BOX] and [SEG]                        Eq. 1-3
tsf             crops of a tracked target -> a few more tokens of the prompt          Eq. 3-5   model.tsf
proposer        the mask model's features -> boxes of anything                        Table 11  model.proposer
box_adapter     state of [BOX] -> h                                                             model.adapters
filter          h, boxes, features -> which boxes, and where exactly                  Eq. 6-10  model.filtration
host.propagate  {box, [SEG] vector} -> a mask per frame and instance                            model.sam, .grounding
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from model.adapt import LORA, ROWS, add_lora, train_rows
from model.adapters import BoxAdapter
from model.config import Part, SparrowConfig, StageConfig
from model.filtration import Selected
from model.grounding import Grounding, Stream, ground, stream
from model.hosts.base import BOX_TOKEN, IGNORE, Frames, Host, Packed, PromptState
from model.losses import filter_loss, mask_losses
from model.proposer import CoordinatesProposer, Proposals, build_proposer, propose
from model.sam import Features, Prompt, prepare
from model.tsf import TSFInjector
from model.video import Video


@dataclass
class Sample:
    """One training sample, as a host's collation leaves it. F mask frames, N objects."""

    inputs: dict[str, Tensor]
    """`Host.prepare` of the clip."""
    ids: list[int]
    answer_begins: int
    sam_frames_f3ss: Tensor
    masks_nfhw: Tensor
    """1 inside, 0 outside, -1 where nothing is known."""
    boxes_n4: Tensor
    """Targets on the prompted frame (the first): xyxy in [0, 1]; NaN where the object is not in it."""
    crops: Tensor | None = None
    """`Host.crop_features` of the representatives, if the prompt has TSF slots."""
    text: str = ""
    """The answer, where boxes are spelled out in it (Table 11's first row)."""
    frame: Frames | None = None
    """The prompted frame [H, W, 3], where the proposer looks at it anew (`proposals.input`)."""


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
        h_nd = self.box_vectors(state)
        if h_nd is None or self.filter is None:
            return None
        proposals = self.propose(features, frame, state.text)
        output = self.filter(h_nd, self.pyramid(features), *proposals[:3])
        return self.filter.select(output, self._masks_of(features))

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

    def forward(self, samples: list[Sample], stage: StageConfig) -> dict[str, Tensor]:
        """Losses of a stage (Eq. 11 and 13), each a mean over what it is taken of, and their weighted sum `loss`."""
        packed, logits, hidden = self._said(samples)
        losses: dict[str, list[Tensor]] = {}

        def add(found: dict[str, Tensor]) -> None:
            for name, value in found.items():
                losses.setdefault(name, []).append(value)

        assert packed.labels_bl is not None
        if "language" in stage.losses:
            add({"ce": self._language_loss(logits, packed.labels_bl)})
        states = self._states(packed, hidden)
        shown = [
            sample.sam_frames_f3ss[: None if "masks" in stage.losses else 1] for sample in samples
        ]
        with torch.no_grad():  # the image encoder is frozen in both stages
            features = self.host.sam.features(torch.cat(shown))
        begins = [sum(map(len, shown[:i])) for i in range(len(shown))]
        if "masks" in stage.losses:
            for sample, logits_nfhw in zip(
                samples, self._seg_logits(samples, states, features, begins), strict=True
            ):
                add(self._mask_losses(sample, logits_nfhw))
        if "proposals" in stage.losses and self.filter is not None:
            found = self.propose_each(
                features.rows(begins),
                [sample.frame for sample in samples],
                [sample.text for sample in samples],
            )
            for sample, state, begin, proposals in zip(samples, states, begins, found, strict=True):
                add(self.proposal_losses(sample, state, features.rows([begin]), proposals))
        means = {name: torch.stack(values).mean() for name, values in losses.items()}
        weights = self.config.loss.model_dump() | {"proposals": 1.0}
        total = torch.stack([weights[name] * value for name, value in means.items()]).sum()
        return {"loss": total, **means}

    def states(self, samples: list[Sample]) -> list[PromptState]:
        """[SEG] and [BOX] states of the samples' answers."""
        packed, _, hidden = self._said(samples)
        return self._states(packed, hidden)

    def _said(self, samples: list[Sample]) -> tuple[Packed, Tensor, Tensor]:
        """The dialogues as one batch; logits [B, L, V] and states [B, L, D] of the language model."""
        packed = self.host.pack(
            [sample.ids for sample in samples],
            [sample.inputs for sample in samples],
            tsf=[
                None if sample.crops is None else self.tsf_tokens(sample.crops)
                for sample in samples
            ],
            answer_begins=[sample.answer_begins for sample in samples],
        )
        logits, hidden, _ = self.host.lm(packed)
        return packed, logits, hidden

    def _states(self, packed: Packed, hidden_bld: Tensor) -> list[PromptState]:
        assert packed.labels_bl is not None
        rows = zip(packed.ids_bl, hidden_bld, packed.labels_bl, strict=True)
        return [self._answer_state(*row) for row in rows]

    def _language_loss(self, logits_blv: Tensor, labels_bl: Tensor) -> Tensor:
        labels = labels_bl[:, 1:]
        if self.host.spec.loss_on_tokens_only:
            ids = [self.host.seg_id] + (
                [self.host.token_id(BOX_TOKEN)] if self.config.box.enabled else []
            )
            labels = labels.where(
                torch.isin(labels, torch.tensor(ids, device=labels.device)), IGNORE
            )
        return F.cross_entropy(
            logits_blv[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE
        )

    def _answer_state(self, ids_l: Tensor, states_ld: Tensor, labels_l: Tensor) -> PromptState:
        """[SEG] and [BOX] states of one sample of a batch."""
        said = (labels_l != IGNORE).nonzero()
        length = int(said[-1]) + 1
        return self.host.prompt_state(
            0, ids_l[:length], states_ld[: length - 1], int(said[0]), "", forced=True
        )

    def _seg_logits(
        self,
        samples: list[Sample],
        states: list[PromptState],
        features: Features,
        begins: list[int],
    ) -> list[Tensor]:
        """[SEG] alone on every frame, as the hosts train: filtration has not been trained yet, and boxes would hide
        what the vector says. -> Mask logits [N, F, h, w] of each sample; `features` are all samples' frames, those of
        sample i from `begins[i]` on."""
        spec = self.host.spec
        per_frame = spec.seg_granularity == "frame"
        every, shapes = [], []
        for sample, state in zip(samples, states, strict=True):
            count, frames = len(sample.masks_nfhw), len(sample.sam_frames_f3ss)
            wanted = count * frames if per_frame else count
            if len(state.seg_nd) != wanted:
                raise ValueError(
                    f"the answer has {len(state.seg_nd)} {spec.seg_token}, the masks need {wanted}"
                )
            seg = state.seg_nd
            every.append(
                seg.reshape(frames, count, -1).transpose(0, 1) if per_frame else seg[:, None]
            )
            shapes.append((count, frames))
        if spec.train_memory:
            lengths = {frames for _, frames in shapes}
            if not per_frame and len(lengths) == 1:
                return self._followed(every, features, begins, *lengths)
            parts = zip(every, begins, shapes, strict=True)
            return [
                self._followed([seg], features, [begin], frames)[0]
                for seg, begin, (_, frames) in parts
            ]
        vectors = [
            seg.expand(*shape, -1).flatten(0, 1) for seg, shape in zip(every, shapes, strict=True)
        ]
        rows = [
            list(range(b, b + frames)) * count
            for b, (count, frames) in zip(begins, shapes, strict=True)
        ]
        prompt = self.host.prompt(torch.cat(vectors), None, training=True)
        decoded = self.host.sam.decode(
            features.rows([i for one in rows for i in one]), prompt, multimask=False
        )
        parts = decoded.logits_n1hw[:, 0].split([len(one) for one in rows])
        return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]

    def _followed(
        self, seg_nfd: list[Tensor], features: Features, begins: list[int], frames: int
    ) -> list[Tensor]:
        """Mask logits [N, F, h, w] of each sample through the mask model's memory; samples of one length together."""
        counts, every = [len(seg) for seg in seg_nfd], torch.cat(seg_nfd)
        rows = (
            [begin for begin, n in zip(begins, counts, strict=True) for _ in range(n)]
            if len(begins) > 1
            else begins
        )
        prompts = {
            t: (list(range(len(every))), self.host.prompt(every[:, t], None, training=True))
            for t in range(every.shape[1])
        }
        steps = self.host.propagate(
            lambda t: features.rows([row + t for row in rows]), frames, prompts
        )
        logits = torch.stack([decoded.logits_n1hw[:, 0] for _, _, decoded in steps], 1)
        return list(logits.split(counts))

    def _mask_losses(self, sample: Sample, logits_nfhw: Tensor) -> dict[str, Tensor]:
        count, frames, *size = sample.masks_nfhw.shape
        logits = F.interpolate(logits_nfhw.float(), size, mode="bilinear", align_corners=False)
        padded = (
            max(count, self.config.loss.pad_objects) * frames
            if self.config.loss.pad_objects
            else None
        )
        bce, dice = mask_losses(logits, sample.masks_nfhw, padded)
        return {"bce": bce, "dice": dice}

    def proposal_losses(
        self, sample: Sample, state: PromptState, features: Features, proposals: Proposals
    ) -> dict[str, Tensor]:
        """Eq. 13: the first frame's proposals against its own boxes. (The release makes one box of the union of all
        frames' masks; who wants that puts it into `Sample.boxes_n4`.)"""
        h_nd, options = self.box_vectors(state), self.config.loss.filter
        if h_nd is None or self.filter is None:
            raise ValueError(
                f"the answer has no {BOX_TOKEN}: stage 2 needs {self.grounding_tokens()} for every object"
            )
        was = self.filter.training
        self.filter.train()  # box losses need every proposal refined, wherever it ranks
        output = self.filter(h_nd[: len(sample.boxes_n4)], self.pyramid(features), *proposals[:3])
        self.filter.train(was)
        refined = output.by_proposal() if options.l1_weight or options.giou_weight else None
        found = filter_loss(
            output.logits, proposals.boxes_xyxy, sample.boxes_n4, refined, config=options
        )
        return {"proposals": found["total"]}

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
