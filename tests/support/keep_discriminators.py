"""The tables of KEEP's released discriminators, which no released file holds."""

from __future__ import annotations

from vsr_jax.conversion import Rule, conv3d, norm, with_bias


def patch_discriminator_rules() -> list[Rule]:
  """The table of the patch discriminator of four layers, as variables."""
  numbers = {2: 1, 5: 2, 8: 3, 11: 4}
  rules = [*with_bias(r"main\.0", "params/conv_0")]
  for theirs, ours in numbers.items():
    rules += with_bias(rf"main\.{theirs}", f"params/conv_{ours}")
    batch_norm = rf"main\.{theirs + 1}"
    rules += norm(batch_norm, f"params/norm_{ours}")
    rules.append(Rule(rf"{batch_norm}\.running_mean", f"batch_stats/norm_{ours}/mean"))
    rules.append(Rule(rf"{batch_norm}\.running_var", f"batch_stats/norm_{ours}/var"))
    rules.append(Rule(rf"{batch_norm}\.num_batches_tracked", None))
  rules += with_bias(r"main\.14", "params/scores")
  return rules


def video_discriminator_rules(width: int) -> list[Rule]:
  """The table of the video discriminator, as variables."""

  def as_matrix_columns(channels):
    """Their v is ordered (channel, t, h, w), ours (t, h, w, channel)."""
    return lambda v: v.reshape(channels, 3, 5, 5).transpose(1, 2, 3, 0).reshape(-1)

  rules = with_bias(r"layers\.10", "params/scores", conv3d)
  for i, channels in enumerate((3, width, 2 * width, 4 * width, 4 * width)):
    theirs = rf"layers\.{2 * i}\.weight"
    rules += [
      Rule(rf"{theirs}_orig", f"params/conv_{i}/kernel", conv3d),
      Rule(rf"{theirs}_u", f"spectral/conv_{i}/u"),
      Rule(rf"{theirs}_v", f"spectral/conv_{i}/v", as_matrix_columns(channels)),
    ]
  return rules
