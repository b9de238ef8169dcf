"""Adversarial training: a discriminator that learns in the same step as the networks it judges."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

Variables = Mapping[str, Any]
Apply = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class Opponent:
  """A discriminator with its own optimizer, under the hinge loss (Lim and Ye, 2017).

  A step runs it as the released code does: on the output for the generator's loss, then on the
  truth and on the same output for its own. Neither network sees the other's update of that step.

  Attributes:
    network: its name among the sub-networks of the params.
    init: `key -> (params, variables)`; the variables change from step to step without a gradient,
      such as batch statistics and the vectors of a spectral norm.
    apply: `(params, variables, images) -> (scores, variables)`, in training mode.
    optimizer: for its params.
    start: how many steps of the stage pass before it takes part, a whole number from 0.
    schedule: its learning rate by step; only for the logs.
  """

  network: str
  init: Callable[[jax.Array], tuple[Any, Any]]
  apply: Apply
  optimizer: optax.GradientTransformation
  start: int = 0
  schedule: Callable[[int], Any] | None = None


class Contest(NamedTuple):
  """What a generator's loss hands to the opponent's.

  Attributes:
    real: the truth, images or clips in [-1, 1].
    fake: the output in the same shape.
    variables: of every network that has some, as the loss has left them.
  """

  real: jax.Array
  fake: jax.Array
  variables: dict[str, Any]


class Judge(NamedTuple):
  """The opponent as a generator's loss sees it: frozen.

  Attributes:
    opponent: who it is.
    params: its params.
    variables: of every network that has some, before this step.
    step: int32 scalar, the number of finished steps of the stage.
  """

  opponent: Opponent
  params: Any
  variables: Variables
  step: jax.Array

  @jax.named_scope("adversarial")
  def loss_and_gradient(self, fake: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """The generator's hinge loss -mean(D(fake)) and its gradient, by one pass over the opponent.

    Returns:
      The loss, its gradient with respect to `fake`, and the variables after the pass. Before the
      opponent takes part both are 0 and it is not run.
    """
    own = self.variables[self.opponent.network]
    fake = lax.stop_gradient(fake)

    def run(fake, own):
      def loss(fake):
        scores, after = self.opponent.apply(self.params, own, fake)
        return -scores.astype(jnp.float32).mean(), after

      (value, after), gradient = jax.value_and_grad(loss, has_aux=True)(fake)
      return value, gradient, after

    def wait(fake, own):
      return jnp.zeros(()), jnp.zeros_like(fake), own

    value, gradient, own = _once_started(self.opponent, self.step, run, wait, fake, own)
    return value, gradient, dict(self.variables) | {self.opponent.network: own}


@jax.named_scope("opponent")
def opponent_gradients(judge: Judge, contest: Contest) -> tuple[Any, dict[str, jax.Array], Any]:
  """The opponent's hinge loss, mean(max(0, 1 - D(real))) + mean(max(0, 1 + D(fake))).

  Returns:
    The gradients of the opponent's params, its two terms by name, for the logs, and the variables
    of all networks after both passes. Before it takes part all of them are 0 and it is not run.
  """
  opponent, stop = judge.opponent, lax.stop_gradient
  real, fake = stop(contest.real), stop(contest.fake)
  own = stop(contest.variables[opponent.network])

  def run(params, own):
    def loss(params):
      on_real, after = opponent.apply(params, own, real)
      on_fake, after = opponent.apply(params, after, fake)
      terms = {
        "opponent_real": jnp.maximum(1 - on_real.astype(jnp.float32), 0).mean(),
        "opponent_fake": jnp.maximum(1 + on_fake.astype(jnp.float32), 0).mean(),
      }
      return terms["opponent_real"] + terms["opponent_fake"], (terms, after)

    (_, (terms, after)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return gradients, terms, after

  def wait(params, own):
    terms = {"opponent_real": jnp.zeros(()), "opponent_fake": jnp.zeros(())}
    return jax.tree.map(jnp.zeros_like, params), terms, own

  gradients, terms, own = _once_started(opponent, judge.step, run, wait, judge.params, own)
  return gradients, terms, contest.variables | {opponent.network: own}


def _once_started(
  opponent: Opponent, step: jax.Array, run: Callable, wait: Callable, *args: Any
) -> Any:
  if not opponent.start:
    return run(*args)
  return lax.cond(step >= opponent.start, run, wait, *args)


@jax.custom_vjp
def with_gradient(x: jax.Array, value: jax.Array, gradient: jax.Array) -> jax.Array:
  """The scalar `value` as a function of x whose gradient is known: `gradient`, in x's shape.

  So a loss whose gradient has been needed elsewhere is not run backwards a second time.
  """
  del x, gradient
  return value


with_gradient.defvjp(
  lambda _x, value, gradient: (value, gradient),
  lambda gradient, g: (
    (g * gradient.astype(jnp.float32)).astype(gradient.dtype),
    jnp.zeros_like(g),
    jnp.zeros_like(gradient),
  ),
)


def adaptive_weight(
  reconstruction: jax.Array, adversarial: jax.Array, largest: float = 1.0
) -> jax.Array:
  """VQGAN's weight of the adversarial term (Esser et al., 2021, Eq. 7), no gradient.

  Args:
    reconstruction: gradient of the reconstruction loss at the generator's last kernel.
    adversarial: gradient of the adversarial loss there.
    largest: upper bound; 1 as CodeFormer and KEEP have it, VQGAN itself has 1e4.

  Returns:
    |reconstruction| / (|adversarial| + 1e-4) in [0, largest].
  """
  ratio = jnp.linalg.norm(reconstruction) / (jnp.linalg.norm(adversarial) + 1e-4)
  return lax.stop_gradient(jnp.clip(ratio, 0, largest))
