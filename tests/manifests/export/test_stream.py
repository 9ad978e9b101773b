"""JSON arrays written as they come."""

import json

import pytest

from manifests.export.stream import Array


def test_an_array_and_a_field_of_an_object(tmp_path):
    for values in ([], [{"a": "ü"}], [1, None, [2.5]]):
        plain, named = Array(tmp_path / "x" / "plain.json"), Array(tmp_path / "named.json", "items")
        for value in values:
            plain.add(value)
            named.add(value)
        plain.close()
        named.close(info={"n": len(values)})
        assert json.loads((tmp_path / "x" / "plain.json").read_text()) == values
        assert json.loads((tmp_path / "named.json").read_text()) == {
            "items": values,
            "info": {"n": len(values)},
        }


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        Array(tmp_path / "x.json").add(float("nan"))
