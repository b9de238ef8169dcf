"""The recipes: locked, of models that can be built, with the rates that the sources state."""

from __future__ import annotations

import functools
import importlib
import pathlib

import jax
import pytest
from ml_collections import ConfigDict

from fmanet_jax import train
from fmanet_jax.architecture import Architecture
from fmanet_jax.model import FMANet, param_shapes
from tests.support import commands
from vsr_jax.configs.fmanet import ablations, base, demo, smoke
from vsr_jax.configs.fmanet.as_released import degradation as released_degradation
from vsr_jax.errors import UserError
from vsr_jax.train.schedules import step_schedule

ROOT = pathlib.Path(__file__).parents[2]

# Parameters of Net^D and of Net^R.
RELEASED = (3_225_837, 6_540_666)  # 9,766,503 in all; the paper rounds its own to 9.61 M
PINS = {
  "degradation": RELEASED,
  "joint": RELEASED,
  "as_released.degradation": RELEASED,
  "as_released.joint": RELEASED,
  "demo:degradation": (145_636, 386_216),
  "demo:joint": (145_636, 386_216),
  "smoke:degradation": (4_741, 21_866),
  "smoke:joint": (4_741, 21_866),
  "demo:end_to_end": (145_636, 386_216),
  "smoke:end_to_end": (4_741, 21_866),
  "ablations:fma_net": RELEASED,
  "ablations:n1": (3_017_829, 6_304_794),  # 9,322,623
  "ablations:n5": (3_111_465, 6_407_178),  # 9,518,643
  "ablations:k10": (2_982_837, 5_811_666),
  "ablations:k30": (3_630_837, 7_755_666),
  "ablations:k10_conventional": (2_975_547, 5_795_628),
  "ablations:k20_conventional": (3_218_547, 6_524_628),
  "ablations:k30_conventional": (3_623_547, 7_739_628),
  "ablations:no_raft_no_ta": RELEASED,
  "ablations:no_ta": RELEASED,
  "ablations:end_to_end": RELEASED,
  "ablations:self_attention": RELEASED,
  "ablations:sft": (3_225_837, 5_902_842),
  "ablations:self_attention_sft": (3_225_837, 5_902_842),
  "ablations:m1": (2_062_425, 4_408_728),  # 6,471,153
  "ablations:m2": (2_450_229, 5_119_374),  # 7,569,603
  "ablations:t5": (3_280_917, 6_660_546),  # 9,941,463
}


def variants() -> dict[str, ConfigDict]:
  """Every recipe in configs/fmanet, by "FILE" or "FILE:VARIANT"."""
  arguments = {"demo": demo.STEPS, "smoke": demo.STEPS, "ablations": ablations.OVERRIDES}
  found = {}
  for path in sorted((ROOT / "configs/fmanet").rglob("*.py")):
    name = ".".join(path.relative_to(ROOT / "configs/fmanet").with_suffix("").parts)
    module = importlib.import_module(f"vsr_jax.configs.fmanet.{name}")
    if not hasattr(module, "get_config"):
      continue
    if name in arguments:
      found |= {f"{name}:{arg}": module.get_config(arg) for arg in arguments[name]}
    else:
      found[name] = module.get_config()
  return found


RECIPES = variants()


@functools.cache
def parameter_counts(arch: Architecture) -> tuple[int, int]:
  shapes = param_shapes(FMANet(arch))
  return tuple(sum(x.size for x in jax.tree.leaves(shapes[net])) for net in ("net_d", "net_r"))


def test_every_recipe_has_a_pin():
  assert RECIPES.keys() == PINS.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_parameter_count(name):
  assert parameter_counts(Architecture(**RECIPES[name].model)) == PINS[name]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_locked_and_makes_a_stage(name):
  config = RECIPES[name]
  with pytest.raises(AttributeError):
    config.model.flow = 3
  with pytest.raises(AttributeError):
    config.step = 3
  model = FMANet(Architecture(**config.model))
  stage = train.stage_from_config(model, config)
  assert stage.name == config.stage
  assert stage.optimizers.keys() == set(train.TRAINED[config.stage])
  for net in stage.optimizers:
    assert all(0 < edge < config.steps for edge in config.optim[net].boundaries)


def test_defaults_are_the_released_model():
  assert Architecture(**base.defaults().model) == Architecture()
  assert sum(RELEASED) == 9_766_503


@pytest.mark.parametrize("name", ablations.OVERRIDES)
def test_ablation_changes_what_it_names(name):
  plain = flat(base.defaults())
  changed = {k: v for k, v in flat(ablations.get_config(name)).items() if v != plain[k]}
  assert changed == ablations.OVERRIDES[name]
  last = ablations.stages(name)[-1]
  stage_2 = flat(ablations.get_config(f"{name},{last}"))
  assert stage_2 == plain | {"stage": last} | ablations.OVERRIDES[name]


@pytest.mark.parametrize(("budget", "made"), [("demo", demo), ("smoke", smoke)])
def test_ablation_changes_a_small_recipe_alike(budget, made):
  for name, changes in ablations.OVERRIDES.items():
    for stage in ablations.stages(name):
      found = flat(ablations.get_config(f"{name},{stage},{budget}"))
      assert found == flat(made.get_config(stage)) | changes


def flat(config: ConfigDict) -> dict:
  """Nested fields as "a.b" -> value."""
  found = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      found |= {f"{key}.{inner}": x for inner, x in flat(value).items()}
    else:
      found[key] = value
  return found


@pytest.mark.parametrize("wrong", [{"model.flow": 1}, {"modle.flows": 1}, {"model.flows": "one"}])
def test_misspelt_override_is_an_error(wrong, monkeypatch):
  monkeypatch.setitem(ablations.OVERRIDES, "wrong", wrong)
  with pytest.raises((KeyError, TypeError)):
    ablations.get_config("wrong")


@pytest.mark.parametrize(
  "variant",
  ["n2", "", "n1,", "n1,degradation,joint", "n1, joint", "end_to_end,joint", "n1,joint,demo,"],
)
def test_unknown_ablation_is_an_error(variant):
  with pytest.raises(ValueError, match="is no ablation: NAME, NAME,joint or NAME,ST"):
    ablations.get_config(variant)


def rates(config: ConfigDict, net: str, steps: list[int]) -> list[float]:
  schedule = step_schedule(**config.optim[net])
  return [float(schedule(step)) for step in steps]


@pytest.mark.parametrize(
  ("recipe", "net"), [("degradation", "net_d"), ("joint", "net_d"), ("joint", "net_r")]
)
def test_rates_of_the_paper(recipe, net):
  """2e-4, halved at 70, 85 and 95 % of 300k iterations, in each stage."""
  config = RECIPES[recipe]
  assert config.steps == 300_000
  steps = [0, 209_999, 210_000, 254_999, 255_000, 284_999, 285_000, 299_999]
  expected = [2e-4, 2e-4, 1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5, 2.5e-5]
  assert rates(config, net, steps) == pytest.approx(expected)


# The released stage 1, by epoch counted from 0.
BY_EPOCH = {
  0: 2e-4, 259: 2e-4, 260: 1e-4, 359: 1e-4, 360: 5e-5,
  379: 5e-5, 380: 2.5e-5, 389: 2.5e-5, 390: 1.25e-5, 399: 1.25e-5,
}  # fmt: skip


def test_rates_of_the_released_stage_1():
  epoch = 266 * 98 // 8  # clips, windows of each, batch
  config = RECIPES["as_released.degradation"]
  assert epoch == released_degradation.EPOCH
  assert config.steps == 400 * epoch
  for when in (0, epoch - 1):  # the first step of an epoch and the last
    steps = [e * epoch + when for e in BY_EPOCH]
    assert rates(config, "net_d", steps) == pytest.approx(list(BY_EPOCH.values()))


def test_rates_of_the_released_stage_2():
  """Net^R's schedule never moves; Net^D's goes on from its checkpoint, at double speed."""
  epoch, config = released_degradation.EPOCH, RECIPES["as_released.joint"]
  assert (config.stage, config.steps) == ("joint", 400 * epoch)
  everywhere = [0, 130 * epoch, 400 * epoch - 1]
  assert rates(config, "net_r", everywhere) == pytest.approx([2e-4] * 3)
  assert rates(config, "net_d", everywhere) == pytest.approx([1.25e-5] * 3)
  config.optim.net_d.start = 0
  for e, rate in BY_EPOCH.items():
    assert rates(config, "net_d", [e * epoch // 2]) == pytest.approx([rate])
  config.optim.net_d.start = 340 * epoch
  ten_later = [9 * epoch, 10 * epoch, 20 * epoch, 25 * epoch]
  assert rates(config, "net_d", ten_later) == pytest.approx([1e-4, 5e-5, 2.5e-5, 1.25e-5])


MISSPELT = """
from vsr_jax.configs.fmanet import base

def get_config():
  c = base.defaults()
  c.setps = 10
  return c.lock()
"""


@pytest.mark.parametrize(
  ("config", "flags", "message"),
  [
    ("degradation.py", ["--config.model.flws=3"], "model.flws: a recipe has no such field; the"),
    ("ablations.py:n2", ["--config.seed=1"], "is no ablation: NAME, NAME,joint or"),
    ("demo.py:jonit", [], "error: ValueError: 'jonit' is no stage: must be one of degradation"),
    ("nowhere.py", [], "nowhere.py"),
    ("misspelt.py", [], 'Did you mean "steps" instead of "setps"'),
    ("demo.py", ["--config.train.remat", "True", "--config.steps=1"], "'True' belongs to no opt"),
    ("demo.py", ["--topology=v5e:4x4"], "--topology and --search only compile: add --compile_only"),
    ("demo.py", ["--compile_only"], "--compile_only: give --topology, such as v5e:4x4"),
    (
      "demo.py",
      ["--compile_only", "--topology=v4:9"],
      "--topology v4:9: unknown; give one such as",
    ),
    ("demo.py", ["--process=1"], "--process are for --multihost; add it"),
    ("demo.py", ["--multihost", "--processes=2"], "the processes do not find each other: "),
    ("demo.py", ["--config.dtype=float31"], "dtype = 'float31': must be one of float32, bfloat"),
  ],
)
def test_a_wrong_config_is_one_line_of_the_command(config, flags, message, tmp_path):
  (tmp_path / "misspelt.py").write_text(MISSPELT)
  config = tmp_path / config if config == "misspelt.py" else f"configs/fmanet/{config}"
  workdir = tmp_path / "run"
  arguments = ["--config", ROOT / config, "--workdir", workdir, *flags]
  result = commands.run("fmanet_jax.train", *arguments, folder=tmp_path)
  assert result.returncode == 2
  assert result.stderr.startswith("error: ")
  assert result.stderr.count("\n") == 1
  assert message in result.stderr
  assert "Traceback" not in result.stderr
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"stage": "both"}, "stage = 'both': must be one of degradation, joint, end_to_end"),
    ({"train.accumulate": 0}, "train.accumulate = 0: must be at least 1"),
    ({"data.batch": 0}, "data.batch = 0: must be at least 1"),
    ({"steps": 0}, "steps = 0: must be at least 1"),
    ({"model.ffn_expansion": -1.0}, "model.ffn_expansion = -1.0: leaves no channel of"),
    ({"data.root": "nowhere"}, "nowhere: no such folder"),
  ],
)
def test_impossible_values_are_named(change, message, tmp_path):
  config = demo.get_config()
  config.update_from_flattened_dict({"data.batch": 8} | change)  # a sample a device
  with pytest.raises(UserError, match=message):
    train.train(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_the_command_has_help(tmp_path):
  result = commands.run("fmanet_jax.train", "--help", folder=tmp_path)
  assert result.returncode == 0
  assert all(
    flag in result.stdout for flag in ("--config", "--workdir", "--[no]multihost", "v5e:4x4")
  )
