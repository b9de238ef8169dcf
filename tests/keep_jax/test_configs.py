"""The recipes: locked, of models that can be built, with the values that the sources state."""

from __future__ import annotations

import importlib
import json
import pathlib

import jax
import pytest
from ml_collections import ConfigDict

from keep_jax import recipe, train
from keep_jax.architecture import RELEASED, Architecture
from keep_jax.model import KEEP, param_shapes
from keep_jax.stages import OPPOSED, TRAINED, auxiliary_shapes
from vsr_jax.architecture import from_entries
from vsr_jax.configs.keep import ablations, base, demo, smoke
from vsr_jax.data_prep.clip import LOW_QUALITY
from vsr_jax.data_prep.face_degrade import PRESETS
from vsr_jax.errors import UserError
from vsr_jax.train.recipe import flat

CONFIGS = pathlib.Path(__file__).parents[2] / "configs/keep"
ABLATIONS = [
  f"{name},{stage}"
  for name in ablations.OVERRIDES
  for stage in (("end_to_end",) if name == "end_to_end" else ("prediction", "fusion"))
]


def variants() -> dict[str, ConfigDict]:
  """Every recipe in configs/keep, by "FILE" or "FILE:VARIANT"."""
  arguments = {"demo": demo.STEPS, "smoke": base.STAGES, "ablations": ABLATIONS}
  found = {}
  for path in sorted(CONFIGS.rglob("*.py")):
    name = ".".join(path.relative_to(CONFIGS).with_suffix("").parts)
    module = importlib.import_module(f"vsr_jax.configs.keep.{name}")
    if not hasattr(module, "get_config"):
      continue
    if name in arguments:
      found |= {f"{name}:{arg}": module.get_config(arg) for arg in arguments[name]}
    else:
      found[name] = module.get_config()
  return found


RECIPES = variants()


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """Batches of one device, as two clips are."""
  monkeypatch.setattr(jax, "device_count", lambda: 1)


def check(config):
  recipe.check(config, tuple(PRESETS), LOW_QUALITY)


def small(config):
  """The recipe of a small model, where only sizes are changed; without GMFlow, which is large."""
  config = config.copy_and_resolve_references()
  config.model.update(image_size=64, multiples=(1, 1), res_blocks=1, layers=1, gain_layers=1)
  config.model.update({x: (32,) for x in ("cft", "cfa") if config.model[x]})
  if config.model.flow == "gmflow":
    config.model.flow = "none"
  config.loss.temporal_flow = "none"
  config.loss.temporal_side = 32
  return config


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_locked_and_makes_a_stage(name):
  config = RECIPES[name]
  with pytest.raises(AttributeError):
    config.model.flows = 3
  with pytest.raises(AttributeError):
    config.step = 3
  check(config)
  assert config.steps > max((0, *config.optim.networks.boundaries))
  if name.startswith("ablations"):  # whose parameters are counted at full size in test_variants
    config = small(config)
  model = KEEP(Architecture(**config.model))
  stage = train.stage_from_config(model, config)
  assert stage.name == config.stage
  assert set(stage.optimizers) == set(TRAINED[config.stage])
  assert (stage.opponent is not None) == (config.stage in OPPOSED)
  shapes = param_shapes(model)
  for network, optimizer in stage.optimizers.items():
    jax.eval_shape(optimizer.init, shapes[network])
    assert 0 < stage.schedules[network](0) < 1e-3
  if stage.opponent is not None:
    params, _ = jax.eval_shape(stage.opponent.init, jax.random.key(0))
    jax.eval_shape(stage.opponent.optimizer.init, params)
    assert 0 < stage.schedules["discriminator"](0) < 1e-3


@pytest.mark.parametrize("name", [name for name in RECIPES if ":" not in name])
def test_recipe_survives_a_checkpoint(name):
  """As JSON in its meta, where tuples are lists."""
  config = RECIPES[name]
  stored = json.loads(json.dumps(config.to_dict(), allow_nan=False))
  found = base.defaults(config.stage)
  found.update({key: value for key, value in stored.items() if key != "model"})
  arch = from_entries(Architecture, stored["model"], name)
  assert arch == Architecture(**config.model)

  def as_lists(config):
    return {k: list(x) if isinstance(x, tuple) else x for k, x in flat(config).items()}

  found.model.update(config.model)
  assert as_lists(found) == as_lists(config)


def test_defaults_are_the_released_model():
  assert Architecture(**base.defaults("fusion").model) == RELEASED
  for stage in ("vqgan", "prediction"):
    arch = Architecture(**base.defaults(stage).model)
    assert (arch.cft, arch.cfa) == ((), ())


# What the paper states, and where it is silent the released code; and what the latter has instead.
PAPER = {
  "vqgan": {
    "steps": 800_000, "data.batch": 8, "optim.networks.lr": 2e-4, "optim.discriminator.lr": 2e-4,
    "optim.networks.boundaries": (), "optim.networks.end": None, "train.ema_decay": 0.995,
    "loss.pixel": 1e-2, "loss.perceptual": 1.0, "loss.perceptual_network": "vgg16",
    "loss.codebook": 1.0, "loss.adversarial": 1e-2, "loss.adaptive": False,
    "discriminator.width": 64, "discriminator.layers": 4, "discriminator.start": 31,
    "train.restart_below": None,
  },
  "prediction": {
    "steps": 400_000, "data.batch": 2, "data.frames": 8, "data.intervals": (1, 2, 3, 4, 5, 6),
    "data.reverse": 0.5, "optim.networks.lr": 2e-4, "optim.networks.boundaries": (200_000,),
    "optim.networks.factor": 0.5, "train.ema_decay": 0.999, "loss.code": 1.0,
    "loss.cross_entropy": 0.5, "model.flow": "gmflow",
  },
  "fusion": {
    "steps": 50_000, "data.batch": 4, "data.frames": 8, "optim.networks.lr": 1e-4,
    "optim.discriminator.lr": 1e-4, "optim.networks.boundaries": (), "train.ema_decay": 0.999,
    "loss.pixel": 1e-2, "loss.perceptual": 1.0, "loss.temporal": 0.1, "loss.temporal_side": 32,
    "loss.adversarial": 1e-2, "loss.adaptive": False, "discriminator.width": 32,
    "discriminator.start": 31, "train.fusion_start": "identity",
  },
}  # fmt: skip
RELEASED_AS = {
  "vqgan": {
    "steps": 1_600_000, "loss.pixel": 1.0, "loss.adversarial": 0.8, "loss.adaptive": True,
    "loss.double_normalised": True, "optim.networks.lr": 7e-5, "optim.networks.end": 6e-5,
    "optim.discriminator.lr": 7e-5, "optim.discriminator.end": 6e-5,
  },
  "prediction": {
    "steps": 500_000, "optim.networks.boundaries": (200_000, 400_000),
    "data.degradation": "train_as_released", "data.validation_degradation": "low_quality",
  },
  "fusion": {
    "loss.pixel": 0.1, "loss.double_normalised": True, "optim.networks.lr": 2e-5,
    "optim.discriminator.lr": 1e-5, "train.fusion_start": "as_released",
    "data.degradation": "train_as_released", "data.validation_degradation": "low_quality",
  },
}  # fmt: skip


@pytest.mark.parametrize("stage", PAPER)
def test_values_of_the_paper_and_of_the_released_code(stage):
  paper, released = flat(RECIPES[stage]), flat(RECIPES[f"as_released.{stage}"])
  assert {key: paper[key] for key in PAPER[stage]} == PAPER[stage]
  assert {key: x for key, x in released.items() if x != paper[key]} == RELEASED_AS[stage]
  every = {"train.evaluate_every": 5_000, "train.evaluate_interval": 15, "train.best": "psnr"}
  assert {key: paper[key] for key in every} == every


@pytest.mark.parametrize(
  ("name", "rates"),
  [
    ("vqgan", {0: 2e-4, 799_999: 2e-4}),
    ("prediction", {0: 2e-4, 199_999: 2e-4, 200_000: 1e-4, 399_999: 1e-4}),
    ("fusion", {0: 1e-4, 49_999: 1e-4}),
    ("as_released.vqgan", {0: 7e-5, 800_000: 6.5e-5, 1_600_000: 6e-5, 2_000_000: 6e-5}),
    ("as_released.prediction", {0: 2e-4, 200_000: 1e-4, 399_999: 1e-4, 400_000: 5e-5}),
    ("as_released.fusion", {0: 2e-5, 49_999: 2e-5}),
  ],
)
def test_rates_by_step(name, rates):
  schedule = recipe.schedules(RECIPES[name])["networks"]
  assert {step: float(schedule(step)) for step in rates} == pytest.approx(rates)


def test_end_to_end_is_both_stages():
  config, fusion = flat(RECIPES["end_to_end"]), flat(RECIPES["fusion"])
  assert {key for key, x in config.items() if x != fusion[key]} == {"stage", "steps"}
  assert config["steps"] == RECIPES["prediction"].steps + RECIPES["fusion"].steps
  assert flat(RECIPES["ablations:end_to_end,end_to_end"]) == config
  assert ablations.get_config("end_to_end") == RECIPES["end_to_end"]


@pytest.mark.parametrize("variant", ABLATIONS)
def test_ablation_changes_what_it_names(variant):
  name, stage = variant.split(",")
  plain, config = flat(RECIPES[stage]), flat(RECIPES[f"ablations:{variant}"])
  changed = {key: x for key, x in config.items() if x != plain[key]}
  assert changed == {key: x for key, x in ablations.OVERRIDES[name].items() if x != plain[key]}


@pytest.mark.parametrize(("budget", "made"), [("demo", demo), ("smoke", smoke)])
def test_ablation_changes_a_small_recipe_alike(budget, made):
  for name, changes in ablations.OVERRIDES.items():
    first, *others = ablations.stages(name)
    assert ablations.get_config(f"{name},{first},{budget}") == made.get_config("vqgan")
    for stage in others:
      found = flat(ablations.get_config(f"{name},{stage},{budget}"))
      assert found == flat(made.get_config(stage)) | changes


@pytest.mark.parametrize(
  "variant", ["no_cft", "", "keep", "keep,end_to_end", "end_to_end,fusion", "keep,fusion,small"]
)
def test_unknown_ablation_is_an_error(variant):
  with pytest.raises(ValueError, match=r"is no ablation of KEEP|must be "):
    ablations.get_config(variant)


def test_what_a_loss_needs_beyond_its_model():
  """Without a filter stage II has no encoder of good frames, without flow stage III no motion."""

  def needed(variant, **loss):
    config = ablations.get_config(variant)
    config.loss.update(loss)
    model = KEEP(Architecture(**config.model))
    return set(auxiliary_shapes(config.stage, model, recipe.options(config)))

  assert needed("keep,prediction") == needed("keep,fusion") == set()
  assert needed("no_kfn,prediction") == {"hq_encoder"}
  assert needed("no_kfn,fusion") == needed("no_flow,fusion") == {"flow"}
  assert needed("no_kfn,fusion", temporal=0.0) == set()
  assert needed("no_kfn,fusion", temporal_flow="none") == set()


@pytest.mark.parametrize(
  ("stage", "changes", "message"),
  [
    ("vqgan", {"stage": "joint"}, "stage = 'joint': must be one of vqgan, prediction, fusion, end"),
    ("vqgan", {"train.restart_below": 2.0}, "train.restart_below = 2.0: must be 0 to 1"),
    ("vqgan", {"discriminator.layers": 8}, "discriminator.layers = 8: too many for model.image_si"),
    ("vqgan", {"model.image_size": 8, "discriminator.layers": 1}, "model.image_size = 8: must be"),
    ("vqgan", {"model.gain": "none"}, "model.gain = 'none': such a model has no encoder of good"),
    ("vqgan", {"train.best": "ssim"}, "train.best = 'ssim': must be one of psnr, lpips"),
    ("prediction", {"data.frames": 1}, "data.frames = 1: must be at least 2"),
    (
      "prediction",
      {"data.intervals": (0,)},
      r"data.intervals = \(0,\): must be dist",
    ),
    (
      "prediction",
      {"data.degradation": "low_quality"},
      "data.degradation = 'low_quality': must be",
    ),
    ("prediction", {"optim.networks.end": 1e-5}, "optim.networks.end = 1e-05: is a fall by a cosi"),
    ("fusion", {"model.cft": (), "model.cfa": ()}, "stage 'fusion' trains them; name sides"),
    (
      "fusion",
      {"loss.temporal_side": 128},
      r"loss.temporal_side = 128: must be one of \[16, 32",
    ),
    ("fusion", {"loss.temporal_flow": "dis"}, "loss.temporal_flow = 'dis': must be one of gmflow"),
    ("fusion", {"train.fusion_start": "zero"}, "train.fusion_start = 'zero': must be one of ident"),
  ],
)
def test_impossible_values_are_named(stage, changes, message):
  config = base.defaults(stage)
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    check(config)


def test_smoke_and_demo_have_every_stage():
  assert {f"smoke:{stage}" for stage in base.STAGES} <= RECIPES.keys()
  assert {*demo.STEPS} == {*base.STAGES}
  for get_config in (smoke.get_config, demo.get_config):
    with pytest.raises(ValueError, match="'joint' is no stage: must be one of vqgan"):
      get_config("joint")
