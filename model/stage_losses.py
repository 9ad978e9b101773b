"""Losses of the two training stages of SPARROW (Eq. 11 and 13), on batches of samples."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import StageConfig
from model.data.questions import ABOUT_REGION, Family
from model.hosts.base import BOX_TOKEN, IGNORE, Packed, PromptState
from model.losses import filter_loss, mask_losses
from model.proposer import Proposals
from model.sam import Features
from model.sample import Sample

if TYPE_CHECKING:
    from model.sparrow import Sparrow


def stage_losses(
    sparrow: "Sparrow", samples: list[Sample], stage: StageConfig, *, by_family: bool = False
) -> dict[str, Tensor]:
    """Losses of a stage (Eq. 11 and 13), each a mean over what it is taken of, and their weighted sum `loss`.

    by_family: beside them, under `<term>_<family>`, the language and mask losses of each family of questions that
    is in the batch, without a gradient.
    """
    packed, logits, hidden = _run_host(sparrow, samples)
    losses: dict[str, Tensor] = {}
    if "language" in stage.losses:
        losses |= _language_losses(sparrow, logits, packed, samples)
    grounded = [i for i, sample in enumerate(samples) if sample.masked]
    if grounded:
        losses |= _grounding_losses(
            sparrow,
            [samples[i] for i in grounded],
            _states(sparrow, packed, hidden, grounded),
            stage,
        )
    else:
        losses |= _no_grounding_losses(sparrow, hidden, stage)
    weights = sparrow.config.loss.model_dump() | {"proposals": 1.0}
    terms = [weights[name] * value for name, value in losses.items() if name in weights]
    if not by_family:
        losses = {name: value for name, value in losses.items() if name in weights}
    return {"loss": torch.stack(terms).sum(), **losses}


def _grounding_losses(
    sparrow: "Sparrow", samples: list[Sample], states: list[PromptState], stage: StageConfig
) -> dict[str, Tensor]:
    """Mask and proposal losses of samples whose answers have grounding tokens."""
    losses: dict[str, list[Tensor]] = {}

    def add(found: dict[str, Tensor]) -> None:
        for name, value in found.items():
            losses.setdefault(name, []).append(value)

    shown = [sample.sam_frames_f3ss[: None if "masks" in stage.losses else 1] for sample in samples]
    with torch.no_grad():  # the image encoder is frozen in both stages
        features = sparrow.host.sam.features(torch.cat(shown))
    begins = [sum(map(len, shown[:i])) for i in range(len(shown))]
    if "masks" in stage.losses:
        every_logits = _seg_logits(sparrow, samples, states, features, begins)
        for sample, logits_nfhw in zip(samples, every_logits, strict=True):
            found_losses = _mask_losses(sparrow, sample, logits_nfhw)
            add(found_losses)
            add({f"{k}_{sample.family}": v.detach() for k, v in found_losses.items()})
    if "proposals" in stage.losses and sparrow.filter is not None:
        found = sparrow.propose_each(
            features.rows(begins),
            [sample.frame for sample in samples],
            [sample.text for sample in samples],
        )
        for sample, state, begin, proposals in zip(samples, states, begins, found, strict=True):
            add(proposal_losses(sparrow, sample, state, features.rows([begin]), proposals))
    return {name: torch.stack(values).mean() for name, values in losses.items()}


def _no_grounding_losses(
    sparrow: "Sparrow", hidden_bld: Tensor, stage: StageConfig
) -> dict[str, Tensor]:
    """Zeros for a batch without masks. They still read the segmentation head: with several processes each must
    take part in the gradients of the same weights."""
    nothing = sparrow.host.seg_prompt(hidden_bld[:, -1]).float().sum() * 0.0
    names = []
    if "masks" in stage.losses:
        names += ["bce", "dice"]
    if "proposals" in stage.losses and sparrow.filter is not None:
        names += ["proposals"]
    return dict.fromkeys(names, nothing)


def states_of(sparrow: "Sparrow", samples: list[Sample]) -> list[PromptState]:
    """[SEG] and [BOX] states of the samples' answers."""
    packed, _, hidden = _run_host(sparrow, samples)
    return _states(sparrow, packed, hidden, range(len(samples)))


def _run_host(sparrow: "Sparrow", samples: list[Sample]) -> tuple[Packed, Tensor, Tensor]:
    """The dialogues as one batch; logits [B, L, V] and states [B, L, D] of the language model."""
    packed = sparrow.host.pack(
        [sample.ids for sample in samples],
        [sample.inputs for sample in samples],
        tsf=[
            None if sample.crops is None else sparrow.tsf_tokens(sample.crops) for sample in samples
        ],
        answer_begins=[sample.answer_begins for sample in samples],
    )
    logits, hidden, _ = sparrow.host.lm(packed)
    return packed, logits, hidden


def _states(
    sparrow: "Sparrow", packed: Packed, hidden_bld: Tensor, rows: Sequence[int]
) -> list[PromptState]:
    """Of the samples in `rows`."""
    labels_bl = packed.labels_bl
    assert labels_bl is not None
    return [_answer_state(sparrow, packed.ids_bl[i], hidden_bld[i], labels_bl[i]) for i in rows]


def _language_losses(
    sparrow: "Sparrow", logits_blv: Tensor, packed: Packed, samples: list[Sample]
) -> dict[str, Tensor]:
    """`ce`, the mean over all labelled words of the batch, and `ce_<family>`, the same of a family's samples."""
    assert packed.labels_bl is not None
    labels_bl = packed.labels_bl[:, 1:].clone()
    for labels_l, sample in zip(labels_bl, samples, strict=True):
        if (ids := counted_words(sparrow, sample.family)) is not None:
            counted = torch.isin(labels_l, torch.tensor(sorted(ids), device=labels_l.device))
            labels_l[~counted] = IGNORE
    losses_bl = F.cross_entropy(
        logits_blv[:, :-1].flatten(0, 1).float(),
        labels_bl.flatten(),
        ignore_index=IGNORE,
        reduction="none",
    ).unflatten(0, labels_bl.shape)
    counts_b = (labels_bl != IGNORE).sum(1)
    found = {"ce": losses_bl.sum() / counts_b.sum().clamp(min=1)}
    for family in {sample.family for sample in samples}:
        rows = [i for i, sample in enumerate(samples) if sample.family == family]
        words = counts_b[rows].sum().clamp(min=1)
        found[f"ce_{family}"] = losses_bl[rows].detach().sum() / words
    return found


def counted_words(sparrow: "Sparrow", family: Family) -> set[int] | None:
    """The ids that the language loss counts in the answer to a question; None: all of them.

    GLUS counts its grounding tokens only, but the answer to a question about a region is the caption.
    """
    if not sparrow.host.spec.loss_on_tokens_only or family in ABOUT_REGION:
        return None
    tokens = [sparrow.host.spec.seg_token, *([BOX_TOKEN] if sparrow.config.box.enabled else [])]
    return {sparrow.host.token_id(token) for token in tokens}


def _answer_state(
    sparrow: "Sparrow", ids_l: Tensor, states_ld: Tensor, labels_l: Tensor
) -> PromptState:
    """[SEG] and [BOX] states of one sample of a batch."""
    answer = (labels_l != IGNORE).nonzero()
    begin, length = int(answer[0]), int(answer[-1]) + 1
    return sparrow.host.prompt_state(
        0, ids_l[:length], states_ld[: length - 1], begin, "", forced=True
    )


def _seg_logits(
    sparrow: "Sparrow",
    samples: list[Sample],
    states: list[PromptState],
    features: Features,
    begins: list[int],
) -> list[Tensor]:
    """[SEG] alone on every frame, as the hosts train: filtration has not been trained yet, and boxes would hide
    what the vector says. -> Mask logits [N, F, h, w] of each sample; `features` are all samples' frames, those of
    sample i from `begins[i]` on."""
    spec = sparrow.host.spec
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
        every.append(seg.reshape(frames, count, -1).transpose(0, 1) if per_frame else seg[:, None])
        shapes.append((count, frames))
    if spec.train_memory:
        lengths = {frames for _, frames in shapes}
        if not per_frame and len(lengths) == 1:
            return _followed(sparrow, every, features, begins, *lengths)
        parts = zip(every, begins, shapes, strict=True)
        return [
            _followed(sparrow, [seg], features, [begin], frames)[0]
            for seg, begin, (_, frames) in parts
        ]
    vectors = [
        seg.expand(*shape, -1).flatten(0, 1) for seg, shape in zip(every, shapes, strict=True)
    ]
    rows = [
        list(range(b, b + frames)) * count
        for b, (count, frames) in zip(begins, shapes, strict=True)
    ]
    prompt = sparrow.host.prompt(torch.cat(vectors), None, training=True)
    decoded = sparrow.host.sam.decode(
        features.rows([i for one in rows for i in one]), prompt, multimask=False
    )
    parts = decoded.logits_n1hw[:, 0].split([len(one) for one in rows])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def _followed(
    sparrow: "Sparrow", seg_nfd: list[Tensor], features: Features, begins: list[int], frames: int
) -> list[Tensor]:
    """Mask logits [N, F, h, w] of each sample through the mask model's memory; samples of one length together."""
    counts, every = [len(seg) for seg in seg_nfd], torch.cat(seg_nfd)
    rows = (
        [begin for begin, n in zip(begins, counts, strict=True) for _ in range(n)]
        if len(begins) > 1
        else begins
    )
    prompts = {
        t: (list(range(len(every))), sparrow.host.prompt(every[:, t], None, training=True))
        for t in range(every.shape[1])
    }
    steps = sparrow.host.propagate(
        lambda t: features.rows([row + t for row in rows]), frames, prompts
    )
    logits = torch.stack([decoded.logits_n1hw[:, 0] for _, _, decoded in steps], 1)
    return list(logits.split(counts))


def _mask_losses(sparrow: "Sparrow", sample: Sample, logits_nfhw: Tensor) -> dict[str, Tensor]:
    count, frames, *size = sample.masks_nfhw.shape
    logits = F.interpolate(logits_nfhw.float(), size, mode="bilinear", align_corners=False)
    padded = (
        max(count, sparrow.config.loss.pad_objects) * frames
        if sparrow.config.loss.pad_objects
        else None
    )
    bce, dice = mask_losses(logits, sample.masks_nfhw, padded)
    return {"bce": bce, "dice": dice}


def proposal_losses(
    sparrow: "Sparrow", sample: Sample, state: PromptState, features: Features, proposals: Proposals
) -> dict[str, Tensor]:
    """Eq. 13: the first frame's proposals against its own boxes. (The release makes one box of the union of all
    frames' masks; who wants that puts it into `Sample.boxes_n4`.)"""
    h_nd, options = sparrow.box_vectors(state), sparrow.config.loss.filter
    if h_nd is None or sparrow.filter is None:
        raise ValueError(
            f"the answer has no {BOX_TOKEN}: stage 2 needs {sparrow.grounding_tokens()} for every object"
        )
    was = sparrow.filter.training
    sparrow.filter.train()  # box losses need every proposal refined, wherever it ranks
    output = sparrow.filter(h_nd[: len(sample.boxes_n4)], sparrow.pyramid(features), *proposals[:3])
    sparrow.filter.train(was)
    refined = output.by_proposal() if options.l1_weight or options.giou_weight else None
    found = filter_loss(
        output.logits, proposals.boxes_xyxy, sample.boxes_n4, refined, config=options
    )
    return {"proposals": found["total"]}
