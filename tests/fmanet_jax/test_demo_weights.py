"""FMA-Net's demonstration weights: data, both stages and scores, as planned and as told."""

from __future__ import annotations

import functools
import json
import shlex

import jax
import numpy as np
import pytest

from fmanet_jax import demo_weights, evaluate, streaming, train
from fmanet_jax.architecture import Architecture
from fmanet_jax.model import FMANet, param_shapes
from tests.data_prep.helpers import write_clip_set, write_flow
from tests.vsr_jax.clips import encode
from vsr_jax import plotting
from vsr_jax.checkpoint import export_params, read_meta
from vsr_jax.configs.fmanet import demo, smoke
from vsr_jax.data_prep import clip_set, flow_labels, prepare
from vsr_jax.sharding import make_mesh
from vsr_jax.train import budget


def small(stage="degradation"):
  c = smoke.get_config(stage).copy_and_resolve_references()
  c.model.update(kernel_up=1, flows=1, attention_blocks=1)
  c.data.update(crop=8, batch=8, workers=0)
  return c


@pytest.fixture
def run(run_main, tmp_path, monkeypatch):
  """Runs the command with the smallest recipe: two steps a stage."""
  monkeypatch.setattr(demo_weights, "RECIPE", small)
  monkeypatch.setattr(demo_weights, "RECIPE_FILE", "configs/fmanet/smoke.py")
  for name in ("TIMED_STEPS", "LEAST_STEPS"):
    monkeypatch.setattr(budget, name, 2)

  def run(*arguments, minutes=0.001, code=0):
    return run_main(
      demo_weights.main, tmp_path / "runs", "--minutes", minutes, *arguments, code=code
    )

  return run


@pytest.fixture
def data(tmp_path):
  root = tmp_path / "data"
  for name in ("train", "validation"):
    write_clip_set(root / name, {"alley": 4})
    write_flow(root / name, "alley", 4, 3, 1)
  return root


@pytest.fixture
def trained(monkeypatch):
  """Takes the trainer's place: a second a step, and weights of ones; the configs it was given."""
  configs = []

  def fake(config, workdir):
    configs.append((config, workdir))
    folder = demo_weights.pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": i, "seconds": 1.0 * i} for i in range(1, config.steps + 1)]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    shapes = param_shapes(FMANet(Architecture(**config.model)))
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    meta = {"model": config.model.to_dict(), "stage": config.stage, "step": config.steps}
    export_params(folder / "checkpoints" / str(config.steps), params, meta)

  monkeypatch.setattr(train, "train", fake)
  monkeypatch.setattr(plotting, "is_installed", lambda: False)
  return configs


@pytest.fixture
def called(monkeypatch):
  """The commands of data and scores that were called, by name, instead of running them."""
  calls = []
  for name, module in (("prepare", prepare), ("labels", flow_labels), ("evaluate", evaluate)):
    monkeypatch.setattr(
      module, "main", functools.partial(lambda name, given: calls.append([name, *given]), name)
    )
  return calls


def videos(folder, *without):
  folder.mkdir()
  for name in (name for names in demo_weights.VIDEOS.values() for name in names):
    if name not in without:
      (folder / f"{name}.mp4").touch()
  return folder


def test_both_stages_are_trained_and_scored_once(run, trained, called, data, tmp_path):
  folder = tmp_path / "runs"
  run("--data", data, "--seed", 3)
  real = [(config, workdir) for config, workdir in trained if "_timing_" not in workdir]
  assert [workdir for _, workdir in real] == [str(folder / name) for name in demo_weights.STAGES]
  assert len(trained) == 4
  degradation, joint = (config for config, _ in real)
  assert (joint.stage, joint.init_from, joint.seed) == ("joint", str(folder / "degradation"), 3)
  assert joint.data.root == str(data / "train")
  assert degradation.data.validation == str(data / "validation")
  meta = read_meta(folder / "weights")
  assert (meta["stage"], meta["step"]) == ("joint", joint.steps)
  assert [call[1:] for call in called] == [
    [str(data / "validation"), "--checkpoint", str(weights), "--out", str(folder / out)]
    for weights, out in (
      (folder / "weights", "evaluation/weights"),
      (streaming.DEMO_WEIGHTS, "evaluation/shipped"),
    )
  ]
  trained.clear()
  run("--data", data, "--seed", 3)
  assert trained == []
  run("--data", data, code=2)  # another seed
  commands = (folder / "commands.txt").read_text()
  assert f"--workdir {folder / 'joint'} " in commands
  assert f"--config.init_from={folder / 'degradation'}" in commands
  assert "--config.seed=3" in commands


def test_the_data_are_made_by_commands_that_are_told(
  run, trained, called, data, tmp_path, monkeypatch
):
  found = videos(tmp_path / "videos")
  clips = [
    {"origin": {"path": str(path.resolve()), "name": variant}}
    for path in sorted(found.iterdir())
    for variant in "abc"
  ]
  monkeypatch.setattr(clip_set, "read_finished", lambda _: clips)
  run("--videos", found, "--data", data)
  train_set, validation = str(data / "train"), str(data / "validation")
  made = [call for call in called if call[0] != "evaluate"]
  assert [call[0] for call in made] == [*4 * ["prepare"], "labels"]
  training = [str(found / f"{name}.mp4") for name in demo_weights.VIDEOS["train"]]
  assert made[0] == ["prepare", *training, "--out", train_set]
  assert made[1][-2:] == ["--shake", "10"]
  assert made[2][-4:] == ["--stride", "2", "--shake", "5"]
  assert made[3][-2:] == ["--out", validation]
  assert not set(made[3]) & set(training)
  assert made[4] == ["labels", train_set]
  lines = (tmp_path / "runs" / "commands.txt").read_text().splitlines()
  told = [shlex.split(line)[2:] for line in lines if not line.startswith("#")]
  assert [words[1:] for words in told[:5]] == [call[1:] for call in made]
  assert told[0][0] == "vsr_jax.data_prep.prepare"
  skipped = clips.pop(0)["origin"]["path"]  # of its three variants, one
  (line,) = run("--videos", found, "--data", data, code=2).err.strip().splitlines()
  assert f"{skipped}: was skipped for {data / 'train'}" in line


def test_what_is_validated_on_is_not_trained_on():
  assert not set(demo_weights.VIDEOS["train"]) & set(demo_weights.VIDEOS["validation"])


def test_the_rate_falls_at_the_recipe_s_parts():
  config = demo.get_config("joint")
  budget.apply(config, budget.StagePlan(6000, 4, 1, 0.1, 30.0))
  assert config.optim.net_r.boundaries == (4200, 5100, 5700)
  assert sum(demo_weights.SHARES.values()) == pytest.approx(1)


def test_what_cannot_be_is_told_in_a_line(run, tmp_path):
  found = videos(tmp_path / "videos", "cityCC0")
  for arguments, told in (
    (("--videos", found), "has no video cityCC0.*; docs/demo_weights.md lists what is wanted"),
    (("--videos", tmp_path / "none"), "has no video sam2_01_dog.*"),
    ((), "runs/data/train: there are no clips; give --videos"),
    (("--seed", "-1"), "--seed -1: must be 0 to"),
  ):
    (line,) = run(*arguments, code=2).err.strip().splitlines()
    assert told in line
  for suffix in ("mp4", "mkv"):
    (found / f"cityCC0.{suffix}").touch()
  assert "several videos are named cityCC0" in run("--videos", found, code=2).err
  assert "--minutes nan: must be above 0" in run(minutes=float("nan"), code=2).err


@pytest.mark.slow
def test_the_recipe_from_videos_to_weights(run, monkeypatch, tmp_path):
  """Data, both stages and scores by what makes them; the weights restore."""
  monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(devices=jax.devices()[:1]))
  monkeypatch.setattr(demo_weights, "VIDEOS", {"train": ("one",), "validation": ("two",)})
  rng = np.random.default_rng(0)
  (tmp_path / "videos").mkdir()
  for name in ("one", "two"):
    still = np.kron(rng.integers(0, 255, (52, 52, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    frames = np.stack([still[2 * i : 2 * i + 304, i : i + 304] for i in range(10)])  # shake crops
    encode(tmp_path / "videos" / f"{name}.mkv", frames, "ffv1", "bgr0")
  run("--videos", tmp_path / "videos")
  folder = tmp_path / "runs"
  table = json.loads((folder / "evaluation" / "weights" / "metrics.json").read_text())
  assert table["complete"] is True
  assert (folder / "curves.png").stat().st_size > 10_000
  assert {path.name for path in (folder / "data" / "train" / "sharp").iterdir()} == {
    "one", "one_shake10", "one_stride2_shake5",
  }  # fmt: skip
  assert streaming.load(folder / "weights")[0].arch.flows == 1
