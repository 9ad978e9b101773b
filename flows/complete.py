"""What the shell completes: the names that arguments and options take. Light, since it runs at every press of Tab."""

from collections.abc import Callable

SOURCES = ("hcstvg", "vid_sentence", "a2d", "lasot", "mevis", "got10k", "refsav")
PRESETS = ("lite", "full", "full-tiny")
HOSTS = ("videoglamm", "unipixel", "glus")
MODEL_PRESETS = ("paper", "release", "host", "reconstructed")
FORMATS = ("sparrow", "artemis", "coco", "ytvis", "fiftyone")
EXECUTORS = ("ray", "inline")


def names(*known: str) -> Callable[[str], list[str]]:
    """A completion of these names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    return complete


def weights(incomplete: str) -> list[str]:
    """Names from `sparrow weights list`."""
    from pipeline.weights import WEIGHTS

    return [entry.name for entry in WEIGHTS if entry.name.startswith(incomplete)]
