"""The command at a tiny size, and what it makes of its runs."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import compare, compare_keep, report, workload
from vsr_jax.errors import UserError

SMALL = ["--model=tiny", "--height=16", "--width=16", "--frames=3", "--repeats=1", "--threads=1"]


@pytest.fixture
def fast_compiles(monkeypatch):
  """Workers that run a program once or twice compile it without LLVM's optimizations."""
  monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")


def settings(tmp_path, **changes):
  values = {
    "scratch": tmp_path,
    "reference": None,
    "reference_python": sys.executable,
    "model": "tiny",
    "frames": 3,
    "height": 16,
    "width": 16,
    "crop": 16,
    "steps": 2,
    "repeats": 2,
    "threads": 1,
  }
  return compare.Settings(**values | changes)


def ours(seconds, **more):
  run = {"device": "CPU", "versions": {"jax": "1"}, "seconds": seconds, "memory": 10**9}
  run |= {"compile": 3.0, "first_frame": 5.0, "last_frame": 9.0, "product_peak": 100e9}
  return run | {"device_memory": None} | more


def theirs(seconds, **more):
  run = {"device": "CPU", "versions": {"torch": "2"}, "seconds": seconds, "memory": 3 * 10**9}
  return run | {"first_frame": 7.0, "last_frame": 90.0} | more


@pytest.mark.slow
def test_restoration_without_a_reference(tmp_path, capsys, fast_compiles):
  command.main([*SMALL, "--only=restoration", f"--out={tmp_path}"])
  printed = capsys.readouterr().out
  assert (tmp_path / "benchmark.md").read_text() in printed
  assert "seconds a frame" in printed
  entries = json.loads((tmp_path / "benchmark.json").read_text())
  assert {"python", "jax", "flax", "numpy"} <= entries["versions"].keys()
  assert entries["machine"]["threads"] == 1
  part = entries["restoration"]
  assert part["flops"] > 1e8
  (run,) = part["runs"]["ours"]
  assert len(run["seconds"]) == 1  # of three frames: neither the first nor the last counts
  assert all(seconds > 0 for seconds in run["seconds"])
  assert 0 < run["ready"] < run["first_frame"] < run["last_frame"]
  assert run["compile"] > 0
  assert run["memory"] > 1e8  # an interpreter with JAX
  assert sorted(path.name for path in tmp_path.iterdir()) == ["benchmark.json", "benchmark.md"]


@pytest.mark.slow
def test_training_without_a_reference(tmp_path, fast_compiles):
  command.main([*SMALL, "--only=training", "--crop=16", "--steps=3", f"--out={tmp_path}"])
  (run,) = json.loads((tmp_path / "benchmark.json").read_text())["training"]["runs"]["ours"]
  assert len(run["seconds"]) == 2
  # The first loss is that of the fixture's weights; three steps of Adam on one batch lower it.
  assert run["losses"] == sorted(run["losses"], reverse=True)
  assert len(run["cpu_seconds"]) == 2
  assert "seconds a step" in (tmp_path / "benchmark.md").read_text()


@pytest.mark.slow
def test_keep_without_a_reference(tmp_path, fast_compiles):
  command.main([*SMALL, "--only=keep", "--keep-frames=3", f"--out={tmp_path}"])
  part = json.loads((tmp_path / "benchmark.json").read_text())["keep"]
  assert part["flops"] == pytest.approx(sum(part["flops_of"].values()))
  assert part["flops_of"]["step"] > part["flops_of"]["encoder"] > 1e9
  (run,) = part["runs"]["ours"]
  assert 0 < run["ready"] < run["first_chunk"]
  assert run["chunk"] > 0
  assert run["memory"] > 4e8  # the parameters
  assert part["faces"].keys() == {"detect", "align", "background", "paste"}
  assert "a chunk of 3 frames" in (tmp_path / "benchmark.md").read_text()


@pytest.mark.slow
def test_a_stage_of_keep_takes_steps(tmp_path, fast_compiles):
  run = compare.run_worker(settings(tmp_path), sys.executable, "keep_training", "vqgan", steps=3)
  assert len(run["seconds"]) == len(run["cpu_seconds"]) == 2
  total, real, fake = np.array(run["losses"]).T
  # The released code's first losses; then the discriminator learns to tell the two apart.
  np.testing.assert_allclose((total[0], real[0], fake[0]), (1.745994, 0.708089, 1.260916), 1e-5)
  assert (real + fake)[-1] < (real + fake)[0]


def test_table_of_keeps_training():
  run = {"first_step": 9.0, "losses": [[1.0]], "cpu_seconds": [3.0]}
  stage = {
    "agreement": {"first": 1e-6, "largest": 2e-4},
    "runs": {"ours": [ours([2.0], **run)], "reference": [theirs([5.0], **run)]},
  }
  entries = report.collect(2, 0.1, 1, {"keep-training": {"vqgan": stage, "fusion": stage}})
  assert entries["versions"]["torch"] == "2"
  tables = report.titles(entries)
  title, rows = tables["keep-training fusion"]
  assert title == "KEEP, training step, stage III, a clip of 4 frames of 128x128"
  rows = {row[0]: row[1:] for row in rows}
  assert rows["seconds a step"] == ("2", "5", "2.50")
  assert rows["CPU seconds a step, of all threads"] == ("3", "3", "1.00")
  assert rows["losses differ by (relative)"][0] == "1e-06, in the end 2e-04"
  assert "keep-training vqgan" in tables


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_keeps_reference_tells_what_it_needs(tmp_path, capfd):
  with pytest.raises(UserError, match=r"keep_reference time failed \(2\)"):
    compare.run_worker(
      settings(tmp_path), sys.executable, "keep_reference", "time", folder=tmp_path
    )
  assert "diffusers==0.11.0" in capfd.readouterr().err


def test_keeps_chunk_has_a_largest_size(capsys):
  with pytest.raises(UserError, match="--keep-frames 21: at most 20"):
    command.main(["--keep-frames=21"])


def test_keeps_released_tensors_and_frames():
  released = workload.keep_released("tiny")
  assert released.config["img_size"] == 128
  assert released.state["position_emb"].shape == (released.config["latent_size"], 512)
  frames = list(workload.keep_clip(20, 64))
  assert frames[0].shape == (64, 64, 3)
  np.testing.assert_array_equal(frames[1][:, :-3], frames[0][:, 3:])
  np.testing.assert_array_equal(frames[15], frames[1])  # and back again


def chunk(**changes):
  """A reference's chunk of three frames, two codes each, sure of all but the last frame's first."""
  logits = np.zeros((3, 2, 4), np.float32)
  logits[..., 1] = 1
  logits[2, 0, 2] = 1 - compare_keep.MARGIN / 2
  output = np.linspace(-1.1, 1.1, 3 * 4 * 4 * 3, dtype=np.float32).reshape(3, 4, 4, 3)
  return {"output": output, "logits": logits, **changes}


def levels(output):
  return np.rint(127.5 * (np.clip(output, -1, 1) + 1)).astype(np.uint8)


def test_chunks_are_compared_as_far_as_codes_are_sure():
  reference = chunk()
  ours = levels(reference["output"])
  found = compare_keep.compare_chunks(ours, reference, chunk(output=reference["output"] * 1.0001))
  assert found == {"relative": pytest.approx(1e-4, rel=0.1), "levels": 0, "frames": [3, 3]} | {
    "codes": 0
  }
  # Another code in the last frame, where two are as good: its picture is not compared.
  other = reference["logits"].copy()
  other[2, 0, 2] = 1.001
  output = reference["output"].copy()
  output[2] = 0
  found = compare_keep.compare_chunks(levels(output), reference, chunk(logits=other, output=output))
  assert (found["frames"], found["codes"], found["relative"]) == ([2, 2], 1, 0)


@pytest.mark.parametrize(
  "fault", ["a sure code", "the output", "the timed run", "the second frame"]
)
def test_chunks_that_differ_are_refused(fault):
  reference = chunk()
  ours, output = levels(reference["output"]), chunk()
  if fault == "a sure code":
    output["logits"][1, 0, 3] = 2
  elif fault == "the output":
    output["output"] = reference["output"] * 1.01
  elif fault == "the timed run":
    ours[0, 0, 0] += 9
  else:  # nothing with a prediction is left to compare
    reference["logits"][1, 0, 2] = output["logits"][1, 0, 2] = 1
    ours[1] = 0
  with pytest.raises(UserError, match="restored chunks differ"):
    compare_keep.compare_chunks(ours, reference, output)


def test_table_of_keep():
  part = {
    "model": "full",
    "frames": 6,
    "flops": 400e9,
    "faces": {"detect": 0.25, "paste": 0.05},
    "agreement": {"relative": 1e-4, "levels": 1.0, "frames": [6, 2], "codes": 0},
    "runs": {
      "ours": [ours([5.0], chunk=31.0, first_chunk=20.0)],
      "reference": [theirs([9.0], chunk=50.0, first_chunk=30.0)],
    },
  }
  title, rows = report.titles({"keep": part})["keep"]
  assert title == "KEEP, full configuration, 6 frames a chunk"
  rows = {row[0]: row[1:] for row in rows}
  assert rows["seconds a frame, without a chunk's first"] == ("5", "9", "1.80")
  assert rows["seconds a chunk of 6 frames"] == ("31.0", "50.0", "1.61")
  assert rows["of the peak"] == ("80 %", "", "")
  assert rows["detect a face, 1280x720 (s)"] == ("0.250", "", "")
  assert rows["these of the network's time"] == ("6.0 %", "", "")
  assert (
    rows["outputs differ by"][0] == "1e-04 relative (6 frames), 1/255 rounded (2 frames); 0 codes"
  )


def test_a_folder_without_the_released_code_is_named(tmp_path):
  with pytest.raises(UserError, match=f"{tmp_path}: no model.py"):
    command.main([*SMALL, f"--reference={tmp_path}"])


def test_an_unknown_part_is_named():
  with pytest.raises(
    UserError, match="--only speed: there are restoration, training, keep, keep-training"
  ):
    command.main(["--only=speed"])


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_an_interpreter_without_torch_is_told(tmp_path, capfd):
  (tmp_path / "model.py").touch()
  with pytest.raises(UserError, match=r"reference restoration failed \(2\)"):
    compare.run_worker(
      settings(tmp_path), sys.executable, "reference", "restoration", folder=tmp_path
    )
  assert "--reference-python" in capfd.readouterr().err


def test_an_interpreter_that_is_missing_is_named(tmp_path):
  with pytest.raises(UserError, match="no_python: cannot be run"):
    compare.run_worker(settings(tmp_path), str(tmp_path / "no_python"), "restoration", "time")


def test_runs_alternate_and_the_first_pair_is_checked(tmp_path):
  order = []

  def run(name):
    order.append(name)
    return {"device": "CPU", "number": len(order)}

  s = settings(tmp_path, reference=tmp_path, repeats=3)
  runs, checked = compare.in_turn(
    s, lambda: run("ours"), lambda: run("reference"), lambda a, b: (a["number"], b["number"])
  )
  assert order == ["reference", "ours", "ours", "reference", "reference", "ours"]
  assert checked == (2, 1)
  assert [run["number"] for run in runs["ours"]] == [2, 3, 6]
  assert [run["number"] for run in runs["reference"]] == [1, 4, 5]


def test_different_devices_are_not_compared(tmp_path):
  s = settings(tmp_path, reference=tmp_path)
  with pytest.raises(UserError, match="ours ran on a GPU and the reference on CPU"):
    compare.in_turn(s, lambda: {"device": "a GPU"}, lambda: {"device": "CPU"}, lambda *_: None)


def test_frames_are_compared():
  reference = np.array([-0.2, 0.1, 0.5, 1.3], np.float32)
  ours = np.array([0, 26, 127, 255], np.uint8)  # 25.5 and 127.5 may be rounded either way
  assert compare.compare_frames(ours, reference, reference)["levels"] == 1
  assert compare.compare_frames(ours, reference, reference + 1e-5)["relative"] < 2e-5
  with pytest.raises(UserError, match="restored frames differ"):
    compare.compare_frames(ours, reference, reference + 1e-3)
  with pytest.raises(UserError, match="restored frames differ"):
    compare.compare_frames(ours + np.uint8([9, 0, 0, 0]), reference, reference)
  with pytest.raises(UserError, match="restored frames differ"):
    compare.compare_frames(ours, reference, reference * np.nan)


def test_losses_are_compared():
  assert compare.compare_losses([[1.0], [2.2]], [[1.0], [2.0]])["largest"] == pytest.approx(0.1)
  with pytest.raises(UserError, match="losses differ by 1.0e-01"):
    compare.compare_losses([[1.1], [2.0]], [[1.0], [2.0]])
  several = [[1.0, 0.0], [2.0, 0.2]]
  assert compare.compare_losses(several, [[1.0, 0.0], [2.0, 0.0]], 0.2)["largest"] == 0.1
  with pytest.raises(UserError, match=r"losses differ by 1.0e-01 \(at most 1e-03\)"):
    compare.compare_losses(several, [[1.0, 0.0], [2.0, 0.0]], 1e-3)
  with pytest.raises(UserError, match="losses differ by nan"):
    compare.compare_losses([[1.0], [np.nan]], [[1.0], [2.0]])


def test_medians_and_ratios_are_of_pairs():
  runs = {
    "ours": [{"seconds": [1.0, 9.0, 1.0]}, {"seconds": [2.0]}, {"seconds": [4.0]}],
    "reference": [{"seconds": [5.0]}, {"seconds": [6.0, 6.0]}, {"seconds": [40.0]}],
  }
  assert compare.median_of(runs["ours"], "seconds") == 2  # of 1, 2, 4
  assert compare.median_ratio(runs, "seconds") == 5  # of 5, 3, 10
  assert compare.median_ratio({"ours": runs["ours"]}, "seconds") is None
  assert compare.median_of([{"device_memory": None}], "device_memory") is None


def test_table_of_a_comparison(tmp_path):
  part = {
    "model": "full",
    "height": 180,
    "width": 320,
    "frames": 4,
    "flops": 400e9,
    "agreement": {"relative": 3e-6, "levels": 1.0},
    # The first run compiles: its memory and start are told apart.
    "runs": {
      "ours": [ours([10.0], memory=2 * 10**9, first_frame=60.0), ours([8.0]), ours([8.0])],
      "reference": [theirs([70.0]), theirs([64.0]), theirs([64.0])],
    },
  }
  entries = report.collect(2, 0.1, 3, {"restoration": part})
  report.write(tmp_path, entries)
  lines = (tmp_path / "benchmark.md").read_text().splitlines()
  table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
  rows = {cells[0]: cells[1:] for cells in table}
  assert rows["seconds a frame, steady state"] == ["8", "64", "8.00"]
  assert rows["frames a second"] == ["0.125", "", ""]
  assert rows["start to first frame (s)"] == ["5.0", "7.0", "1.40"]
  assert rows["peak memory (GB)"] == ["1.00", "3.00", "3.00"]
  assert rows["peak memory, first run (GB)"] == ["2.00", "", ""]
  assert rows["of the peak"] == ["50 %", "", ""]
  assert len({len(line) for line in lines if line[:1] == "|"}) == 1  # aligned
  assert "load average" not in " ".join(lines)
  busy = {**entries, "machine": {**entries["machine"], "load": 4.9}}
  assert "load average 4.9 at the start" in report.to_markdown(busy)
  assert entries["versions"] == {**entries["versions"], "jax": "1", "torch": "2"}


def test_growth_of_a_long_clip():
  runs = [{"memory": 10**9}, {"memory": 10**9 + 190 * 2000}]
  rows = report.long_table({"frames": [10, 200], "runs": runs})
  assert rows[-1][:2] == ("growth a frame (kB)", "2.0")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").touch()
  entries = report.collect(1, 0.1, 1, {"long": {"runs": [ours([1.0])]}})
  with pytest.raises(UserError, match="cannot be written"):
    report.write(tmp_path / "file" / "out", {**entries, "long": None})


def test_clips_repeat_a_pool_of_frames():
  frames = list(workload.clip(workload.POOL + 2, 8, 12))
  assert len(frames) == workload.POOL + 2
  assert frames[0].shape == (8, 12, 3)
  assert frames[0].dtype == np.uint8
  np.testing.assert_array_equal(frames[workload.POOL + 1], frames[1])
  assert (frames[1] != frames[0]).mean() > 0.5


def test_simd_level(tmp_path):
  info = tmp_path / "cpuinfo"
  info.write_text("processor\t: 0\nflags\t\t: fpu sse2 avx avx2 fma\n")
  assert report.simd_level(info) == "AVX2"
  info.write_text("Features\t: fp asimd\n")
  assert report.simd_level(info) == "NEON"
  assert report.simd_level(tmp_path / "none") == "unknown"
