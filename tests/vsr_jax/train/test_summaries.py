from __future__ import annotations

import io
import itertools
import json
import time

import numpy as np
import PIL.Image
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vsr_jax.errors import UserError
from vsr_jax.train.summaries import Recorder, panel


def rows(workdir):
  return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def test_rows_are_means_since_the_row_before(tmp_path):
  recorder = Recorder(tmp_path, 0, log_every=2, running_sums=None)
  for step, loss in enumerate([1.0, 2.0, 5.0, 7.0, 9.0], start=1):
    recorder.add(step, {"loss": loss}, lambda: {"net": 0.5})
  recorder.close()
  got = [{k: v for k, v in row.items() if k != "seconds"} for row in rows(tmp_path)]
  assert got == [
    {"step": 2, "loss": 1.5, "learning_rate/net": 0.5},
    {"step": 4, "loss": 6.0, "learning_rate/net": 0.5},
  ]


def test_a_resumed_recorder_goes_on_in_the_middle_of_a_row(tmp_path, monkeypatch):
  # The real clock may stand still for the few calls below.
  monkeypatch.setattr(time, "monotonic", itertools.count(100.0).__next__)
  first = Recorder(tmp_path, 0, log_every=3, running_sums=None)
  for step, loss in enumerate([1.0, 2.0, 3.0, 10.0], start=1):
    first.add(step, {"loss": loss}, dict)
  running_sums = json.loads(json.dumps(first.running_sums))
  for step in (5, 6):  # These steps are lost: the session breaks off before it saves them.
    first.add(step, {"loss": 99.0}, dict)
  first.close()
  with open(tmp_path / "log.jsonl", "a") as log:
    log.write('{"step": 7, "lo')  # killed while writing
  second = Recorder(tmp_path, 4, log_every=3, running_sums=running_sums)
  for step, loss in ((5, 20.0), (6, 30.0)):
    second.add(step, {"loss": loss}, dict)
  second.close()
  assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(3, 2.0), (6, 20.0)]
  assert rows(tmp_path)[1]["seconds"] > running_sums["seconds"] > 0
  assert {path.suffix for path in tmp_path.iterdir()} >= {".jsonl"}
  assert not list(tmp_path.glob("*.part"))


def test_rows_that_are_not_finite_stay_and_damaged_ones_are_named(tmp_path):
  log = tmp_path / "log.jsonl"
  log.write_text('{"step": 1, "psnr": Infinity}\n{"step": 2, "psnr": NaN}\n{"step": 3}\n')
  Recorder(tmp_path, 2, log_every=1, running_sums=None).close()
  assert log.read_text() == '{"step": 1, "psnr": Infinity}\n{"step": 2, "psnr": NaN}\n'
  log.write_bytes(b'{"step": 1}\n' + bytes(30) + b"\n")
  with pytest.raises(UserError, match=r"log\.jsonl:2: not JSON .*; remove that line"):
    Recorder(tmp_path, 2, log_every=1, running_sums=None)


def test_tensorboard_reads_scalars_and_panels(tmp_path):
  recorder = Recorder(tmp_path, 0, log_every=1, running_sums=None)
  recorder.add(1, {"loss": 0.25}, dict)
  recorder.panel(1, {"input": np.zeros((1, 4, 4, 3)), "output": np.ones((1, 8, 8, 3))})
  recorder.close()
  events = EventAccumulator(str(tmp_path)).Reload()
  assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.25)]
  (event,) = events.Images("input | output")
  picture = np.asarray(PIL.Image.open(io.BytesIO(event.encoded_image_string)))
  assert picture.shape == (event.height, event.width, 3)
  assert (picture[:8, :8] == 0).all()
  assert (picture[:8, 10:] == 255).all()


def test_tensorboard_drops_the_points_that_are_computed_again(tmp_path):
  for start in (0, 2):
    recorder = Recorder(tmp_path, start, log_every=1, running_sums=None)
    for step in range(start + 1, 5):
      recorder.add(step, {"loss": float(start)}, dict)
    recorder.close()
  points = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
  assert [(e.step, e.value) for e in points] == [(1, 0.0), (2, 0.0), (3, 2.0), (4, 2.0)]


@pytest.mark.parametrize("samples", [1, 6])
def test_a_panel_shows_samples_below_and_images_beside_each_other(samples):
  small = np.linspace(0, 1, samples * 12).reshape(samples, 2, 2, 3)
  large = np.full((samples, 8, 8, 3), 2.0)  # beyond the range: clipped
  picture = panel([small, large], rows=4, gap=2)
  shown = min(samples, 4)
  assert picture.shape == (shown * 10, 20, 3)
  assert picture.dtype == np.uint8
  for i in range(shown):
    block = picture[10 * i : 10 * i + 8, :8]
    want = np.round(small[i].astype(np.float32) * 255).astype(np.uint8)
    np.testing.assert_array_equal(block, want.repeat(4, axis=0).repeat(4, axis=1))
  assert (picture[:, 10:18] == 255).all()
