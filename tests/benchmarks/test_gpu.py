"""The benchmark of a GPU: its parts at the smallest sizes, and what becomes of those that fail."""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from benchmarks import compare, gpu, gpu_parts, gpu_report, gpu_worker, workload
from tests.keep_jax import tiny
from tests.support import fmanet
from vsr_jax.chips import CHIPS
from vsr_jax.errors import UserError

ALL = {"fmanet": pathlib.Path("fmanet"), "keep": pathlib.Path("keep")}
NONE = {"fmanet": None, "keep": None}
RESULT = {
  "device": "CPU", "seconds": 0.5, "compile": 3.0, "device_memory": 2 * 10**9,
  "flops": 1e12, "traffic": 10**9, "product_peak": 4e12,
}  # fmt: skip


def smallest(monkeypatch):
  monkeypatch.setattr(gpu_worker, "load_fmanet", lambda *_: fmanet.load())
  monkeypatch.setattr(gpu_worker, "load_keep", lambda *_: tiny.load())


@pytest.mark.parametrize("system", ["fmanet", "keep"])
def test_a_part_restores_frames_and_measures(system, monkeypatch, tmp_path):
  smallest(monkeypatch)
  monkeypatch.setattr(gpu_worker.restoration, "product_peak", lambda dtype: 1e12)
  for name in ("return_freed_memory", "keep_freed_memory"):  # settings of the whole process
    monkeypatch.setattr(gpu_worker.runtime, name, lambda: None)
  sizes = ["--height=8", "--width=8", "--window=6", "--frames=2", "--seconds=0"]
  args = gpu_worker.parse([system, *sizes, f"--keep={tmp_path / 'kept'}"])
  found = gpu_worker.run_precisely(system, args)
  assert found["frames"] == {"fmanet": 1, "keep": 5}[system]  # KEEP's come in groups
  assert found["seconds"] > 0
  assert found["compile"] > 0
  assert found["flops"] > 1e5
  assert found["traffic"] > 1e5
  kept = np.load(tmp_path / "kept.npy")
  assert kept.shape[0] == gpu_parts.KEPT
  assert kept.dtype == np.uint8


def test_products_have_the_precision_of_the_part(monkeypatch):
  seen = {}

  def note(args):
    seen[args.precision] = jax.config.jax_default_matmul_precision
    return {}

  monkeypatch.setitem(gpu_worker.JOBS, "device", note)
  for precision in gpu_parts.PRECISIONS:
    gpu_worker.run_precisely("device", gpu_worker.parse(["device", f"--precision={precision}"]))
  assert seen == {"float32": "highest", "tf32": "default", "bfloat16": "default"}


def test_training_takes_the_recipes_step(monkeypatch):
  taken = []

  def time_training(stage, init, params, batch, steps):
    taken.append((stage, batch, steps))
    return {"seconds": [1.0, 3.0, 2.0]}

  monkeypatch.setattr(gpu_worker, "time_training", time_training)
  monkeypatch.setattr(gpu_worker.restoration, "product_peak", lambda dtype: dtype)
  for recipe in gpu_parts.PRESETS["small"].recipes.values():
    options = [f"--recipe={recipe}", "--precision=bfloat16", "--steps=4"]
    found = gpu_worker.train(gpu_worker.parse(["train", *options]))
    assert found == {"seconds": 2.0, "product_peak": "bfloat16"}
  (joint, batch, steps), (prediction, clips, _) = taken
  assert (joint.name, prediction.name, steps) == ("joint", "prediction", 4)
  assert batch["blurry"].dtype == np.uint8
  assert batch["flow"].max() < 1
  assert clips["gt"].max() == 255


@pytest.mark.slow
def test_training_for_real(monkeypatch):
  args = gpu_worker.parse(["train", "--recipe=fmanet/smoke:joint", "--steps=3"])
  found = gpu_worker.run_precisely("train", args)
  assert found["seconds"] > 0
  assert found["flops"] > 1e6
  assert found["traffic"] > 1e6


def test_parts_of_a_gpu_and_of_a_cpu():
  full, small = (gpu_parts.PRESETS[name] for name in ("full", "small"))
  parts = gpu_parts.make_parts(full, True, ALL, "python")
  assert len({part.name for part in parts}) == len(parts) == 15
  assert [part.name for part in parts if part.on_cpu] == [
    "fmanet: float32 on CPU", "keep: float32 on CPU",
  ]  # fmt: skip
  released = [part for part in parts if part.precision is None]
  assert [(part.module, part.python) for part in released] == [
    ("reference", "python"), ("keep_reference", "python"), ("reference", "python"),
  ]  # fmt: skip
  assert released[2].options["batch"] == 8
  assert len(gpu_parts.make_parts(full, True, NONE, "python")) == 12
  names = [part.name for part in gpu_parts.make_parts(small, False, ALL, "python")]
  assert len(names) == 6
  assert not any("tf32" in name or "CPU" in name for name in names)


@pytest.fixture
def workers(monkeypatch):
  """Workers that run a line of Python instead, by the name of the job."""
  lines = {}

  def command(python, module, job, **options):
    start = "import json, pathlib, sys, time\nresult = pathlib.Path(sys.argv[1])\n"
    return [python, "-c", start + lines[job], str(options["result"])]

  monkeypatch.setattr(compare, "worker_command", command)
  return lines


def entries(platform="gpu", chip="h100", preset="small"):
  return {
    "machine": {"threads": 2, "architecture": "x86_64"},
    "versions": {"jax": "1"},
    "device": {
      "platform": platform, "kind": "a GPU", "chip": vars(CHIPS[chip]) if chip else None,
    },
    "preset": preset,
    "sizes": vars(gpu_parts.PRESETS[preset]),
    "parts": {},
  }  # fmt: skip


def test_parts_that_fail_leave_the_others(workers, monkeypatch, tmp_path):
  monkeypatch.setattr(gpu, "LEAST", 0.0)
  done = f"result.write_text({json.dumps(json.dumps(RESULT))})"
  workers |= {"done": done, "slow": f"time.sleep(60)\n{done}"}
  workers["counting"] = f"{done}\nsys.exit('no such operation')"
  workers["large"] = "sys.exit('RESOURCE_EXHAUSTED: Out of memory\\nwhile trying')"
  parts = [
    gpu_parts.Part("train", job, "tf32", "none", job, {}) for job in ("large", "slow", "done")
  ]
  parts.append(gpu_parts.Part("train", "counting", "tf32", "none", "counting", {}))
  parts.append(gpu_parts.Part("train", "no python", None, "none", "done", {}, "/no/python"))
  parts.append(gpu_parts.Part("train", "beside", "float32", "none", "done", {}, on_cpu=True))
  small = gpu_parts.PRESETS["small"]
  quick = {**vars(small), "limit": 1.0}
  monkeypatch.setitem(gpu.PRESETS, "small", gpu_parts.Preset(**quick))
  found = entries()
  gpu.measure(parts, tmp_path, tmp_path / "out", found, gpu.time.monotonic() + 60)
  told = json.loads((tmp_path / "out" / "gpu.json").read_text())["parts"]
  assert told["train: large"]["status"] == "failed (1): RESOURCE_EXHAUSTED: Out of memory"
  assert told["train: slow"]["status"] == "cut off after 1 s"
  assert "/no/python: cannot be run" in told["train: no python"]["status"]
  assert told["train: counting"]["status"] == "failed (1): no such operation"
  assert told["train: counting"]["seconds"] == 0.5  # measured before it failed
  assert told["train: done"]["seconds"] == told["train: beside"]["seconds"] == 0.5
  text = (tmp_path / "out" / "gpu.md").read_text()
  assert "- train: large: failed (1): RESOURCE_EXHAUSTED" in text
  gpu.measure(parts[2:3], tmp_path, tmp_path / "late", entries(), gpu.time.monotonic() - 1)
  assert "left out: no time was left" in (tmp_path / "late" / "gpu.md").read_text()


def test_without_a_gpu_it_says_so(workers, tmp_path):
  device = {"platform": "cpu", "kind": "CPU", "chip": None, "versions": {"jax": "1"}}
  workers["device"] = f"result.write_text({json.dumps(json.dumps(device))})"
  with pytest.raises(UserError, match="there is no GPU here, JAX computes on CPU: install"):
    gpu.main([f"--out={tmp_path / 'out'}"])
  assert not (tmp_path / "out").exists()
  found = gpu.find_device(tmp_path, cpu=True)
  assert found["platform"] == "cpu"
  workers["device"] = "sys.exit('no driver')"
  with pytest.raises(UserError, match="cannot be listed: failed .1.: no driver"):
    gpu.find_device(tmp_path, cpu=True)


@pytest.mark.parametrize(
  ("option", "line"),
  [("--minutes=0", "--minutes 0.0: must be above 0"), ("--only=speed", "there are fmanet, keep")],
)
def test_options_are_checked(option, line):
  with pytest.raises(UserError, match=line):
    gpu.main([option])


def test_a_row_tells_shares_of_the_chip():
  found = entries()
  for precision in ("float32", "bfloat16"):
    part = {"table": "fmanet", "row": precision, "precision": precision, "on_cpu": False}
    found["parts"][f"fmanet: {precision}"] = part | RESULT
  found["parts"]["fmanet: bfloat16"]["difference"] = {"mean": 0.02, "largest": 3.0}
  released = {"table": "fmanet", "row": "PyTorch", "precision": None, "on_cpu": False}
  found["parts"]["fmanet: PyTorch"] = released | {"seconds": [1.0, 4.0, 2.0]}
  lines = gpu_report.to_markdown(found).splitlines()
  table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
  rows = {cells[0]: cells[1:] for cells in table}
  # 2 TFLOP/s of 494.7 and of 989.4; of 4; 2 of 3352 GB/s.
  assert rows["float32"] == ["3.0", "2", "2.00", "0.4 %", "50.0 %", "0.1 %", "(compared with)"]
  assert rows["bfloat16"][3:] == ["0.2 %", "50.0 %", "0.1 %", "2.0e-02, at most 3"]
  assert rows["PyTorch"] == ["", "0.5", "", "", "", "", ""]
  assert "No GPU, the CPU is measured" in gpu_report.to_markdown(entries("cpu", None))


def test_outputs_are_compared_in_8_bits(tmp_path):
  base = np.full((gpu_parts.KEPT, 4, 4, 3), 100, np.uint8)
  np.save(gpu.output_path(tmp_path, "fmanet: float32"), base)
  np.save(gpu.output_path(tmp_path, "fmanet: tf32"), base + np.uint8([2, 0, 0]))
  np.save(gpu.output_path(tmp_path, "fmanet: PyTorch"), np.full((4, 4, 3), 101 / 255, np.float32))
  np.save(gpu.output_path(tmp_path, "keep: float32"), base)
  output = np.full((5, 4, 4, 3), 100 / 127.5 - 1, np.float32)
  np.savez(gpu.output_path(tmp_path, "keep: PyTorch"), output=output)
  names = ("fmanet: tf32", "fmanet: float32", "fmanet: PyTorch", "keep: float32", "keep: PyTorch")
  parts = {name: {"table": name.split(":")[0], "seconds": 1.0} for name in names}
  parts["fmanet: bfloat16"] = {"table": "fmanet", "status": "failed"}
  gpu.compare_outputs(tmp_path, parts)
  assert parts["fmanet: tf32"]["difference"] == {"mean": pytest.approx(2 / 3), "largest": 2}
  assert parts["fmanet: PyTorch"]["difference"] == {"mean": 1, "largest": 1}
  assert parts["keep: PyTorch"]["difference"] == {"mean": 0, "largest": 0}
  assert "difference" not in parts["fmanet: float32"]
  assert workload.CHECKED < gpu_parts.KEPT


def test_the_command_of_a_worker_is_one_of_python():
  command = compare.worker_command(sys.executable, "gpu_worker", "keep", frames=3)
  assert command[:4] == [sys.executable, "-m", "benchmarks.gpu_worker", "keep"]
  assert command[command.index("--frames") + 1] == "3"
