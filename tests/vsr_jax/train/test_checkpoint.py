from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
import time
import types

import jax
import numpy as np
import optax
import pytest

from tests.vsr_jax.train.toy import STAGE, Listed, batches, init_params, make_stage
from vsr_jax import checkpoint
from vsr_jax.checkpoint import export_params, find_checkpoint, read_meta, restore_params
from vsr_jax.errors import UserError
from vsr_jax.sharding import make_mesh
from vsr_jax.train.checkpoints import Checkpoints
from vsr_jax.train.loop import fit
from vsr_jax.train.state import abstract_state, init_state


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A finished run of two steps with checkpoints at both, and its last state on the host."""
  workdir = tmp_path_factory.mktemp("trained")
  state = fit(
    STAGE, init_params, batches(), workdir=workdir, steps=2, checkpoint_every=1, ema_decay=0.5,
    meta={"config": {"width": 8}},
  )  # fmt: skip
  return workdir, jax.tree.map(np.array, state)


@pytest.fixture
def run_dir(trained, tmp_path):
  """A copy of the run, to be spoilt."""
  return shutil.copytree(trained[0], tmp_path / "run")


def resume(workdir, stage=STAGE, ema_decay=0.5, init=init_params):
  return fit(stage, init, batches(), workdir=workdir, steps=2, ema_decay=ema_decay)


def assert_equal(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_items_are_separate_and_meta_is_readable(trained):
  folder = find_checkpoint(trained[0])
  assert folder == trained[0] / "checkpoints" / "2"
  items = {path.name for path in folder.iterdir() if path.is_dir()}
  assert items >= {"params", "ema", "opt_state", "meta", "data"}
  meta = read_meta(trained[0])
  assert (meta["step"], meta["stage"], meta["config"]) == (2, "toy", {"width": 8})
  assert meta["arrays"]["params"]["teacher/kernel"] == "float32[8,8]"
  assert "teacher/kernel" not in meta["arrays"]["ema"]
  assert json.loads((folder / "data" / "position.json").read_text())


def test_params_are_restored_alone_with_the_average_in_place(trained):
  workdir, state = trained
  like = jax.eval_shape(init_params, jax.random.key(0))
  assert_equal(restore_params(workdir, like), state.params | state.ema)
  assert_equal(restore_params(workdir / "checkpoints" / "2", ema=False), state.params)
  assert (state.ema["encoder"]["kernel"] != state.params["encoder"]["kernel"]).any()


def test_an_export_holds_the_params_and_their_meta_and_little_else(trained, tmp_path):
  _, state = trained
  path = tmp_path / "weights"
  for scale in (2, 1):  # The second export replaces the first.
    params = jax.tree.map(lambda x, scale=scale: scale * x, state.params)
    export_params(path, params, {"config": {"width": 8}})
  assert_equal(restore_params(path), state.params)
  assert read_meta(path)["config"] == {"width": 8}
  assert [p.name for p in tmp_path.iterdir()] == ["weights"]
  size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
  assert size < 4 * sum(x.size for x in jax.tree.leaves(state.params)) + 20_000


def test_an_export_in_half_the_space_is_float32_when_it_is_read(trained, tmp_path):
  _, state = trained
  path = tmp_path / "weights"
  export_params(path, state.params, {}, half=True)
  like = jax.eval_shape(init_params, jax.random.key(0))
  found = restore_params(path, like)
  half = jax.tree.map(lambda x: np.asarray(x, np.float16).astype(np.float32), state.params)
  assert_equal(found, half)
  assert set(read_meta(path)["arrays"]["params"].values()) == {
    f"float16[{','.join(map(str, x.shape))}]" for x in jax.tree.leaves(state.params)
  }
  large = {"net": {"small": np.ones(2, np.float32), "w": np.float32([1, 1e5])}}
  with pytest.raises(UserError, match="float16 is too small for numbers in net/w"):
    export_params(path, large, {}, half=True)
  assert_equal(restore_params(path), half)


def test_an_export_overwrites_nothing_else(tmp_path):
  (tmp_path / "notes").mkdir()
  (tmp_path / "notes" / "keep.txt").write_text("mine")
  with pytest.raises(UserError, match="notes: exists and is no exported checkpoint"):
    export_params(tmp_path / "notes", {"net": {"w": np.zeros(2)}}, {})
  assert (tmp_path / "notes" / "keep.txt").read_text() == "mine"


def test_an_export_into_a_file_s_place_fails_in_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    export_params(tmp_path / "file" / "weights", {"net": {"w": np.zeros(2)}}, {})


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
def test_an_export_that_ends_early_leaves_the_older_one(tmp_path, monkeypatch, error):
  path, params = tmp_path / "weights", {"net": {"w": np.ones(2)}}
  export_params(path, params, {})
  rename = os.rename

  def rename_or_fail(source, target):
    if str(target) == str(path) and ".old." not in str(source):
      raise error
    return rename(source, target)

  monkeypatch.setattr(os, "rename", rename_or_fail)
  with pytest.raises((KeyboardInterrupt, OSError), match="^$|No space left.*weights'$"):
    export_params(path, {"net": {"w": np.zeros(2)}}, {})
  assert_equal(restore_params(path), params)
  assert [p.name for p in tmp_path.iterdir()] == ["weights"]


def test_missing_checkpoints_are_named(tmp_path):
  with pytest.raises(UserError, match="nowhere: no such folder"):
    restore_params(tmp_path / "nowhere")
  with pytest.raises(UserError, match="holds no checkpoint"):
    restore_params(tmp_path)


def test_params_of_another_model_are_refused(trained):
  like = jax.eval_shape(init_params, jax.random.key(0))
  like["encoder"]["kernel"] = jax.ShapeDtypeStruct((8, 9), np.float32)
  like["decoder"]["scale"] = like["decoder"].pop("bias")
  with pytest.raises(UserError) as error:
    restore_params(trained[0], like)
  assert str(error.value).endswith(
    "checkpoints/2: not the weights of this model: decoder/scale is missing; decoder/bias is not"
    " expected; encoder/kernel is float32[8,8], not float32[8,9]"
  )


SPOILT = ["params/_METADATA", "params/manifest.ocdbt", "params/d", "opt_state/d", "meta/meta.json"]


@pytest.mark.parametrize("name", SPOILT)
@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_a_damaged_checkpoint_is_named_with_the_remedy(run_dir, name, how):
  folder = run_dir / "checkpoints" / "2"
  files = [folder / name] if (folder / name).is_file() else list((folder / name).iterdir())
  for file in files:
    data = file.read_bytes()
    file.unlink()
    if how == "truncated":
      file.write_bytes(data[: len(data) // 2])
  item = name.split("/")[0]
  with pytest.raises(UserError) as error:
    resume(run_dir)
  assert str(error.value) == (
    f"{folder}: damaged, its {item} cannot be read;"
    " delete it to fall back to the checkpoint before it, or copy or make it again"
  )


def test_the_checkpoint_before_a_deleted_one_is_used(run_dir, trained):
  shutil.rmtree(run_dir / "checkpoints" / "2")
  assert_equal(jax.tree.map(np.array, resume(run_dir)), trained[1])


def test_a_damaged_iterator_position_is_named(run_dir):
  (run_dir / "checkpoints" / "2" / "data" / "position.json").write_text("{")
  with pytest.raises(UserError, match="checkpoints/2: damaged, its data cannot be read"):
    resume(run_dir)


def test_another_data_pipeline_is_refused(run_dir):
  with pytest.raises(UserError, match="checkpoints/2: of other training data"):
    fit(STAGE, init_params, Listed([]), workdir=run_dir, steps=3, ema_decay=0.5)


def test_an_unfinished_save_is_ignored_and_cleared(run_dir, trained):
  folder = run_dir / "checkpoints"
  unfinished = folder / "3.orbax-checkpoint-tmp"
  shutil.copytree(folder / "2", unfinished)
  assert find_checkpoint(run_dir) == folder / "2"
  assert_equal(jax.tree.map(np.array, resume(run_dir)), trained[1])
  assert sorted(p.name for p in folder.iterdir()) == ["1", "2"]


def test_a_run_of_another_stage_model_optimizer_or_average_is_refused(run_dir):
  with pytest.raises(UserError, match="of the stage 'toy', not 'joint'; use another workdir"):
    resume(run_dir, make_stage(name="joint"))
  with pytest.raises(
    UserError, match="its opt_state do not fit .* decoder/0/count is not expected"
  ):
    resume(run_dir, make_stage(optimizers={n: optax.sgd(0.1) for n in ("decoder", "encoder")}))
  with pytest.raises(UserError, match="its ema do not fit"):
    resume(run_dir, ema_decay=None)
  wide = lambda key: init_params(key) | {"teacher": {"kernel": jax.numpy.zeros((2, 2))}}  # noqa: E731
  with pytest.raises(UserError, match=r"its params do not fit .* teacher/bias is not expected"):
    resume(run_dir, init=wide)


def test_an_older_checkpoint_with_a_position_for_each_process_goes_on(run_dir):
  folder = run_dir / "checkpoints" / "2"
  path = folder / "meta" / "meta.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"processes": 2}))
  position = (folder / "data" / "position.json").rename(folder / "data" / "process_0.json")
  shutil.copy(position, folder / "data" / "process_1.json")
  data = batches()
  fit(STAGE, init_params, data, workdir=run_dir, steps=3, ema_decay=0.5)
  want = batches()
  for _ in range(3):
    next(want)
  assert data.get_state() == want.get_state()


@pytest.mark.parametrize(
  "change",
  [
    {"step": "2"},
    {"step": 2**40},
    {"stage": ["toy"]},
    {"log": None},
    {"log": {"sums": {"loss": "x"}, "count": 1, "seconds": 0}},
    {"arrays": {}},
    {"arrays": {"params": []}},
    {"arrays": {"params": {"a": "float32[-1]"}}},
    {"arrays": {"params": {"a": "float32[9999999,999999]"}}},
    {"arrays": {"params": {"a": "object[2]"}}},
    {"arrays": {"params": {"a": "float32[2]", "a/b": "float32[2]"}}},
    {"extra": float("nan")},
    {"extra": "\ud800"},
  ],
  ids=str,
)
def test_a_meta_of_wrong_values_is_damaged(run_dir, change):
  folder = run_dir / "checkpoints" / "2"
  path = folder / "meta" / "meta.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(UserError, match=f"^{folder}: damaged, .*; delete it to fall back"):
    resume(run_dir)


def test_a_config_that_no_checkpoint_could_keep_is_refused_at_the_start(tmp_path):
  with pytest.raises(UserError, match="a value of the config is not finite"):
    fit(STAGE, init_params, Listed([]), workdir=tmp_path, steps=3, meta={"a": float("inf")})
  assert not list(tmp_path.iterdir())


def test_another_store_as_a_workdir_is_refused_and_no_folder_of_its_name_is_made(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match="^s3://bucket/run: .* only gs://BUCKET/FOLDER can be used"):
    resume("s3://bucket/run")
  assert not list(tmp_path.iterdir())


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="file/run: cannot be made or used as a run's folder"):
    resume(tmp_path / "file" / "run")


def test_the_latest_and_the_best_stay(tmp_path):
  shapes = abstract_state(STAGE, init_params, make_mesh())
  state = init_state(STAGE, init_params, jax.random.key(0), shapes)
  scores = {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3}
  for steps in ((1, 2, 3), (4,)):  # Two sessions: the score is remembered.
    with Checkpoints(tmp_path, keep=1, best="score") as checkpoints:
      for step in steps:
        checkpoints.save(state, step, data={}, meta={}, metrics={"score": scores[step]})
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]


def test_the_lowest_may_be_the_best_and_scores_may_be_missing(tmp_path):
  shapes = abstract_state(STAGE, init_params, make_mesh())
  state = init_state(STAGE, init_params, jax.random.key(0), shapes)
  scores = {1: {"score": 0.3}, 2: {"other": 0.0}, 3: {"score": 0.2}, 4: {"score": 0.4}}
  with Checkpoints(tmp_path, keep=1, best="score", lowest=True) as checkpoints:
    for step, metrics in scores.items():
      checkpoints.save(state, step, data={}, meta={}, metrics=metrics)
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def test_networks_without_params_come_back(tmp_path):
  """A model without CFA, say, has an empty tree for it, trained or not."""

  def init(key):
    return init_params(key) | {"empty": {}, "trained": {}}

  optimizers = STAGE.optimizers | {"trained": optax.adam(1.0)}
  stage = make_stage(optimizers=optimizers)
  saved, read = (
    fit(stage, init, batches(), workdir=tmp_path, steps=1, ema_decay=0.5) for _ in range(2)
  )
  assert {"empty", "trained"} <= read.params.keys()
  assert_equal(read, saved)
  assert restore_params(tmp_path).keys() == {"encoder", "decoder", "teacher"}


def test_a_save_that_fails_leaves_nothing_and_says_so(tmp_path):
  shapes = abstract_state(STAGE, init_params, make_mesh())
  state = init_state(STAGE, init_params, jax.random.key(0), shapes)
  checkpoints = Checkpoints(tmp_path)
  (tmp_path / "checkpoints").rmdir()  # the disk goes away
  (tmp_path / "checkpoints").write_text("")

  def save():
    with checkpoints:
      checkpoints.save(state, 1, data={}, meta={})

  with pytest.raises(UserError, match="checkpoints/1: a checkpoint cannot be written, "):
    save()
  assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]


class _Writer(threading.Thread):
  """One of Orbax's, which goes on when another one has failed, and makes the folder again."""

  def __init__(self, folder):
    super().__init__()
    self.folder = folder

  def run(self):
    time.sleep(0.5)
    self.folder.mkdir(parents=True, exist_ok=True)
    (self.folder / "array").write_text("half")
    logging.getLogger("absl").handle(
      logging.LogRecord("absl", 40, "/x/orbax/future.py", 1, "a traceback", None, None)
    )


_Writer.__module__ = "orbax.checkpoint"


@pytest.mark.parametrize("when", ["starting", "waiting"])
def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, when, caplog):
  told = ValueError("RESOURCE_EXHAUSTED: writing failed: No space left on device [source: x]")

  def fail(folder):
    _Writer(folder).start()
    raise told

  folder = tmp_path / "checkpoints" / "1"
  part = folder.with_name("1.orbax-checkpoint-tmp-7")
  shapes = abstract_state(STAGE, init_params, make_mesh())
  state = init_state(STAGE, init_params, jax.random.key(0), shapes)

  def save():
    with Checkpoints(tmp_path) as checkpoints:
      response = types.SimpleNamespace(result=lambda: fail(part))
      start = {"starting": lambda *_, **__: fail(part), "waiting": lambda *_, **__: response}
      monkeypatch.setattr(checkpoints._orbax, "save_checkpointables_async", start[when])
      checkpoints.save(state, 1, data={}, meta={})

  with pytest.raises(OSError, match="No space left") as error:
    save()
  assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(folder))
  assert [p.name for p in folder.parent.iterdir()] == []
  monkeypatch.setattr(checkpoint.ocp, "save_checkpointables", lambda path, _: fail(path))
  with pytest.raises(OSError, match="No space left") as error:
    export_params(tmp_path / "weights", {"net": {"w": np.zeros(2)}}, {})
  assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "weights"))
  assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]
  assert "a traceback" not in caplog.text


def test_what_a_killed_save_left_is_named(tmp_path):
  (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
  with pytest.warns(UserWarning, match="3.orbax-checkpoint-tmp: removed"):
    Checkpoints(tmp_path)
