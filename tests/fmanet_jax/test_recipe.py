"""Values of recipes: each that no run can have is named with its range, before data are read."""

from __future__ import annotations

import math
import pathlib
import re

import pytest

from fmanet_jax import recipe, train
from vsr_jax.configs.fmanet import base, demo
from vsr_jax.errors import UserError
from vsr_jax.train import recipe as recipes


def make(changes):
  config = demo.get_config()
  config.update_from_flattened_dict({"data.batch": 8, "data.root": "nowhere"} | changes)
  return config


@pytest.mark.parametrize(
  ("key", "value", "must"),
  [
    ("steps", 2**31, "at least 1 and at most 2147483647"),
    ("seed", -1, "0 to 4294967295"),
    ("seed", 10**23, "0 to 4294967295"),
    ("dtype", "float16", "one of float32, bfloat16"),
    ("data.crop", 0, "at least 1"),
    ("data.workers", -1, "0 to 512"),
    ("data.workers", 10**6, "0 to 512"),
    ("loss.flow", -1.0, "at least 0 and finite"),
    ("loss.recon", math.nan, "at least 0 and finite"),
    ("optim.net_d.lr", -1e-4, "at least 0 and finite"),
    ("optim.net_r.lr", math.inf, "at least 0 and finite"),
    ("optim.net_r.factor", 0.0, "above 0 and finite"),
    ("optim.net_r.boundaries", ("x",), "whole numbers of steps, at least 0"),
    ("optim.net_r.boundaries", (-1, 2), "whole numbers of steps, at least 0"),
    ("optim.net_r.boundaries", (1.5,), "whole numbers of steps, at least 0"),
    ("optim.net_d.start", -1, "at least 0"),
    ("train.keep", 0, "at least 1"),
    ("train.keep", -1, "at least 1"),
    ("train.log_every", 0, "at least 1"),
    ("train.image_every", -1, "at least 0"),
    ("train.checkpoint_every", -5, "at least 0"),
    ("train.evaluate_every", -1, "at least 0"),
    ("train.evaluate_windows", 0, "at least 1"),
    ("train.ema_decay", 1.0, "at least 0 and below 1"),
    ("train.ema_decay", math.nan, "at least 0 and below 1"),
    ("train.clip_norm", 0.0, "above 0 and finite"),
    ("train.fsdp_min_size", 0, "at least 1"),
    ("train.profile", "5", "START:STEPS, such as 1000:5"),
    ("train.profile", "0:5", "START:STEPS, such as 1000:5"),
  ],
)
def test_a_value_out_of_its_range_is_named_before_data_are_read(tmp_path, key, value, must):
  with pytest.raises(UserError) as error:
    train.train(make({key: value}), str(tmp_path / "run"))
  assert str(error.value).startswith(f"{key} = {value!r}: must be {must}")
  assert not (tmp_path / "run").exists()


def test_a_window_to_trace_that_ends_after_the_run_is_refused(tmp_path):
  with pytest.raises(UserError) as error:
    train.train(make({"steps": 7, "train.profile": "6:3"}), str(tmp_path / "run"))
  text = (
    "train.profile = '6:3': ends with step 8, after the run's 7 steps; choose an earlier window"
  )
  assert str(error.value) == text
  assert not (tmp_path / "run").exists()
  options = recipes.fit_options(make({"steps": 8, "train.profile": "6:3"}))
  assert options["profile"] == (6, 3)


def test_all_wrong_values_are_told_at_once():
  with pytest.raises(UserError, match=r"seed = -1: must be .*; train.keep = 0: must be at least 1"):
    recipe.check(make({"seed": -1, "train.keep": 0}), ("degradation",))


def test_a_batch_beyond_the_memory_is_told_before_data_are_read(tmp_path):
  with pytest.raises(UserError, match=r"data.batch = 1000000000: its frames alone take \d+"):
    train.train(make({"data.batch": 10**9}), str(tmp_path / "run"))


def test_values_that_are_left_out_and_the_ends_of_ranges_are_taken():
  changes = {"train.ema_decay": 0.0, "data.workers": 0, "train.image_every": 0, "seed": 2**32 - 1}
  changes |= {"optim.net_d.boundaries": (), "optim.net_d.lr": 0.0, "train.keep": 1}
  recipe.check(make(changes), ("degradation",))
  config = base.defaults()
  assert config.train.clip_norm is None
  recipe.check(config, ("degradation",))


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--config.nope=1", "--config.nope: a recipe has no such field; the nearest are "),
    ("--config.data.bach=3", "data.bach: a recipe has no such field; the nearest are data.batch"),
    ("--config.lr=3", "config.lr: .* the nearest are optim.net_d.lr, optim.net_r.lr"),
    ("--noconfig.train.rematt", "config.train.rematt: .* the nearest are train.remat"),
    ("--config=nowhere.py", "--config 'nowhere.py': no such file of a recipe; give one like"),
    ("--config", "--config '': no such file of a recipe"),
  ],
)
def test_a_wrong_flag_is_told_with_what_is_nearest(flag, message):
  said = recipes.explain(
    KeyError("'x'"), ["--config.steps=3", flag], base.defaults(), "configs/fmanet/base.py"
  )
  assert "\n" not in said
  assert "steps:" not in said
  assert re.search(message, said), said


def test_a_file_that_is_no_recipe_is_told(tmp_path):
  path = tmp_path / "recipe.py"
  path.touch()
  error = AttributeError("module 'config_config' has no attribute 'get_config'")
  said = recipes.explain(error, ["--config", str(path)], base.defaults(), "configs/fmanet/base.py")
  assert said == f"--config {path}: is no recipe, which has a function get_config"
  error = TypeError("get_config() takes 0 positional arguments but 1 was given")
  said = recipes.explain(
    error, [f"--config={path}:joint"], base.defaults(), "configs/fmanet/base.py"
  )
  assert said == f"--config {path}: has no variants; leave :joint out"
  said = recipes.explain(
    SyntaxError("invalid syntax"),
    ["--config", str(path)],
    base.defaults(),
    "configs/fmanet/base.py",
  )
  assert said == "invalid syntax; see the fields in configs/fmanet/base.py"


def test_a_run_ends_with_what_was_written_and_the_next_command(capsys):
  train._print_summary(make({}), "runs/d", 7)
  first, second = capsys.readouterr().out.splitlines()
  assert first == "runs/d: 7 steps of stage 'degradation' are done, checkpoint 7 is saved"
  assert "python -m fmanet_jax.train" in second
  assert "--config.init_from runs/d" in second
  train._print_summary(make({"stage": "joint"}), "runs/j", 7)
  assert "next: python -m fmanet_jax.restore INPUT OUTPUT --checkpoint runs/j" in (
    capsys.readouterr().out
  )


def test_a_recipe_that_is_not_here_is_that_of_the_package(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  found = str(recipes.PACKAGED / "configs/fmanet/demo.py:joint")
  assert pathlib.Path(found.removesuffix(":joint")).is_file()
  here = "configs/fmanet/demo.py:joint"
  assert recipes.find_packaged(["--config", here]) == ["--config", found]
  assert recipes.find_packaged([f"--config={here}"]) == [f"--config={found}"]
  same = ["--config", "own.py", "--workdir=configs/x", "--config.data.root", "configs/y"]
  assert recipes.find_packaged(same) == same
