"""JSON from disk: what is refused, in one line that names the file and the place in it."""

from __future__ import annotations

import json
import os

import pytest

from vsr_jax import json_files
from vsr_jax.errors import UserError
from vsr_jax.guards import is_name
from vsr_jax.json_files import (
  BadJson,
  anything,
  array,
  fields,
  integer,
  number,
  optional,
  plain_name,
)

ENTRY = fields({"name": plain_name, "frames": integer(1, 100)}, {"rate": optional(number(0, 1000))})
INDEX = fields({"clips": array(ENTRY, longest=3)})
GOOD = {"clips": [{"name": "beach", "frames": 5, "rate": 24}, {"name": "a b", "frames": 1}]}


def test_what_follows_the_schema_is_read(tmp_path):
  path = tmp_path / "x.json"
  path.write_text(json.dumps(GOOD))
  assert json_files.load(path, INDEX, remedy="make it again") == GOOD
  with pytest.raises(FileNotFoundError):
    json_files.load(tmp_path / "none.json", INDEX, remedy="make it again")


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"[" * 100_000, "nested deeper than 32"),
    (b'{"a":' * 5_000, "nested deeper than 32"),
    (b"[" * 33 + b"]" * 33, "nested deeper than 32"),
    (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    ('{"a": 1}'.encode("utf-16"), "not UTF-8 at byte 0"),
    (b'{"a": 1, "b": 2, "a": 3}', 'key "a" comes twice'),
    (b"[NaN]", "NaN is no number"),
    (b"[-Infinity]", "-Infinity is no number"),
    (b"[1e999]", "number is too large for a float"),
    (b"[9223372036854775808]", "more than 64 bits"),
    (b"1" * 10_000, "more than 64 bits"),
    (b'["\\ud800"]', "not Unicode"),
    (b'{"a\\u0000": 1}', "without NUL"),
    (b"", r"not JSON \(Expecting value"),
    (b'{"a": 1', "not JSON"),
  ],
  ids=str,
)
def test_damaged_json_is_refused_in_one_line(tmp_path, data, message):
  path = tmp_path / "x.json"
  path.write_bytes(data)
  with pytest.raises(UserError, match=rf"x\.json: .*{message}.*; make it again$") as error:
    json_files.load(path, anything, remedy="make it again")
  assert len(str(error.value).removeprefix(str(path))) < 200


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ([], "it is a list, not an object"),
    ({}, "it has no field 'clips'"),
    ({"clips": {}}, "clips is an object, not a list"),
    ({"clips": [], "x": 1}, 'it has a field "x" that is not known'),
    ({"clips": [7]}, r"clips\[0\] is 7, not an object"),
    ({"clips": [{"name": "a"}]}, r"clips\[0\] has no field 'frames'"),
    ({"clips": [{"name": "a", "frames": True}]}, r"frames is true, not an integer from 1 to 100"),
    ({"clips": [{"name": "a", "frames": 0}]}, "frames is 0, not an integer"),
    ({"clips": [{"name": "a", "frames": 5.0}]}, "frames is 5.0, not an integer"),
    ({"clips": [{"name": "a", "frames": "5"}]}, 'frames is "5", not an integer'),
    ({"clips": [{"name": "a", "frames": 5, "rate": -1}]}, r"rate is -1, not a number from 0"),
    ({"clips": [{"name": "a", "frames": 5, "rate": []}]}, r"rate is a list, not a number"),
    ({"clips": [{"name": "../a", "frames": 5}]}, r'name is "\.\./a", not a plain name'),
    ({"clips": [{"name": "x" * 300, "frames": 5}]}, r'name is "x{39}\.\.\., not a plain name'),
    ({"clips": [{"name": "a", "frames": 5}] * 4}, "clips has 4 items, not 0 to 3"),
  ],
  ids=str,
)
def test_what_does_not_follow_the_schema_is_named(change, message):
  with pytest.raises(BadJson, match=message):
    json_files.parse(json.dumps(change).encode(), INDEX)


def test_a_log_may_have_numbers_that_are_not_finite():
  assert json_files.parse(b'{"psnr": Infinity}', anything, finite=False) == {"psnr": float("inf")}


def test_no_more_is_read_than_the_limit_and_no_pipe(tmp_path):
  path = tmp_path / "x.json"
  path.write_text(json.dumps(GOOD))
  with pytest.raises(UserError, match="damaged .has more than 20 bytes.; make"):
    json_files.load(path, INDEX, remedy="make it again", limit=20)
  with pytest.raises(UserError, match="not a file"):
    json_files.load(tmp_path, INDEX, remedy="make it again")
  path.unlink()
  os.mkfifo(path)  # which nobody writes: opening it would not end
  with pytest.raises(UserError, match="not a file"):
    json_files.load(path, INDEX, remedy="make it again")


@pytest.mark.parametrize("text", ["beach", "a b", "Clip+x+P0+C0+F1-2", "...", "é", "caf\udce9"])
def test_plain_names(text):
  assert is_name(text)


@pytest.mark.parametrize("text", ["", ".", "..", "/etc", "a/b", "../a", "a\0", "x" * 256, "\ud800"])
def test_names_that_lead_elsewhere_or_cannot_be(text):
  assert not is_name(text)
