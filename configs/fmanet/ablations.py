"""The paper's ablations, as named changes of its recipe.

    python -m fmanet_jax.train --config configs/fmanet/ablations.py:NAME --workdir runs/NAME_d ...
    python -m fmanet_jax.train --config configs/fmanet/ablations.py:NAME,joint --workdir runs/NAME \
        --config.init_from runs/NAME_d ...

`end_to_end` has one stage: the first command is all of it. NAME,STAGE,demo and NAME,STAGE,smoke are
the same changes of demo.py and smoke.py. `python -m vsr_jax.sweep` trains and scores many of them.

The numbers are the paper's, for the restored frames of REDS4 (Tables 1, 3 and 4): PSNR in dB and
SSIM, where higher is better, and tOF in pixels, where lower is. Numbers that it does not give are
left out.

| NAME               | change                                           | PSNR  | SSIM   | tOF   |
|--------------------|--------------------------------------------------|-------|--------|-------|
| fma_net            | nothing                                          | 28.83 | 0.8315 | 1.918 |
| n1                 | n = 1 flow-mask pair instead of 9                | 28.24 | 0.8151 | 2.224 |
| n5                 | n = 5                                            | 28.60 | 0.8258 | 2.054 |
| k10                | k_d = 10 instead of 20                           | 28.52 |        | 2.157 |
| k30                | k_d = 30                                         | 28.89 |        | 1.897 |
| k10_conventional   | k_d = 10, filters without flow                   | 27.69 |        | 2.489 |
| k20_conventional   | filters without flow                             | 27.86 |        | 2.365 |
| k30_conventional   | k_d = 30, filters without flow                   | 28.19 |        | 2.292 |
| no_raft_no_ta      | no RAFT flow and no temporal anchors in the loss | 28.68 | 0.8274 | 2.003 |
| no_ta              | no temporal anchors in the loss                  | 28.73 | 0.8288 | 1.956 |
| end_to_end         | both networks in one stage                       | 28.39 | 0.8190 | 2.152 |
| self_attention     | self- instead of centre-oriented attention       | 28.80 | 0.8298 | 1.956 |
| sft                | SFT instead of degradation-aware attention       | 28.58 | 0.8262 | 1.938 |
| self_attention_sft | both                                             | 28.50 | 0.8244 | 2.039 |
| m1                 | M = 1 FRMA block instead of 4                    |       |        |       |
| m2                 | M = 2, most probably the paper's FMA-Net_s       | 28.46 | 0.8212 | 2.08  |
| t5                 | T = 5 frames instead of 3                        |       |        |       |
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from vsr_jax.configs.fmanet import base, demo, smoke

SYSTEM = "fmanet"  # fmanet_jax.train trains these, and fmanet_jax.evaluate scores them
STAGES = ("degradation", "joint")
BUDGETS = ("paper", "demo", "smoke")
CHECKPOINT = "{run}"  # as the evaluation takes it
EVALUATION = ("--by-motion", "--reconstruction")  # options that give it what Table 3 has
# Fields of a variant that a stage's training does not depend on: variants that differ in nothing
# else share a run of it. Net^D has no modulation and, alone, no anchors of Net^R.
UNSEEN = {"degradation": ("model.modulation", "loss.anchor_r")}

OVERRIDES: dict[str, dict[str, Any]] = {
  "fma_net": {},
  "n1": {"model.flows": 1},
  "n5": {"model.flows": 5},
  "k10": {"model.kernel_down": 10},
  "k30": {"model.kernel_down": 30},
  "k10_conventional": {"model.kernel_down": 10, "model.filtering": "conventional"},
  "k20_conventional": {"model.filtering": "conventional"},
  "k30_conventional": {"model.kernel_down": 30, "model.filtering": "conventional"},
  "no_raft_no_ta": {"loss.flow": 0.0, "loss.anchor_d": 0.0, "loss.anchor_r": 0.0},
  "no_ta": {"loss.anchor_d": 0.0, "loss.anchor_r": 0.0},
  "end_to_end": {"stage": "end_to_end"},
  "self_attention": {"model.attention": "self"},
  "sft": {"model.modulation": "sft"},
  "self_attention_sft": {"model.attention": "self", "model.modulation": "sft"},
  "m1": {"model.frma_blocks": 1},
  "m2": {"model.frma_blocks": 2},
  "t5": {"model.frames": 5},
}


def stages(name: str) -> tuple[str, ...]:
  """The stages of a variant, each from the one before."""
  return (OVERRIDES[name]["stage"],) if "stage" in OVERRIDES[name] else STAGES


def get_config(variant: str = "fma_net") -> ConfigDict:
  """The locked recipe of a variant, "NAME[,STAGE[,BUDGET]]"; default: stage 1, "paper"."""
  words = variant.split(",")
  known = stages(words[0]) if words[0] in OVERRIDES else ()
  stage = words[1] if len(words) > 1 else "".join(known[:1])
  budget = words[2] if len(words) > 2 else "paper"
  if len(words) > 3 or stage not in known or budget not in BUDGETS:
    raise ValueError(
      f"{variant!r} is no ablation: NAME, NAME,joint or NAME,STAGE,BUDGET, NAME one of "
      f"{', '.join(OVERRIDES)}, BUDGET one of {', '.join(BUDGETS)}"
    )
  c = {"paper": _paper, "demo": demo.get_config, "smoke": smoke.get_config}[budget](stage)
  c.update_from_flattened_dict(OVERRIDES[words[0]])
  return c


def _paper(stage: str) -> ConfigDict:
  c = base.defaults()
  c.stage = stage
  return c
