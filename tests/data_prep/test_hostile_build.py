"""What a build finds of earlier ones is not believed; instructions need nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vsr_jax.data_prep import build, built
from vsr_jax.data_prep.builders import clip_builder, vfhq
from vsr_jax.errors import UserError


@pytest.mark.parametrize("text", ["{", "{}", "[" * 100_000, '{"name": 3}'], ids=len)
def test_a_damaged_description_of_what_was_built_is_named(monkeypatch, tmp_path, text):
  folder = tmp_path / "reds/x4/1.0.0"
  folder.mkdir(parents=True)
  (folder / built.INFO).write_text(text)
  places = ["--manual-dir", str(tmp_path), "--data-dir", str(tmp_path)]
  monkeypatch.setattr(sys, "argv", ["build", "reds", *places])
  with pytest.raises(UserError, match=r"dataset_info\.json: damaged .*; build the data set again"):
    build.main()


@pytest.mark.parametrize("text", ["{", "[]", '{"identity": 3}'])
def test_a_damaged_note_of_a_shard_makes_it_again(tmp_path, text):
  shard = clip_builder.Shard(str(tmp_path / "x.array_record"), (), ("sharp",))
  clip_builder.make_shard(shard)
  assert clip_builder._is_made(shard)
  shard.note.write_text(text)
  assert not clip_builder._is_made(shard)


def test_instructions_import_nothing_heavy():
  code = (
    "import runpy, sys; sys.argv = ['build', 'vfhq', '--instructions']\n"
    "try: runpy.run_module('vsr_jax.data_prep.build', run_name='__main__')\n"
    "except SystemExit as e: assert e.code == 0\n"
    "print({'tensorflow', 'tensorflow_datasets', 'jax'} & set(sys.modules))"
  )
  command = [sys.executable, "-c", code]
  text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
  assert text == vfhq.INSTRUCTIONS + "set()\n"
