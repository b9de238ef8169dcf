"""The converter's command, on files of the released layouts."""

from __future__ import annotations

import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from fmanet_jax import convert
from fmanet_jax.architecture import Architecture
from fmanet_jax.conversion import PREFIXES, split_networks
from fmanet_jax.model import FMANet, learn_degradation, restore
from tests.fmanet_jax import golden
from tests.support.torch_writer import save_state_dict
from vsr_jax.checkpoint import read_meta, restore_params
from vsr_jax.errors import UserError


def networks(name="tiny"):
  """The state dicts of Net^D and Net^R, as the released files hold them."""
  states = split_networks(golden.state_dict(name))
  return states["net_d"], states["net_r"]


def run(monkeypatch, *args):
  monkeypatch.setattr(sys, "argv", ["convert", *map(str, args)])
  convert.main()


@pytest.fixture
def pair(tmp_path):
  """The two files of the tiny model."""
  paths = [tmp_path / "model_D.pt", tmp_path / "model_R.pt"]
  for path, state in zip(paths, networks(), strict=True):
    save_state_dict(path, state)
  return paths


def wrapped(state, letter):
  """As the released trainer saves a network, with its optimizer."""
  moments = {0: {"step": 3, "exp_avg": np.ones(2, np.float32)}}
  return {
    "epoch": 400,
    f"model_{letter}_state_dict": state,
    f"optimizer_{letter}_state_dict": {"state": moments, "param_groups": [{"lr": 2e-4}]},
  }


def layouts():
  """Name -> the contents of each file."""
  net_d, net_r = networks()
  whole = golden.state_dict("tiny")
  return {
    "pair": [net_d, net_r],
    "reversed": [net_r, net_d],
    "wrapped": [wrapped(net_d, "D"), wrapped(net_r, "R")],
    "state_dict": [{"state_dict": net_d}, {"state_dict": net_r}],
    "parallel": [{f"module.{k}": v for k, v in state.items()} for state in (net_d, net_r)],
    "whole": [whole],
    "whole_parallel": [{"state_dict": {f"module.{k}": v for k, v in whole.items()}}],
    "both_wrapped": [wrapped(net_d, "D") | wrapped(net_r, "R")],
  }


@pytest.mark.parametrize("layout", layouts())
def test_reads_every_layout(layout, tmp_path):
  found = {}
  for i, contents in enumerate(layouts()[layout]):
    save_state_dict(tmp_path / f"{i}.pt", contents)
    found |= convert.read_networks(tmp_path / f"{i}.pt")
  for net, state in zip(("net_d", "net_r"), networks(), strict=True):
    assert found[net].keys() == state.keys()
    for key in ("feature_extractor.0.weight", "a_conv.2.weight"):
      np.testing.assert_array_equal(found[net][key], state[key])


def test_writes_a_checkpoint(pair, tmp_path, monkeypatch, capsys):
  case, folder = golden.load("tiny"), tmp_path / "new" / "weights"
  run(monkeypatch, *pair, folder)
  lines = capsys.readouterr().out.splitlines()
  count = sum(x.size for x in golden.state_dict("tiny").values())
  assert lines == [
    f"{folder}: FMA-Net x4, {count:,} parameters: T = 3, n = 3, k_d = 8, k_r = 5, M = 2",
    f"next: python -m fmanet_jax.restore INPUT OUTPUT --checkpoint {folder}",
  ]
  assert Architecture(**read_meta(folder)["model"]) == case.arch
  jax.tree.map(np.testing.assert_array_equal, restore_params(folder), case.params)


@pytest.mark.slow
def test_restores_as_the_released_model(pair, tmp_path, monkeypatch):
  """As test_parity.py says of these params; here from the files to the output."""
  case, folder = golden.load("tiny"), tmp_path / "weights"
  run(monkeypatch, *pair, folder)
  model = FMANet(Architecture(**read_meta(folder)["model"]))

  @golden.jit
  def output(params, blurry):
    return restore(model, params, blurry, learn_degradation(model, params, blurry)).output

  got = golden.kept(output(restore_params(folder), case.blurry))
  assert golden.relative_error(got, case.reference("out/output")) < 1e-5


def test_the_released_size(tmp_path, monkeypatch, capsys):
  for path, state in zip(("D.pt", "R.pt"), networks("full"), strict=True):
    save_state_dict(tmp_path / path, state)
  run(monkeypatch, tmp_path / "D.pt", tmp_path / "R.pt", tmp_path / "out")
  assert "x4, 9,766,503 parameters: T = 3, n = 9, k_d = 20" in capsys.readouterr().out
  meta = read_meta(tmp_path / "out")
  assert (meta["model"]["dim"], meta["converted_from"]) == (90, ["D.pt", "R.pt"])
  params = restore_params(tmp_path / "out")
  jax.tree.map(np.testing.assert_array_equal, params, golden.load("full").params)


def test_replaces_an_older_export(pair, tmp_path, monkeypatch):
  for _ in range(2):
    run(monkeypatch, *pair, tmp_path / "out")
  assert {path.name for path in tmp_path.iterdir()} == {"model_D.pt", "model_R.pt", "out"}


def spoil(path, change):
  """Writes the tiny model's file of this name again, changed."""
  letter = path.stem[-1]
  state = dict(networks()[letter == "R"])
  change(state)
  save_state_dict(path, state)


SPOILT = {
  "missing": (lambda path: path.unlink(), "model_R.pt cannot be read: No such file"),
  "truncated": (
    lambda path: path.write_bytes(path.read_bytes()[:10_000]),
    "model_R.pt is damaged or no PyTorch file",
  ),
  "another model": (
    lambda path: save_state_dict(path, {"fnet.conv1.weight": np.ones(3, np.float32)}),
    "model_R.pt: holds fnet.conv1.weight and so on; give an FMA-Net's weights",
  ),
  "the same network": (
    lambda path: save_state_dict(path, networks()[0]),
    "model_D.pt does; give each one once",
  ),
  "misshapen": (
    lambda path: spoil(path, lambda s: s.update({"res_conv1.weight": np.ones((9, 9), "f4")})),
    "res_conv1.weight of shape (9, 9) does not fit",
  ),
  "a tensor missing": (
    lambda path: spoil(path, lambda s: s.pop("a_conv.2.weight")),
    "missing anchor_head/conv2/kernel",
  ),
  "a telling tensor missing": (
    lambda path: spoil(path, lambda s: s.pop("r_conv.2.weight")),
    "model_R.pt does not hold an FMA-Net's weights: missing r_conv.2.weight",
  ),
  "a tensor more": (
    lambda path: spoil(path, lambda s: s.update({"extra.weight": np.ones(3, "f4")})),
    "unexpected extra.weight",
  ),
  "not finite": (
    lambda path: spoil(path, lambda s: s.update({"r_conv.0.weight": s["r_conv.0.weight"] / 0})),
    "model_R.pt (net_r) holds NaN or infinite numbers in r_conv.0.weight; fetch it again",
  ),
  "half of a whole model": (
    lambda path: save_state_dict(
      path, {PREFIXES["net_r"] + k: v for k, v in networks()[1].items()} | {"x": np.ones(1, "f4")}
    ),
    "model_R.pt: unexpected x beside the two networks",
  ),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("case", SPOILT)
def test_bad_input_is_one_line_and_leaves_nothing(case, pair, tmp_path, run_main):
  change, message = SPOILT[case]
  change(pair[1])
  before = set(tmp_path.iterdir())
  line = run_main(convert.main, *pair, tmp_path / "out", code=2).err
  assert line.startswith("error: ")
  assert line.count("\n") == 1
  assert message in line
  assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
  ("files", "message"),
  [
    (["model_D.pt"], "no Net^R (model_R) in there; give the files of both"),
    (["model_R.pt"], "no Net^D (model_D) in there; give the files of both"),
    (["model_R.pt"] * 2, "holds Net^R (model_R), as"),
    (["model_D.pt"] * 3, "3 files given, there are two networks"),
    ([], "required: DIR"),
  ],
)
def test_wrong_number_of_files(files, message, pair, tmp_path, monkeypatch):
  with pytest.raises(UserError) as error:
    run(monkeypatch, *(tmp_path / file for file in files), tmp_path / "out")
  assert message in str(error.value)
  assert not (tmp_path / "out").exists()


def test_folder_of_something_else_is_kept(pair, tmp_path, monkeypatch):
  other = tmp_path / "photos"
  other.mkdir()
  (other / "a.jpg").write_bytes(b"a")
  for folder in (other, pair[0], pair[1]):
    with pytest.raises(UserError, match="exists and is no exported checkpoint"):
      run(monkeypatch, *pair, folder)
  assert (other / "a.jpg").exists()
  assert all(path.is_file() for path in pair)


def test_a_folder_that_cannot_be_written_is_refused_before_work(tmp_path, run_main):
  (tmp_path / "file").touch()
  missing = (tmp_path / "D.pt", tmp_path / "R.pt")  # which would be told otherwise
  said = run_main(convert.main, *missing, tmp_path / "file" / "out", code=2)
  assert "file is a file; name a folder" in said.err


def test_folder_with_an_input_is_kept(pair, tmp_path, monkeypatch):
  """It would be replaced as a whole."""
  out = tmp_path / "out"
  run(monkeypatch, *pair, out)
  shutil.copy(pair[0], out)
  with pytest.raises(UserError, match="holds the input"):
    run(monkeypatch, out / "model_D.pt", pair[1], out)
  assert (out / "model_D.pt").is_file()


def test_as_a_command(tmp_path):
  command = [sys.executable, "-m", "fmanet_jax.convert", "D.pt", "R.pt", str(tmp_path / "out")]
  result = subprocess.run(command, check=False, capture_output=True, text=True)
  assert result.returncode == 2
  assert (
    result.stderr
    == "error: D.pt cannot be read: No such file or directory; give a .pt or .pth file\n"
  )
