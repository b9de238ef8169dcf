"""KEEP's training stages (Sec. 3.5): VQGAN, prediction of codes, fusion into the generator.

Stage I ("vqgan") trains hq_encoder, codebook and generator on single images against a patch
discriminator. Stage II ("prediction") trains encoder, gain network and code predictor on clips, the
codes of stage I being the targets. Stage III ("fusion") trains CFT and CFA on clips against a video
discriminator. "end_to_end" is II and III in one.

A batch is what `data_prep.face_pipeline` yields: "gt" uint8 RGB [b h w 3] in stage I; in the others
"gt" [b t h w 3] and "lq" [b t h/s w/s 3], s the scale.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from keep_jax import codebook, forward, losses, panels
from keep_jax.architecture import FlowName
from keep_jax.codebook import Terms
from keep_jax.discriminator import PatchDiscriminator, VideoDiscriminator
from keep_jax.model import KEEP, Observation, Params, Restored, clip_flows, param_shapes
from vsr_jax import lpips
from vsr_jax.flow.estimators import ESTIMATORS
from vsr_jax.losses import l1
from vsr_jax.train.opponent import (
  Contest,
  Judge,
  Opponent,
  adaptive_weight,
  with_gradient,
)
from vsr_jax.train.stage import Batch, Stage

Weights = Mapping[str, float]
Codes = Callable[[KEEP, Params, jax.Array], jax.Array]  # such as `codebook.true_codes`

TRAINED = {  # stage -> the sub-networks that it trains
  "vqgan": ("hq_encoder", "codebook", "generator"),
  "prediction": ("encoder", "gain", "code_predictor"),
  "fusion": ("cft", "cfa"),
  "end_to_end": ("encoder", "gain", "code_predictor", "cft", "cfa"),
}
OPPOSED = ("vqgan", "fusion", "end_to_end")  # the stages with a discriminator


@dataclasses.dataclass(frozen=True)
class Options:
  """What a stage's loss needs to know beside the model.

  Attributes:
    weights: of the loss terms by name. Stage I: "pixel", "perceptual", "codebook", "adversarial".
      II: "code", "cross_entropy". III: "pixel", "perceptual", "temporal", "adversarial".
      "end_to_end": those of II and III. "pixel", "perceptual" and "temporal" of weight 0 are not
      computed.
    adaptive: multiply stage I's adversarial weight by VQGAN's adaptive one.
    double_normalised: give LPIPS images that are normalised already, as the released code does.
    temporal_side: side of the generator's feature that the temporal term compares.
    temporal_flow: the flow network of that term for a model that has none, a name of
      `vsr_jax.flow.estimators`; "none": features are compared in place.
    remat: recompute a frame's activations in the backward pass.
    restart_below: stage I replaces codes that are used for less than this part of what is usual by
      latents of the batch; None: never, as released.
  """

  weights: Weights
  adaptive: bool = False
  double_normalised: bool = False
  temporal_side: int = 32
  temporal_flow: FlowName = "none"
  remat: bool = False
  restart_below: float | None = None


def vqgan_loss(model: KEEP, options: Options) -> Callable:
  """Stage I: L1, LPIPS, codebook and adversarial loss of reconstructed images.

  The reconstruction and adversarial losses are differentiated with respect to the image only, once
  each; their gradients at the last kernel, for the adaptive weight, follow from those by one
  convolution's gradient.

  Returns:
    `(params, batch, keys, judge) -> (total, terms, contest)`.
  """
  w = options.weights

  def loss(params: Params, batch: Batch, keys: Mapping[str, jax.Array], judge: Judge):
    truth = forward.to_signed(batch["gt"])
    latent, feature, codebook_loss, indices = forward.reconstruct(model, params, truth)

    def to_image(last, feature):
      net = {"params": {model.generator.last_name: last}}
      return model.generator.apply(net, feature, method="to_image").astype(jnp.float32)

    last = params["generator"][model.generator.last_name]
    image = to_image(last, feature)

    def reconstruction(image):
      terms = _image_terms(options, params, image, truth)
      return sum(terms.values(), start=jnp.zeros(())), terms

    fixed = lax.stop_gradient(image)
    (value, terms), gradient = jax.value_and_grad(reconstruction, has_aux=True)(fixed)
    against, against_gradient, variables = judge.loss_and_gradient(image)
    weight = jnp.float32(w["adversarial"])
    if options.adaptive:
      _, at_kernel = jax.vjp(
        lambda kernel: to_image(last | {"kernel": kernel}, lax.stop_gradient(feature)),
        last["kernel"],
      )
      weight *= adaptive_weight(at_kernel(gradient)[0], at_kernel(against_gradient)[0])
      terms["adversarial_weight"] = weight
    terms["codebook"] = w["codebook"] * codebook_loss
    terms["adversarial"] = weight * against
    total = terms["codebook"] + with_gradient(
      image, value + weight * against, gradient + weight * against_gradient
    )
    variables["codes"] = codebook.count_codes(indices, latent, variables["codes"], keys)
    terms |= codebook.codebook_use(variables["codes"]["use"])
    return total, terms, Contest(truth, image, variables)

  return loss


def _image_terms(options: Options, params: Params, image: jax.Array, truth: jax.Array) -> Terms:
  """The weighted L1 and LPIPS of images [n h w 3] in [-1, 1], those that have a weight."""
  w, terms = options.weights, {}
  if w["pixel"]:
    terms["pixel"] = w["pixel"] * l1(image, truth)
  if w["perceptual"]:
    distances = lpips.distance(
      params["lpips"], image, truth, double_normalised=options.double_normalised
    )
    terms["perceptual"] = w["perceptual"] * distances.mean()
  return terms


def _code_terms(
  weights: Weights, params: Params, restored: Restored, observation: Observation, codes: jax.Array
) -> Terms:
  """Stage II's weighted terms and, for the logs, the share of codes that are predicted right."""
  right = jnp.argmax(restored.logits, -1) == codes
  return {
    "code": weights["code"] * losses.code_mse(observation.latent, codes, params["codebook"]),
    "cross_entropy": weights["cross_entropy"] * losses.code_cross_entropy(restored.logits, codes),
    "codes_right": lax.stop_gradient(right.astype(jnp.float32).mean()),
  }


def prediction_loss(
  model: KEEP,
  options: Options,
  *,
  flows: forward.Flows = clip_flows,
  codes_of: Codes = codebook.true_codes,
) -> Callable:
  """Stage II: code MSE before the Kalman update, cross entropy of the codes after it.

  The released code adds an L1 loss of the frames, which has no gradient: the argmax between the
  logits and the frames stops it. It is left out. So the frames are made for the filter alone, and
  a model without one does not run its generator here.

  Args:
    model: the model.
    options: what the loss needs.
    flows: gives the flows of the low-quality clips.
    codes_of: gives the codes of the good clips.

  Returns:
    `(params, batch, keys) -> (total, terms)`.
  """

  def loss(params: Params, batch: Batch, keys: Mapping[str, jax.Array]):
    del keys
    restored, observation, gains, _ = forward.restore_batch(
      model, params, batch, remat=options.remat, flows=flows
    )
    codes = codes_of(model, params, forward.to_signed(batch["gt"]))
    terms = _code_terms(options.weights, params, restored, observation, codes)
    return terms["code"] + terms["cross_entropy"], terms | {"gain": _mean_gain(gains)}

  return loss


def _mean_gain(gains: jax.Array) -> jax.Array:
  """The mean gain of all frames but the first, which has no prediction."""
  return lax.stop_gradient(gains[:, 1:].mean())


def fusion_loss(
  model: KEEP, options: Options, *, predict: bool = False, flows: forward.Flows = clip_flows
) -> Callable:
  """Stage III: L1, LPIPS, temporal and adversarial loss of restored clips.

  Args:
    model: the model.
    options: what the loss needs.
    predict: add stage II's terms, for "end_to_end".
    flows: gives the flows of the low-quality and of the good clips.

  Returns:
    `(params, batch, keys, judge) -> (total, terms, contest)`.
  """
  w, with_flow = options.weights, model
  if w["temporal"]:
    arch = dataclasses.replace(model.arch, flow=flow_network(model, options))
    with_flow = dataclasses.replace(model, arch=arch)

  def loss(params: Params, batch: Batch, keys: Mapping[str, jax.Array], judge: Judge):
    del keys
    truth = forward.to_signed(batch["gt"])
    restored, observation, gains, _ = forward.restore_batch(
      model, params, batch, remat=options.remat, flows=flows
    )
    clip = restored.image.astype(jnp.float32)
    images = (x.reshape(-1, *x.shape[2:]) for x in (clip, truth))
    terms = _image_terms(options, params, *images)
    if w["temporal"]:
      feature = restored.features[options.temporal_side]
      true_flows = flows(with_flow, params, truth)
      terms["temporal"] = w["temporal"] * losses.temporal(feature, true_flows)
    logs = {"gain": _mean_gain(gains)}
    if predict:
      codes = codebook.true_codes(model, params, truth)
      terms |= _code_terms(w, params, restored, observation, codes)
      logs["codes_right"] = terms.pop("codes_right")
    value, gradient, variables = judge.loss_and_gradient(clip)
    terms["adversarial"] = with_gradient(
      clip, w["adversarial"] * value, w["adversarial"] * gradient
    )
    total = sum(terms.values(), start=jnp.zeros(()))
    return total, terms | logs, Contest(truth, clip, variables)

  return loss


def flow_network(model: KEEP, options: Options) -> FlowName:
  """The flow network of the temporal term: the model's own where it has one."""
  return options.temporal_flow if model.arch.flow == "none" else model.arch.flow


def auxiliary_shapes(name: str, model: KEEP, options: Options) -> Params:
  """Shapes of the networks that a stage's loss needs and its model does not have, LPIPS excepted.

  Without a Kalman filter a model has no encoder of good frames, which gives stage II its codes;
  without a flow network it has none for the temporal term.
  """
  shapes: Params = {}
  if name in ("prediction", "end_to_end") and model.arch.gain == "none":
    shapes["hq_encoder"] = param_shapes(model)["encoder"]
  if name in ("fusion", "end_to_end") and model.arch.flow == "none" and options.weights["temporal"]:
    flow = ESTIMATORS[flow_network(model, options)]
    shapes["flow"] = jax.eval_shape(flow.init, jax.random.key(0))
  return {net: tree for net, tree in shapes.items() if jax.tree.leaves(tree)}


def discriminator(model: KEEP, stage: str, width: int, layers: int) -> tuple[Callable, Callable]:
  """`Opponent`'s init and apply: a patch discriminator for "vqgan", a video one for the others."""
  net = PatchDiscriminator(width, layers) if stage == "vqgan" else VideoDiscriminator(width)
  side = model.arch.image_size
  shape = (1, side, side, 3) if stage == "vqgan" else (1, 2, side, side, 3)

  def init(key: jax.Array) -> tuple[Any, Any]:
    variables = dict(net.init(key, jnp.zeros(shape)))
    return variables.pop("params"), variables

  def apply(params: Any, variables: Any, images: jax.Array) -> tuple[jax.Array, Any]:
    return net.apply({"params": params, **variables}, images, train=True, mutable=list(variables))

  return init, apply


def make_stage(
  name: str,
  model: KEEP,
  options: Options,
  schedules: Mapping[str, optax.Schedule],
  *,
  discriminator_size: tuple[int, int] = (64, 4),
  discriminator_start: int = 0,
) -> Stage:
  """One of the stages in `TRAINED`; Adam with betas 0.9 and 0.99, as released.

  Args:
    name: the stage's name.
    model: the model.
    options: what the loss needs.
    schedules: learning rates by step: "networks" for all trained sub-networks and, of a stage with
      an opponent, "discriminator".
    discriminator_size: its width, and a patch discriminator's layers.
    discriminator_start: steps before the discriminator takes part.

  Returns:
    The `Stage`.
  """

  def adam(schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adam(schedule, b1=0.9, b2=0.99, eps=1e-8)

  rates = dict.fromkeys(TRAINED[name], schedules["networks"])
  opponent = None
  if name in OPPOSED:
    init, apply = discriminator(model, name, *discriminator_size)
    rate = schedules["discriminator"]
    opponent = Opponent("discriminator", init, apply, adam(rate), discriminator_start, rate)
  make_loss: dict[str, Callable[[KEEP, Options], Callable]] = {
    "vqgan": vqgan_loss,
    "prediction": prediction_loss,
    "fusion": fusion_loss,
    "end_to_end": functools.partial(fusion_loss, predict=True),
  }
  restart = options.restart_below if name == "vqgan" else None
  return Stage(
    name=name,
    loss=make_loss[name](model, options),
    optimizers={net: adam(rate) for net, rate in rates.items()},
    images=panels.make_images(model, name == "vqgan"),
    schedules=rates | ({} if opponent is None else {"discriminator": opponent.schedule}),
    streams=("codes",) if name == "vqgan" else (),
    opponent=opponent,
    variables=(lambda: {"codes": codebook.initial_code_use(model, restart is not None)})
    if name == "vqgan"
    else None,
    adjust=None if restart is None else functools.partial(codebook.restart_dead_codes, restart),
  )
