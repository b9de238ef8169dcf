"""A wheel brings no common names into site-packages, and its commands work without a checkout."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.test_house import LINKED, OURS, OUTSIDE, ROOT, house_files
from vsr_jax import console, video

PACKAGES = OURS - OUTSIDE - LINKED


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
  """An environment with the wheel, what it needs, and strangers' packages of our folders' names."""
  pytest.importorskip("setuptools", minversion="77")
  folder = tmp_path_factory.mktemp("wheel")
  for name in tracked():
    place = folder / "source" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / name, place, follow_symlinks=False)
  source = make_repository(folder / "source")
  pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
  build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, f"git+{source}"]
  subprocess.run(build, check=True)
  (wheel,) = folder.glob("*.whl")
  environment = folder / "environment"
  subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
  python = environment / "bin/python"
  install = ["--python", python, "install", "--no-deps", "--no-index", wheel]
  subprocess.run([*pip, *install], check=True)
  (site,) = environment.glob("lib/python*/site-packages")
  needed = [path for path in sys.path if path.endswith("-packages")]
  (site / "needed.pth").write_text("\n".join(needed))  # their own .pth files are not read
  for name in LINKED:
    (site / name).mkdir()
    (site / name / "__init__.py").write_text("whose = 'theirs'\n")
  return wheel, python


def tracked() -> list[str]:
  command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
  names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
  return [name for name in names.split("\0") if name and os.path.lexists(ROOT / name)]


def make_repository(folder: pathlib.Path) -> str:
  """Commits a folder, so that it is installed as a user installs from a URL of git."""
  author = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
  for command in (["init", "-q"], ["add", "--all"], ["commit", "-q", "--message", "all"]):
    subprocess.run(["git", *author, *command], cwd=folder, check=True)
  return folder.as_uri()


def run(python, *arguments, code=0):
  """Runs a program of the environment in a folder outside the checkout."""
  kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  folder = python.parents[2] / "elsewhere"
  folder.mkdir(exist_ok=True)
  done = subprocess.run([python, *arguments], cwd=folder, env=kept, capture_output=True, text=True)
  assert done.returncode == code, done.stderr
  return done


@pytest.mark.slow
def test_a_wheel_has_no_names_but_the_packages(installed):
  names = {name.split("/")[0] for name in zipfile.ZipFile(installed[0]).namelist()}
  assert {name for name in names if not name.endswith(".dist-info")} == PACKAGES


@pytest.mark.slow
def test_a_wheel_holds_the_weights_that_ship(installed):
  assets = {name for name in tracked() if "/assets/" in name}
  assert {"vsr_jax/faces/assets/mesh.npz", "vsr_jax/flow/assets/raft_small.npz"} <= assets
  assert assets <= set(zipfile.ZipFile(installed[0]).namelist())


@pytest.mark.slow
def test_strangers_packages_of_our_folders_names_stay_theirs(installed):
  program = """
import fmanet_jax.evaluate, fmanet_jax.train, keep_jax.restore
import configs, data_prep
from vsr_jax.configs.keep import ablations
from fmanet_jax.streaming import load_architecture
load_architecture()
print(configs.whose, data_prep.whose, *ablations.overrides("no_flow"), fmanet_jax.train.__file__)
"""
  said = run(installed[1], "-c", program).stdout
  assert said.startswith("theirs theirs flow ")
  assert "site-packages" in said


@pytest.mark.slow
def test_a_recipe_of_the_wheel_is_found(installed):
  recipe = ["--config", "configs/fmanet/smoke.py:degradation", "--workdir", "run"]
  data = "--config.data.root=missing"
  assert "missing" in run(installed[1], "-m", "fmanet_jax.train", *recipe, data, code=2).stderr


@pytest.mark.slow
def test_one_system_offers_itself_to_the_other(installed):
  options = run(installed[1], "-m", "keep_jax.restore", "--help").stdout
  assert "--background-model {lanczos,realesrgan,fmanet}" in options
  load = "from vsr_jax.enlarge import realesrgan as r; print(r.open_enlarger().scale)"
  assert run(installed[1], "-c", load).stdout == "4\n"


@pytest.mark.slow
def test_documented_commands_are_in_the_wheel(installed):
  text = "\n".join(house_files("*.md").values())
  named = set(re.findall(r"python3? -m ([a-z_]\w*(?:\.\w+)+)", text))
  commands = sorted(name for name in named if name.split(".")[0] in PACKAGES)
  assert len(commands) >= 8
  for command in commands:
    assert "usage" in run(installed[1], "-m", command, "--help").stdout


@pytest.mark.slow
def test_a_script_of_the_wheel_restores_the_packaged_clip(installed):
  script = installed[1].with_name("fmanet-restore")
  assert run(script, "--help").stdout.startswith("usage: fmanet-restore ")
  assert "missing.mp4" in run(script, "missing.mp4", "out.mp4", code=2).stderr
  find = "import fmanet_jax.demo as d; print(d.CLIP / 'input.mp4')"
  clip = run(installed[1], "-c", find).stdout.strip()
  assert "site-packages" in clip
  restored = script.parents[2] / "restored.mp4"
  run(script, clip, restored, "--frames", "0:3", "--tile", "48")
  before, after = video.probe(clip), video.probe(str(restored))
  assert (after.height, after.width) == (4 * before.height, 4 * before.width)
  with video.open_reader(str(restored)) as reader:
    assert len(list(reader)) == 3


@pytest.mark.slow
def test_every_script_is_in_the_wheel(installed):
  for command in console.COMMANDS:
    assert installed[1].with_name(console.script_name(command)).is_file()
