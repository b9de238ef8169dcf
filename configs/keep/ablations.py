"""The paper's ablations, and others, as named changes of its recipe.

    python -m keep_jax.train --config configs/keep/ablations.py:NAME,prediction \
        --workdir runs/NAME_2 --config.init_from runs/vqgan,flow=weights/gmflow ...
    python -m keep_jax.train --config configs/keep/ablations.py:NAME,fusion --workdir runs/NAME \
        --config.init_from runs/NAME_2 ...

Stage I is the same for all. `no_cfa` shares stage II with `keep`. `end_to_end` has one stage, named
in its place: the first command is all of it.

The paper's numbers, on its mildly degraded VFHQ-Test (LPIPS and AKD: lower is better; IDS: higher).
Numbers that it does not give are left out.

| NAME           | change                                                   | LPIPS | IDS   | AKD  |
|----------------|----------------------------------------------------------|-------|-------|------|
| keep           | nothing                                                  | .1619 | .7960 | 8.82 |
| no_kfn         | no Kalman filter network: each frame's own observation   | .1721 | .7773 | 9.20 |
| no_cfa         | no cross-frame attention                                 | .1621 | .7970 | 8.90 |
| pwcnet         | PWC-Net's flow instead of GMFlow's                       | .1623 | .7957 | 8.78 |
| spynet         | SPyNet's                                                 |       |       |      |
| raft_small     | RAFT's, its small variant                                |       |       |      |
| raft_large     | RAFT's, its large variant                                |       |       |      |
| no_flow        | the frame before as it is, unwarped                      |       |       |      |
| no_first_frame | gains that do not look back at the first frame           |       |       |      |
| constant_gain  | one learnt gain for all frames and places                |       |       |      |
| fixed_gain     | K = 0.5 for all frames and places, nothing learnt        |       |       |      |
| causal         | gains that see no later frame, for live use              |       |       |      |
| end_to_end     | stages II and III in one                                 |       |       |      |
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from vsr_jax.configs.keep import base

# Fields of `keep_jax.architecture.Architecture`.
OVERRIDES: dict[str, dict[str, Any]] = {
  "keep": {},
  "no_kfn": {"gain": "none", "flow": "none"},
  "no_cfa": {"cfa": ()},
  "pwcnet": {"flow": "pwcnet"},
  "spynet": {"flow": "spynet"},
  "raft_small": {"flow": "raft_small"},
  "raft_large": {"flow": "raft_large"},
  "no_flow": {"flow": "none"},
  "no_first_frame": {"attend_first_frame": False},
  "constant_gain": {"gain": "constant"},
  "fixed_gain": {"gain": "fixed", "fixed_gain": 0.5},
  "causal": {"causal": True},
  "end_to_end": {},
}


def overrides(name: str) -> dict[str, Any]:
  """The changed fields of an ablation; `ValueError` if there is none of that name."""
  if name not in OVERRIDES:
    raise ValueError(f"{name!r} is no ablation of KEEP: must be one of {', '.join(OVERRIDES)}")
  return OVERRIDES[name]


def get_config(variant: str = "keep,prediction") -> ConfigDict:
  """The locked recipe of "NAME,prediction" or "NAME,fusion", or of "end_to_end"."""
  name, _, stage = variant.partition(",")
  changes = overrides(name)
  if name == "end_to_end":
    stage = stage or name
  allowed = ("end_to_end",) if name == "end_to_end" else ("prediction", "fusion")
  if stage not in allowed:
    raise ValueError(f"{variant!r}: must be {' or '.join(f'{name},{x}' for x in allowed)}")
  c = base.defaults(stage)
  c.model.update(changes)
  return c
