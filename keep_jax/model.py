"""KEEP as pure functions of `params`, a tree for each sub-network.

`observe` encodes low-quality frames, `calculate_gains` computes the Kalman gains of a clip, `step`
is one step of the recursion, `restore_clip` the scan of it over a clip (`jax.lax.scan`). Images are
RGB in [-1, 1], [b t h w 3], at the size of the output: a low-quality clip is enlarged before.

The paper's ablations are values of `Architecture`'s fields (configs/keep/ablations.py).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from keep_jax import kalman
from keep_jax.architecture import RELEASED, Architecture
from keep_jax.code_predictor import CodePredictor
from keep_jax.fusion import ControllableFeatureTransform, CrossFrameAttention
from keep_jax.vqgan import Encoder, FeaturesBySide, Generator
from vsr_jax.flow.estimators import ESTIMATORS, Estimator, Features
from vsr_jax.trees import repeat_blocks

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class KEEP:
  """The sub-networks of one architecture, without parameters; hashable, hence static under `jit`.

  Attributes:
    arch: sizes and choices.
    dtype: type in which convolutions and matrix products are computed; latents and logits are
      float32 whatever it is.
    remat: recompute activations of residual blocks in the backward pass, to save memory.
  """

  arch: Architecture = RELEASED
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @property
  def encoder(self) -> Encoder:
    a = self.arch
    return Encoder(a.width, a.multiples, a.emb_dim, a.res_blocks, self.dtype, self.remat)

  @property
  def generator(self) -> Generator:
    a = self.arch
    return Generator(a.width, a.multiples, a.res_blocks, self.dtype, self.remat)

  @property
  def code_predictor(self) -> CodePredictor:
    a = self.arch
    return CodePredictor(a.dim, a.heads, a.layers, a.codes, self.dtype)

  @property
  def gain_network(self) -> nn.Module:
    a = self.arch
    sizes = (a.heads, a.gain_head_dim, a.gain_layers)
    return {
      "network": kalman.GainNetwork(*sizes, self.dtype, a.attend_first_frame, a.causal),
      "constant": kalman.ConstantGain(),
      "fixed": kalman.FixedGain(a.fixed_gain),
      "none": kalman.FixedGain(0.0),
    }[a.gain]

  @property
  def flow_estimator(self) -> Estimator:
    return ESTIMATORS[self.arch.flow]

  # These two are applied within the generator, whose children they are not: hence parent=None.

  @property
  def cft(self) -> ControllableFeatureTransform:
    return ControllableFeatureTransform(self.dtype, parent=None)

  @property
  def cfa(self) -> CrossFrameAttention:
    a = self.arch
    return CrossFrameAttention(a.cfa_heads, a.cfa_head_dim, self.dtype, parent=None)


@flax.struct.dataclass
class Observation:
  """The encoder's outputs for low-quality frames; leading axes [b] or [b t]."""

  latent: jax.Array  # [... h' w' emb_dim]
  skips: FeaturesBySide  # side -> feature [... side side c], no gradient


@flax.struct.dataclass
class State:
  """What the recursion carries from frame to frame."""

  image: jax.Array  # the restored frame before [b h w 3]
  features: FeaturesBySide  # side -> the generator's feature after CFA [b side side c]
  started: jax.Array  # [b] bool: whether there was a frame before


@flax.struct.dataclass
class Restored:
  """Restored frames, and intermediate results for losses; leading axes [b] or [b t]."""

  image: jax.Array  # [... h w 3], not clipped
  logits: jax.Array  # over the codebook [... h'*w' codes]
  features: FeaturesBySide  # side -> the generator's feature after CFT and CFA [... side side c]


def init_params(model: KEEP, key: jax.Array) -> Params:
  """Random parameters of every sub-network, float32.

  Trees: encoder, hq_encoder, codebook, generator, code_predictor, gain, cft, cfa (by side), flow;
  those that the architecture does not use are empty.
  """
  a = model.arch
  keys = iter(jax.random.split(key, 8 + len(a.cft) + len(a.cfa)))
  image = jnp.zeros((1, a.image_size, a.image_size, 3))
  latent = jnp.zeros((1, a.latent_size, a.latent_size, a.emb_dim))

  def init(net: nn.Module, *inputs):
    return net.init(next(keys), *inputs).get("params", {})

  def by_side(net: nn.Module, sides: tuple[int, ...]):
    shapes = {side: (1, side, side, a.channels(side)) for side in sides}
    feature = {side: jnp.zeros(shape, model.dtype) for side, shape in shapes.items()}
    return {str(side): init(net, feature[side], feature[side]) for side in sides}

  bound = 1 / a.codes
  return {
    "encoder": init(model.encoder, image),
    "hq_encoder": {} if a.gain == "none" else init(model.encoder, image),
    "codebook": jax.random.uniform(next(keys), (a.codes, a.emb_dim), minval=-bound, maxval=bound),
    "generator": init(model.generator, latent),
    "code_predictor": init(model.code_predictor, latent),
    "gain": init(model.gain_network, latent[:, None]),
    "cft": by_side(model.cft, a.cft),
    "cfa": by_side(model.cfa, a.cfa),
    "flow": model.flow_estimator.init(next(keys)),
  }


@functools.lru_cache(maxsize=16)
def param_shapes(model: KEEP) -> Params:
  """Shapes and dtypes of `init_params`, read-only; equal layers and models are traced once."""
  a = model.arch
  arch = dataclasses.replace(a, layers=1, gain_layers=1)
  one = functools.partial(init_params, dataclasses.replace(model, arch=arch))
  layers = {"layer_0": a.layers, "uncertainty_0": a.gain_layers}
  return repeat_blocks(jax.eval_shape(one, jax.random.key(0)), layers)


@jax.named_scope("observe")
def observe(model: KEEP, params: Params, frames: jax.Array) -> Observation:
  """Encodes low-quality frames [... h w 3], which are already of the output's size."""
  *lead, h, w, c = frames.shape
  latent, skips = model.encoder.apply(
    {"params": params["encoder"]}, frames.reshape(-1, h, w, c), model.arch.cft
  )
  # The skips train CFT, not the encoder: stage III keeps the encoder of stage II.
  found = Observation(latent, lax.stop_gradient(skips))
  return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), found)


@jax.named_scope("gains")
def calculate_gains(model: KEEP, params: Params, latents: jax.Array) -> jax.Array:
  """Kalman gains [b t h' w' 1] of a clip's latents [b t h' w' emb_dim]; see `kalman`."""
  return model.gain_network.apply({"params": params["gain"]}, latents)


@jax.named_scope("flow")
def flow_features(model: KEEP, params: Params, frames: jax.Array) -> Features:
  """The flow network's features of frames [b h w 3] in [-1, 1]: a tree of arrays [b ...].

  A frame's features serve for the pairs with the frame before and the frame after it.
  """
  return model.flow_estimator.encode(params["flow"], 127.5 * (frames.astype(jnp.float32) + 1))


@jax.named_scope("flow")
def flow_between(model: KEEP, params: Params, features: Features, before: Features) -> jax.Array:
  """Flow [b h w 2] in pixels from frames to the frames before them, by their features."""
  return model.flow_estimator.between(params["flow"], features, before)


def clip_flows(model: KEEP, params: Params, frames: jax.Array) -> jax.Array:
  """Flow [b t-1 h w 2] from frame i + 1 to frame i of clips [b t h w 3]; no gradient.

  One frame, then one pair of each clip at a time. Features and flows are held for all frames; no
  other memory grows with the clips' length.
  """
  frames = lax.stop_gradient(frames).swapaxes(0, 1)
  features = lax.map(functools.partial(flow_features, model, params), frames)
  pairs = tuple(jax.tree.map(lambda x, s=s: x[s], features) for s in (slice(1, None), slice(-1)))
  flows = lax.map(lambda pair: flow_between(model, params, *pair), pairs)
  return lax.stop_gradient(flows).swapaxes(0, 1)


def initial_state(model: KEEP, batch: int) -> State:
  """The state before a first frame."""
  a = model.arch
  return State(
    image=jnp.zeros((batch, a.image_size, a.image_size, 3), model.dtype),
    features={
      side: jnp.zeros((batch, side, side, a.channels(side)), model.dtype) for side in a.cfa
    },
    started=jnp.zeros(batch, bool),
  )


def step(
  model: KEEP,
  params: Params,
  state: State,
  observation: Observation,
  gain: jax.Array,
  flow: jax.Array,
  fidelity: float = 1.0,
) -> tuple[State, Restored]:
  """One step of the recursion: predict z-, update to z+ (see `kalman`), decode.

  Args:
    model: the model.
    params: its sub-networks'.
    state: the state after the frame before.
    observation: of this frame, leading axis [b].
    gain: [b h' w' 1] in [0, 1].
    flow: [b h w 2] in pixels, from this frame to the one before; any finite values where
      there is none.
    fidelity: weight of CFT, 0 (the codebook alone) to 1 (details of the input, as trained).

  Returns:
    The next state and the restored frame.
  """
  latent = filter_latent(model, params, state, observation.latent, gain, flow)
  return decode(model, params, state, latent, observation.skips, fidelity)


@jax.named_scope("decode")
def decode(
  model: KEEP,
  params: Params,
  state: State,
  latent: jax.Array,
  skips: FeaturesBySide,
  fidelity: float = 1.0,
) -> tuple[State, Restored]:
  """Decodes a filtered latent [b h' w' emb_dim] to its frame: the last part of `step`.

  The latent's codes are predicted and decoded by the generator. CFT modulates its features by the
  encoder's (`skips`), CFA lets them attend to those of the frame before (in `state`).
  """
  logits = model.code_predictor.apply({"params": params["code_predictor"]}, latent)
  side = model.arch.latent_size
  quantized = params["codebook"][jnp.argmax(logits, axis=-1)]  # integers: no gradient to the logits
  # The codebook is frozen wherever this runs.
  quantized = lax.stop_gradient(quantized).reshape(-1, side, side, model.arch.emb_dim)
  features: FeaturesBySide = {}

  def fuse(side: int, x: jax.Array) -> jax.Array:
    if side in model.arch.cft:
      cft = {"params": params["cft"][str(side)]}
      x = model.cft.apply(cft, skips[side], x, fidelity)
    if side in model.arch.cfa:
      # The feature before is not stopped: CFA learns through time.
      cfa = {"params": params["cfa"][str(side)]}
      fused = model.cfa.apply(cfa, x, state.features[side])
      x = jnp.where(_expand(state.started, x), fused, x)
    if side in model.arch.cft or side in model.arch.cfa:
      features[side] = x
    return x

  image = model.generator.apply(
    {"params": params["generator"]}, quantized.astype(model.dtype), fuse
  )
  carried = {side: features[side] for side in model.arch.cfa}
  return State(image, carried, jnp.ones_like(state.started)), Restored(image, logits, features)


def filter_latent(
  model: KEEP,
  params: Params,
  state: State,
  observed: jax.Array,
  gain: jax.Array,
  flow: jax.Array,
) -> jax.Array:
  """Prediction and update, [b h' w' emb_dim]; the observation itself for a first frame."""
  if model.arch.gain == "none":
    return observed
  encode = functools.partial(model.encoder.apply, {"params": params["hq_encoder"]})

  def predict():
    # No gradient through time here: the frame before is stopped, the HQ encoder is frozen.
    latent = kalman.predict(state.image, flow, lambda image: encode(image)[0])
    return lax.stop_gradient(latent)

  # A clip's first frame needs no prediction; while every clip of the batch is at its first, the
  # encoder is not run.
  predicted = lax.cond(state.started.any(), predict, lambda: jnp.zeros_like(observed))
  gain = jnp.where(_expand(state.started, gain), gain, jnp.zeros_like(gain))
  return kalman.update(observed, predicted, gain)


def restore_clip(
  model: KEEP,
  params: Params,
  frames: jax.Array,
  flows: jax.Array,
  *,
  fidelity: float = 1.0,
  remat: bool = False,
) -> tuple[Restored, Observation, jax.Array]:
  """Restores clips: gains of the whole clip first, then one scan over its frames.

  Args:
    model: the model.
    params: its sub-networks'.
    frames: low-quality frames in [-1, 1] at the output's size, [b t h w 3].
    flows: [b t-1 h w 2] in pixels, from frame i + 1 to frame i; no gradient.
    fidelity: weight of CFT, see `step`.
    remat: recompute a step's activations in the backward pass.

  Returns:
    The restored frames [b t ...], the observations [b t ...] and the gains [b t h' w' 1].
  """
  observation = observe(model, params, frames)
  gains = calculate_gains(model, params, observation.latent)
  # The first frame predicts nothing. The flow network is frozen in all stages, as released.
  flows = lax.stop_gradient(jnp.pad(flows, ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0))))

  def kalman_step(state, inputs):
    return step(model, params, state, *inputs, fidelity)

  body = jax.checkpoint(kalman_step) if remat else kalman_step
  time_first = functools.partial(jax.tree.map, lambda x: x.swapaxes(0, 1))
  inputs = time_first((observation, gains, flows))
  _, restored = lax.scan(body, initial_state(model, frames.shape[0]), inputs)
  return time_first(restored), observation, gains


def to_uint8(images: jax.Array) -> jax.Array:
  """Images in [-1, 1], clipped to it, -> uint8, rounded."""
  return jnp.rint(127.5 * (jnp.clip(images.astype(jnp.float32), -1, 1) + 1)).astype(jnp.uint8)


def _expand(flags: jax.Array, x: jax.Array) -> jax.Array:
  """[b] -> [b 1 ... 1], of x's rank."""
  return flags.reshape(-1, *[1] * (x.ndim - 1))
