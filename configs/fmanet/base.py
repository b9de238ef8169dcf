"""The fields of every FMA-Net recipe, with the values of the paper and the released model."""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def defaults() -> ConfigDict:
  """Returns all fields, locked, so that a recipe that misspells one raises an error."""
  c = ConfigDict()
  c.stage = "degradation"  # "degradation", "joint" or "end_to_end" (the joint loss from scratch)
  c.seed = 1234
  c.dtype = "float32"  # of convolutions and products; or "bfloat16", for accelerators
  c.init_from = ""  # a checkpoint or run of the stage before; "": from scratch
  c.steps = 300_000

  c.model = _model()
  c.data = ConfigDict()
  c.data.root = (
    "data/REDS"  # a clip set of data_prep.prepare, REDS as released, or data/reds/x4/1.0.0
  )
  c.data.validation = ""  # such a path for validation; "": none
  c.data.validation_split = "test"  # of REDS (REDS4) or a built set; a clip set is one split
  c.data.crop = 64  # side of the low-resolution crop, in pixels
  c.data.batch = 8  # samples per batch, of all hosts together
  c.data.workers = 8  # decoding processes per host

  c.loss = ConfigDict()  # weights of the L1 terms; within L_D, as in stage 1
  c.loss.recon = 1.0
  c.loss.hr_warp = 0.1
  c.loss.flow = 1e-4
  c.loss.anchor_d = 0.1
  c.loss.degradation = 0.1  # for the whole of L_D in stage 2
  c.loss.restoration = 1.0
  c.loss.lr_warp = 0.1
  c.loss.anchor_r = 0.1

  c.optim = ConfigDict()  # Adam; at each boundary the learning rate is multiplied by `factor`
  for net in ("net_d", "net_r"):
    c.optim[net] = ConfigDict()
    c.optim[net].lr = 2e-4
    c.optim[net].boundaries = (210_000, 255_000, 285_000)  # steps: 70, 85, 95 % of all
    c.optim[net].factor = 0.5
    c.optim[net].start = 0  # step of the schedule at which this stage begins
    c.optim[net].speed = 1  # steps of the schedule per training step

  c.train = ConfigDict()
  c.train.accumulate = 1  # micro-batches per step
  c.train.clip_norm = placeholder(float)  # None: no clipping
  c.train.ema_decay = placeholder(float)  # of the weights' moving average; None: no average
  c.train.remat = False  # recompute activations in the backward pass, to save memory
  c.train.fsdp_min_size = placeholder(int)  # elements of the smallest array split; None: all whole
  c.train.log_every = 100  # steps, as in the next lines
  c.train.image_every = 5_000
  c.train.checkpoint_every = 5_000
  c.train.keep = 2  # checkpoints
  c.train.evaluate_every = 10_000
  c.train.evaluate_windows = 64
  c.train.profile = placeholder(str)  # START:STEPS, such as "1000:5": steps to trace; None: none
  return c.lock()


def _model() -> ConfigDict:
  """The fields of `fmanet_jax.architecture.Architecture`, whose docstring explains them."""
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
