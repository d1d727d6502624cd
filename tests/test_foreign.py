"""JSON that other people wrote: what is read, and what is refused in one line."""

import json
import math

import pytest

from gram_hear.errors import SceneError
from gram_hear.foreign import parse_json


@pytest.mark.parametrize(
    "value",
    [{"a": [1, -2.5, None, True, "ä \U0001f600"]}, int("9" * 100), [], "x", {"": {}}],
    ids=repr,
)
def test_json_is_read(value):
    text = json.dumps(value)
    assert parse_json(text, "x.json", SceneError) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(), "x", SceneError) == value


def test_nesting_up_to_64_is_read():
    parse_json("[" * 64 + "]" * 64, "x.json", SceneError)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a": "\xff"}', "utf-8"),
        ("{", "line 1 column 2"),
        ("", "Expecting value"),
        ("[" * 65 + "]" * 65, "64 levels"),
        ("[" * 100_000, "64 levels"),
        ('{"a":' * 65 + "1" + "}" * 65, "64 levels"),
        ("9" * 101, "101 digits"),
        ("-" + "9" * 5000, "digits"),
        ("[NaN]", "NaN"),
        ("-Infinity", "not finite"),
        ("1e999", "not finite"),
        ("0." + "1" * 1000, "too long"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        (r'["\ud800"]', "surrogates"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_what_is_refused_is_one_line_that_names_the_file(data, said):
    with pytest.raises(SceneError, match=r"^folder/x\.json is ") as caught:
        parse_json(data, "folder/x.json", SceneError)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_size_is_held_against_the_limit_before_parsing():
    with pytest.raises(SceneError, match="larger than 10 bytes"):
        parse_json("[" * 11, "x.json", SceneError, largest=10)


def test_numbers_that_are_not_finite_are_read_where_they_may_be():
    value = parse_json('{"a": NaN, "b": -Infinity}', "scores", SceneError, finite=False)
    assert math.isnan(value["a"])
    assert value["b"] == -math.inf
    with pytest.raises(SceneError, match="1e999"):
        parse_json("[1e999]", "scores", SceneError, finite=False)
