"""A line a trial for TensorBoard's hparams plugin: what was changed, and what came of it."""

from __future__ import annotations

import json
import pathlib

from vsr_jax import files
from vsr_jax.reporting.comparison import Rows, quantities, value
from vsr_jax.reporting.sweeps import Sweep
from vsr_jax.train.summaries import EventFile


def write(folder: pathlib.Path, sweep: Sweep, rows: Rows) -> None:
  """Writes an event file for every trial, in FOLDER/SYSTEM/ROW/SEED, in place of an older one.

  The fields that some row changes are texts, since a field may have values of several kinds; empty
  where a row leaves it as the base has it. Scores are those in total, "restored/psnr" say.
  """
  changed = dict.fromkeys(name for row in rows for name in sweep.rows[row])
  scores = [quantity for quantity in quantities(rows) if quantity.motion is None]
  for row, trials in rows.items():
    texts = {name: json.dumps(x, ensure_ascii=False) for name, x in sweep.rows[row].items()}
    for trial in trials:
      place = folder / sweep.system / row / str(trial.seed)
      files.make_folder(place)
      for old in place.glob("events.out.tfevents.*"):
        old.unlink()
      values = {f"{x.frames}/{x.metric}": value(trial, x) for x in scores}
      events = EventFile(place, 0)
      events.hyperparameters(
        {"row": row, "seed": trial.seed, **dict.fromkeys(changed, ""), **texts}
      )
      events.scalars(0, {name: x for name, x in values.items() if x is not None})
      events.close()
