"""All fields of KEEP's training recipes, with the paper's values for each stage.

Where the paper gives none (batch, schedules, averages, start of the discriminator), they are those
of the released training code. The stages are "vqgan" (I), "prediction" (II), "fusion" (III) and,
beyond the paper, "end_to_end" (II and III in one), which the paper names as simpler.
"""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

STAGES = ("vqgan", "prediction", "fusion", "end_to_end")


def defaults(stage: str = "vqgan") -> ConfigDict:
  """Returns all fields, locked, so that a recipe that misspells one raises an error."""
  if stage not in STAGES:
    raise ValueError(f"{stage!r} is no stage: must be one of {', '.join(STAGES)}")
  c = ConfigDict()
  c.stage = stage
  c.seed = 0
  c.dtype = "float32"  # of convolutions and products; or "bfloat16", for accelerators
  # Where sub-networks come from that are not trained from scratch, separated by commas: runs and
  # converted files, each with all that it holds, or with some as in "flow+cft=PATH". Later ones
  # win; a flow network is passed over where there is no use for it. "": from scratch.
  c.init_from = ""
  steps = {"vqgan": 800_000, "prediction": 400_000, "fusion": 50_000}
  c.steps = steps.get(stage, steps["prediction"] + steps["fusion"])

  c.model = _model()
  if stage in ("vqgan", "prediction"):  # what stage III adds
    c.model.cft = c.model.cfa = ()
  c.data = ConfigDict()
  c.data.root = "data/vfhq/512/1.0.0"  # a built set, a clip set or a folder of aligned clips
  c.data.validation = ""  # such a path for validation; "": none
  c.data.validation_split = "test"  # of a built set
  # How its low-quality frames are made, a preset; or "low_quality", its own, as VFHQ-Test has them.
  c.data.validation_degradation = "mild"
  c.data.frames = 8  # of a clip
  c.data.intervals = (1, 2, 3, 4, 5, 6)  # distances between its frames, of which one is drawn
  c.data.reverse = 0.5  # probability of the reverse order
  # A preset of data_prep.face_degrade; its blur follows the size of the images.
  c.data.degradation = "train"
  c.data.batch = 8 if stage == "vqgan" else 4  # images or clips, of all hosts together
  c.data.workers = 8  # decoding processes per host

  c.loss = _loss()
  c.optim = ConfigDict()  # Adam with betas 0.9 and 0.99
  for net in ("networks", "discriminator"):
    c.optim[net] = ConfigDict()
    c.optim[net].lr = 1e-4 if stage in ("fusion", "end_to_end") else 2e-4
    c.optim[net].boundaries = ()  # steps at which the learning rate is multiplied by `factor`
    c.optim[net].factor = 0.5
    c.optim[net].end = placeholder(float)  # the rate falls to it by half a cosine; None: no fall
  if stage == "prediction":
    c.optim.networks.boundaries = (200_000,)
    c.data.batch = 2
  c.discriminator = ConfigDict()
  c.discriminator.width = 64 if stage == "vqgan" else 32
  c.discriminator.layers = 4  # with stride 2, of stage I's
  c.discriminator.start = 31  # steps before it takes part

  c.train = _train(stage)
  return c.lock()


def _loss() -> ConfigDict:
  """Weights of the terms, and how LPIPS and the adversarial term are computed."""
  loss = ConfigDict()
  loss.pixel = 1e-2  # L1
  loss.perceptual = 1.0  # LPIPS
  loss.perceptual_network = "vgg16"  # or "alexnet"
  loss.perceptual_weights = ""  # a file of vsr_jax.convert_lpips; "": where it puts them
  loss.double_normalised = False  # LPIPS of images that are normalised already, as released
  loss.adversarial = 1e-2
  loss.adaptive = False  # stage I: times VQGAN's ratio of gradients, at most 1
  loss.codebook = 1.0  # stage I
  loss.code = 1.0  # stage II: squared distance of a latent to its true code
  loss.cross_entropy = 0.5  # stage II
  loss.temporal = 0.1  # stage III
  loss.temporal_side = 32  # side of the generator's feature that it compares
  loss.temporal_flow = "gmflow"  # its flow network, if the model has none; "none": no motion
  return loss


def _train(stage: str) -> ConfigDict:
  """How a run starts, what it holds in memory, and what it writes how often."""
  train = ConfigDict()
  train.fusion_start = "identity"  # of CFT and CFA; or "as_released", in which little can learn
  train.restart_below = placeholder(float)  # stage I: use of a code, 1 is usual, that restarts it
  train.accumulate = 1  # micro-batches per step
  train.clip_norm = placeholder(float)  # None: no clipping
  train.ema_decay = 0.995 if stage == "vqgan" else 0.999  # of the weights' moving average
  train.remat = False  # recompute activations in the backward pass, to save memory
  train.fsdp_min_size = placeholder(int)  # elements of the smallest array split; None: all whole
  train.log_every = 100  # steps, as in the next lines
  train.image_every = 5_000
  train.checkpoint_every = 5_000
  train.keep = 2  # checkpoints
  train.evaluate_every = 5_000
  train.profile = placeholder(str)  # START:STEPS, such as "1000:5": steps to trace; None: none
  train.evaluate_interval = 15  # every so many frames of a validation clip are restored
  train.best = "psnr"  # or "lpips": the checkpoint of the best validation is kept, too
  return train


def _model() -> ConfigDict:
  """The fields of `keep_jax.architecture.Architecture`, whose docstring explains them."""
  model = ConfigDict()
  model.image_size = 512
  model.width = 64
  model.multiples = (1, 2, 2, 4, 4, 8)
  model.res_blocks = 2
  model.emb_dim = 256
  model.codes = 1024
  model.dim = 512
  model.heads = 8
  model.layers = 9
  model.gain_head_dim = 48
  model.gain_layers = 3
  model.cft = (16, 32, 64)
  model.cfa = (16, 32)
  model.cfa_heads = 4
  model.cfa_head_dim = 256
  model.gain = "network"
  model.fixed_gain = 0.5
  model.causal = False
  model.attend_first_frame = True
  model.flow = "gmflow"
  return model
