"""PyTorch's files without PyTorch: both formats as PyTorch 2.13 wrote them, and hostile ones.

parity/torch_zip.pt and parity/torch_legacy.pt hold one dict with views of one
storage, a Parameter in channels-last memory and every dtype (see `expected`).
"""

from __future__ import annotations

import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import hostile_weights
from tests.support.torch_writer import save_state_dict
from vsr_jax.errors import UserError
from vsr_jax.torch_files import load, unwrap

PARITY = Path(__file__).parents[1] / "parity"
BOTH = pytest.mark.parametrize("name", ["torch_zip.pt", "torch_legacy.pt"])


def expected() -> dict[str, np.ndarray]:
  base = np.arange(24, dtype=np.float32)
  signed = np.arange(4) - 2
  return {
    "whole": base,
    "tail": base[20:],
    "transposed": base.reshape(4, 6).T,
    "every_other": base[1::2],
    "expanded": np.full(3, 5, np.float32),
    "scalar": np.array(7.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "kernel": np.arange(36, dtype=np.float32).reshape(2, 2, 3, 3),
    "double": np.arange(4) / 3,
    "half": (np.arange(4) / 4).astype(np.float16),
    "bfloat16": (np.arange(4) / 4).astype(jnp.bfloat16),
    "int64": signed,
    "int32": signed.astype(np.int32),
    "int16": signed.astype(np.int16),
    "int8": signed.astype(np.int8),
    "uint8": np.arange(4, dtype=np.uint8),
    "bool": np.arange(4) % 2 == 1,
  }


def assert_same(state: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
  assert list(state) == list(want)
  for key, value in want.items():
    assert state[key].dtype == value.dtype, key
    assert state[key].shape == value.shape, key
    np.testing.assert_array_equal(state[key], value, err_msg=key)


@BOTH
def test_reads_what_pytorch_wrote(name):
  contents = load(PARITY / name)
  assert_same(unwrap(contents), expected())
  assert contents["epoch"] == 3
  assert contents["note"] == "two names, one storage"
  assert contents["milestones"] == [1, 2.5, None, True]
  assert contents["size"] == (2, 3)


def test_reads_what_the_tests_write(tmp_path):
  wrapped = {"best": {"params": expected()}, "epoch": 70000, "name": "x"}
  save_state_dict(tmp_path / "x.pt", wrapped)
  contents = load(tmp_path / "x.pt")
  assert_same(contents["best"]["params"], expected())
  assert contents["epoch"] == 70000


@BOTH
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_refused(name, part, tmp_path):
  data = (PARITY / name).read_bytes()
  path = tmp_path / "half.pt"
  path.write_bytes(data[: int(len(data) * part)])
  with pytest.raises(UserError, match="half.pt"):
    load(path)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n", b"<html>", bytes(range(256)) * 40])
def test_garbage_is_refused(data, tmp_path):
  path = tmp_path / "garbage.pth"
  path.write_bytes(data)
  with pytest.raises(UserError, match="garbage.pth"):
    load(path)


def test_missing_file_and_folder_are_refused(tmp_path):
  with pytest.raises(UserError, match="none.pth"):
    load(tmp_path / "none.pth")
  with pytest.raises(UserError, match="cannot be read"):
    load(tmp_path)


def test_storage_shorter_than_its_tensor_is_refused(tmp_path):
  save_state_dict(tmp_path / "x.pt", {"a": np.ones(8, np.float32)})
  rewrite(tmp_path / "x.pt", "archive/data/0", bytes(16))
  with pytest.raises(UserError, match="16 bytes of 32"):
    load(tmp_path / "x.pt")


def test_big_endian_is_refused(tmp_path):
  save_state_dict(tmp_path / "x.pt", {"a": np.ones(8, np.float32)})
  rewrite(tmp_path / "x.pt", "archive/byteorder", b"big")
  with pytest.raises(UserError, match="big-endian"):
    load(tmp_path / "x.pt")


def test_zip_of_something_else_is_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
    archive.writestr("hello.txt", "hello")
  with pytest.raises(UserError, match="not PyTorch's"):
    load(tmp_path / "x.pt")


class Call:
  """Pickles as a call of any function."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


def hostile(mark: Path) -> list[bytes]:
  import subprocess

  return [
    pickle.dumps(Call(os.system, f"touch {mark}"), 2),
    pickle.dumps({"a": Call(eval, f"open({str(mark)!r}, 'w')")}, 2),
    pickle.dumps(Call(subprocess.run, ["touch", str(mark)]), 4),
    pickle.dumps(Call(getattr, Call(__import__, "os"), "system"), 2),
  ]


@pytest.mark.parametrize("attack", range(4))
@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(attack, zipped, tmp_path):
  mark, path = tmp_path / "mark", tmp_path / "evil.pth"
  data = hostile(mark)[attack]
  if zipped:
    save_state_dict(path, {})
    rewrite(path, "archive/data.pkl", data)
  else:
    path.write_bytes(data)
  with pytest.raises(UserError, match=r"evil.pth holds code.*save only the state dict"):
    load(path)
  assert not mark.exists()


def test_a_pickle_cannot_alter_what_it_is_given(tmp_path):
  """BUILD sets attributes on any object: no later file may see the change."""
  save_state_dict(tmp_path / "good.pt", {"a": np.ones(2, np.float32)})
  rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
  state = pickle.dumps((None, {"__defaults__": (1,), "__name__": "x"}), 2)[2:-1]
  save_state_dict(tmp_path / "evil.pt", {})
  rewrite(tmp_path / "evil.pt", "archive/data.pkl", b"\x80\x02" + rebuild + state + b"b.")
  with pytest.raises(UserError):
    load(tmp_path / "evil.pt")
  assert load(tmp_path / "good.pt")["a"].tolist() == [1, 1]


LONG = ("nested", "empty dicts", "pairs again")  # too long to have each allocation recorded


def refusal(name: str, folder: Path) -> tuple[str, int]:
  """The text and the most memory that it took, in bytes."""
  path = folder / "evil.pth"
  path.write_bytes(hostile_weights.attacks()[name]())
  if name not in LONG:
    tracemalloc.start()
  try:
    with pytest.raises(UserError, match="evil.pth") as error:
      unwrap(load(path), source=str(path))
    return str(error.value).replace(str(path), ""), tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize("name", hostile_weights.attacks())
def test_attack_is_refused_in_little_memory(name, tmp_path):
  text, peak = refusal(name, tmp_path)
  assert peak < 100e6
  assert text.isprintable()
  assert len(text) < 300
  assert ("more than 500000 operations" in text) == (name in LONG)


@pytest.mark.parametrize("name", ["torch_zip.pt", "torch_legacy.pt", "written.pt"])
def test_damaged_file_is_refused_or_harmless(name, tmp_path):
  save_state_dict(tmp_path / "written.pt", {"state_dict": expected(), "epoch": 3})
  good = (tmp_path if name == "written.pt" else PARITY) / name
  texts = []
  for data in hostile_weights.mutants(good.read_bytes(), seed=0, count=100):
    path = tmp_path / "damaged.pth"
    path.write_bytes(data)
    try:
      arrays = unwrap(load(path), source=str(path)).values()
    except UserError as e:
      texts.append(str(e))
    else:
      assert sum(array.nbytes for array in arrays) < 2**21
  assert len(texts) > 20
  assert all("damaged.pth" in text and text.isprintable() for text in texts)


def test_what_is_shared_in_a_file_stays_shared(tmp_path):
  """As a tree it would be of 2^60 lists."""
  path = tmp_path / "x.pt"
  path.write_bytes(hostile_weights.attacks()["shared lists"]())
  value = load(path)["a"][-1]
  assert value[0] is value[1]


def test_pipe_is_refused_without_waiting(tmp_path):
  os.mkfifo(tmp_path / "pipe.pt")
  with pytest.raises(UserError, match="pipe.pt is a pipe"):
    load(tmp_path / "pipe.pt")


def test_names_that_are_no_strings_are_no_state_dict():
  with pytest.raises(UserError, match=r"x.pth is no state dict: holds 0"):
    unwrap({0: np.ones(1)}, source="x.pth")


def rewrite(path: Path, name: str, data: bytes) -> None:
  """Replaces one entry of a zip file."""
  with zipfile.ZipFile(path) as archive:
    entries = {n: archive.read(n) for n in archive.namelist()}
  with zipfile.ZipFile(path, "w") as archive:
    for n, old in entries.items():
      archive.writestr(n, data if n == name else old)


@pytest.mark.parametrize(
  "contents",
  [
    {"module.a": np.ones(1)},
    {"a": np.ones(1)},
    {"params": {"a": np.zeros(1)}, "params_ema": {"module.a": np.ones(1)}, "iter": 4},
  ],
)
def test_unwrap(contents):
  state = unwrap(contents, ("params_ema", "params"))
  assert list(state) == ["a"]
  assert state["a"] == 1


def test_unwrap_keeps_a_prefix_that_only_some_have():
  assert list(unwrap({"module.a": np.ones(1), "b": np.ones(1)})) == ["module.a", "b"]


@pytest.mark.parametrize("contents", [{}, {"epoch": 3}, {"params": {}}, {"net": {"a": np.ones(1)}}])
def test_unwrap_refuses_what_is_no_state_dict(contents):
  with pytest.raises(UserError, match="x.pth is no state dict"):
    unwrap(contents, ("params",), "x.pth")
