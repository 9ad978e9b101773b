"""Configs: frozen, strict, and one digest for one meaning."""

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.config import Config, assignment, canonical_json, digest

json_value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class Inner(Config):
    rate: float = 0.5


class Outer(Config):
    inner: Inner = Inner()
    names: tuple[str, ...] = ("a",)
    limit: int | None = None


@given(json_value)
def test_canonical_json_keeps_the_value(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@given(st.dictionaries(st.text(), st.integers(), max_size=6), st.randoms())
def test_the_order_of_keys_does_not_matter(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert digest(dict(items)) == digest(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, [1, -math.inf]])
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


def test_equal_configs_have_equal_digests_and_others_do_not():
    one = Outer(inner=Inner(rate=0.25), names=("a", "b"))
    assert one.digest() == Outer.model_validate_json(one.model_dump_json()).digest()
    assert (
        len(
            {
                c.digest()
                for c in (one, Outer(), Outer(limit=0), Outer(names=()), Outer(inner=Inner(rate=1)))
            }
        )
        == 5
    )
    assert len(one.digest()) == 16


def test_the_digest_does_not_depend_on_the_process():
    """Python's own hash() would."""
    code = "from schemas.config import digest; print(digest({'b': [1, 2.5, None], 'a': 'é'}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest({"a": "é", "b": [1, 2.5, None]})


def test_a_config_is_frozen_and_refuses_unknown_keys():
    with pytest.raises(ValidationError, match="frozen"):
        Inner().rate = 1.0
    with pytest.raises(ValidationError, match="Extra inputs"):
        Outer.model_validate({"inner": {"rat": 0.1}})


def test_defaults_are_validated_too():
    class Wrong(Config):
        count: int = "many"  # type: ignore[assignment]

    with pytest.raises(ValidationError, match="count"):
        Wrong()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a.b=1", ("a.b", 1)),
        ("a=null", ("a", None)),
        ("a=[1, 2]", ("a", [1, 2])),
        ("a=x=y", ("a", "x=y")),
        ("a=", ("a", "")),
    ],
)
def test_what_a_command_line_assigns(text, wanted):
    assert assignment(text) == wanted


def test_what_assigns_nothing_is_an_error():
    with pytest.raises(ValueError, match="write it as field=value"):
        assignment("a.b")
