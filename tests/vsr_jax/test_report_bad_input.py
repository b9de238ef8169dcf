"""What a report refuses, in one line."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tests.vsr_jax.reporting import ROWS, change, run, sweep, without_curves, write_strips
from vsr_jax.images import encode_image

__all__ = ["run", "sweep", "without_curves"]  # fixtures


def unlike(sweep):
  """A second sweep that was trained on other clips."""
  shutil.copytree(sweep, sweep.parent / "other")
  data = {"training": {"path": "/elsewhere", "clips": 8, "fingerprint": 124}}
  change(sweep.parent / "other/sweep.json", data=data)


def none_done(sweep):
  for path in sweep.glob("*/*/row.json"):
    change(path, state="waiting")


def damage_strips(sweep, kind, content):
  """Strips of all rows, of which one is damaged."""
  for row in ROWS:
    write_strips(sweep / row / "0", "FMA-Net", {"alley": (30.0,)}, 99)
  (sweep / "n1/0/evaluation/strips" / f"alley.{kind}").write_bytes(content)


BAD_INPUT = {
  "a damaged strip": (
    lambda sweep: damage_strips(sweep, "json", b'{"height": 256}'),
    "sweep",
    "alley.json: damaged (it has no field 'widths'); evaluate this row again",
  ),
  "no strip": (
    lambda sweep: damage_strips(sweep, "png", b""),
    "sweep",
    "alley.png: not a readable image",
  ),
  "another strip": (
    lambda sweep: damage_strips(sweep, "png", encode_image(np.zeros((8, 8, 3), np.uint8))),
    "sweep",
    "alley.png: does not fit alley.json",
  ),
  "no folder": (None, "nothing", "nothing: no folder of a sweep (sweep.json is missing)"),
  "no sweep": (lambda sweep: (sweep / "sweep.json").unlink(), "sweep", "sweep.json is missing"),
  "a file": (lambda sweep: (sweep.parent / "a").write_text(""), "a", "a: no folder of a sweep"),
  "damaged": (
    lambda sweep: (sweep / "sweep.json").write_text('{"version": 1'),
    "sweep",
    "sweep/sweep.json: damaged (not JSON",
  ),
  "another version": (
    lambda sweep: change(sweep / "sweep.json", version=2),
    "sweep",
    "version is 2, not an integer from 1 to 1",
  ),
  "another system": (
    lambda sweep: change(sweep / "sweep.json", system="x"),
    "sweep",
    "of 'x', neither fmanet nor keep",
  ),
  "a row's path": (
    lambda sweep: change(sweep / "sweep.json", rows={"../x": {}}),
    "sweep",
    "not a plain name",
  ),
  "a damaged row": (
    lambda sweep: (sweep / "n1/0/row.json").write_text("{}"),
    "sweep",
    "n1/0/row.json: damaged (it has no field 'state')",
  ),
  "a run outside": (
    lambda sweep: change(sweep / "n1/0/row.json", runs={"joint": "../../x"}, stages=["joint"]),
    "sweep",
    "'../../x' leads out of the sweep",
  ),
  "damaged scores": (
    lambda sweep: (sweep / "n1/0/evaluation/metrics.json").write_text('{"complete": NaN}'),
    "sweep",
    "metrics.json: damaged (NaN is no number)",
  ),
  "scores of a clip without a name": (
    lambda sweep: change(sweep / "n1/0/evaluation/metrics.json", clips=[{"frames": 1}]),
    "sweep",
    "clips[0] has no field 'name'",
  ),
  "scores of another method": (
    lambda sweep: change(sweep / "n1/0/evaluation/metrics.json", methods=["bicubic"]),
    "sweep",
    "has no method FMA-Net",
  ),
  "a damaged checkpoint": (
    lambda sweep: (sweep / "n1/0/joint/checkpoints/4/meta/meta.json").write_text("{"),
    "sweep",
    "its meta cannot be read",
  ),
  "damaged counts of work": (
    lambda sweep: (sweep / "n1/0/joint/goodput.json").write_text("[]"),
    "sweep",
    "goodput.json: damaged (it is a list, not an object)",
  ),
  "nothing is done": (none_done, "sweep", "no row is complete, so that there is nothing to report"),
  "no rows": (lambda sweep: change(sweep / "sweep.json", rows={}), "sweep", "it has no rows"),
  "unknown seeds": (None, "sweep --seeds 7", "seed 7: not there"),
  "no seeds": (None, "sweep --seeds a", "'a' are no seeds"),
  "other data": (
    unlike,
    "sweep other",
    "cannot be compared: data training clips is 8, not 9; data training f",
  ),
  "twice": (None, "sweep sweep", "both have fma_net with seed 0; leave one out"),
  "out is a file": (
    lambda sweep: (sweep.parent / "report").write_text(""),
    "sweep",
    "cannot make this folder",
  ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(sweep, run, tmp_path, monkeypatch, case):
  prepare, args, message = BAD_INPUT[case]
  if prepare:
    prepare(sweep)
  monkeypatch.chdir(tmp_path)
  folder, said = run(*args.split(), code=2)
  assert message in said.err
  assert said.err.count("\n") == 1
  assert not (folder / "report.html").exists()
