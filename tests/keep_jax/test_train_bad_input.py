"""What a user can get wrong when training KEEP: one line that names it, and nothing lost."""

from __future__ import annotations

import dataclasses
import shutil

import cv2
import numpy as np
import pytest

from keep_jax import recipe, stages, starting, train
from keep_jax.architecture import Architecture
from keep_jax.model import KEEP
from tests.data_prep.helpers import write_png
from tests.keep_jax import training
from tests.keep_jax.training import SIZE, make_recipe, quick_init
from tests.vsr_jax.train import toy
from vsr_jax.checkpoint import export_params, read_meta
from vsr_jax.errors import UserError
from vsr_jax.locks import locked
from vsr_jax.sweeps.checks import Scored
from vsr_jax.train.loop import fit

FIRST = stages.TRAINED["vqgan"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return training.write_sets(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
  training.start_quickly(monkeypatch)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def first_stage(data, tmp_path_factory):
  """What stage I's run holds, and a discriminator."""
  folder = tmp_path_factory.mktemp("runs") / "first"
  save(folder, make_recipe("vqgan", data), (*FIRST, "discriminator"))
  return folder


def save(folder, config, names):
  arch = Architecture(**config.model)
  params = quick_init(KEEP(arch)) | {"discriminator": {"kernel": np.ones((2, 2), np.float32)}}
  export_params(
    folder,
    {name: params[name] for name in names},
    {"model": dataclasses.asdict(arch), "stage": "vqgan"},
  )


@pytest.fixture
def failing(run_main, tmp_path):
  """Trains, and gives the one line that it ends with; exit code 2."""

  def run(config, workdir=tmp_path / "run"):
    said = run_main(lambda: train.train(config, str(workdir)), code=2).err
    (line,) = (x for x in said.splitlines() if x.startswith("error: "))
    assert "Traceback" not in said
    assert said.splitlines()[-1] == line
    return line

  return run


def test_a_stage_without_the_one_before(failing, data, first_stage, tmp_path):
  line = failing(make_recipe("prediction", data))
  assert line.startswith("error: init_from: stage 'prediction' needs codebook, generator, hq_enc")
  assert "python -m keep_jax.train --config configs/keep/vqgan.py --workdir RUN`" in line
  line = failing(make_recipe("fusion", data, init_from=str(first_stage)))
  assert "stage 'fusion' needs code_predictor, encoder, gain; run the stage before it" in line
  assert "python -m keep_jax.train --config configs/keep/prediction.py --workdir RUN`" in line
  assert not (tmp_path / "run").exists()


def test_flow_without_weights(failing, data, first_stage):
  changes = {"model.image_size": 32, "model.multiples": (1, 1), "model.flow": "spynet"}
  line = failing(make_recipe("prediction", data, **changes))
  assert line.endswith("and give --config.init_from RUN,flow=weights/spynet")
  changes = {"model.gain": "none", "loss.temporal_flow": "spynet", "model.image_size": 32}
  config = make_recipe("fusion", data, **changes, **{"model.cft": (32,), "model.cfa": (32,)})
  config.loss.temporal_side = 32
  save(
    first_stage.parent / "second", config, ("encoder", "codebook", "generator", "code_predictor")
  )
  config.init_from = str(first_stage.parent / "second")
  line = failing(config)
  assert "the flow network 'spynet' has no weights; convert its authors' file, `python -m" in line
  assert line.endswith("and add flow=weights/spynet")


def test_a_codebook_of_another_size(failing, data, first_stage):
  line = failing(make_recipe("prediction", data, init_from=str(first_stage), **{"model.codes": 32}))
  assert line.startswith(f"error: {first_stage}: its codebook does not fit the model: ")
  assert "float32[16,32]" in line
  assert "float32[32,32]" in line


def test_a_discriminator_as_a_start(failing, data, tmp_path):
  save(tmp_path / "judge", make_recipe("vqgan", data), ("discriminator",))
  line = failing(make_recipe("prediction", data, init_from=str(tmp_path / "judge")))
  assert line.startswith(f"error: {tmp_path}/judge: is a discriminator; give a run of stage I or")
  line = failing(make_recipe("prediction", data, init_from=f"generator={tmp_path}/judge"))
  assert line == f"error: {tmp_path}/judge: has no generator; it has discriminator"


def test_an_unknown_sub_network(failing, data, first_stage):
  line = failing(make_recipe("prediction", data, init_from=f"encoder+decoder={first_stage}"))
  assert line.startswith(f"error: {first_stage}: has no encoder, decoder; it has codebook, discrim")
  line = failing(make_recipe("prediction", data, init_from=f"discriminator={first_stage}"))
  assert line == "error: init_from: stage 'prediction' has no discriminator; leave it out"
  line = failing(make_recipe("prediction", data, init_from=f"={first_stage}"))
  assert line.startswith(f"error: init_from '={first_stage}': give a path, or NETWORK+NETWORK=PATH")


def test_a_sweep_s_check_before_anything_is_trained(data, first_stage, monkeypatch):
  monkeypatch.setattr("jax.device_count", lambda: 1)
  check = train.make_check(Scored(str(data / "test")))
  config = make_recipe("prediction", data, init_from=str(first_stage))
  clips, scored = check(config, True)
  assert [clip.name for clip in clips] == ["anna", "ben"]
  assert [clip.name for clip in scored] == ["carl", "dora"]
  config.init_from = ""
  check(config, False)  # a run of the sweep is before it
  with pytest.raises(UserError, match="needs .*; run the stage before it"):
    check(config, True)
  config.data.root = str(data / "missing")
  with pytest.raises(UserError, match="missing: no such folder of clips"):
    check(config, False)


def test_a_flow_network_that_a_model_is_without_is_passed_over(data, first_stage, tmp_path):
  """So that a sweep's rows can all be given the same start."""
  export_params(tmp_path / "flow", {"flow": {"kernel": np.zeros(3, np.float32)}}, {"model": None})
  config = make_recipe("prediction", data, init_from=f"{first_stage},flow={tmp_path}/flow")
  sources = starting.parse(config.init_from)
  model = KEEP(Architecture(**config.model))
  _, origins = starting.load(sources, model, config.stage, recipe.options(config))
  assert set(origins.values()) >= {str(first_stage)}
  assert "flow" not in origins


def test_a_damaged_start(failing, data, first_stage, tmp_path):
  shutil.copytree(first_stage, tmp_path / "first")
  config = make_recipe("prediction", data, init_from=str(tmp_path / "first"))
  for path in (tmp_path / "first" / "params").rglob("*"):
    if path.is_file() and path.stat().st_size > 10_000:
      path.write_bytes(path.read_bytes()[:5000])
  assert failing(config).startswith(f"error: {tmp_path}/first: damaged, its params cannot be read")
  (tmp_path / "first" / "meta" / "meta.json").write_text("{")
  assert failing(config).startswith(f"error: {tmp_path}/first: damaged, its meta cannot be read")
  shutil.rmtree(tmp_path / "first")
  line = failing(config)
  assert line.startswith(f"error: {tmp_path}/first: no such folder; give a run's folder, or what")


def test_clips_shorter_than_a_sample(failing, data, monkeypatch):
  monkeypatch.setattr(train, "_start", lambda *_: ({}, {}))
  changes = {"data.frames": 8, "data.intervals": (2, 3)}
  line = failing(make_recipe("prediction", data, **changes))
  assert line == f"error: {data}/train: no usable clip of at least 15 frames"


def test_landmarks_that_leave_the_frame(failing, data, tmp_path):
  training.write_faces(tmp_path / "away", {"anna": 3, "ben": 3}, shift=30)
  line = failing(make_recipe("vqgan", data, **{"data.root": str(tmp_path / "away")}))
  assert "its landmarks leave the frame of 24x24; make landmarks again, or leave the clip" in line


def test_missing_weights_of_lpips(failing, data, tmp_path):
  command = "python -m vsr_jax.convert_lpips"
  for changes in ({"loss.perceptual": 1.0}, {"train.best": "lpips"}):
    line = failing(make_recipe("vqgan", data, **changes))
    assert "lpips_vgg16.npz: LPIPS's weights are missing; get them by: " in line
    assert command in line
  named = {"loss.perceptual_weights": str(tmp_path / "named.npz")}
  line = failing(make_recipe("prediction", data, **named))
  assert line.startswith(f"error: {tmp_path}/named.npz: LPIPS's weights are missing; get them by: ")


def test_a_validation_set_without_faces(failing, data, tmp_path, monkeypatch):
  picture = cv2.resize(training.FACE, (40, 24))
  write_png(tmp_path / "views" / "hill" / "00000000.png", picture)
  line = failing(make_recipe("vqgan", data, **{"data.validation": str(tmp_path / "views")}))
  assert line == (
    f"error: {tmp_path}/views: clip hill, frame 0: 40x24 without landmarks is no aligned face of "
    f"{SIZE}x{SIZE}; make landmarks first"
  )
  (tmp_path / "empty").mkdir()
  line = failing(make_recipe("vqgan", data, **{"data.validation": str(tmp_path / "empty")}))
  assert line.startswith(f"error: {tmp_path}/empty: holds no frames and no clips")
  # Stage I has no need of low-quality frames, the others do.
  monkeypatch.setattr(train, "_start", lambda *_: ({}, {}))
  own = {"data.validation_degradation": "low_quality"}
  line = failing(make_recipe("prediction", data, **own))
  assert line.startswith(f"error: {data}/test: holds only plain frames, which have no stream low_q")


def test_two_runs_in_one_folder(failing, data, tmp_path):
  with locked(tmp_path / "run"):
    assert "another run is writing there" in failing(make_recipe("vqgan", data))


def test_a_workdir_of_another_stage(failing, data, tmp_path):
  fit(toy.STAGE, toy.init_params, toy.batches(), workdir=tmp_path / "run", steps=1)
  line = failing(make_recipe("vqgan", data))
  assert line == (
    f"error: {tmp_path}/run/checkpoints/1: of the stage 'toy', not 'vqgan'; use another workdir"
  )
  assert read_meta(tmp_path / "run")["stage"] == "toy"
