"""Steps that are only compiled: for CPUs, for a TPU slice where libtpu is installed, and not."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from tests.vsr_jax.train import toy
from vsr_jax import runtime, topology
from vsr_jax.chips import CHIPS
from vsr_jax.configs.fmanet import smoke
from vsr_jax.errors import UserError
from vsr_jax.train import compile_only

GPU = """gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def make_config(**changes):
  config = smoke.get_config()
  config.update_from_flattened_dict({"data.batch": 16, "train.ema_decay": 0.9} | changes)
  return config


def make_plan(config, devices):
  if config.data.batch % devices:
    raise UserError("data.batch: does not divide")
  batch = {name: jax.ShapeDtypeStruct((config.data.batch, toy.WIDTH), jnp.float32) for name in "xy"}
  return compile_only.Plan(toy.make_stage(), toy.init_params, batch, {})


def compile_on_cpus(config, plan=make_plan, count=8):
  return compile_only.compile_step(config, jax.devices()[:count], CHIPS["v5e"], plan)


def test_the_state_is_donated_and_gradients_are_all_that_is_exchanged():
  report = compile_on_cpus(make_config())
  kernels = 4 * toy.WIDTH * (toy.WIDTH + 1)  # bytes of a network
  # Three networks, two averages, Adam's two moments; the batch of two samples a device.
  state = (3 + 2 + 2) * kernels
  assert state < report.memory.arguments < state + 2 * 2 * 4 * toy.WIDTH + 64
  assert report.memory.aliased >= state
  assert report.collectives.keys() == {"all-reduce"}
  assert 2 * kernels <= report.collectives["all-reduce"].bytes <= 2 * kernels + 64


def test_a_chips_part_costs_the_same_however_many_there_are():
  one, eight = (compile_on_cpus(make_config(**{"data.batch": 256 * n}), count=n) for n in (1, 8))
  assert eight.flops == pytest.approx(one.flops, rel=0.05)
  assert eight.memory.arguments == one.memory.arguments
  assert one.collectives == {}


def test_accumulation_and_split_states_are_compiled_as_they_train():
  whole = compile_on_cpus(make_config())
  split = compile_on_cpus(make_config(**{"train.fsdp_min_size": 8, "train.accumulate": 2}))
  assert split.memory.arguments < whole.memory.arguments / 2
  assert "all-gather" in split.collectives


@pytest.mark.parametrize("fixed", [0.0, 3.0, 90.0])
@pytest.mark.parametrize("each", [0.3, 7.0, 24.0, 26.0])
@pytest.mark.parametrize("most", [1, 5, 4096])
def test_the_largest_count_that_fits_is_found_with_few_trials(fixed, each, most):
  tried = []

  def need(count):
    tried.append(count)
    return fixed + each * count + math.sin(count) / 10

  found = compile_only.largest_fitting(need, 100.0, most)
  assert found == max([n for n in range(1, most + 1) if need(n) <= 100.0], default=0)
  count = tried.index(1, 1)  # here the check begins
  assert count <= 6
  assert len(set(tried[:count])) == count


def test_the_search_ends_where_a_compiler_does_not_say_what_it_needs():
  assert compile_only.largest_fitting(lambda n: 1.0 if n <= 37 else math.inf, 2.0, 4096) == 37


def test_the_search_compares_policies(capsys, monkeypatch):
  one = compile_on_cpus(make_config(**{"data.batch": 8}))

  def compile_step(config, devices, chip, make_plan):
    each = 1e9 if config.train.remat else 5e9
    needed = 2e9 + each * config.data.batch / (config.train.accumulate * len(devices))
    return dataclasses.replace(one, chip=chip, needed=needed)

  monkeypatch.setattr(compile_only, "compile_step", compile_step)
  config = make_config(**{"train.accumulate": 2})
  rows = compile_only.search_batches(config, jax.devices(), CHIPS["v5e"], make_plan)
  assert [(row.remat, row.batch, row.report.needed) for row in rows] == [
    (False, 2 * 16, 12e9), (True, 14 * 16, 16e9),
  ]  # fmt: skip
  title, *lines = compile_only.search_table(rows).splitlines()
  assert title.split()[:3] == ["remat", "largest", "batch"]
  assert [line.split()[:5] for line in lines] == [
    ["False", "32", "4", "12.00", "GB"], ["True", "224", "28", "16.00", "GB"],
  ]  # fmt: skip
  assert "remat False, batch 48: does not fit" in capsys.readouterr().err
  assert config.data.batch == 16  # the caller's recipe stays as it was


@pytest.fixture
def on_cpus(monkeypatch):
  """The suite's CPUs stand for the slice, as those of the given kind of chip."""
  monkeypatch.setattr(runtime, "compile_without_devices", lambda: None)
  found = jax.devices(), CHIPS["v5e"]
  monkeypatch.setattr(compile_only, "devices_of", lambda topology: found)


def test_the_report_is_printed_and_written(on_cpus, tmp_path, capsys):
  assert compile_only.run(make_config(), str(tmp_path), "v5e:2x4", make_plan, search=False)
  told = json.loads((tmp_path / "compile.json").read_text())
  assert (told["topology"], told["chips"], told["fits"]) == ("v5e:2x4", 8, True)
  assert told["config"]["data"]["batch"] == 16
  said = capsys.readouterr().out
  assert said.startswith("A training step of stage 'degradation', batch 16, of each chip:")
  assert told["verdict"] in said


def test_a_step_that_does_not_fit_is_reported_too(on_cpus, tmp_path, monkeypatch, capsys):
  small = dataclasses.replace(CHIPS["v5e"], memory=100.0)
  monkeypatch.setattr(compile_only, "devices_of", lambda topology: (jax.devices(), small))
  assert not compile_only.run(make_config(), str(tmp_path), "v5e:2x4", make_plan, search=False)
  assert not compile_only.run(make_config(), str(tmp_path), "v5e:2x4", make_plan, search=True)
  assert "does not fit" in capsys.readouterr().out
  told = json.loads((tmp_path / "compile.json").read_text())
  assert [row["batch"] for row in told["search"]] == [0, 0]


def test_a_batch_that_does_not_divide_is_told_before_a_folder_is_made(on_cpus, tmp_path):
  config = make_config(**{"data.batch": 12})
  with pytest.raises(UserError, match="does not divide"):
    compile_only.run(config, str(tmp_path / "run"), "v5e:2x4", make_plan, search=False)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "name", ["", "v5e", "v4:2x2x1", "v5e:0x4", "v5e:4", "v5e:9999x9999", "v5e:4x4x4x4", "h100:2x2"]
)
def test_an_unknown_topology_is_named(name):
  with pytest.raises(UserError, match=f"^--topology {name}: unknown; give one such as v5e:4x4"):
    topology.devices_of(name)


def test_without_libtpu_the_command_to_get_it_is_told(monkeypatch):
  def missing(*_, **__):
    raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

  monkeypatch.setattr(topologies, "get_topology_desc", missing)
  with pytest.raises(UserError, match=r"libtpu.*pip install 'jax\[tpu\]==\d"):
    topology.devices_of("v5e:2x2")


def test_without_the_plugin_for_gpus_the_command_to_get_it_is_told(monkeypatch, tmp_path):
  def missing(*_, **__):
    raise NotImplementedError("topology not implemented for cuda")

  monkeypatch.setattr(topologies, "get_topology_desc", missing)
  path = tmp_path / "h100.txtpb"
  path.write_text(GPU)
  with pytest.raises(UserError, match=r"h100.txtpb: .*pip install 'jax\[cuda12\]==\d"):
    topology.devices_of(f"{path}:8")


@pytest.mark.parametrize("content", [b"x" * 10**5, b"\xff\xfe"])
def test_a_description_that_is_no_text_is_named(tmp_path, content):
  path = tmp_path / "gpu.txtpb"
  path.write_bytes(content)
  with pytest.raises(UserError, match=f"^{path}: not a text"):
    topology.devices_of(str(path))


@pytest.fixture
def without_devices(monkeypatch):
  """What a command sets for the whole process, until the end of the test."""
  cache = jax.config.jax_compilation_cache_dir
  for name, value in runtime.WITHOUT_DEVICES.items():  # to be removed again at the end
    monkeypatch.setenv(name, value)
  yield
  jax.config.update("jax_compilation_cache_dir", cache)


@pytest.fixture
def libtpu(without_devices):
  """Tests that compile for TPUs skip without it."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is missing: pip install 'jax[tpu]'")


@pytest.fixture
def gpu(without_devices, tmp_path):
  """The description of a GPU; tests that compile for it skip without JAX's plugin for GPUs."""
  if importlib.util.find_spec("jax_cuda12_plugin") is None:
    pytest.skip("JAX's plugin for GPUs is missing: pip install 'jax[cuda12]'")
  path = tmp_path / "h100.txtpb"
  path.write_text(GPU)
  return path


def test_a_step_compiles_for_gpus(gpu, tmp_path):
  assert compile_only.run(make_config(), str(tmp_path), f"{gpu}:8", make_plan, search=False)
  told = json.loads((tmp_path / "compile.json").read_text())
  assert (told["chips"], told["chip"]["name"]) == (8, "h100")
  assert told["collectives"].keys() == {"all-reduce"}


def test_descriptions_of_nothing_and_of_unknown_gpus_are_told(gpu):
  gpu.write_text("not a description {")
  with pytest.raises(UserError, match="txtpb: FAILED_PRECONDITION.*; give the description"):
    topology.devices_of(str(gpu))
  gpu.write_text(GPU.replace("H100", "Z9"))
  with pytest.raises(UserError, match="'NVIDIA Z9 80GB HBM3' is no chip of the table"):
    topology.devices_of(str(gpu))


@pytest.mark.parametrize(("name", "count"), [("v5e:2x2", 4), ("v6e:1x1", 1), ("v5p:2x2x1", 4)])
def test_a_step_compiles_for_a_slice(libtpu, name, count, tmp_path):
  assert compile_only.run(make_config(), str(tmp_path), name, make_plan, search=False)
  told = json.loads((tmp_path / "compile.json").read_text())
  assert told["chips"] == count
  assert told["collectives"].keys() == ({"all-reduce"} if count > 1 else set())
  assert told["traffic_bytes"] > 0


def test_a_slice_that_does_not_exist_is_told(libtpu):
  runtime.compile_without_devices()
  with pytest.raises(UserError, match="--topology v5e:3x3: .*; give one that exists"):
    topology.devices_of("v5e:3x3")
