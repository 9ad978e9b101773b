"""A check in several processes finds what one process finds, and outlives a file that ends its process."""

import os

import pytest

from manifests.verify import verify
from manifests.verify.processes import check_shards
from schemas.parts import part_names
from tests.manifests import damage as do
from tests.manifests.made import make_whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_whole(tmp_path_factory.mktemp("processes") / "out")


@pytest.fixture
def out(whole):
    with do.restored(whole):
        yield whole


def test_two_processes_find_what_one_finds_in_the_same_order(out):
    do.flip(do.tar(out), do.offset(out, "crop1.jpg") + 40)
    do.put(out, "tracks", "frame", 40, 3, seal=False)
    one, two = (verify(out, deep=True, workers=n) for n in (1, 2))
    assert one == two
    assert len(one.problems) > 1


def test_a_process_that_dies_is_a_problem_of_its_shard_alone(out, monkeypatch):
    """As a file can do that brings down a decoder: here the process ends as it opens the tar."""
    trap = out / "trap"
    trap.mkdir()
    (trap / "sitecustomize.py").write_text(DIES)
    monkeypatch.setenv("PYTHONPATH", f"{trap}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    found = {c.name: c for c in check_shards(out, part_names(out), deep=False, workers=2)}
    assert sorted(found) == part_names(out)
    [problem] = found[do.SHARD].problems
    assert "the process that checked it died" in problem.what
    assert not any(c.problems for name, c in found.items() if name != do.SHARD)


DIES = f"""
import os, sys

def hook(event, args):
    if event == "open" and "shards" in str(args[0]) and str(args[0]).endswith("{do.SHARD}.tar"):
        os._exit(139)

sys.addaudithook(hook)
"""
