"""The weight files of the `full` preset: what each is for, where it comes from, and whether a file is the right one.

Importing this loads no torch, so that `sparrow weights list` answers at once; `check` does.
"""

import gc
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trackers.runtime import CheckpointError, is_seeded, sha256, weights_root


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file, or folder of files, under the weights root.

    name: short id for the command line; path: what the stage opens, relative to the root; published_as: the file's
    name on `source`, the page where its authors (or, where the text says so, others) publish it
    bytes: about how large the published file is, 0 if unknown; members: (name, about bytes) of a folder's files
    sha256: of the published file, None where we have not seen it published
    licence: as stated for the weights; fetchable: whether it allows that a mirror of the user's hands them on
    needed: the `full` preset opens it by default; else it is an alternative for `--set`
    original: another path, where the file may lie as published until `sparrow weights convert` makes `path` of it
    loader: "module:function", called with a path and `options`; builds the real model on the CPU, strictly
    """

    name: str
    path: str
    purpose: str
    published_as: str
    source: str
    licence: str
    bytes: int
    loader: str
    options: Mapping[str, str] = field(default_factory=dict)
    needed: bool = False
    fetchable: bool = True
    sha256: str | None = None
    members: tuple[tuple[str, int], ...] = ()
    original: str = ""

    @property
    def files(self) -> list[tuple[str, int, str | None]]:
        """(path under the root, about bytes, sha256) of everything that a mirror has to hold."""
        if self.members:
            return [(f"{self.path}/{name}", size, None) for name, size in self.members]
        return [(self.original or self.path, self.bytes, self.sha256)]

    def found(self, root: Path) -> Path | None:
        """Where it is: `path`, or else `original`. None if neither is complete."""
        for path in filter(None, (self.path, self.original)):
            if all(file.is_file() for file in self.parts(root / path)):
                return root / path
        return None

    def parts(self, place: Path) -> list[Path]:
        """The files of which it consists at `place`."""
        return [place / name for name, _ in self.members] or [place]


# sha256: as shown on the publisher's model page (SwinB, SwinT, SAM2.1-t), or where independent copies of the published
# file agree on it and on the size (SAM2.1-l, SAM2.1-b+).
WEIGHTS: tuple[WeightFile, ...] = (
    WeightFile(
        "groundingdino-swint",
        "groundingdino_swint_ogc.pth",
        "detect: the expression's box in the key frame",
        "groundingdino_swint_ogc.pth",
        "https://github.com/IDEA-Research/GroundingDINO",
        "Apache-2.0",
        693_997_677,
        "pipeline.weights:load_groundingdino",
        {"architecture": "swint"},
        needed=True,
        sha256="3b3ca2563c77c69f651d7bd133e97139c186df06231157a64c507099c52bc799",
    ),
    WeightFile(
        "groundingdino-swinb",
        "groundingdino_swinb_cogcoor.pth",
        "detect: larger, also trained on RefCOCO",
        "groundingdino_swinb_cogcoor.pth",
        "https://github.com/IDEA-Research/GroundingDINO",
        "Apache-2.0",
        938_057_991,
        "pipeline.weights:load_groundingdino",
        {"architecture": "swinb"},
        sha256="46270f7a822e6906b655b729c90613e48929d0f2bb8b9b76fd10a856f3ac6ab7",
    ),
    WeightFile(
        "bert-base-uncased",
        "bert-base-uncased",
        "detect: tokenizer and shape of GroundingDINO's text encoder",
        "config.json, vocab.txt, tokenizer_config.json",
        "https://huggingface.co/google-bert/bert-base-uncased",
        "Apache-2.0",
        232_126,
        "pipeline.weights:load_text_encoder",
        needed=True,
        members=(("config.json", 570), ("vocab.txt", 231_508), ("tokenizer_config.json", 48)),
    ),
    WeightFile(
        "cldtracker",
        "cldtracker.safetensors",
        "track: follows the box through the clip",
        "CLDTracker_ep0300.pth.tar (of vitb_384_mae_ce_32x4_ep300, behind the README's Models link)",
        "https://github.com/HamadYA/CLDTracker",
        "see the repository: none stated",
        0,
        "pipeline.weights:load_tracker",
        {"origin": "cldtracker"},
        needed=True,
        fetchable=False,
        original="cldtracker.pth.tar",
    ),
    WeightFile(
        "ostrack-384",
        "OSTrack_ep0300.pth.tar",
        "track: what CLDTracker is built on, without its fusion",
        "OSTrack_ep0300.pth.tar (of vitb_384_mae_ce_32x4_ep300, behind the README's Models link)",
        "https://github.com/botaoye/OSTrack",
        "MIT",
        0,
        "pipeline.weights:load_tracker",
        {"origin": "ostrack"},
    ),
    WeightFile(
        "sam2.1-l",
        "sam2.1_hiera_large.pt",
        "segment: masks from the tracked boxes",
        "sam2.1_hiera_large.pt",
        "https://github.com/facebookresearch/sam2",
        "Apache-2.0",
        898_083_611,
        "pipeline.weights:load_sam2",
        {"architecture": "2.1-l"},
        needed=True,
        sha256="2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
    ),
    WeightFile(
        "sam2.1-b+",
        "sam2.1_hiera_base_plus.pt",
        "segment: smaller",
        "sam2.1_hiera_base_plus.pt",
        "https://github.com/facebookresearch/sam2",
        "Apache-2.0",
        323_606_802,
        "pipeline.weights:load_sam2",
        {"architecture": "2.1-b+"},
        sha256="a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
    ),
    WeightFile(
        "sam2.1-t",
        "sam2.1_hiera_tiny.pt",
        "segment: smallest",
        "sam2.1_hiera_tiny.pt",
        "https://github.com/facebookresearch/sam2",
        "Apache-2.0",
        156_008_466,
        "pipeline.weights:load_sam2",
        {"architecture": "2.1-t"},
        sha256="7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
    ),
    WeightFile(
        "clip-l-14-336",
        "clip-vit-large-patch14-336.safetensors",
        "encode: features of the representative crops",
        "open_clip_model.safetensors",
        "https://huggingface.co/timm/vit_large_patch14_clip_336.openai",
        "MIT (OpenAI CLIP)",
        1_710_000_000,
        "pipeline.weights:load_clip",
        {"architecture": "ViT-L-14-336-quickgelu"},
        needed=True,
    ),
)


def choose(names: Iterable[str] = ()) -> list[WeightFile]:
    """The entries of these names, without names those that are needed. ValueError names an unknown one."""
    wanted = list(names)
    by_name = {entry.name: entry for entry in WEIGHTS}
    for name in wanted:
        if name not in by_name:
            raise ValueError(f"no weights are called {name!r}: choose from {', '.join(by_name)}")
    return (
        [by_name[name] for name in wanted]
        if wanted
        else [entry for entry in WEIGHTS if entry.needed]
    )


def how_to_get(entry: WeightFile) -> str:
    """One line: where it is published, and the commands that may convert or fetch it."""
    text = f"{entry.published_as} from {entry.source}"
    if entry.original:
        text += f", saved as {weights_root() / entry.original}; then {_conversion(entry)}"
    return f"{text}; or sparrow weights fetch {entry.name} --from URL" if entry.fetchable else text


def _conversion(entry: WeightFile) -> str:
    return f"sparrow weights convert {weights_root() / entry.original} --out {weights_root() / entry.path}"


def preflight(names_or_paths: Iterable[str]) -> None:
    """Raises one CheckpointError for everything in the list that is not there, before any work starts.

    names_or_paths: entries' names, or the `weights` of stage configs (under the root; `seeded:` ones need no file).
    """
    root, missing = weights_root(), []
    for word in dict.fromkeys(names_or_paths):
        entry = next((e for e in WEIGHTS if word in (e.name, e.path, e.original)), None)
        path = root / (entry.path if entry and word == entry.name else word)
        if is_seeded(word) or (
            path.exists() if entry is None else all(file.is_file() for file in entry.parts(path))
        ):
            continue
        if entry is None:
            todo = "put it there, or name another file with --set"
        elif entry.found(root) and path == root / entry.path:
            todo = f"{entry.original} is there, but not converted: {_conversion(entry)}"
        else:
            todo = f"get {how_to_get(entry)}"
        missing.append(f"  {path}{f' ({entry.purpose})' if entry else ''}\n    {todo}")
    if missing:
        raise CheckpointError(
            f"{len(missing)} missing in the weights folder {root} (SPARROW_WEIGHTS chooses another, docs/weights.md "
            "explains):\n" + "\n".join(missing)
        )


# --- checking ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Checked:
    """What `check` found. good: there, whole, finite, and it loads. problems: what, where, why, what to do."""

    name: str
    path: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    tensors: int = 0
    elements: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    not_finite: dict[str, int] = field(default_factory=dict)
    all_zero: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.problems


def check(entry: WeightFile, tick: Callable[[str], Any] = lambda note: None) -> Checked:
    """Is the file there, whole and finite, and does the stage's own loader take it? `tick` is told each step.

    The model is built for real on the CPU and let go before this returns.
    """
    root = weights_root()
    place = entry.found(root)
    result = Checked(entry.name, str(place or root / entry.path))
    if place is None:
        result.problems.append(
            f"{result.path} is not there or not complete: get {how_to_get(entry)}"
        )
        return result
    try:
        for file in entry.parts(place):
            tick(f"{entry.name}: sha256 of {file.name}")
            result.bytes += file.stat().st_size
            result.sha256[file.name] = sha256(file)
        if entry.sha256:
            same = entry.sha256 in result.sha256.values()
            result.notes.append(f"sha256 is {'' if same else 'NOT '}that of the file as published")
        if not entry.members:
            tick(f"{entry.name}: reading the tensors")
            _examine(entry, place, result)
        tick(f"{entry.name}: loading into the model")
        module, _, function = entry.loader.partition(":")
        getattr(importlib.import_module(module), function)(place, **entry.options)
    except (ValueError, OSError, ImportError) as error:  # CheckpointError is a ValueError
        cure = "make setup" if isinstance(error, ImportError) else f"get {how_to_get(entry)}"
        result.problems.append(f"{error}\n  What to do: {cure}")
    if place != root / entry.path:
        result.problems.append(
            f"{place} is as published, but the stage opens {entry.path}: {_conversion(entry)}"
        )
    gc.collect()
    return result


def _examine(entry: WeightFile, place: Path, result: Checked) -> None:
    """Counts tensors, and looks for values that no trained network has."""
    import torch

    from trackers.checkpoints import read_state_dict

    state = read_state_dict(place)
    for name, tensor in state.items():
        result.tensors += 1
        result.elements += tensor.numel()
        kind = str(tensor.dtype).removeprefix("torch.")
        result.dtypes[kind] = result.dtypes.get(kind, 0) + 1
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        if bad := tensor.numel() - int(torch.isfinite(tensor).sum()):
            result.not_finite[name] = bad
        if not tensor.any():
            result.all_zero.append(name)
    if result.not_finite:
        first = ", ".join(f"{name} ({n})" for name, n in list(result.not_finite.items())[:3])
        result.problems.append(
            f"{place}: NaN or infinite values in {len(result.not_finite)} of {result.tensors} tensors: {first}; the "
            f"file is damaged. Get {how_to_get(entry)}"
        )
    if entry.original:  # CLDTracker: does its text say anything? (tracking spec, section 0)
        from trackers.cldtracker.checkpoint import text_branch_report

        result.notes.append(f"language branch: {text_branch_report(state)['verdict']}")


# --- the stages' own loaders, given a path ----------------------------------------------------------------------------


def load_groundingdino(path: Path, architecture: str) -> None:
    import torch

    from pipeline.detect.grounding_dino import GroundingDINOConfig
    from pipeline.detect.groundingdino_model import make_model

    config = GroundingDINOConfig.model_validate(
        {"weights": str(path.absolute()), "architecture": architecture}
    )
    make_model(config, torch.device("cpu"))


def load_text_encoder(path: Path) -> None:
    """The tokenizer as GroundingDINO's stage opens it. A vocabulary in another order would load, and mean nothing."""
    from transformers import AutoTokenizer, BertConfig

    tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    config = BertConfig.from_pretrained(str(path), local_files_only=True)
    found = (len(tokenizer), config.vocab_size, config.hidden_size)
    marks = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", ".", "?"])
    if found != (30522, 30522, 768) or marks != [101, 102, 1012, 1029]:
        raise CheckpointError(
            f"{path}: {found[0]} words, marks [CLS] [SEP] . ? as {marks}, {found[1]} words and {found[2]} channels in "
            "config.json; bert-base-uncased has 30522 words, marks [101, 102, 1012, 1029], 768 channels"
        )


def load_tracker(path: Path, origin: str) -> None:
    from trackers.cldtracker.checkpoint import load_cldtracker

    net = load_cldtracker(path)
    if net.origin != origin:
        raise CheckpointError(f"{path}: these are the weights of {net.origin}, not of {origin}")


def load_sam2(path: Path, architecture: str) -> None:
    import torch

    from pipeline.segment.sam2 import SAM2Config
    from pipeline.segment.sam2_model import make_sam2

    config = SAM2Config.model_validate(
        {"weights": str(path.absolute()), "architecture": architecture}
    )
    make_sam2(config, torch.device("cpu"), video=False)


def load_clip(path: Path, architecture: str) -> None:
    import torch

    from pipeline.encode.clip import CLIPConfig, make_tower

    config = CLIPConfig.model_validate(
        {"weights": str(path.absolute()), "architecture": architecture}
    )
    make_tower(config, torch.device("cpu"))
