"""Class-agnostic box proposals from a mask model's feature maps (paper section 3.3, appendix E)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.proposer.config import ProposerConfig as ProposerConfig
    from model.proposer.coordinates import CoordinatesProposer as CoordinatesProposer
    from model.proposer.coordinates import format_boxes as format_boxes
    from model.proposer.coordinates import parse_boxes as parse_boxes
    from model.proposer.deformable import DeformableProposer as DeformableProposer
    from model.proposer.output import Proposals as Proposals
    from model.proposer.output import ProposerOutput as ProposerOutput
    from model.proposer.output import propose as propose
    from model.proposer.variants import build_proposer as build_proposer

_HOMES = {
    "CoordinatesProposer": "coordinates",
    "DeformableProposer": "deformable",
    "Proposals": "output",
    "ProposerConfig": "config",
    "ProposerOutput": "output",
    "build_proposer": "variants",
    "format_boxes": "coordinates",
    "parse_boxes": "coordinates",
    "propose": "output",
}
__all__ = [
    "CoordinatesProposer",
    "DeformableProposer",
    "Proposals",
    "ProposerConfig",
    "ProposerOutput",
    "build_proposer",
    "format_boxes",
    "parse_boxes",
    "propose",
]


def __getattr__(name: str) -> Any:
    """Configs are read on machines without torch: what needs it is imported when it is named."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
