"""As test_every_step.py, for the verbs that run models, and for those that hand an output on: exports, object stores.

One place of each verb and kind of fault, drawn by SEED; with KILLS=15, so many.
"""

import csv
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from schemas.members import EXPORT_MARKER
from schemas.video.stored import encode_mp4
from tests.chaos.faults import Done, Faults
from tests.made import moving_square
from tests.manifests.made import make_whole
from tests.manifests.s3 import Server, serving
from tests.model.data.made import make_output
from tests.model.evaluate.made import make_ref_davis

pytestmark = [
    pytest.mark.timeout(0 if "KILLS" in os.environ else 300),
]
SEED, PLACES = int(os.environ.get("SEED", "0")), int(os.environ.get("KILLS", "1"))
"""PLACES: of each verb and kind of fault."""

MODULES = (
    "flows.driver",
    "flows.evaluation",
    "flows.ground",
    "flows.masks",
    "flows.overlay",
    "flows.show",
    "flows.train",
    "manifests.export",
    "manifests.publish",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "model.checkpoints",
    "model.evaluate.benchmarks",
    "model.evaluate.run",
    "model.grounding",
    "model.hosts.glus",
    "model.make",
    "model.train.trainer",
    "pandas",
    "pyarrow.dataset",
    "torch._dynamo",
    "torch.utils.tensorboard",
)
"""Loaded before the forks: together they take longer than most of the commands."""
TINY = ("--host", "glus", "--size", "tiny")
TIME = re.compile(rb'"frames_per_second": [0-9.]+')
Results = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verb:
    """words: with {out} for the folder that is given; start: a copy of this folder is what the verb finds there;
    results: what has to come out, by name; proof: the result that, where it is there, proves that all are; before: see
    `Faults.run`."""

    words: tuple[str, ...]
    results: Callable[[Path], Results]
    start: Path | None = None
    proof: str = ""
    before: str = ""

    def run(self, faults: Faults, out: Path, at: int = -1, kind: str = "count") -> Done:
        """Both once more on what is there already."""
        words = [word.replace("{out}", str(out)) for word in self.words]
        return faults.run(words, root=out, at=at, kind=kind, before=self.before)


@dataclass(slots=True)
class World:
    """undisturbed: by verb, how it ended without a fault, and where."""

    faults: Faults
    verbs: dict[str, Verb]
    server: Server
    curated: Path
    undisturbed: dict[str, tuple[Done, Path]]


# --- what has to come out -------------------------------------------------------------------------------------------


def files(out: Path, *patterns: str) -> Results:
    """Contents of the files below a folder that match, by their names."""
    found = [path for pattern in patterns for path in out.glob(pattern) if path.is_file()]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found}


def scores(out: Path) -> Results:
    return files(out, "run.json", "results.json", "per_query.parquet", "parts/*")


def masks(out: Path) -> Results:
    found = files(out, "masks.jsonl", "result.json", "png/*/*", "overlay.*")
    return {name: TIME.sub(b"", data) for name, data in found.items()}


def trained(out: Path) -> Results:
    found = files(out, "states/*/*", "export/*", "export-full/*")
    with (out / "steps.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    losses = [{name: row[name] for name in ("step", "loss", "lr", "grad_norm")} for row in rows]
    return found | {"losses": losses}


def exported(out: Path) -> Results:
    return files(out, "to/**/*")


def one_object(davis: Path) -> Path:
    """The benchmark without the expressions of the second object: half as many questions."""
    for texts in (davis / "davis_text_annotations").iterdir():
        lines = texts.read_bytes().splitlines()
        texts.write_bytes(b"\n".join(line for line in lines if b' 1 "' in line))
    return davis


def names(out: Path) -> list[str]:
    """Of everything below a folder. TensorBoard writes a file for every start."""
    found = (path.relative_to(out).as_posix() for path in out.rglob("*"))
    return sorted(name for name in found if not name.startswith("tensorboard/"))


# --- the verbs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("every_step")
    davis = one_object(make_ref_davis(place / "davis"))
    samples = make_output(place / "samples", {"a": (1, 2)})
    curated = make_whole(place / "curated", ("hcstvg", "a2d"))
    video = place / "video.mp4"
    video.write_bytes(encode_mp4(moving_square(3, 5)[0], 10.0))

    ground = ("ground", str(video), "--out", "{out}", "--png", "--answer", "force", *TINY)
    export = ("export", str(curated), "--to", "{out}/to")
    words_of_train = (
        *("train", "stage1", "--data", str(samples), "--out", "{out}", *TINY),
        *("--steps", "2", "--frames", "2", "--workers", "0", "--set", "proposer.queries=16"),
        *("--set", "train.save_every=1", "--set", "train.keep=1"),
    )
    words_of_eval = ("eval", "ref-davis17", "--data-root", str(davis), "--out", "{out}")
    server_of_faults = Faults()
    server_of_faults.modules = ["flows.cli", *MODULES]
    with serving() as server, server_of_faults as faults:

        def earlier(name: str, words: tuple[str, ...]) -> Path:
            """What another command has left in the folder."""
            out = place / "earlier" / name
            out.mkdir(parents=True)
            done = Verb(words, exported).run(faults, out)
            assert done.code == 0, done.output
            return out

        older_masks = earlier("masks", (*ground, "the dog", "the ball"))
        older_export = earlier("export", (*export, "--format", "artemis", "--source", "a2d"))
        verbs = {
            "eval": Verb(
                (*words_of_eval, *TINY, "--answer", "force"), scores, proof="results.json"
            ),
            "ground": Verb(
                (*ground, "the square", "--prompt-frame", "2"), masks, older_masks, "result.json"
            ),
            "train": Verb(words_of_train, trained),
            "export coco": Verb(
                (*export, "--format", "coco"), exported, older_export, f"to/{EXPORT_MARKER}"
            ),
            "export sparrow": Verb(
                (*export, "--format", "sparrow"), exported, older_export, f"to/{EXPORT_MARKER}"
            ),
            "export in two renames": Verb(
                (*export, "--format", "ytvis"),
                exported,
                older_export,
                f"to/{EXPORT_MARKER}",
                "tests.chaos.faults:without_exchange",
            ),
        }
        yield World(faults, verbs, server, curated, {})


def folder(verb: Verb, out: Path) -> Path:
    """A folder as the verb finds it."""
    if verb.start:
        shutil.copytree(verb.start, out)
    else:
        out.mkdir()
    return out


def undisturbed(world: World, name: str, place: Path) -> tuple[Done, Path]:
    if name not in world.undisturbed:
        verb = world.verbs[name]
        out = folder(verb, place / "undisturbed")
        done = verb.run(world.faults, out)
        assert done.code == 0, done.output
        world.undisturbed[name] = done, out
    return world.undisturbed[name]


def places(steps: int, what: str) -> list[int]:
    return sorted(random.Random(f"{SEED}{what}").sample(range(steps), min(PLACES, steps)))


def differing(found: Results, wanted: Results) -> list[str]:
    both = found.keys() | wanted.keys()
    return sorted(name for name in both if found.get(name) != wanted.get(name))


@pytest.mark.parametrize("kind", ["kill", "tear", "full"])
@pytest.mark.parametrize(
    "name",
    ["eval", "ground", "train", "export coco", "export sparrow", "export in two renames"],
)
def test_the_same_command_finishes_what_a_fault_has_interrupted(
    world, tmp_path, tmp_path_factory, name, kind
):
    verb = world.verbs[name]
    whole, end = undisturbed(world, name, tmp_path_factory.mktemp("whole"))
    wanted = verb.results(end)
    allowed = [wanted, verb.results(verb.start) if verb.start else {}]
    tried = 0
    for at in places(whole.steps, name + kind):
        out = folder(verb, tmp_path / f"{at}")
        hit = verb.run(world.faults, out, at, kind)
        tried += hit.code != 0
        where = f"{name}, {kind} at step {at} of {whole.steps}\n{hit.output[-2000:]}"
        if kind == "full":
            assert "Traceback" not in hit.output, where
            assert hit.code == 0 or hit.output.count("the disk is full") == 1, where
        else:
            assert hit.code in (0, -9), where
        if verb.proof and (out / verb.proof).exists():
            left = verb.results(out)
            assert left in allowed, f"{differing(left, wanted)}: {where}"
        if name.startswith("export"):  # the old one or the new one
            moved = verb.before and (out / ".to.old" / EXPORT_MARKER).exists()
            assert (out / verb.proof).exists() or moved, where
        again = verb.run(world.faults, out)
        where += f"\n--- again: {again.code}\n{again.output[-2000:]}"
        assert again.code == 0, where
        assert differing(verb.results(out), wanted) == [], where
        assert names(out) == names(end), where
        shutil.rmtree(out)
    print(f"{name}: {kind}: {tried} of {whole.steps} steps")


def test_a_publisher_that_is_killed_anywhere_is_finished_by_the_same_command(world):
    def publish(url: str, at: int = -1) -> Done:
        words = ["publish", str(world.curated), url]
        return world.faults.run(words, root="socket", at=at, kind="kill")

    url = world.server.url()
    whole = publish(url)
    assert whole.code == 0, whole.output
    wanted = world.server.objects(url)
    assert wanted
    tried = 0
    for at in places(whole.steps, "publish"):
        url = world.server.url()
        hit = publish(url, at)
        tried += hit.code != 0
        where = f"killed at send {at} of {whole.steps}\n{hit.output[-2000:]}"
        assert hit.code in (0, -9), where
        again = publish(url)
        assert again.code == 0, f"{where}\n--- again\n{again.output[-2000:]}"
        assert differing(world.server.objects(url), wanted) == [], where
    print(f"publish: kill: {tried} of {whole.steps} sends")
