"""Any verb may be killed, lose its power or run out of disk at any change of the disk; the same command finishes it.

A preloaded library (faults.c) counts the calls of the C library that change the output, whoever makes them: Python,
Arrow, DuckDB. One place of each verb and kind of fault here, drawn by
SEED; with KILLS=200, so many.
"""

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows import driver
from flows.executors import Inline
from flows.progress import Quiet
from manifests.verify import verify
from pipeline.shards import stage_clip
from tests.chaos.faults import Faults
from tests.chaos.world import differing, make_corpus, make_job, tree
from tests.manifests import damage as do

pytestmark = [
    pytest.mark.timeout(0 if "KILLS" in os.environ else 300),
]
LONG, SEED = "KILLS" in os.environ, int(os.environ.get("SEED", "0"))
PLACES = int(os.environ.get("KILLS", "1"))
"""Of each verb and kind of fault."""


@dataclass(frozen=True, slots=True)
class Verb:
    """words: with {out} for the output; start: a copy of this output is what it begins with; end: what must come out."""

    words: tuple[str, ...]
    start: Path | None
    end: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class World:
    faults: Faults
    cache: Path
    verbs: dict[str, Verb]


def results(job, cache: Path) -> None:
    """What curation makes of each clip, to be taken from there from now on."""
    from flows.driver import fused
    from pipeline.plan import build_plan, read_plan

    build_plan(job)
    models = fused(job.config)
    for shard in read_plan(job, models.stages.digest):
        for planned in shard.clips:
            stage_clip(cache / f"{planned.clip.clip_id}.clip", models.curate(planned, job))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("every_step")
    data = make_corpus(place / "corpus", 4, 6)
    lost, whole = data / "part_1" / "2_video.mp4", place / "2_video.mp4"
    os.replace(lost, whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "after_run", lambda *_, **__: None)

        def made(name: str, referents: int) -> Path:
            job = make_job(data, place / name, referents)
            driver.run([job], Inline(), Quiet())
            return Path(job.out)

        dropped = made("dropped", 2)
        os.replace(whole, lost)
        by_two, by_one = made("by_two", 2), made("by_one", 1)
    flipped, lacking = place / "flipped", place / "lacking"
    shutil.copytree(by_two, flipped)
    do.flip(do.tar(flipped), 2000)
    shutil.copytree(by_two, lacking)
    do.part(lacking, "masks").unlink()
    results(make_job(data, place / "results", 2), place / "cache")
    curate = (
        "curate",
        "hcstvg",
        "--data-root",
        str(data),
        "--out",
        "{out}",
        "--executor",
        "inline",
    )
    two, inline = ("--set", "shard.max_referents=2"), ("--executor", "inline")
    verbs = {
        "curate": Verb((*curate, *two), None, tree(by_two)),
        "curate --replan": Verb((*curate, *two, "--replan"), by_one, tree(by_two)),
        "quarantine retry": Verb(("quarantine", "retry", "{out}", *inline), dropped, tree(by_two)),
        "repair a tar": Verb(("repair", "{out}", *inline), flipped, tree(by_two)),
        "repair a table": Verb(("repair", "{out}", *inline), lacking, tree(by_two)),
        "reshard": Verb(("reshard", "{out}", "--count", "1"), by_two, {}),
        "report": Verb(("report", "{out}"), by_two, tree(by_two)),
        "catalogue": Verb(("manifests.catalog:build_catalog", "{out}"), by_two, tree(by_two)),
    }
    with Faults("flows.curate", "manifests.report", "manifests.card") as faults:
        yield World(faults, place / "cache", verbs)


class Attempt:
    """One output, on which a verb is tried."""

    def __init__(self, world: World, verb: Verb, out: Path):
        self.world, self.out = world, out
        self.words = [word.replace("{out}", str(out)) for word in verb.words]
        if verb.start:
            shutil.copytree(verb.start, out)

    def run(self, at: int = -1, kind: str = "count"):
        quick = f"tests.chaos.world:quick {self.world.cache}"
        return self.world.faults.run(self.words, root=self.out, at=at, kind=kind, before=quick)


def left_behind(out: Path) -> list[str]:
    names = (p.relative_to(out).as_posix() for p in out.rglob("*"))
    return [
        name for name in names if name.endswith((".tmp", ".old")) or name.startswith(".staging/")
    ]


def places(steps: int, kind: str) -> list[int]:
    return sorted(random.Random(f"{SEED}{kind}").sample(range(steps), min(PLACES, steps)))


@pytest.mark.parametrize("kind", ["kill", "tear", "full"])
@pytest.mark.parametrize(
    "name",
    [
        "curate",
        "curate --replan",
        "quarantine retry",
        "repair a tar",
        "repair a table",
        "reshard",
        "report",
        "catalogue",
    ],
)
def test_the_same_command_finishes_what_a_fault_has_interrupted(world, tmp_path, name, kind):
    verb = world.verbs[name]
    undisturbed = Attempt(world, verb, tmp_path / "undisturbed")
    first = undisturbed.run()
    assert first.code == 0, first.output
    end = verb.end or tree(undisturbed.out)
    assert differing(undisturbed.out, end) == []
    files = {p.relative_to(undisturbed.out) for p in undisturbed.out.glob("*")}
    tried = 0
    for at in places(first.steps, name + kind):
        attempt = Attempt(world, verb, tmp_path / f"{at}")
        hit = attempt.run(at, kind)
        tried += hit.code != 0
        where = f"{name}, {kind} at step {at} of {first.steps}\n{hit.output[-2000:]}"
        if kind == "full":
            assert "Traceback" not in hit.output, where
            assert hit.code == 0 or "the disk is full" in hit.output, where
        else:
            assert hit.code in (0, -9), where
        again = attempt.run()
        where += f"\n--- again: {again.code}\n{again.output[-2000:]}"
        assert again.code == 0, where
        assert differing(attempt.out, end) == [], where
        assert left_behind(attempt.out) == [], where
        assert verify(attempt.out, deep=LONG).problems == [], where
        assert {p.relative_to(attempt.out) for p in attempt.out.glob("*")} >= files, where
        shutil.rmtree(attempt.out)
    assert tried or not LONG
    print(f"{name}: {kind}: {tried} of {first.steps} steps")
