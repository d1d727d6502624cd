"""What other people made: what is read of it, and what is refused in one line."""

import io
import json
import math
import tarfile
import zipfile

import numpy as np
import pytest

from gram_hear.errors import SceneError
from gram_hear.foreign import BoundedMember, parse_array, parse_json, read_array


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


def npy(array=None, shape=None):
    """The bytes of an array's file; with ``shape``, one whose header claims that."""
    file = io.BytesIO()
    np.save(file, np.zeros((2, 3), np.float32) if array is None else array)
    if shape is not None:
        old = b"(2, 3), }"
        new = repr(shape).encode() + b", }"
        data = file.getvalue().replace(old + b" " * (len(new) - len(old)), new)
        assert new in data
        return data
    return file.getvalue()


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read(order):
    array = np.asarray(np.arange(6.0).reshape(2, 3), order=order)
    assert np.array_equal(parse_array(npy(array), "x.npy", SceneError, np.float64), array)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (npy(shape=(10**12, 3)), "cannot hold"),
        (npy(shape=(-2, 3)), "cannot hold"),
        (npy(shape=(9, 9)), "needs 324"),
        (npy(np.zeros((1,) * 5, np.float32)), "5 axes"),
        (npy(np.zeros(3, np.complex64)), "complex64"),
        (npy(np.array([None])), "object"),
        (npy()[:-1], "23 bytes"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr':[[[[[[[[", "no .npy file"),
        (b"RIFF", "no .npy file"),
    ],
    ids=range(9),
)
def test_an_array_is_held_against_its_header(data, said):
    with pytest.raises(SceneError, match=r"^x\.npy ") as caught:
        parse_array(data, "x.npy", SceneError, np.float32)
    assert said in str(caught.value)


def test_an_array_far_larger_than_its_bytes_in_the_zip_is_not_unpacked(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, small=np.zeros(4), bomb=np.zeros(10**7, np.float64))
    with zipfile.ZipFile(path) as archive:
        assert len(read_array(archive, "small", SceneError, np.float64)) == 4
        with pytest.raises(SceneError, match="bomb would have 80,000,128 bytes"):
            read_array(archive, "bomb", SceneError, np.float64)


def test_a_long_name_of_a_tar_is_not_read_into_memory(tmp_path):
    path = tmp_path / "x.tar"
    header = tarfile.TarInfo("a")
    header.type, header.size = tarfile.XHDTYPE, 2**40
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with (
        pytest.raises(tarfile.TarError, match="size 1099511627776"),
        tarfile.open(path, tarinfo=BoundedMember),
    ):
        pass
