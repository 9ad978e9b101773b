"""The three host MLLMs of the paper (Appendix B), each one file and a config in two sizes."""

import importlib
from typing import Any, Literal

import torch

from model.hosts.base import Host

HOSTS = {
    "videoglamm": "model.hosts.videoglamm:VideoGLaMM",
    "unipixel": "model.hosts.unipixel:UniPixel",
    "glus": "model.hosts.glus:GLUS",
}


def build(
    name: str, size: Literal["full", "tiny"] = "full", device: str = "meta", **changes: Any
) -> Host:
    """An untrained host in eval mode, without SPARROW's modules.

    size: "full" has the exact official sizes, "tiny" runs on a laptop and speaks bytes. device: "meta" makes no
    tensor's memory (`model.checkpoints.load_official` fills it). changes: fields of the host's config.
    ValueError for unknown names.
    """
    if name not in HOSTS:
        raise ValueError(f"host {name!r} is not known: one of {', '.join(HOSTS)}")
    if size not in ("full", "tiny"):
        raise ValueError(f"size {size!r} is not known: full or tiny")
    module, _, cls = HOSTS[name].partition(":")
    host = getattr(importlib.import_module(module), cls)
    config = host.configs()[size].model_copy(update=changes)
    if device != "meta":
        with torch.device(device):
            return host(config).eval()
    from accelerate import init_empty_weights

    # parameters only: tables that a constructor computes (rotary angles, window positions) are not in any file
    with init_empty_weights(include_buffers=False):
        built = host(config).eval()
    built.llm.tie_weights()  # each parameter has just become a tensor of its own
    return built
