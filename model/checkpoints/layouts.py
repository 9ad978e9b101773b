"""What published files call their tensors, and what we call them.

Every layout is a list of prefixes with their counterparts in ours, as names of a `model.sparrow.Sparrow` (`host.`,
`proposer.`, `filter.`); the longest prefix that fits decides. The same list read backwards exports. A layout is known
by the names in it, never by the name of a file. Sources: `spec/model.md` section 4, `spec/hosts.md` section 2.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from trackers.checkpoints import CheckpointError


@dataclass(frozen=True)
class Rule:
    """Tensors whose official name starts with `official` start with `ours` here."""

    official: str
    ours: str
    export: bool = True
    """Written on export. Another spelling that is only read has False."""


@dataclass(frozen=True)
class Layout:
    """One kind of published file."""

    name: str
    about: str
    signature: tuple[str, ...]
    """Regular expressions; each finds a name in every file of this kind."""
    rules: tuple[Rule, ...]
    hosts: tuple[str, ...] = ()
    """The hosts it can be loaded into; all if empty."""
    optional: tuple[str, ...] = ()
    """Our parts that are in the file whole or not at all. Every other part of `rules` must be in it, whole."""
    ignore: tuple[tuple[str, str], ...] = ()
    """(regular expression, reason): tensors that are left alone."""
    twins: tuple[Rule, ...] = ()
    """Tensors left alone because they are copies of what the host has: compared, and written on export."""
    rotary: str | None = None
    """Name of the rotary frequencies of layer {}, which files of this kind hold and nobody needs."""

    def to_ours(self, name: str) -> str | None:
        """Our name of an official tensor; None if no rule speaks of it."""
        return _replace(name, [(rule.official, rule.ours) for rule in self.rules])

    def to_official(self, name: str) -> str | None:
        """The official name of one of our tensors; None if it is not part of such files."""
        return _replace(name, [(rule.ours, rule.official) for rule in self.rules if rule.export])

    def ignored(self, name: str) -> str | None:
        """Why this official tensor is left alone; None if it is not."""
        return next((reason for pattern, reason in self.ignore if re.search(pattern, name)), None)

    @property
    def parts(self) -> tuple[str, ...]:
        """Beginnings of our names, of everything that the rules speak of."""
        return tuple(dict.fromkeys(rule.ours for rule in self.rules))


def _replace(name: str, pairs: list[tuple[str, str]]) -> str | None:
    fitting = [pair for pair in pairs if name.startswith(pair[0])]
    if not fitting:
        return None
    old, new = max(fitting, key=lambda pair: len(pair[0]))
    return new + name.removeprefix(old)


FUSER_SCALE = "host.sam.memory_encoder.fuser.layers."
"""The layer scales of SAM2's memory fuser: `gamma` upstream, renamed to `weight` by transformers before 4.5x."""


def _sam(official: str, scale: str) -> tuple[Rule, ...]:
    """SAM2 under a prefix; its fuser scales are called `scale` there, and the other spelling is read too."""
    fuser = official + "memory_encoder.fuser.layers."
    spellings = [
        Rule(f"{fuser}{i}.{word}", f"{FUSER_SCALE}{i}.gamma", export=word == scale)
        for i in range(2)
        for word in ("gamma", "weight")
    ]
    return (Rule(official, "host.sam."), *spellings)


_SHARED_HEADS = (
    Rule("model.", "host.llm.model."),
    Rule("lm_head.", "host.llm.lm_head."),
    Rule("model.text_hidden_fcs.0.", "host.seg_head."),
)
_VIDEOGLAMM = (
    *_SHARED_HEADS,
    Rule("model.mm_projector.", "host.video_projector."),
    Rule("model.image_mm_projector.", "host.image_projector."),
    Rule("model.vision_tower.vision_encoder.", "host.video_encoder."),
    Rule("model.vision_tower.vision_proj.", "host.vision_proj."),
    *_sam("model.visual_model.", "weight"),
)
_QWEN = (
    Rule("visual.", "host.llm.model.visual."),
    Rule("model.", "host.llm.model.language_model."),
    Rule("model.visual.", "host.llm.model.visual.", export=False),  # names since transformers 4.52
    Rule("model.language_model.", "host.llm.model.language_model.", export=False),
    Rule(
        "lm_head.", "host.llm.lm_head.", export=False
    ),  # tied: a copy of the embeddings where it is stored
)
_UNIPIXEL_OWN = (
    "seg_head.",
    "ref_encoder.",
    "ref_proj_single.",
    "ref_proj_double.",
    "ref_proj.",
    "tem_pe.",
    "tem_emb.",
    "tem_proj.",
    "msk_proj.",
)
_ROTARY = (r"\.rotary_emb\.inv_freq$", "rotary frequencies: computed, not learned")
_VIDEO_TOWER = ("host.video_encoder.", "host.vision_proj.")

LAYOUTS = (
    Layout(
        "sparrow",
        "the official SPARROW export: VideoGLaMM with proposal selector and ROI helper",
        (r"^model\.proposal_selector\.", r"^model\.visual_model\."),
        (
            *_VIDEOGLAMM,
            Rule("model.proposal_selector.", "filter.proposal_selector."),
            Rule("model.roi_helper.", "filter.roi_helper."),
            Rule("model.roi_fusion_gamma", "filter.roi_fusion_gamma"),
        ),
        hosts=("videoglamm",),
        optional=_VIDEO_TOWER,
    ),
    Layout(
        "videoglamm",
        "VideoGLaMM",
        (r"^model\.image_mm_projector\.", r"^model\.visual_model\."),
        _VIDEOGLAMM,
        hosts=("videoglamm",),
        optional=_VIDEO_TOWER,
    ),
    Layout(
        "glus",
        "GLUS",
        (r"^model\.mm_projector\.weight$", r"^model\.visual_model\."),
        (
            *_SHARED_HEADS,
            Rule("model.mm_projector.", "host.image_projector."),
            *_sam("model.visual_model.", "gamma"),
        ),
        hosts=("glus",),
        ignore=(_ROTARY,),
        rotary="model.layers.{}.self_attn.rotary_emb.inv_freq",
    ),
    Layout(
        "unipixel",
        "UniPixel",
        (r"^sam2\.", r"^msk_proj\."),
        (*_QWEN, *_sam("sam2.", "weight"), *(Rule(name, f"host.{name}") for name in _UNIPIXEL_OWN)),
        hosts=("unipixel",),
    ),
    Layout(
        "proposer",
        "the released proposer folder (ddetr_sam2)",
        (r"^ddetr_transformer\.", r"^input_proj\."),
        (
            Rule("ddetr_transformer.", "proposer.ddetr_transformer."),
            Rule("input_proj.", "proposer.input_proj."),
        ),
        ignore=(
            (r"^vis_encoder\.", "its copy of SAM2's image encoder: the proposer reads the host's"),
        ),
        twins=(Rule("vis_encoder.", "host.sam.image_encoder."),),
    ),
    Layout(
        "sam2",
        "SAM2 as published",
        (r"^image_encoder\.trunk\.", r"^sam_mask_decoder\."),
        _sam("", "gamma"),
    ),
    Layout(
        "clip",
        "CLIP in the layout of transformers",
        (r"^(vision_model\.)?embeddings\.class_embedding$",),
        (
            Rule("vision_model.", "host.image_encoder."),
            *(
                Rule(part, f"host.image_encoder.{part}", export=False)
                for part in ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
            ),
        ),
        hosts=("videoglamm", "glus"),
        ignore=(
            (
                r"^(text_model|text_projection|visual_projection)\.|^logit_scale$",
                "CLIP's text side and heads",
            ),
            (r"embeddings\.position_ids$", "a table of indices: computed"),
        ),
    ),
    Layout(
        "internvideo2",
        "InternVideo2 stage 2",
        (r"^vision_encoder\.patch_embed\.", r"^vision_encoder\.blocks\."),
        (Rule("vision_encoder.", "host.video_encoder."), Rule("vision_proj.", "host.vision_proj.")),
        hosts=("videoglamm",),
        ignore=((r"^(?!vision_encoder\.|vision_proj\.)", "not the vision tower"),),
    ),
    Layout(
        "qwen2_5_vl",
        "Qwen2.5-VL in the layout of transformers",
        (r"^(model\.)?visual\.patch_embed\.", r"embed_tokens\.weight$"),
        _QWEN,
        hosts=("unipixel",),
    ),
    Layout(
        "phi3",
        "Phi-3 in the layout of transformers",
        (r"^model\.layers\.0\.self_attn\.qkv_proj\.",),
        _SHARED_HEADS[:2],
        hosts=("videoglamm",),
    ),
    Layout(
        "llama",
        "LLaMA or Vicuna in the layout of transformers",
        (r"^model\.layers\.0\.self_attn\.q_proj\.weight$", r"^model\.layers\.0\.mlp\.gate_proj\."),
        _SHARED_HEADS[:2],
        hosts=("glus",),
        ignore=(_ROTARY,),
    ),
)


def layout(name: str) -> Layout:
    """The layout of this name. ValueError lists the names there are."""
    for one in LAYOUTS:
        if one.name == name:
            return one
    raise ValueError(
        f"layout {name!r} is not known: one of {', '.join(one.name for one in LAYOUTS)}"
    )


def recognise(names: Iterable[str], what: str) -> Layout:
    """The layout that these tensor names are in. `what`: the file, for the message.

    CheckpointError if it is none, with the names seen; also for a PEFT training checkpoint, which has to be merged.
    """
    names = list(names)
    lora = sum(".lora_A." in name for name in names)
    if lora or any(name.startswith("base_model.model.") for name in names):
        raise CheckpointError(
            f"{what}: a PEFT training checkpoint ({lora} LoRA pairs beside frozen weights, names under "
            "base_model.model.). The scale of LoRA is not in the file: merge it where it was trained (peft's "
            "merge_and_unload, or the authors' export script), then load the result"
        )
    for one in LAYOUTS:
        if all(any(re.search(pattern, name) for name in names) for pattern in one.signature):
            return one
    seen = sorted({re.sub(r"\.\d+(\.|$).*", ".N", name) for name in names})
    known = "\n".join(
        f"  {one.name:13} {one.about}; recognised by {' and '.join(one.signature)}"
        for one in LAYOUTS
    )
    raise CheckpointError(
        f"{what}: {len(names)} tensors in no layout known here. Seen: {', '.join(seen[:12])}"
        f"{', ...' if len(seen) > 12 else ''}\nKnown layouts:\n{known}"
    )
