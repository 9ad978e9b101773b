"""Referring expressions that are true of their targets, and of nothing else in the picture, by construction.

Every claim has two readings of the exact truth: `sure`, which the targets must meet, and `maybe`, a far weaker one
which nothing else may meet, so that nobody has to argue about a look-alike that also moved a little.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pipeline.demo.scene import SLIVER, Scene, SceneObject
from pipeline.demo.sprites import KINDS

CLAIMS: dict[str, tuple[str, str, str]] = {
    "starts_left": ("starts on the left", "start on the left", "starting on the left"),
    "starts_right": ("starts on the right", "start on the right", "starting on the right"),
    "left": ("moves to the left", "move to the left", "moving to the left"),
    "right": ("moves to the right", "move to the right", "moving to the right"),
    "closer": ("comes closer", "come closer", "coming closer"),
    "away": ("moves away", "move away", "moving away"),
    "behind": (
        "passes behind the {scenery}",
        "pass behind the {scenery}",
        "passing behind the {scenery}",
    ),
    "returns": (
        "leaves the picture and comes back",
        "leave the picture and come back",
        "leaving and coming back",
    ),
    "leaves": ("leaves the picture", "leave the picture", "leaving the picture"),
}
"""Claim -> its words for one, for several, and as a participle; in the order in which a sentence tells them."""

_WEAK = {"starts_left", "starts_right"}
"""Claims that say little about the motion, and are not made where a better one can be."""

_ALIKE = (
    {"red", "orange", "brown", "yellow"},
    {"pink", "purple", "blue"},
    {"white", "grey"},
    {"black", "grey"},
)


@dataclass(frozen=True)
class Expression:
    """What is said of `targets` (indices of the scene's objects). size: "", "larger" or "smaller"."""

    targets: tuple[int, ...]
    category: str
    colour: str
    size: str
    claims: tuple[str, ...]
    noun: str
    scenery: str = ""

    @property
    def text(self) -> str:
        """ "the orange cat that moves to the left" """
        who = "who" if KINDS[self.category].wearing else "that"
        return f"the {self.noun}" + (f" {who} {self._said()}" if self.claims else "")

    @property
    def sentence(self) -> str:
        """ "The orange cat moves to the left." """
        return f"The {self.noun} {self._said() if self.claims else 'moves about'}."

    @property
    def query(self) -> str:
        """ "orange cat moving to the left" """
        return f"{self.noun} {self._said(2)}" if self.claims else self.noun

    def _said(self, form: int | None = None) -> str:
        form = (len(self.targets) > 1) if form is None else form
        return " and ".join(
            CLAIMS[claim][form].format(scenery=self.scenery) for claim in self.claims
        )


def expressions(
    scene: Scene, targets: tuple[int, ...], span: slice = slice(None), *, motion: bool = True
) -> list[Expression]:
    """Expressions true of all `targets` and of nothing else within `span`, the best first; perhaps none.

    Several targets must be of one category. Without `motion`, only colour and size are used.
    """
    things = [scene.objects[i] for i in targets]
    if len({t.name for t in things}) != 1:
        raise ValueError(f"targets of several categories: {', '.join(t.name for t in things)}")
    if not all(t.visible[span].any() for t in things):
        return []
    true = [c for c in CLAIMS if all(sure(c, t, scene, span) for t in things)] if motion else []
    if "returns" in true:
        true = [c for c in true if c != "leaves"]
    sets: list[tuple[str, ...]] = [(), *((c,) for c in true), *combinations(true, 2)]
    shades = {t.colour for t in things}
    found = []
    for claims in sets:
        for shade in ("", *shades) if len(shades) == 1 else ("",):
            for size in ("", "larger", "smaller") if len(targets) == 1 else ("",):
                said = _Said(things[0].name, shade, size, claims)
                others = [
                    o
                    for i, o in enumerate(scene.objects)
                    if i not in targets and o.visible[span].any()
                ]
                if size and (len(claims) > 1 or not _compares(things[0], others, size, span)):
                    continue
                if not size and any(_maybe_meant(said, o, scene, span) for o in others):
                    continue
                found.append(_expression(said, targets, scene))
    return sorted(found, key=_rank)


def strong(said: Expression) -> bool:
    """Whether it says how the target moves."""
    return not set(said.claims) <= _WEAK


def _rank(said: Expression) -> tuple:
    """Motion first, then short."""
    return (
        not strong(said),
        not said.claims,
        bool(said.size),
        len(said.claims) == 2,
        bool(said.colour),
    )


@dataclass(frozen=True)
class _Said:
    category: str
    colour: str
    size: str
    claims: tuple[str, ...]


def _expression(said: _Said, targets: tuple[int, ...], scene: Scene) -> Expression:
    kind = KINDS[said.category]
    noun = kind.plural if len(targets) > 1 else kind.name
    if len(targets) > 1:
        noun = f"{ {2: 'two', 3: 'three', 4: 'four'}[len(targets)] } {noun}"
    if said.colour and kind.wearing:
        noun = f"{noun} in the {said.colour} {kind.wearing}"
    elif said.colour and len(targets) > 1:
        noun = noun.replace(" ", f" {said.colour} ", 1)
    elif said.colour:
        noun = f"{said.colour} {noun}"
    if said.size:
        same = sum(o.name == said.category for o in scene.objects) == 2
        noun = (
            f"{said.size} of the two {kind.plural}"
            if same and not said.colour
            else f"{said.size} {noun}"
        )
    scenery = scene.scenery[0] if scene.scenery else ""
    return Expression(targets, said.category, said.colour, said.size, said.claims, noun, scenery)


def _maybe_meant(said: _Said, thing: SceneObject, scene: Scene, span: slice) -> bool:
    """Whether a listener might think of this thing too."""
    if thing.name != said.category:
        return False
    if said.colour and not (
        thing.colour == said.colour or any({thing.colour, said.colour} <= group for group in _ALIKE)
    ):
        return False
    return all(maybe(claim, thing, scene, span) for claim in said.claims)


def _compares(thing: SceneObject, others: list[SceneObject], size: str, span: slice) -> bool:
    """Whether it is clearly larger (smaller) than each other thing of its category, on the whole and at any time."""
    rivals = [o for o in others if o.name == thing.name]
    for rival in rivals:
        ratio = thing.full[span] / rival.full[span]
        ratio = ratio if size == "larger" else 1 / ratio
        if ratio.mean() < 1.3 or ratio.min() < 1.1:
            return False
    return bool(rivals)


# --- claims against the truth --------------------------------------------------------------------------------------


def sure(claim: str, thing: SceneObject, scene: Scene, span: slice) -> bool:
    """Whether the claim is clearly true of a thing within the span."""
    seen = np.flatnonzero(thing.visible[span])
    if seen.size < 2:
        return False
    first, last = int(seen[0]), int(seen[-1])
    x = thing.centre[span, 0][first : last + 1] / scene.size[1]
    world = thing.world_x[span][first : last + 1] / scene.size[1]
    if claim in ("left", "right"):
        sign = -1 if claim == "left" else 1
        way, back = sign * (x[-1] - x[0]), _rise(-sign * x)
        return way > 0.12 and back < 0.2 * way and sign * (world[-1] - world[0]) > 0.06
    if claim in ("closer", "away"):
        clear = np.flatnonzero(
            thing.masks[span].sum((1, 2)) > 0.9 * thing.full[span]
        )  # where its size can be seen
        growth = thing.full[span][clear[-1]] / thing.full[span][clear[0]] if clear.size else 1.0
        return growth > 1.5 if claim == "closer" else growth < 1 / 1.5
    if claim in ("starts_left", "starts_right"):
        return first == 0 and (x[0] < 0.4 if claim == "starts_left" else x[0] > 0.6)
    outside = thing.inside[span] < SLIVER * thing.full[span]
    if claim == "leaves":
        return first == 0 and bool(outside[-1])
    if claim == "returns":
        return bool(outside[first:last].any()) and last == len(outside) - 1
    hidden = thing.covered[span] / np.maximum(thing.inside[span], 1)
    behind = np.flatnonzero((hidden > 0.6) & ~outside)
    clear = np.flatnonzero((hidden < 0.1) & ~outside)
    return bool(behind.size and clear.size and clear[0] < behind[0] and clear[-1] > behind[-1])


def maybe(claim: str, thing: SceneObject, scene: Scene, span: slice) -> bool:
    """Whether somebody might say so of a thing."""
    if not thing.visible[span].any():
        return False
    first = int(np.flatnonzero(thing.visible[span])[0])
    x, full = thing.centre[span, 0] / scene.size[1], thing.full[span]
    if claim in ("left", "right"):
        world = thing.world_x[span] / scene.size[1]
        return (
            max(_rise(-x), _rise(-world)) > 0.05
            if claim == "left"
            else max(_rise(x), _rise(world)) > 0.05
        )
    if claim in ("closer", "away"):
        size = np.log(full)
        return _rise(size if claim == "closer" else -size) > np.log(1.3)
    if claim in ("starts_left", "starts_right"):
        return bool(x[first] < 0.52 if claim == "starts_left" else x[first] > 0.48)
    if claim in ("leaves", "returns"):
        return bool((thing.inside[span] < 0.6 * full).any())
    return bool((thing.covered[span] > 0.1 * np.maximum(thing.inside[span], 1)).any())


def _rise(values: np.ndarray) -> float:
    """The largest climb from any value to a later one."""
    return float((values - np.minimum.accumulate(values)).max())
