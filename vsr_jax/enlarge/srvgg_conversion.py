"""Real-ESRGAN's released weights as parameters: the tables, the loader, and mixtures of two files.

Read are the authors' files, such as realesr-general-x4v3.pth, and ncnn's, in which the general
models ship: RealESRGAN_General_x4_v3, and RealESRGAN_General_WDN_x4_v3, whose denoising is weak.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax import guards, ncnn_files, torch_files
from vsr_jax.conversion import Rule, convert, reading_shapes, with_bias
from vsr_jax.enlarge.srvgg import SRVGGNetCompact
from vsr_jax.errors import UserError

_ASSETS = Path(__file__).parent / "assets"
STRONG = _ASSETS / "RealESRGAN_General_x4_v3.param"
WEAK = _ASSETS / "RealESRGAN_General_WDN_x4_v3.param"

_MAX_CONVS, _MAX_FEATURES, _MAX_SCALE = 128, 512, 8  # several times those of any released file

_NAME = "a SRVGGNetCompact of Real-ESRGAN"
_Described = tuple[str, Mapping[int, Any], tuple[int, ...]]  # kind, options, sources

RULES = [
  *with_bias(r"body\.(\d*[02468])", r"conv\1"),
  Rule(r"body\.(\d*[13579])\.weight", r"prelu\1/slope"),
]


def load(path: str | Path) -> tuple[SRVGGNetCompact, dict[str, Any]]:
  """Reads a released file.

  Args:
    path: a .pth file of the authors; or the .param or the .bin file of two that lie beside each
      other, as ncnn has them.

  Returns:
    the network, whose sizes the file tells, and its parameters, numpy arrays in float32.

  Raises:
    UserError: a file is missing, damaged or of another network.
  """
  source = str(path)
  if Path(path).suffix in (".param", ".bin"):
    return from_state_dict(_from_layers(ncnn_files.load(path), source), source)
  contents = torch_files.load(path)
  return from_state_dict(torch_files.unwrap(contents, ("params_ema", "params"), source), source)


def load_general(denoise: float = 0.5) -> tuple[SRVGGNetCompact, dict[str, Any]]:
  """Reads the general x4 models that ship, mixed.

  Args:
    denoise: from 0, which leaves noise in the image, to 1, which removes it; 0.5 is the authors'
      default.

  Returns:
    as `load`.
  """
  (net, strong), (_, weak) = load(STRONG), load(WEAK)
  return net, mix(strong, weak, denoise)


def mix(first: Mapping[str, Any], second: Mapping[str, Any], part: float) -> dict[str, Any]:
  """Interpolates two networks' parameters: `part` of the first, the rest of the second.

  This is "deep network interpolation" (Wang et al., CVPR 2019, arXiv 1811.10515, equation 1).
  """
  return jax.tree.map(lambda a, b: part * a + (1 - part) * b, dict(first), dict(second))


def from_state_dict(
  state: Mapping[str, np.ndarray], source: str = "state dict"
) -> tuple[SRVGGNetCompact, dict[str, Any]]:
  """Converts a state dict with the released names, body.0.weight and so on; see `load`."""
  with reading_shapes(source, _NAME):
    features = state["body.0.weight"].shape[0]
    kernels = [key for key, value in state.items() if value.ndim == 4]
    convs = len(kernels) - 2
    outputs = state[f"body.{2 * convs + 2}.weight"].shape[0]
    scale = math.isqrt(outputs // 3)
    if not (convs < _MAX_CONVS and features <= _MAX_FEATURES and 1 <= scale <= _MAX_SCALE):
      raise ValueError("sizes that none has")
  net = SRVGGNetCompact(features, convs, scale)
  image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
  template = jax.eval_shape(functools.partial(net.init, jax.random.key(0)), image)
  return net, convert(state, RULES, template["params"], source)


def _from_layers(layers: Sequence[ncnn_files.Layer], source: str) -> dict[str, np.ndarray]:
  """The state dict of ncnn's layers; `UserError` if these compute anything else."""
  with reading_shapes(source, _NAME):
    widths = [len(layer.weights["weight"]) for layer in layers if layer.kind == "Convolution"]
    wanted = _chain(widths[0], len(widths) - 2, math.isqrt(widths[-1] // 3))
    found = _described(layers)
    for i, (theirs, ours) in enumerate(zip(found, wanted, strict=False)):
      if theirs != ours:
        raise UserError(f"layer {i} is {guards.shorten(str(theirs))}, not {ours}")
    if len(found) != len(wanted):
      raise UserError(f"{len(found)} layers, not {len(wanted)}")
  weighted = enumerate(layer.weights for layer in layers if layer.weights)
  return {f"body.{i}.{name}": x for i, weights in weighted for name, x in weights.items()}


def _described(layers: Sequence[ncnn_files.Layer]) -> list[_Described]:
  """What each layer computes, and of which layers' results; an array that is split is one array."""
  place: dict[str, int] = {}
  described: list[_Described] = []
  for layer in layers:
    sources = tuple(place[name] for name in layer.inputs)
    here = sources[0] if layer.kind == "Split" else len(described)
    place |= dict.fromkeys(layer.outputs, here)
    if layer.kind != "Split":  # 0 is the default of every option; 6 follows from the others
      options = {n: value for n, value in layer.options.items() if value and n != 6}
      described.append((layer.kind, options, sources))
  return described


def _chain(features: int, convs: int, scale: int) -> list[_Described]:
  """The network as `_described` would have it."""
  chain: list[_Described] = [("Input", {}, ())]
  for width in [features] * (convs + 1) + [3 * scale**2]:
    chain.append(("Convolution", {0: width, 1: 3, 4: 1, 5: 1}, (len(chain) - 1,)))
    chain.append(("PReLU", {0: width}, (len(chain) - 1,)))
  end = len(chain) - 1
  chain[end:] = [  # instead of the last activation
    ("PixelShuffle", {0: scale}, (end - 1,)),
    ("Interp", {0: 1, 1: scale, 2: scale}, (0,)),  # by nearest neighbour
    ("BinaryOp", {}, (end, end + 1)),  # their sum
  ]
  return chain
