"""GLUS: LLaVA-7B with SAM2, which is asked about every frame anew (`spec/hosts.md` section 1.3).

CLIP at 224 px gives 64 tokens per picture. Four context pictures stand for the whole video; frames come one by one as
the turns of a dialogue, and each answer has a [SEG] of its own. Masks of earlier frames are remembered by a bank of its
own, which is simpler than SAM2's.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from model.hosts import clip
from model.hosts.asking import Prefilled, PromptRow, VideoQuestion
from model.hosts.base import (
    BOX_TOKEN,
    IMAGE,
    Frames,
    Host,
    HostSpec,
    PromptState,
    answer_from,
    select,
)
from model.hosts.glus_inputs import END, SEG, START, GLUSConfig, GLUSInputs, without_box
from model.hosts.glus_memory import MemoryBank
from model.hosts.tokenizer import byte_tokenizer
from model.sam import Decoded, Features, Prompt, build_sam, concatenate


class GLUS(Host):
    """Inputs of its tower: {"context": [4, 3, 224, 224], "query": [n, 3, 224, 224]}, n frames asked about in turn.

    [BOX] is said on prompted frames only, beside the [SEG] that every frame has: SPARROW's addition, for the release
    decodes one token per frame.
    """

    @staticmethod
    def configs() -> dict[str, GLUSConfig]:
        tiny = GLUSConfig(
            vocab=320,
            llm_dim=64,
            llm_layers=2,
            llm_heads=4,
            llm_mlp=128,
            clip_dim=32,
            clip_layers=3,
            clip_heads=4,
            clip_mlp=64,
            clip_size=56,
            sam="2.0-tiny",
            sam_size=128,
            tokenizer="bytes",
        )
        return {"full": GLUSConfig(), "tiny": tiny}

    def __init__(self, config: GLUSConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GLUSConfig()
        dim = config.llm_dim
        self.spec = HostSpec(
            name="glus",
            llm_dim=dim,
            patch_dim=config.clip_dim,
            seg_token=SEG,
            seg_vectors=1,
            seg_read="post_norm",
            seg_granularity="frame",
            max_len=config.max_len,
            sam=config.sam,
            sam_size=config.sam_size,
            sam_postprocess=True,
            pads=0,
            multimask=False,
            train_memory=True,
            loss_on_tokens_only=True,
        )
        self.llm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab,
                hidden_size=dim,
                intermediate_size=config.llm_mlp,
                num_hidden_layers=config.llm_layers,
                num_attention_heads=config.llm_heads,
                max_position_embeddings=config.max_len,
                rms_norm_eps=1e-6,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
        )
        self.image_encoder = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.clip_dim,
                intermediate_size=config.clip_mlp,
                num_hidden_layers=config.clip_layers,
                num_attention_heads=config.clip_heads,
                image_size=config.clip_size,
                patch_size=14,
            )
        )
        self.image_encoder.requires_grad_(False)
        self.image_projector = nn.Linear(config.clip_dim, dim)
        self.seg_head = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 256), nn.Dropout(0.0)
        )
        self.sam = build_sam(config.sam, postprocess=True, image_size=config.sam_size)
        self.tokenizer = byte_tokenizer([START, END, SEG]) if config.tokenizer == "bytes" else None

    @property
    def inputs(self) -> GLUSInputs:
        return GLUSInputs(self.config, self.spec, self.tokenizer)

    def prepare(self, frames: Frames, query: Sequence[int] = (0,)) -> dict[str, Tensor]:
        """`GLUSInputs.prepare`."""
        return self.inputs.prepare(frames, query)

    def dialogue(
        self, turns: Sequence[tuple[str, str | None]], tsf: int = 0, *, at: int | None = None
    ) -> tuple[list[int], list[int]]:
        """`GLUSInputs.dialogue`."""
        return self.inputs.dialogue(turns, tsf, at=at)

    # --- eyes ---

    def look(self, pixels_n3ss: Tensor) -> Tensor:
        """[n, 3, 224, 224] -> CLIP's patch features [n, 256, 1024].

        `visual_tokens` takes them in place of pixels, so that no frame is looked at twice.
        """
        return clip.patch_tokens(self.image_encoder, pixels_n3ss)

    def visual_tokens(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """[64, D] per picture: the context, then the frames asked about. ValueError for other keys and shapes."""
        side = self.config.clip_size
        shapes = ((3, side, side), ((side // 14) ** 2, self.config.clip_dim))
        context, query = inputs.get("context"), inputs.get("query")
        bad = (
            context is None
            or query is None
            or len(context) != self.config.context
            or not len(query)
        )
        if bad or any(tuple(x.shape[1:]) not in shapes for x in inputs.values()):
            seen = {name: list(x.shape) for name, x in inputs.items()}
            raise ValueError(
                f"glus looks at {self.config.context} context and n query pictures {shapes[0]}, not {seen}"
            )
        patches = [x if x.ndim == 3 else self.look(x) for x in (context, query) if x is not None]
        return list(self.project_spatial(torch.cat(patches)))

    def crop_patches(self, pixels: Tensor) -> Tensor:
        """[n, 3, 224, 224] -> [n, 256, 1024]."""
        return self.look(pixels)

    def project_spatial(self, patches: Tensor) -> Tensor:
        """[..., patches, 1024] -> [..., patches / 4, D]: the mean of four patches in raster order, then projected.

        A single patch, the mean of a whole crop, is projected as it is. ValueError if patches are not in fours.
        """
        pool = 1 if patches.shape[-2] == 1 else self.config.pool
        if patches.shape[-2] % pool:
            raise ValueError(
                f"glus pools {pool} patches into a token: {list(patches.shape)} has no such groups"
            )
        return self.image_projector(patches.unflatten(-2, (-1, pool)).mean(-2))

    # --- frame by frame ---

    def _rounds(
        self,
        frames: Frames,
        asks: Sequence[VideoQuestion],
        prompt_frames: Sequence[int],
        answer: str | None,
        max_new_tokens: int,
    ) -> Iterator[list[PromptState | ValueError]]:
        """VideoQuestion about every frame from the first prompted one on, the dialogue holding the last four; [BOX] is said on
        prompted frames only. Context comes from the whole video, and each picture is looked at once.

        answer: forced; on frames that are not prompted its [BOX] is left out. Without it, as in the release, the answer
        is forced up to its first grounding token, and that one is the model's own. On a prompted frame it may be
        [SEG] or [BOX], and the other follows. If it is neither, the frame has no state, and the dialogue goes on as if
        it had been [SEG]. max_new_tokens: has no effect, for one decides.
        """
        context = self.look(self.prepare(frames)["context"])
        plain = self.answer.format(seg=SEG)
        both = [
            self.answer.format(seg=f"{SEG} {BOX_TOKEN}"),
            self.answer.format(seg=f"{BOX_TOKEN} {SEG}"),
        ]
        has_box = BOX_TOKEN in self.tokenizer.get_vocab()
        past: deque[Tensor] = deque(maxlen=self.config.window - 1)
        said: list[deque[str]] = [deque(maxlen=self.config.window - 1) for _ in asks]
        for t in range(min(prompt_frames), len(frames)):
            picture = self.look(clip.centre_crops(frames[t : t + 1], self.config.clip_size))
            inputs = {"context": context, "query": torch.cat([*past, picture])}
            if answer is not None:
                texts = [answer if t in prompt_frames else without_box(answer)]
            else:
                texts = both if has_box and t in prompt_frames else [plain]
            states = self._ask(t, inputs, asks, said, texts, forced=answer is not None)
            past.append(picture)
            for turns, state in zip(said, states, strict=True):
                turns.append(
                    state.text if isinstance(state, PromptState) and len(state.seg_nd) else plain
                )
            yield states

    def _ask(
        self,
        t: int,
        inputs: dict[str, Tensor],
        asks: Sequence[VideoQuestion],
        said: Sequence[Sequence[str]],
        texts: Sequence[str],
        *,
        forced: bool,
    ) -> list[PromptState | ValueError]:
        """For each question, the first of `texts` that the model would begin as it is written, or any if it is
        forced."""
        visual = self.visual_tokens(inputs)
        states: list[PromptState | ValueError | None] = [None] * len(asks)
        for text in texts:
            left = [k for k, state in enumerate(states) if not _is_settled(state)]
            rows = []
            for k in left:
                turns = [(asks[k].question, past) for past in (*said[k], text)]
                tsf_nd = asks[k].tsf_nd
                ids, begins = self.dialogue(turns, 0 if tsf_nd is None else len(tsf_nd))
                rows.append(self._row(ids, begins[-1], visual, inputs, tsf_nd))
            judged = partial(self._judged, frame=t, text=text, forced=forced)
            for k, state in zip(left, self._each(rows, judged), strict=True):
                states[k] = state
        return [state for state in states if state is not None]

    def _judged(
        self, prompts: Prefilled, rows: Sequence[PromptRow], frame: int, text: str, forced: bool
    ) -> list[PromptState]:
        """The states of answers that were read; without [SEG] where the model itself would say something else."""
        prefix = self.answer.partition("{")[0]
        states = []
        for k, row in enumerate(rows):
            ids, hidden = prompts.packed.ids_bl[k], prompts.hidden[k]
            begin = answer_from(prompts, row)
            own = None if forced else self._own_word(prompts.logits[k], ids, begin)
            if own is None:
                state = self.prompt_state(frame, ids, hidden[:-1], begin, text, forced=forced)
            else:
                other = prefix + self.tokenizer.decode([own])
                state = PromptState(frame, hidden[:0], None, other, forced)
            states.append(state)
        return states

    def _own_word(self, logits_lv: Tensor, ids_l: Tensor, begin: int) -> int | None:
        """What the model would say in the place of the first grounding token of an answer; None if just that."""
        said = ids_l[begin:].tolist()
        grounding = self._grounding
        place = begin + next(i for i, token in enumerate(said) if token in grounding)
        would = int(logits_lv[place - 1].argmax())
        return None if would == ids_l[place] else would

    @property
    def _grounding(self) -> set[int]:
        vocabulary = self.tokenizer.get_vocab()
        return {vocabulary[token] for token in (SEG, BOX_TOKEN) if token in vocabulary}

    def prompt_state(
        self,
        frame: int,
        ids_l: Tensor,
        hidden_ld: Tensor,
        answer_from: int,
        text: str,
        *,
        forced: bool,
    ) -> PromptState:
        """Prefilled the states off one answer, or off all answers of a training dialogue: [SEG] of every turn in order, and
        the [BOX] of the first, paired with its [SEG]."""
        pictures = (ids_l[answer_from:] == IMAGE).nonzero()
        end = answer_from + int(pictures[0]) if len(pictures) else len(ids_l)
        first = super().prompt_state(
            frame, ids_l[:end], hidden_ld[: end - 1], answer_from, text, forced=forced
        )
        later = select(hidden_ld[end - 1 :], ids_l[end - 1 :], self.seg_id)
        return replace(first, seg_nd=torch.cat([first.seg_nd, later]))

    def propagate(
        self,
        features: Callable[[int], Features],
        num_frames: int,
        prompts: Mapping[int, tuple[list[int], Prompt]],
        multimask: bool | None = None,
    ) -> Iterator[tuple[int, list[int], Decoded]]:
        """Masks of every frame, each from its own prompt and the bank of earlier ones: (frame, objects, decoded).

        prompts: of every frame, as `states` answers. A frame or object without one is decoded from memory alone; the
        release leaves such a frame blank. The object score gates nothing. Frames before the first prompt come last,
        backwards from that one prompt; the release's key frame mode asks about them again.
        """
        first = min(prompts)
        multimask = self.spec.multimask if multimask is None else multimask
        yield from self._follow(range(first, num_frames), features, prompts, multimask)
        if first > 0:
            for step in self._follow(
                range(first, -1, -1), features, {first: prompts[first]}, multimask
            ):
                if step[0] < first:
                    yield step

    def _follow(
        self,
        order: Sequence[int],
        features: Callable[[int], Features],
        prompts: Mapping[int, tuple[list[int], Prompt]],
        multimask: bool,
    ) -> Iterator[tuple[int, list[int], Decoded]]:
        bank = MemoryBank(self.sam, 1 if self.training else self.config.memory_stride)
        known: list[int] = []
        for position, t in enumerate(order):
            frame = features(t)
            batches = [prompts[t]] if t in prompts else []
            fresh = batches[0][0] if batches else []
            if rest := [name for name in known if name not in fresh]:
                nothing = torch.full((len(rest), 4), torch.nan, device=frame.maps[2].device)
                batches.append((rest, Prompt(None, nothing)))
            known = [*fresh, *rest]
            embedding = bank.condition(position, frame, known)
            rows = embedding.split([len(names) for names, _ in batches])
            decoded = concatenate(
                [
                    self.sam.decode(
                        frame.rows([0] * len(names)),
                        prompt,
                        multimask=multimask,
                        embedding=embedding_n,
                    )
                    for (names, prompt), embedding_n in zip(batches, rows, strict=True)
                ]
            )
            bank.add(position, known, embedding, decoded.logits_n1hw)
            yield t, known, decoded


def _is_settled(state: PromptState | ValueError | None) -> bool:
    """Whether a question has its answer, or cannot have one."""
    return isinstance(state, ValueError) or (state is not None and len(state.seg_nd) > 0)
