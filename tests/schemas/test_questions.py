"""Question templates: one placeholder each, the same text back from the manifests, another hash for another word."""

import json
from dataclasses import asdict, replace

import pytest

from schemas.questions import TEMPLATES, Templates, draw


def test_the_pools_hold_what_they_should():
    assert TEMPLATES.region[0] == "What is the <region> doing during this video?"
    assert len(set(TEMPLATES.region)) == len(TEMPLATES.region) >= 12
    assert len(set(TEMPLATES.segment)) == 4
    assert len(set(TEMPLATES.reply)) == 5


def test_the_manifests_text_gives_the_same_pool_back():
    assert Templates.from_json(TEMPLATES.to_json()) == TEMPLATES
    other = replace(TEMPLATES, region=(*TEMPLATES.region[:-1], "Who is the <region>?"))
    assert other.hash != TEMPLATES.hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"region": ["What is it doing?"]}, "exactly one <region>"),
        ({"region": ["<region> or <region>?"]}, "exactly one <region>"),
        ({"region": []}, "'region' is empty"),
        ({"segment": ["Segment it."]}, "exactly one {}"),
        ({"reply": ["Here it is."]}, r"exactly one \[SEG\]"),
        ({"region": [7]}, "exactly one <region>"),
        ({"more": ["x"]}, "cannot be read"),
    ],
)
def test_a_pool_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Templates.from_json(json.dumps(asdict(TEMPLATES) | change))


@pytest.mark.parametrize("text", ["", "[]", "null", '{"region": 3}', "{"])
def test_what_is_no_pool_is_refused(text):
    with pytest.raises(ValueError, match="cannot be read"):
        Templates.from_json(text)


def test_braces_in_a_caption_are_words():
    request = TEMPLATES.request(0, "The {man} in {} A.B. <region>")
    assert request == 'Please segment "the {man} in {} ab <region>" in this video.'


def test_no_template_comes_twice_before_the_pool_is_used_up():
    drawn = [draw("key", n, TEMPLATES.region) for n in range(2 * len(TEMPLATES.region))]
    pool = list(range(len(TEMPLATES.region)))
    assert sorted(drawn[: len(pool)]) == sorted(drawn[len(pool) :]) == pool
    assert drawn[: len(pool)] != drawn[len(pool) :]
