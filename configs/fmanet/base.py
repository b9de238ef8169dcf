"""What every FMA-Net recipe sets, with the values of the paper and the released model."""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def defaults() -> ConfigDict:
  """The fields of a recipe, locked: a recipe changes some, and a misspelt one is an error."""
  c = ConfigDict()
  c.stage = "degradation"  # "degradation", "joint" or "end_to_end" (the joint loss from scratch)
  c.seed = 1234
  c.dtype = "float32"  # for convolutions and products; "bfloat16" on accelerators
  c.init_from = ""  # checkpoint or run of the stage before; "" starts from scratch
  c.steps = 300_000

  c.model = _model()
  c.data = ConfigDict()
  c.data.root = (
    "data/REDS"  # a clip set of data_prep.prepare, REDS as released, or data/reds/x4/1.0.0
  )
  c.data.validation = ""  # the same for validation; "" for none
  c.data.validation_split = "test"  # in REDS (REDS4) and built sets; a clip set is one split
  c.data.crop = 64  # side of the LR crop
  c.data.batch = 8  # over all hosts
  c.data.workers = 8  # decoding processes a host

  c.loss = ConfigDict()  # weights of the L1 terms; those of L_D as in stage 1
  c.loss.recon = 1.0
  c.loss.hr_warp = 0.1
  c.loss.flow = 1e-4
  c.loss.anchor_d = 0.1
  c.loss.degradation = 0.1  # for the whole of L_D in stage 2
  c.loss.restoration = 1.0
  c.loss.lr_warp = 0.1
  c.loss.anchor_r = 0.1

  c.optim = ConfigDict()  # Adam; the rate is multiplied by `factor` at each boundary
  for net in ("net_d", "net_r"):
    c.optim[net] = ConfigDict()
    c.optim[net].lr = 2e-4
    c.optim[net].boundaries = (210_000, 255_000, 285_000)  # 70, 85, 95 % of the steps
    c.optim[net].factor = 0.5
    c.optim[net].start = 0  # schedule step that this stage begins at
    c.optim[net].speed = 1  # schedule steps a training step

  c.train = ConfigDict()
  c.train.accumulate = 1
  c.train.clip_norm = placeholder(float)  # None: no clipping
  c.train.ema_decay = placeholder(float)  # None: no average
  c.train.remat = False
  c.train.fsdp_min_size = placeholder(int)  # None: parameters on every device
  c.train.log_every = 100
  c.train.image_every = 5_000
  c.train.checkpoint_every = 5_000
  c.train.keep = 2
  c.train.evaluate_every = 10_000
  c.train.evaluate_windows = 64
  return c.lock()


def _model() -> ConfigDict:
  """The arguments of fmanet_jax.architecture.Architecture, which explains them."""
  model = ConfigDict()
  model.dim = 90
  model.frames = 3
  model.scale = 4
  model.kernel_down = 20
  model.kernel_up = 5
  model.flows = 9
  model.frma_blocks = 4
  model.rdb_blocks = 12
  model.growth = 18
  model.dense_layers = 4
  model.attention_blocks = 2
  model.heads = 6
  model.ffn_expansion = 2.66
  model.norm_bias = True
  model.use_bias = False
  model.filtering = "flow_guided"  # or "conventional"
  model.attention = "centre"  # or "self"
  model.modulation = "degradation_attention"  # or "sft"
  return model
