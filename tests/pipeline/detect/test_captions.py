"""Expressions become captions that GroundingDINO reads as one phrase, and their head noun is found or left open."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.detect.captions import bag, head_noun, normalise


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("A man in red ", "a man in red."),
        ("a man in red.", "a man in red."),
        ("The  dog\n on the left...", "the dog on the left."),
        ("man. woman in white. cat.", "man, woman in white, cat."),
        ("What is this? a hat?", "what is this, a hat."),
        ("the man , who runs .", "the man, who runs."),
        ("a car !", "a car !."),
    ],
)
def test_a_caption_is_one_phrase_with_one_final_period(raw: str, clean: str):
    assert normalise(raw) == clean
    assert normalise(clean) == clean


@pytest.mark.parametrize("raw", ["", "  \n", ".", "?!.", " , "])
def test_a_caption_without_words_is_refused(raw: str):
    with pytest.raises(ValueError, match="no words"):
        normalise(raw)


@given(st.text())
def test_no_text_can_break_the_convention(text: str):
    try:
        clean = normalise(text)
    except ValueError:
        return
    assert clean.endswith(".")
    assert clean.count(".") == 1
    assert "?" not in clean
    found = head_noun(clean)
    assert found is None or clean[slice(*found)].strip()


EXPRESSIONS = {
    # made for one rule each
    "the man in a red shirt who is running": "man",
    "white dog on the left": "dog",
    "person wearing black shorts": "person",
    "left lion": "lion",
    "the lion left of the tree": "lion",
    "the second car from left": "car",
    "black and white dog walking in the snow": "dog",
    "the man's hat": "hat",
    "the dog s tail": "tail",
    "the dogs' food bowl": "bowl",
    "one of the men on the bench": "men",
    "a group of zebras near the water": "zebras",
    "a pair of white shoes": "shoes",
    "the front of the bus": "bus",
    "running man": "man",
    "parked car behind the bus": "car",
    "the man juggles three balls": "man",
    "cat and dog": "cat",
    "man, wearing a hat": "man",
    "a baby": "baby",
    "baby elephant": "elephant",
    "the toy car": "car",
    "an orange cat": "cat",
    "a police officer": "officer",
    "tennis player in white": "player",
    "T-shirt of the man": "t-shirt",
    "the man (left)": "man",
    # real ones: A2D-Sentences
    "a bear is slowly walking": "bear",
    "Guy in black shirt is passing a ball": "guy",
    "the right person in red shirt is walking on the back": "person",
    "Redhead woman in the red dress standing with gray dog": "woman",
    "a runner on the left of another runner with yellow shirt is running in a race": "runner",
    "man in all black standing behind the car": "man",
    "the forth man from the left is running": "man",
    # VID-Sentence
    "A motorcycle carrying a man climbs up the dune": "motorcycle",
    "The second bicycle from the left runs on a road between the trees": "bicycle",
    "the right giant panda is sitting next to another giant panda on a wooden platform": "panda",
    "A squirrel sits on the root of a tree and then jumps": "squirrel",
    # Refer-Youtube-VOS and Refer-DAVIS
    "a skate board carrying a person skating on the road": "board",
    "the cabinet of a wash hand basin in a toilet": "cabinet",
    "a brown and white coloured piglet": "piglet",
    "paraglider lines": "lines",
    "a hand is petting the white cat sitting next to the grass": "hand",
}
OPEN = (
    "the left one",
    "someone is rolling",
    "white is rolling on the carpet",
    "on the right is a white bus",
    "it",
)
"""Where the rule finds no noun, it says so, and the detector scores every token."""


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_head_noun(expression: str):
    found = head_noun(expression)
    assert found is not None
    assert expression[slice(*found)].lower() == EXPRESSIONS[expression]


@pytest.mark.parametrize("expression", OPEN)
def test_an_unsure_rule_says_so(expression: str):
    assert head_noun(expression) is None


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [("the axolotl juggles balls", "balls"), ("dog walker", "walker"), ("bus stop", "stop")],
)
def test_known_limits(expression: str, wrong: str):
    """An unlisted verb after an unlisted noun is taken for a noun; no rule tells "dog walker" from "dog barker"."""
    found = head_noun(expression)
    assert found is not None
    assert expression[slice(*found)] == wrong


def test_nearly_every_real_expression_has_a_head_noun(shared):
    rows = (
        (shared / "data/a2d_sentences/a2d_annotation_with_short_query.txt")
        .read_text()
        .splitlines()[1:]
    )
    videos = json.loads(
        (shared / "data/ref_youtube_vos/meta_expressions_valid_incl_test.json").read_text()
    )["videos"]
    texts = [row.split(",")[2] for row in rows] + [
        e["exp"] for video in videos.values() for e in video["expressions"].values()
    ]
    assert len(texts) > 8000
    assert sum(head_noun(text) is None for text in texts) / len(texts) < 0.01


def test_the_head_is_inside_the_noun_phrase_that_people_marked(shared):
    """A2D's fourth column is a third party's short query: the noun phrase and its attributes, without the action."""
    rows = (
        (shared / "data/a2d_sentences/a2d_annotation_with_short_query.txt")
        .read_text()
        .splitlines()[1:]
    )
    pairs = [(c[2].lower(), c[3].lower().split()) for row in rows if len(c := row.split(",")) == 4]
    found = [(text[slice(*h)], short) for text, short in pairs if (h := head_noun(text))]
    assert len(found) > 6000
    assert sum(head in short for head, short in found) / len(found) > 0.97


def test_a_bag_of_descriptions():
    assert bag("white dog on the left") == [
        "white dog on the left",
        "dog",
        "dog, white dog on the left.",
    ]
    assert bag("the left one") == ["the left one"]
