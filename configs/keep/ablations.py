"""The paper's ablations, and others, as named changes of its recipe.

    python -m keep_jax.train --config configs/keep/ablations.py:NAME,prediction \
        --workdir runs/NAME_2 --config.init_from runs/vqgan,flow=weights/gmflow ...
    python -m keep_jax.train --config configs/keep/ablations.py:NAME,fusion --workdir runs/NAME \
        --config.init_from runs/NAME_2 ...

Stage I is the same for all. `no_cfa` shares stage II with `keep`. `end_to_end` has one stage, named
in its place: the first command is all of it. NAME,STAGE,demo and NAME,STAGE,smoke are the same
changes of demo.py and smoke.py. `python -m vsr_jax.sweep` trains and scores many of them.

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

from vsr_jax.configs.keep import base, demo, smoke

SYSTEM = "keep"  # keep_jax.train trains these, and keep_jax.evaluate scores them
BUDGETS = ("paper", "demo", "smoke")
CHECKPOINT = "{row}={run}"  # as the evaluation takes it
EVALUATION = ()  # it measures what the table has without options
# Fields of a variant that a stage's training does not depend on: stage I is of an autoencoder.
UNSEEN = {
  "vqgan": (
    "model.gain",
    "model.fixed_gain",
    "model.causal",
    "model.attend_first_frame",
    "model.flow",
    "model.cfa",
  )
}

OVERRIDES: dict[str, dict[str, Any]] = {
  "keep": {},
  "no_kfn": {"model.gain": "none", "model.flow": "none"},
  "no_cfa": {"model.cfa": ()},
  "pwcnet": {"model.flow": "pwcnet"},
  "spynet": {"model.flow": "spynet"},
  "raft_small": {"model.flow": "raft_small"},
  "raft_large": {"model.flow": "raft_large"},
  "no_flow": {"model.flow": "none"},
  "no_first_frame": {"model.attend_first_frame": False},
  "constant_gain": {"model.gain": "constant"},
  "fixed_gain": {"model.gain": "fixed", "model.fixed_gain": 0.5},
  "causal": {"model.causal": True},
  "end_to_end": {"stage": "end_to_end"},
}


def overrides(name: str) -> dict[str, Any]:
  """An ablation's changed fields of `Architecture`; `ValueError` if there is none of that name."""
  if name not in OVERRIDES:
    raise ValueError(f"{name!r} is no ablation of KEEP: must be one of {', '.join(OVERRIDES)}")
  changes = OVERRIDES[name].items()
  return {key.removeprefix("model."): x for key, x in changes if key.startswith("model.")}


def stages(name: str) -> tuple[str, ...]:
  """The stages of a variant, each from the one before."""
  return ("vqgan", "end_to_end") if name == "end_to_end" else ("vqgan", "prediction", "fusion")


def get_config(variant: str = "keep,prediction") -> ConfigDict:
  """The locked recipe of a variant, "NAME,STAGE[,BUDGET]", or of "end_to_end"; default: "paper".

  Stage I, "vqgan", is the same for all.
  """
  words = variant.split(",")
  overrides(words[0])
  known = stages(words[0])
  stage = words[1] if len(words) > 1 else words[0]  # "end_to_end" is the name of both
  budget = words[2] if len(words) > 2 else "paper"
  if len(words) > 3 or stage not in known or budget not in BUDGETS:
    allowed = " or ".join(f"{words[0]},{x}" for x in known)
    raise ValueError(f"{variant!r}: must be {allowed}, or that with ,{' or ,'.join(BUDGETS)}")
  c = {"paper": base.defaults, "demo": demo.get_config, "smoke": smoke.get_config}[budget](stage)
  if stage != "vqgan":
    c.update_from_flattened_dict(OVERRIDES[words[0]])
  return c
