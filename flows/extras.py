"""Packages of the optional extras (`full`, `s3`): what a command needs of them, and one line for who lacks them.

The base environment has none of them. An import of one that is not installed is for the user to settle, so it becomes
a message; any other import that fails is a bug or a broken installation, and keeps its traceback.
"""

from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.presets import CurateConfig

EXTRAS = {
    "full": (
        "accelerate",
        "groundingdino",
        "huggingface_hub",
        "matplotlib",
        "omegaconf",
        "open_clip",
        "peft",
        "pycocoevalcap",
        "safetensors",
        "sam2",
        "tensorboard",
        "timm",
        "tokenizers",
        "torch",
        "torchvision",
        "transformers",
    ),
    "s3": ("botocore", "s3fs"),
}
"""Extra -> the modules that our code imports and the base lacks, those that the extra's packages bring along too."""

PACKAGES = {
    "botocore": "s3fs",
    "groundingdino": "groundingdino-py",
    "open_clip": "open_clip_torch",
}
"""Module -> the package to name, where it is called otherwise."""

NETWORKS = {
    "groundingdino": ("torch", "transformers", "groundingdino"),
    "cldtracker": ("torch", "open_clip"),
    "sam2": ("torch", "sam2"),
    "clip": ("torch", "open_clip"),
}
"""Kind of a stage's config -> what the stage imports."""

MODEL = ("torch", "torchvision", "transformers", "accelerate", "peft", "sam2")
"""What a host with SPARROW needs."""

TRAINING = (*MODEL, "tensorboard", "matplotlib")
"""What training needs. Its curves are drawn at the end, hours after it began."""


class MissingPackage(ModuleNotFoundError):
    """A package of an extra is not installed. The message says which, and what to run."""


def require(*modules: str) -> None:
    """MissingPackage if one of the modules is not installed. None is imported, so this costs nothing."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise _missing(missing)


def require_networks(config: "CurateConfig") -> None:
    """MissingPackage if a step of the curation is a network whose packages are not installed."""
    steps = (config.detect, config.track, config.segment, config.encode)
    for_steps = [NETWORKS.get(step.kind, ()) for step in steps]
    require(*dict.fromkeys(chain.from_iterable(for_steps)))


def missing_package(error: BaseException | None) -> MissingPackage | None:
    """The error, or what it was raised from, if a package of an extra is not installed; else None."""
    while error is not None:
        if isinstance(error, MissingPackage):
            return error
        module = error.name if isinstance(error, ModuleNotFoundError) else None
        if module is not None and _is_missing(module):
            return _missing([module])
        error = error.__cause__
    return None


def _is_missing(module: str) -> bool:
    """Whether this is the top level of a package of an extra, and not there. Where it is there and a part of it does
    not import, the installation is broken."""
    return any(module in modules for modules in EXTRAS.values()) and find_spec(module) is None


def _missing(modules: list[str]) -> MissingPackage:
    *others, last = dict.fromkeys(PACKAGES.get(module, module) for module in modules)
    listed = f"{', '.join(others)} and {last}, which are" if others else f"{last}, which is"
    extras = [extra for extra, known in EXTRAS.items() if set(known) & set(modules)]
    by_pip = f"pip install 'sparrow-tsf[{','.join(extras)}]'"
    return MissingPackage(
        f"this command needs {listed} not installed: run `make setup` "
        f"(or, where sparrow was installed by pip, {by_pip})",
        name=modules[0],
    )
