"""What SPARROW needs to know of a video MLLM, and nothing else (`spec/hosts.md` section 5).

A host turns frames and a question into embeddings, runs its language model, and gives the states from which its
segmentation vectors are made. Everything in which hosts differ is a field of `HostSpec` or one of the methods below.

Visual and TSF positions of a prompt are sentinels in the ids, before and after the embeddings are put in: every mask
and index is a comparison, never an offset.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.hosts.asking import (
    TOGETHER,
    Generated,
    Packed,
    Prefilled,
    PromptRow,
    VideoQuestion,
    batches,
    greedy,
    prefill,
    shared_out,
)
from model.hosts.inputs import (  # the constants are the hosts' own words too
    BOX_TOKEN,
    IGNORE,
    IMAGE,
    TSF,
    Frames,
    HostInputs,
    HostSpec,
)
from model.sam import Decoded, Features, Prompt, Sam2, prepare


@dataclass(frozen=True)
class PromptState:
    """What the language model said for one frame that is to be prompted."""

    frame: int
    seg_nd: Tensor
    """A state per [SEG], in order."""
    box_nd: Tensor | None
    """The state of the [BOX] paired with each [SEG]; None where no [BOX] was asked for or emitted."""
    text: str
    forced: bool
    """The answer was put into the model's mouth, not generated."""


class Host(nn.Module, ABC):
    """A video MLLM. Subclasses set the modules named here in `__init__` and write the abstract methods."""

    spec: HostSpec
    llm: Any
    """A transformers causal language model."""
    sam: Sam2
    seg_head: nn.Module
    """[N, D] -> [N, seg_vectors * 256]: the host's own W_LV."""
    tokenizer: Any
    float32: tuple[str, ...] = ("sam",)
    """Modules that stay in float32 whatever the language model is in: SAM2's position codes are. Autocast does the
    rest (`model.grounding`)."""

    # --- what a host writes ---

    @property
    @abstractmethod
    def inputs(self) -> HostInputs:
        """The part of the host that has no weights, as it is now."""

    @abstractmethod
    def visual_tokens(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """[n_i, D] for every IMAGE sentinel of a prompt about `inputs`, in order."""

    @abstractmethod
    def crop_patches(self, pixels: Tensor) -> Tensor:
        """`HostInputs.crop_pixels` -> [n, patches, patch_dim] of the frozen spatial encoder (Eq. 4)."""

    @abstractmethod
    def project_spatial(self, patches: Tensor) -> Tensor:
        """[..., patches, patch_dim] -> [..., patches', D]: the host's spatial projector, not pooled further."""

    # --- what its inputs do ---

    @property
    def template(self) -> str:
        """`HostInputs.template`."""
        return self.inputs.template

    @property
    def answer(self) -> str:
        """`HostInputs.answer`."""
        return self.inputs.answer

    def prepare(self, frames: Frames) -> dict[str, Tensor]:
        """`HostInputs.prepare`."""
        return self.inputs.prepare(frames)

    def everything(self, frames: Frames) -> dict[str, Tensor]:
        """`HostInputs.everything`."""
        return self.inputs.everything(frames)

    def question(self, phrase: str) -> str:
        """`HostInputs.question`."""
        return self.inputs.question(phrase)

    def conversation(
        self, question: str, answer: str | None = None, tsf: int = 0, *, at: int | None = None
    ) -> tuple[list[int], int]:
        """`HostInputs.conversation`."""
        return self.inputs.conversation(question, answer, tsf, at=at)

    def lesson(self, *args: Any, **options: Any) -> tuple[dict[str, Tensor], list[int], int]:
        """`HostInputs.lesson`."""
        return self.inputs.lesson(*args, **options)

    def crop_features(self, crops: Sequence[NDArray[np.uint8]]) -> Tensor:
        """n pictures [h, w, 3] -> [n, patches, patch_dim] of the frozen spatial encoder (Eq. 4)."""
        return self.crop_patches(self.inputs.crop_pixels(crops))

    # --- what a host may have of its own ---

    def visual_tokens_each(self, inputs: Sequence[dict[str, Tensor]]) -> list[list[Tensor]]:
        """`visual_tokens` of every sample; a host that can, looks at all of them at once."""
        return [self.visual_tokens(one) for one in inputs]

    def visual_flops(self, inputs: dict[str, Tensor]) -> float | None:
        """FLOPs of `visual_tokens`, where it cannot run on the meta device; None where it can."""
        return None

    def project_temporal(self, features: Tensor) -> Tensor:
        """[..., temporal_dim] -> [..., D]. ValueError for hosts without a temporal encoder."""
        raise ValueError(
            f"{self.spec.name} has no temporal projector: Table 9's temporal paths need videoglamm"
        )

    def positions(
        self, ids_bl: Tensor, attention_bl: Tensor, inputs: list[dict[str, Tensor]]
    ) -> Tensor:
        """Position ids [B, L] (or [3, B, L]): 0, 1, 2, ... for all but M-RoPE hosts."""
        return (attention_bl.long().cumsum(1) - 1).clamp(min=0)

    @property
    def final_norm(self) -> nn.Module:
        return self.llm.model.norm

    def token_embeddings(self) -> nn.Embedding:
        return self.llm.get_input_embeddings()

    def lm(self, packed: Packed, cache: Any = None) -> tuple[Tensor, Tensor, Any]:
        """Logits [B, L, V], states [B, L, D] as `seg_read` says, and the cache that generation goes on with.

        With a cache, `packed` holds the new positions only, and its attention mask all positions so far.
        """
        with _watch(self.final_norm) as seen:
            out = self.llm(
                inputs_embeds=packed.embeds_bld,
                attention_mask=packed.attention_bl.long(),
                position_ids=packed.positions,
                past_key_values=cache,
                use_cache=not torch.is_grad_enabled(),
            )
        return out.logits, seen[self.spec.seg_read], out.past_key_values

    def propagate(
        self,
        features: Callable[[int], Features],
        num_frames: int,
        prompts: Mapping[int, tuple[list[int], Prompt]],
        multimask: bool | None = None,
    ) -> Iterator[tuple[int, list[int], Decoded]]:
        """Masks of every frame from prompts on some: (frame, objects, decoded). Frames before the first prompt last.

        prompts: asked for one by one, when their frame has come; an answer may depend on what was yielded so far.
        multimask: of prompted frames; as `HostSpec.multimask` says if None, and never where there is a box.
        """
        first = min(prompts)
        if multimask is None:
            multimask = self.spec.multimask and prompts[first][1].boxes_n4 is None
        yield from self.sam.propagate(features, num_frames, prompts, multimask=multimask)
        if first > 0:
            back = {first: prompts[first]}
            for step in self.sam.propagate(
                features, num_frames, back, multimask=multimask, reverse=True
            ):
                if step[0] < first:
                    yield step

    def states(
        self,
        frames: Frames,
        question: str,
        prompt_frames: Sequence[int],
        *,
        answer: str | None = None,
        tsf_nd: Tensor | None = None,
        max_new_tokens: int = 512,
    ) -> Iterator[PromptState]:
        """VideoQuestion about each prompted frame: the language model sees the video from there to the next one.

        answer: forced instead of generated. tsf_nd: [n, D] tokens for the prompt's TSF slots.
        """
        asks = [VideoQuestion(question, tsf_nd)]
        [states] = self.states_of_all(
            frames, asks, prompt_frames, answer=answer, max_new_tokens=max_new_tokens
        )
        return states

    def states_of_all(
        self,
        frames: Frames,
        asks: Sequence[VideoQuestion],
        prompt_frames: Sequence[int],
        *,
        answer: str | None = None,
        max_new_tokens: int = 512,
    ) -> list[Iterator[PromptState]]:
        """As `states`, of several questions: the video is looked at once for all of them, their prompts' common
        beginning is read once, and the rest in batches. An iterator for each; those that are behind keep what the
        others were answered. A question that does not fit raises its ValueError in its own iterator alone."""
        rounds = self._rounds(frames, asks, prompt_frames, answer, max_new_tokens)
        return shared_out(rounds, len(asks))

    def _rounds(
        self,
        frames: Frames,
        asks: Sequence[VideoQuestion],
        prompt_frames: Sequence[int],
        answer: str | None,
        max_new_tokens: int,
    ) -> Iterator[list[PromptState | ValueError]]:
        """For each prompted frame, the states of all questions, or why one could not be asked."""
        for start, stop in pairwise([*prompt_frames, len(frames)]):
            inputs = self.prepare(frames[start:stop])
            visual = self.visual_tokens(inputs)
            dialogues = [
                self.conversation(
                    ask.question, answer, 0 if ask.tsf_nd is None else len(ask.tsf_nd)
                )
                for ask in asks
            ]
            rows = [
                self._row(ids, begin, visual, inputs, ask.tsf_nd)
                for ask, (ids, begin) in zip(asks, dialogues, strict=True)
            ]
            spoken = partial(
                self._spoken, frame=start, answer=answer, max_new_tokens=max_new_tokens
            )
            yield self._each(rows, spoken)

    def _spoken(
        self,
        prompts: Prefilled,
        rows: Sequence[PromptRow],
        frame: int,
        answer: str | None,
        max_new_tokens: int,
    ) -> list[PromptState]:
        """What rows that were read together say, or were made to say."""
        if answer is not None:
            return [
                self.prompt_state(
                    frame,
                    prompts.packed.ids_bl[k],
                    prompts.hidden[k, :-1],
                    answer_from(prompts, row),
                    answer,
                    forced=True,
                )
                for k, row in enumerate(rows)
            ]
        lengths = [len(row) for row in rows]
        said = greedy(self, prompts, lengths, max_new_tokens, self.ends, self.spec.max_len)
        width = len(prompts.packed)
        return [
            self.prompt_state(
                frame,
                one.ids_l,
                one.hidden_ld,
                width,
                self.tokenizer.decode(one.answer[: one.length]),
                forced=False,
            )
            for one in said
        ]

    def _each(
        self,
        rows: Sequence[PromptRow | ValueError],
        work: Callable[[Prefilled, Sequence[PromptRow]], Sequence[Any]],
    ) -> list[Any]:
        """`work` on batches of the rows that there are: a result or an error for each."""
        found: list[Any] = list(rows)
        there = [k for k, row in enumerate(rows) if isinstance(row, PromptRow)]
        good = [row for row in rows if isinstance(row, PromptRow)]
        waiting = batches(good, TOGETHER) if good else []
        while waiting:
            batch = waiting.pop()
            some = [good[k] for k in batch]
            try:
                results = work(prefill(self, some), some)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                torch.cuda.empty_cache()
                half = len(batch) // 2
                waiting += [batch[:half], batch[half:]]
                continue
            for k, result in zip(batch, results, strict=True):
                found[there[k]] = result
        return found

    def _row(
        self,
        ids: list[int],
        begin: int,
        visual: list[Tensor],
        inputs: dict[str, Tensor],
        tsf: Tensor | None,
    ) -> PromptRow | ValueError:
        """A prompt with its embeddings; or that it is too long."""
        flat, embeds, _ = self._fill(ids, visual, tsf, None)
        if len(flat) > self.spec.max_len:
            return self._too_long(len(flat))
        everything = torch.ones_like(flat, dtype=torch.bool)
        positions = self.positions(flat[None], everything[None], [inputs])[..., 0, :]
        return PromptRow(embeds, flat, positions, expanded(flat, ids, begin))

    def _too_long(self, length: int) -> ValueError:
        return ValueError(
            f"a prompt of {length} positions does not fit {self.spec.name}'s {self.spec.max_len}: shorten the text"
        )

    # --- the same for all ---

    def seg_prompt(self, states_nd: Tensor) -> Tensor:
        """Hidden states of [SEG] -> prompt vectors [N, seg_vectors, 256]."""
        return self.seg_head(states_nd).unflatten(1, (self.spec.seg_vectors, -1))

    def sam_features(self, frames: Frames) -> Features:
        """Frames [F, H, W, 3] through the mask model's image encoder, once."""
        device = self.sam.no_mem_embed.device
        return self.sam.features(
            prepare(frames, self.spec.sam_size, device).to(self.sam.no_mem_embed.dtype)
        )

    def prompt(
        self, seg_nd: Tensor | None, boxes_n4: Tensor | None, *, training: bool = False
    ) -> Prompt:
        """The host's order of sparse tokens: [corners | nothing] [padding] [vectors]."""
        spec = self.spec
        pads = spec.box_pads if boxes_n4 is not None else spec.train_pads if training else spec.pads
        return Prompt(None if seg_nd is None else self.seg_prompt(seg_nd), boxes_n4, pads)

    def token_id(self, token: str) -> int:
        """The id of one of the tokenizer's own tokens. ValueError if it is not one."""
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or found == self.tokenizer.unk_token_id:
            raise ValueError(
                f"{self.spec.name}'s tokenizer does not know {token}: add_tokens([{token!r}]) first"
            )
        return found

    @property
    def seg_id(self) -> int:
        return self.token_id(self.spec.seg_token)

    @torch.no_grad()
    def add_tokens(self, tokens: Sequence[str]) -> list[int]:
        """Give the vocabulary new tokens; their rows in both tables start as the mean of the others. Returns ids."""
        before = len(self.tokenizer)
        self.tokenizer.add_tokens([t for t in tokens if t not in self.tokenizer.get_vocab()])
        ids = [self.token_id(t) for t in tokens]
        rows = self.token_embeddings().weight.shape[0]
        if max(ids) >= rows:
            self.llm.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
        new = [i for i in ids if i >= min(before, rows)]
        tables = {
            id(m.weight): m.weight
            for m in (self.token_embeddings(), self.llm.get_output_embeddings())
        }
        for weight in tables.values():
            if new and not weight.is_meta:
                weight[new] = weight[: min(before, rows)].mean(0)
        return ids

    def pack(
        self,
        ids: list[list[int]],
        inputs: list[dict[str, Tensor]],
        *,
        tsf: list[Tensor | None] | None = None,
        answer_begins: list[int] | None = None,
    ) -> Packed:
        """Put visual and TSF tokens in place of their sentinels, in order; pad on the right.

        ids: a dialogue per sample, with one IMAGE per entry of `visual_tokens`. answer_begins: where each answer
        starts in `ids`; gives labels. ValueError if slots and tokens do not pair up, or the text does not fit.
        """
        samples = [
            self._fill(
                one,
                seen,
                None if tsf is None else tsf[i],
                None if answer_begins is None else answer_begins[i],
            )
            for i, (one, seen) in enumerate(zip(ids, self.visual_tokens_each(inputs), strict=True))
        ]
        longest = max(len(flat) for flat, _, _ in samples)
        if longest > self.spec.max_len:
            raise self._too_long(longest)

        def stack(rows: list[Tensor], fill: float) -> Tensor:
            return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)

        flat = [one for one, _, _ in samples]
        attention = stack([torch.ones_like(one, dtype=torch.bool) for one in flat], False)
        ids_bl = stack(flat, self.tokenizer.pad_token_id or 0)
        labels = (
            None
            if answer_begins is None
            else stack([one for _, _, one in samples if one is not None], IGNORE)
        )
        return Packed(
            stack([one for _, one, _ in samples], 0.0),
            ids_bl,
            attention,
            self.positions(ids_bl, attention, inputs),
            labels,
        )

    def _fill(
        self, ids: list[int], visual: list[Tensor], tsf: Tensor | None, begin: int | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        table = self.token_embeddings()
        slots = {IMAGE: iter(visual), TSF: iter(() if tsf is None else tsf[:, None])}
        wanted = {
            IMAGE: (ids.count(IMAGE), len(visual)),
            TSF: (ids.count(TSF), 0 if tsf is None else len(tsf)),
        }
        for sentinel, (places, given) in wanted.items():
            if places != given:
                kind = "visual" if sentinel == IMAGE else "TSF"
                raise ValueError(f"the prompt has {places} {kind} slots, but {given} were given")
        text = table(torch.tensor([max(i, 0) for i in ids], device=table.weight.device))
        parts: list[Tensor] = []
        flat: list[int] = []
        labels: list[int] = []
        place = 0
        for is_text, run in groupby(ids, lambda token: token >= 0):
            tokens = list(run)
            if is_text:
                parts.append(text[place : place + len(tokens)])
                flat += tokens
                labels += [
                    IGNORE if begin is None or k < begin else token
                    for k, token in enumerate(tokens, place)
                ]
            else:
                for token in tokens:
                    part = next(slots[token]).to(text)
                    parts.append(part)
                    flat += [token] * len(part)
                    labels += [IGNORE] * len(part)
            place += len(tokens)
        ids_l = torch.tensor(flat, device=text.device)
        return (
            ids_l,
            torch.cat(parts),
            None if begin is None else torch.tensor(labels, device=text.device),
        )

    @property
    def ends(self) -> set[int]:
        """Tokens that end an answer: </s>, and what else ends a turn of the host's dialogues."""
        return {self.tokenizer.eos_token_id}

    @torch.no_grad()
    def generate(
        self, packed: Packed, max_new_tokens: int, stop: Sequence[int] | None = None
    ) -> Generated:
        """Greedy decoding of one sample with a key-value cache; the prompt is run once. Ends at </s>, and at `stop`
        (by default, at `ends`)."""
        if packed.ids_bl.shape[0] != 1:
            raise ValueError(f"generation takes one sample at a time, not {packed.ids_bl.shape[0]}")
        ends = self.ends if stop is None else {*stop, self.tokenizer.eos_token_id}
        prompt = Prefilled(packed, *self.lm(packed))
        return greedy(self, prompt, [len(packed)], max_new_tokens, ends, self.spec.max_len)[0]

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
        """Prefilled [SEG] and [BOX] states off an answer. The n-th [BOX] belongs to the n-th [SEG], in either order."""
        said, states = ids_l[answer_from:], hidden_ld[answer_from - 1 :]
        seg = states[said == self.seg_id]
        box = (
            states[said == self.token_id(BOX_TOKEN)]
            if BOX_TOKEN in self.tokenizer.get_vocab()
            else states[:0]
        )
        if len(box) not in (0, len(seg)):
            n = min(len(box), len(seg))  # an answer that breaks off: what is not paired is not used
            seg, box = seg[:n], box[:n]
        return PromptState(frame, seg, box if len(box) else None, text, forced)


@contextmanager
def _watch(norm: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What goes into the final norm and what comes out of it, while the model runs."""
    seen: dict[str, Tensor] = {}
    hook = norm.register_forward_hook(
        lambda _, args, out: seen.update(pre_norm=args[0], post_norm=out)
    )
    try:
        yield seen
    finally:
        hook.remove()


def answer_from(prompts: Prefilled, row: PromptRow) -> int:
    """Where the answer of a row begins, in the columns that were read."""
    return len(prompts.packed) - (len(row) - row.answer_from)


def select(hidden_ld: Tensor, ids_l: Tensor, token: int) -> Tensor:
    """States at the positions whose NEXT id is `token` (LISA's convention): [n, D]."""
    return hidden_ld[: len(ids_l) - 1][ids_l[1:] == token]


def expanded(ids_l: Tensor, ids: list[int], begin: int) -> int:
    """Where position `begin` of unexpanded `ids` lies in `ids_l`; `begin` is after every sentinel."""
    return len(ids_l) - (len(ids) - begin)
