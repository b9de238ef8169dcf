"""The converter, on files of the released layouts; the released models' sizes."""

from __future__ import annotations

import dataclasses
import math
import sys
import zlib

import jax
import numpy as np
import pytest

from keep_jax import conversion as keep_conversion
from keep_jax import convert, streaming
from keep_jax.conversion import CODEFORMER, RENAMED, convert_released
from keep_jax.model import KEEP, Architecture, param_shapes
from tests.keep_jax import golden
from tests.support.torch_writer import save_state_dict
from vsr_jax import torch_files
from vsr_jax.checkpoint import read_meta, restore_params
from vsr_jax.errors import UserError
from vsr_jax.flow import gmflow_conversion, released

ASIAN = Architecture(cft=(32, 64, 128, 256))


def first_names(state):
  """A state dict as v0.1.0 names it."""
  for old, new in RENAMED.items():
    state = {
      old + key.removeprefix(new) if key.startswith(new) else key: value
      for key, value in state.items()
    }
  return state


@pytest.mark.parametrize(
  ("name", "arch"),
  [("keep_full", Architecture()), ("keep_v010", Architecture()), ("keep_asian", ASIAN)],
)
def test_released_layouts_fill_the_whole_model(name, arch):
  shapes = golden.manifest(name)
  found, params = convert_released(golden.zeros(shapes), name)
  assert found == arch
  assert sum(x.size for x in jax.tree.leaves(params)) == sum(map(math.prod, shapes.values()))


def of_released_size(name):
  """A state dict of a released layout; a tensor's random values follow from its name of v1.0.0."""
  state = {}
  for key, shape in golden.manifest(name).items():
    new = next((n + key.removeprefix(o) for o, n in RENAMED.items() if key.startswith(o)), key)
    state[key] = np.random.default_rng(zlib.crc32(new.encode())).random(shape, np.float32)
  return state


@pytest.mark.slow
def test_files_of_the_released_size(tmp_path):
  """Written, converted and read; both releases of KEEP hold the same."""
  layouts = {"keep_v010": lambda state: state, "keep_full": in_average, "keep_asian": in_average}
  found = {}
  for name, layout in layouts.items():
    save_state_dict(tmp_path / "KEEP.pth", layout(of_released_size(name)))
    convert.convert(str(tmp_path / "KEEP.pth"), str(tmp_path / name))
    params = streaming.load(tmp_path / name)[1]
    found[name] = jax.tree.map(lambda x: (x.shape, float(x.min()), float(x.max())), params)
    leaves = jax.tree.leaves(found[name], is_leaf=lambda x: isinstance(x, tuple))
    sizes = map(math.prod, golden.manifest(name).values())
    assert sum(math.prod(shape) for shape, *_ in leaves) == sum(sizes)
    (tmp_path / "KEEP.pth").unlink()
  assert found["keep_v010"] == found["keep_full"]
  assert found["keep_asian"]["encoder"] == found["keep_full"]["encoder"]


def in_average(state):
  return {"params": {}, "params_ema": state}


@pytest.mark.parametrize(("arch", "count"), [(Architecture(), 158_485_860), (ASIAN, 143_573_092)])
def test_parameter_count(arch, count):
  assert sum(x.size for x in jax.tree.leaves(param_shapes(KEEP(arch)))) == count


@pytest.mark.parametrize(
  "layout",
  [pytest.param(name, marks=pytest.mark.slow) for name in ("first names", "bare", "average")],
)
def test_a_file_becomes_a_checkpoint(layout, tmp_path, monkeypatch, capsys):
  state = golden.state_dict("keep_stage3")
  contents = {
    "bare": state,
    "first names": first_names(state),
    "average": {"params": {}, "params_ema": state},
  }[layout]
  save_state_dict(tmp_path / "KEEP.pth", contents)
  folder = tmp_path / "keep"
  monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path / "KEEP.pth"), str(folder)])
  convert.main()
  assert "KEEP at 128 pixels" in capsys.readouterr().out
  assert read_meta(folder)["converted_from"] == ["KEEP.pth"]
  model, params = streaming.load(folder)
  arch, want = convert_released(state)
  assert model.arch == arch
  jax.tree.map(np.testing.assert_array_equal, params, want)


@pytest.mark.parametrize(
  ("block", "message"),
  [
    ("ft_layers.{}.x", "model.layers = 3000: must be at most"),
    ("kalman_filter.uncertainty_estimator.{}.x", "model.gain_layers = 3000: must be at most"),
    ("cft.{}.x", "model.cft = .*: must be a list of at most 10"),
    ("encoder.blocks.{}.conv.weight", "model.image_size = .*: must be at most"),
  ],
)
def test_invented_blocks_are_refused_before_a_model_of_them_is_made(block, message, monkeypatch):
  monkeypatch.delattr(keep_conversion, "param_shapes")
  invented = {block.format(i): [64, 64, 3, 3] for i in range(3000)}
  state = golden.zeros(golden.manifest("keep_full") | invented)
  with pytest.raises(UserError, match=f"x.pth does not hold a KEEP's weights: {message}") as error:
    convert_released(state, "x.pth")
  assert len(str(error.value)) < 300


def test_codeformer_gives_what_keep_shares_with_it():
  shapes = golden.manifest("codeformer")
  arch, params = convert_released(golden.zeros(shapes), "codeformer.pth", CODEFORMER)
  assert arch == dataclasses.replace(ASIAN, cfa=())
  assert sum(x.size for x in jax.tree.leaves(params)) == sum(map(math.prod, shapes.values()))
  assert sorted(params) == ["cft", "code_predictor", "codebook", "encoder", "generator"]


@pytest.mark.slow
def test_a_small_codeformer_file_becomes_a_start_for_training(tmp_path, capsys):
  own = ("kalman_filter.", "hq_encoder.", "cfa.", "flownet.")
  keep = golden.state_dict("keep_stage3")
  state = first_names({key: x for key, x in keep.items() if not key.startswith(own)})
  save_state_dict(tmp_path / "codeformer.pth", {"params_ema": state})
  convert.convert(str(tmp_path / "codeformer.pth"), str(tmp_path / "start"))
  assert "CodeFormer at 128 pixels" in capsys.readouterr().out
  with pytest.raises(UserError, match="a part of a KEEP, without flow, gain, hq_encoder"):
    streaming.load(tmp_path / "start")
  want = convert_released(keep)[1]
  found = restore_params(tmp_path / "start")
  jax.tree.map(np.testing.assert_array_equal, found, {name: want[name] for name in found})


def test_gmflow_file_becomes_the_flow(tmp_path, capsys):
  state = golden.weights.state_dict(golden.manifest("gmflow"), golden.SEED)
  save_state_dict(tmp_path / "gmflow.pth", {"model": state})
  convert.convert(str(tmp_path / "gmflow.pth"), str(tmp_path / "flow"))
  assert "flow: gmflow, 4" in capsys.readouterr().out
  want = {"flow": gmflow_conversion.from_state_dict(state)}
  found = restore_params(tmp_path / "flow")
  jax.tree.map(np.testing.assert_array_equal, found, want)
  with pytest.raises(UserError, match="a part of a KEEP, without cfa"):
    streaming.load(tmp_path / "flow")


def test_files_of_other_flow_networks_are_starts_too(tmp_path, capsys):
  state = golden.weights.state_dict(golden.manifest("raft_small"), golden.SEED)
  save_state_dict(tmp_path / "raft-small.pth", {f"module.{key}": x for key, x in state.items()})
  convert.convert(str(tmp_path / "raft-small.pth"), str(tmp_path / "flow"))
  assert "flow: raft_small, 990,162 parameters of flow" in capsys.readouterr().out
  want = {"flow": released.from_state_dict(state, "x")[1]}
  jax.tree.map(np.testing.assert_array_equal, restore_params(tmp_path / "flow"), want)


def test_a_discriminator_is_told_as_one(tmp_path):
  for name in ("main.0.weight", "layers.0.weight_orig"):
    save_state_dict(tmp_path / "net_d.pth", {"params": {name: np.zeros((4, 3), np.float32)}})
    with pytest.raises(UserError, match="net_d.pth: is a discriminator, which restores nothing"):
      convert.convert(str(tmp_path / "net_d.pth"), str(tmp_path / "keep"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raft_small", "raft_large", "gmflow"])
def test_another_flow_takes_the_place_of_the_files_own(kind, tmp_path, monkeypatch, capsys):
  state = golden.state_dict("keep_stage3")
  other = golden.weights.state_dict(golden.manifest(kind), golden.SEED + 1)
  # RAFT's large model holds one norm under two names.
  other = {key: other[key.replace(".norm3.", ".downsample.1.")] for key in other}
  save_state_dict(tmp_path / "KEEP.pth", state)
  save_state_dict(tmp_path / "flow.pth", other)
  files = [str(tmp_path / name) for name in ("KEEP.pth", "keep", "flow.pth")]
  monkeypatch.setattr(sys, "argv", ["convert", *files[:2], "--flow", files[2]])
  convert.main()
  assert f"flow by {kind}" in capsys.readouterr().out
  assert read_meta(files[1])["converted_from"] == ["KEEP.pth", "flow.pth"]
  model, params = streaming.load(files[1])
  assert model.arch.flow == kind
  want = released.from_state_dict(other, "flow.pth")[1]
  jax.tree.map(np.testing.assert_array_equal, params["flow"], want)
  own = convert_released(state)[1]
  jax.tree.map(np.testing.assert_array_equal, params | {"flow": own["flow"]}, own)


def test_a_flow_that_is_none_is_named(tmp_path, monkeypatch):
  keep = {"params_ema": golden.zeros("keep_stage3")}  # a file of 0.5 GB
  load = torch_files.load
  monkeypatch.setattr(
    torch_files, "load", lambda path: keep if str(path).endswith("KEEP.pth") else load(path)
  )
  save_state_dict(tmp_path / "other.pth", {"conv.weight": np.zeros((3, 3), np.float32)})
  files = [str(tmp_path / name) for name in ("KEEP.pth", "keep", "other.pth")]
  with pytest.raises(UserError, match=r"other\.pth: holds no optical flow"):
    convert.convert(*files)
  save_state_dict(
    tmp_path / "flow.pth", golden.weights.state_dict(golden.manifest("gmflow"), golden.SEED)
  )
  with pytest.raises(UserError, match="is a flow network itself"):
    convert.convert(str(tmp_path / "flow.pth"), *files[1:])


@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshapen"])
def test_what_does_not_fit_is_named(fault):
  state = golden.zeros("keep_mini")
  key = "generator.blocks.1.conv1.weight"
  if fault == "missing":
    del state[key]
    message = "missing generator/blocks_1/conv1/kernel"
  elif fault == "unexpected":
    state["generator.extra.weight"] = np.zeros(3, np.float32)
    message = "unexpected generator.extra.weight"
  else:
    state[key] = state[key][:, :3]
    message = f"{key} of shape"
  with pytest.raises(UserError, match=message):
    convert_released(state, "KEEP.pth")


def test_another_model_is_refused_and_nothing_is_written(tmp_path):
  save_state_dict(tmp_path / "KEEP.pth", {"conv.weight": np.zeros((3, 3), np.float32)})
  message = "does not hold a KEEP's weights: missing encoder.blocks.0.weight"
  with pytest.raises(UserError, match=message):
    convert.convert(str(tmp_path / "KEEP.pth"), str(tmp_path / "keep"))
  assert not (tmp_path / "keep").exists()
