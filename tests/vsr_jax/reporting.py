"""Small folders of sweeps, as `vsr_jax.sweep` leaves them, made by hand."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from vsr_jax import plotting, report
from vsr_jax.frame_strip import FrameStrip

CLIPS = ("alley", "beach", "city")
STAGES = {"fmanet": ("degradation", "joint"), "keep": ("prediction", "fusion")}
BASES = {"fmanet": "fma_net", "keep": "keep"}


def write_json(path: pathlib.Path, value: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def metrics(method: str, by_clip: dict[str, dict[str, float]], **more: Any) -> dict[str, Any]:
  """What an evaluation writes; the total is the mean over clips, and all clips are slow."""

  def entry(values: dict[str, float]) -> dict[str, Any]:
    scores = {"bicubic": {name: 0.5 * x for name, x in values.items()}, method: values}
    if method == "FMA-Net":
      scores["reconstruction"] = {name: x + 10 for name, x in values.items()}
    part = {"frames": 3, "scores": scores}
    return {"frames": 3, "scores": scores, "motion": {"[0, 20)": part}}

  names = next(iter(by_clip.values()))
  total = {x: sum(values[x] for values in by_clip.values()) / len(by_clip) for x in names}
  return {
    "complete": True,
    "data": "data/val",
    "methods": list(entry(total)["scores"]),
    "clips": [{"name": name, **entry(values)} for name, values in by_clip.items()],
    "total": {**entry(total), "frames": 3 * len(by_clip)},
    "skipped": {},
    **more,
  }


def write_run(run: pathlib.Path, step: int, config: dict[str, Any], log: bool = True) -> None:
  """A run's checkpoint, its meta alone, and its log."""
  arrays = {"params": {"net/kernel": "float32[3,3,8,16]", "net/bias": "float32[16]"}}
  meta = {"step": step, "stage": run.name, "arrays": arrays, "config": config}
  write_json(run / "checkpoints" / str(step) / "meta" / "meta.json", meta)
  write_json(run / "goodput.json", {"steps": step, "flops_per_step": 12.5e9})
  if log:
    rows = [
      {"step": i, "seconds": i, "loss": 1 / i, "recon": 0.5 / i, "learning_rate/net": 1e-3}
      for i in range(1, step + 1)
    ]
    rows[-1]["evaluation/psnr"] = 25.0
    (run / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_trial(
  sweep: pathlib.Path,
  system: str,
  row: str,
  seed: int,
  values: dict[str, float],
  *,
  step: int = 4,
  config: dict[str, Any] | None = None,
  uneven: float = 0.0,
  **more: Any,
) -> pathlib.Path:
  """A row and seed that is done; seeds differ by 0.1, clips by 0.01, and by `uneven` squared."""
  folder, stages = sweep / row / str(seed), STAGES[system]
  for stage in stages:
    write_run(folder / stage, step, {"seed": seed, "model": config or {}})
  by_clip = {
    clip: {name: x + 0.1 * seed + 0.01 * i + uneven * i**2 for name, x in values.items()}
    for i, clip in enumerate(CLIPS)
  }
  method = "FMA-Net" if system == "fmanet" else row
  write_json(folder / "evaluation" / "metrics.json", metrics(method, by_clip, **more))
  record = {
    "state": "done",
    "stage": None,
    "reason": None,
    "stages": list(stages),
    "runs": {stage: f"{row}/{seed}/{stage}" for stage in stages},
    "commands": {
      stage: ["python", "-m", "train", "--note", f"a b{i}"] for i, stage in enumerate(stages)
    },
    "commit": "abc123",
    "machine": "somewhere",
    "started": "2026-11-29T10:00:00",
    "seconds": {**dict.fromkeys(stages, 60.0), "evaluation": 9.0},
  }
  write_json(folder / "row.json", record)
  return folder


def write_strips(
  folder: pathlib.Path,
  method: str,
  psnr: dict[str, tuple[float, ...]],
  grey: int,
  flow: bool = False,
) -> None:
  """The strips of a trial's evaluation: the row's own frames are of one grey."""
  for clip, values in psnr.items():
    strip = FrameStrip(range(len(values)))
    for number, x in enumerate(values):
      pictures = [np.full((64, 64, 3), y, np.uint8) for y in (10 * number, grey, 10 * number + 5)]
      scores = {method: {"psnr": x}}
      maps = {f"flow of {method}": np.full((8, 8, 3), grey + 1, np.uint8)} if flow else {}
      strip.add(number, pictures[0], {method: pictures[1]}, pictures[2], scores, maps)
    place = folder / "evaluation" / "strips"
    place.mkdir(exist_ok=True)
    strip.save(place, clip)


def write_sweep(
  sweep: pathlib.Path,
  system: str,
  rows: dict[str, dict[str, Any]],
  seeds: tuple[int, ...],
  **more: Any,
) -> None:
  """The sweep's own file."""
  record = {
    "version": 1,
    "system": system,
    "config": f"configs/{system}/ablations.py",
    "budget": "smoke",
    "stages": list(STAGES[system]),
    "rows": rows,
    "seeds": list(seeds),
    "overrides": {},
    "stage_overrides": {},
    "base": BASES[system],
    "data": {
      "training": {"path": "/a", "clips": 9, "frames": 99, "fingerprint": 123},
      "evaluation": {"path": "/b", "clips": 3, "frames": 9, "fingerprint": 456},
    },
    "start": {"init_from": "", "fingerprint": None},
    "evaluation": {"arguments": []},
  }
  write_json(sweep / "sweep.json", record | more)


def change(path, **fields):
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


ROWS = {
  "fma_net": {},
  "k10": {"model.kernel_down": 10},
  "k10_conventional": {"model.kernel_down": 10, "model.filtering": "conventional"},
  "n1": {"model.flows": 1},
}
VALUES = {
  "fma_net": {"psnr": 26.0, "ssim": 0.80, "tof": 2.0},
  "k10": {"psnr": 25.5, "ssim": 0.79, "tof": 2.2},
  "k10_conventional": {"psnr": 25.2, "ssim": 0.78, "tof": 2.1},
  "n1": {"psnr": 26.4, "ssim": 0.81, "tof": 2.4},
}


@pytest.fixture(autouse=True)
def without_curves(monkeypatch):
  monkeypatch.setattr(plotting, "is_installed", lambda: False)  # they take most of the time


@pytest.fixture
def sweep(tmp_path):
  folder = tmp_path / "sweep"
  write_sweep(folder, "fmanet", ROWS, (0, 1))
  for i, (row, values) in enumerate(VALUES.items()):
    for seed in (0, 1):
      write_trial(folder, "fmanet", row, seed, values, uneven=0.01 * i, config={"flows": i})
  return folder


@pytest.fixture
def run(run_main, tmp_path):
  """Runs the command and returns the folder of the report, and what was said."""

  def run(*args, code=0):
    said = run_main(report.main, *args, "--out", tmp_path / "report", code=code)
    return tmp_path / "report", said

  return run
