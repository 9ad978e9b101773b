"""CLDTracker (paper: the tracker of the offline pipeline), our own implementation of the published network."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trackers.cldtracker.config import CLDTrackerConfig as CLDTrackerConfig
    from trackers.cldtracker.crop import crop_target as crop_target
    from trackers.cldtracker.network import CLDTrackerNet as CLDTrackerNet
    from trackers.cldtracker.tracker import CLDTracker as CLDTracker

_HOMES = {
    "CLDTracker": "tracker",
    "CLDTrackerConfig": "config",
    "CLDTrackerNet": "network",
    "crop_target": "crop",
}
__all__ = ["CLDTracker", "CLDTrackerConfig", "CLDTrackerNet", "crop_target"]


def __getattr__(name: str) -> Any:
    """Presets read this package's configs on machines without torch: what needs it is imported when it is named."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
