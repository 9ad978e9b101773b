"""Each host's released way of asking, and the paper's."""

import pytest

from model.evaluate.protocols import HOSTS, PROTOCOLS, asking
from model.evaluate.task import Query
from model.hosts.glus import GLUS
from model.hosts.unipixel import UniPixel
from model.hosts.videoglamm import VideoGLaMM

EXPRESSION = Query("0", "v", "The dog that jumps.")
ASKED = Query("0", "v", "what does the dog hold?", "interrogative")
STATED = Query("0", "v", "the dog holds a ball", "declarative")


def test_names_are_the_hosts_own():
    assert {cls.__name__.lower() for cls in (VideoGLaMM, UniPixel, GLUS)} == set(HOSTS)


@pytest.mark.parametrize("host", HOSTS)
def test_host(host):
    way = asking("host", host, "mevis")
    assert way.question(EXPRESSION) is None  # the host's own
    assert (way.merge, way.answer, way.max_new_tokens, way.prompt_every) == (
        "first",
        "generate",
        512,
        None,
    )
    way = asking("host", host, "vidstg")
    assert way.question(ASKED) == "what does the dog hold? Please respond with segmentation masks."
    assert way.question(STATED) == "Can you segment the dog holds a ball in this video?"
    way = asking("host", host, "videogcg")
    assert way.question(Query("0", "v", "Describe {it}.", "gcg")) == "Describe {it}."
    assert way.merge == "all"


def test_paper():
    way = asking("paper", "unipixel", "ref-ytvos")
    assert (
        way.question(EXPRESSION)
        == "What is the dog that jumps in this video? Respond with segmentation masks."
    )
    assert way.question(ASKED) == "what does the dog hold? Please respond with a segmentation mask."


def test_davis_runs_in_clips_with_videoglamm_only():
    found = {
        (h, b): asking(p, h, b).chunk
        for p in PROTOCOLS
        for h in HOSTS
        for b in ("ref-davis17", "mevis", "vidstg")
    }
    assert {key for key, chunk in found.items() if chunk == 64} == {("videoglamm", "ref-davis17")}


def test_changes_are_named():
    assert (
        asking("paper", "glus", "mevis", prompt_every=8, merge="first").name
        == "paper+prompt_every=8"
    )
    assert asking("forced", "glus", "mevis").answer == "force"
    with pytest.raises(ValueError, match="prompt_often"):
        asking("paper", "glus", "mevis", prompt_often=8)


def test_unknown_names():
    with pytest.raises(
        ValueError, match="unknown protocol 'mine': choose one of host, paper, forced"
    ):
        asking("mine", "glus", "mevis")
    with pytest.raises(ValueError, match="unknown host 'lisa'"):
        asking("host", "lisa", "mevis")
    with pytest.raises(ValueError, match="unknown benchmark 'revos'"):
        asking("host", "glus", "revos")
