"""What is installed here, and what of it the base environment would have; by the packages' own metadata."""

from collections.abc import Iterable
from importlib.metadata import (
    PackageNotFoundError,
    distribution,
    distributions,
    packages_distributions,
)

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOOLS = {"pip", "setuptools", "uv", "wheel"}
"""Of the environment itself."""


def needed(extras: Iterable[str] = ()) -> set[str]:
    """Canonical names of the distributions that sparrow-tsf needs with these extras, itself included, as installed."""
    start = ("sparrow-tsf", frozenset(extras))
    seen, todo = set(), [start]
    while todo:
        name, wanted = todo.pop()
        if (name, wanted) in seen:
            continue
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        seen.add((name, wanted))
        for requirement in map(Requirement, requirements):
            if any(_applies(requirement, extra) for extra in ("", *wanted)):
                further = frozenset(requirement.extras)
                todo.append((canonicalize_name(requirement.name), further))
    return {name for name, _ in seen}


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def direct(extra: str) -> set[str]:
    """Canonical names of the distributions that an extra itself names."""
    requirements = map(Requirement, distribution("sparrow-tsf").requires or [])
    ours = [r for r in requirements if r.marker and not _applies(r, "") and _applies(r, extra)]
    return {canonicalize_name(requirement.name) for requirement in ours}


def outside_the_base() -> dict[str, list[str]]:
    """`packages` that are installed here and not needed by the base, and `modules` that only they have."""
    have = {canonicalize_name(found.metadata["Name"]) for found in distributions()}
    hidden = have - needed() - TOOLS
    modules = [
        module
        for module, names in packages_distributions().items()
        if {canonicalize_name(name) for name in names} <= hidden
    ]
    return {"packages": sorted(hidden), "modules": sorted(modules)}


def modules_of(packages: set[str]) -> set[str]:
    """Top-level modules of these distributions."""
    return {
        module
        for module, names in packages_distributions().items()
        if packages & {canonicalize_name(name) for name in names}
    }
