"""What messages are made of: values cut short, numbers with their nouns, near names."""

import pytest

from gram_hear.errors import count, nearest, short, visible


@pytest.mark.parametrize(
    ("value", "most", "shown"),
    [
        ("a\nb", 80, r"'a\nb'"),
        ([1, None], 80, "[1, None]"),
        ("x" * 100, 10, "'xxxxxx..."),
        (10**79, 80, str(10**79)),
        ([10**5000], 80, "a value too large to show"),
    ],
)
def test_values_are_shown_on_one_line_of_limited_length(value, most, shown):
    assert short(value, most) == shown


def test_control_characters_and_broken_ones_are_question_marks():
    assert visible("a\tb\n\x1b[1m\x7f\ud800\uffff é鳥🐦") == "a\tb\n?[1m??? é鳥🐦"


def test_nouns_follow_their_number():
    assert [count(number, "file") for number in (0, 1, 2000)] == [
        "0 files",
        "1 file",
        "2,000 files",
    ]
    assert count(1, "file is", "files are") == "1 file is"
    assert count(2, "file is", "files are") == "2 files are"


def test_near_names_are_found_whatever_was_given():
    assert nearest("ambx", ("ambix", "fuma")) == " Did you mean 'ambix'?"
    assert nearest(None, ("ambix", "fuma")) == ""
    assert nearest("ambix" * 10**6, ("ambix", "fuma")) == ""
