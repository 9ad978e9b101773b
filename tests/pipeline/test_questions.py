"""Questions: templates from the pool, captions untouched, the same draw on every machine."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.questions import QuestionConfig, ask
from schemas.questions import TEMPLATES

REGION, REQUESTS, REPLIES = TEMPLATES.region, TEMPLATES.segment, TEMPLATES.reply
captions = st.text(min_size=1).filter(str.strip)
BOTH = QuestionConfig(families=("region", "segment"), per_referent=3)


@given(captions, st.integers(0, 5))
def test_the_answer_is_the_caption_unchanged(caption, seed):
    [pair] = ask("r-1", caption, QuestionConfig(seed=seed))
    assert pair.answer == caption
    assert pair.question == REGION[pair.template]
    assert pair.family == "region"


@given(captions)
def test_a_request_names_the_caption(caption):
    for pair in ask("r-1", caption, QuestionConfig(families=("segment",), per_referent=4)):
        words = " ".join(caption.lower().replace(".", "").split())
        assert pair.question == REQUESTS[pair.template].replace("{}", words)
        assert pair.answer in REPLIES


def test_a_request_is_lower_case_without_full_stops():
    [pair] = ask("r", "The Man. In red {shirt}.", QuestionConfig(families=("segment",)))
    assert "the man in red {shirt}" in pair.question


def test_ids_are_unique_over_families():
    pairs = ask("clip-7", "a dog", BOTH)
    assert [p.qa_id for p in pairs] == [f"clip-7-q{n}" for n in range(6)]
    assert [p.family for p in pairs] == ["region"] * 3 + ["segment"] * 3


@given(st.text(max_size=20), st.integers(0, 99))
def test_no_template_twice_while_the_pool_lasts(referent_id, seed):
    drawn = [
        p.template
        for p in ask(referent_id, "a dog", QuestionConfig(per_referent=2 * len(REGION), seed=seed))
    ]
    assert sorted(drawn[: len(REGION)]) == list(range(len(REGION)))
    assert sorted(drawn[len(REGION) :]) == list(range(len(REGION)))


def test_the_draw_is_fixed():
    """Shards of two machines, or of two versions of Python, must agree."""
    config = QuestionConfig(per_referent=4)
    assert ask("hcstvg-train-7", "x", config) == ask("hcstvg-train-7", "x", config)
    assert [p.template for p in ask("hcstvg-train-7", "x", config)] == [1, 8, 5, 10]
    assert [p.template for p in ask("hcstvg-train-7", "another caption", config)] == [1, 8, 5, 10]


def test_more_questions_keep_the_first_ones():
    few, many = (ask("r", "a dog", QuestionConfig(per_referent=n)) for n in (1, 3))
    assert many[:1] == few


def test_templates_are_drawn_about_equally_often():
    drawn = Counter(ask(f"r{i}", "a dog", QuestionConfig())[0].template for i in range(1200))
    assert set(drawn) == set(range(len(REGION)))
    assert min(drawn.values()) > 60
    assert drawn != Counter(
        ask(f"r{i}", "a dog", QuestionConfig(seed=1))[0].template for i in range(1200)
    )


@pytest.mark.parametrize("caption", ["", "  \n"])
def test_an_empty_caption_is_refused(caption):
    with pytest.raises(ValueError, match="r-3: an empty caption"):
        ask("r-3", caption, QuestionConfig())
