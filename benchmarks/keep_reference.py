"""Worker: runs the released PyTorch code of KEEP from its own folder, as `inference_keep.py` does.

    python -m benchmarks.keep_reference time --folder DIR [--frames 6] ...

`basicsr` is imported from DIR, a checkout of the released repository with its submodule GMFlow;
nothing of it is here. Needs torch, einops, opencv-python and diffusers 0.11.0.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import sys
import time
import types
from typing import Any

import numpy as np

from benchmarks import workload
from vsr_jax import cli
from vsr_jax.errors import UserError

try:
  import cv2  # noqa: F401  basicsr's utilities import it
  import diffusers  # noqa: F401  the attention of the released model comes from it
  import einops  # noqa: F401
  import torch
except ImportError as e:
  MISSING = e.name
else:
  MISSING = None

NEEDS = "torch, einops, opencv-python, diffusers==0.11.0 and huggingface_hub==0.25.1"
MODULES = ("torch", "einops", "diffusers")  # whose versions are reported

ARCHS = pathlib.Path("basicsr", "archs")


def import_keep(folder: pathlib.Path) -> Any:
  """Imports the module of the released model.

  Of `basicsr` and `basicsr.archs` only what the model itself imports is loaded: their own
  `__init__` go on to data sets, losses, metrics and the trainer, whose packages (lmdb, lpips, PyAV,
  ...) restoring does not need.

  Raises:
    UserError: the folder is not a whole checkout.
  """
  for path in (ARCHS / "keep_arch.py", ARCHS / "gmflow" / "gmflow" / "gmflow.py"):
    if not (folder / path).is_file():
      raise UserError(f"{folder}: no {path}; give a checkout of the released KEEP with submodules")
  sys.path.insert(0, str(folder))
  for name in ("basicsr", "basicsr.archs"):
    package = types.ModuleType(name)
    package.__path__ = [str(folder / name.replace(".", "/"))]
    sys.modules[name] = package
  if importlib.util.find_spec("torchvision") is None:
    _stand_in_for_torchvision()
  return importlib.import_module("basicsr.archs.keep_arch")


def _stand_in_for_torchvision() -> None:
  """Provides two names that are imported but not used in restoring aligned faces.

  `basicsr.archs.arch_util` asks for the version, for a deformable convolution that KEEP lacks,
  `basicsr.utils.img_util` tiles batches of images with `make_grid`.
  """
  torchvision, utils = (types.ModuleType(name) for name in ("torchvision", "torchvision.utils"))
  torchvision.utils, utils.make_grid = utils, None
  sys.modules |= {"torchvision": torchvision, "torchvision.utils": utils}


def load(args: argparse.Namespace) -> torch.nn.Module:
  """The released model with deterministic weights, on the GPU if there is one."""
  module = import_keep(args.folder)
  torch.set_num_threads(args.threads)
  released = workload.keep_released(args.model)
  model = module.KEEP(**released.config)
  model.load_state_dict({key: torch.from_numpy(x) for key, x in released.state.items()})
  return model.to(device()).eval()


def device() -> str:
  """Where PyTorch computes: on the GPU if it sees one, as the released code would."""
  return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
  """The kind of device, named as our worker names it."""
  return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def device_memory() -> int | None:
  """The most bytes that PyTorch's arrays took on the GPU so far; None on a CPU."""
  return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def restore_chunk(model: torch.nn.Module, frames: list[np.ndarray]) -> tuple[np.ndarray, list]:
  """Restores uint8 frames as one chunk, at most 20 of them.

  Returns:
    The frames before rounding, [t 3 h w], not clipped to [-1, 1]; and a list of uint8 RGB [h w 3].
  """
  with torch.no_grad():
    x = torch.from_numpy(np.stack(frames).transpose(0, 3, 1, 2).astype(np.float32))
    x = ((x / 255 - 0.5) / 0.5).to(device())
    output = model(x[None], need_upscale=False)[0].cpu()
    levels = ((output.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
  return output.numpy(), list(levels)


def time_clip(args: argparse.Namespace) -> dict[str, Any]:
  """Restores chunks of 2 frames, of all frames and of 2 again: the last two count."""
  model = load(args)
  logits = []
  model.idx_pred_layer.register_forward_hook(lambda *call: logits.append(call[-1][:, 0]))
  size = workload.keep_released(args.model).config["img_size"]
  frames = list(workload.keep_clip(args.frames, size))
  ready = time.time() - args.started
  ends = [time.time() - args.started]
  for chunk in (frames[:2], frames, frames[:2]):
    if chunk is frames:
      logits.clear()
    output, _ = restore_chunk(model, chunk)
    ends.append(time.time() - args.started)
    if chunk is frames and args.keep:
      codes = torch.stack(logits).cpu().numpy()
      np.savez(args.keep, output=output.transpose(0, 2, 3, 1), logits=codes)
  _, whole, two = workload.intervals(ends)
  return {
    "device": device_name(),
    "ready": ready,
    "first_chunk": ends[1],
    "seconds": workload.steady_seconds(whole, two, args.frames),
    "chunk": whole,
    "memory": workload.peak_memory(),
    "device_memory": device_memory(),
  }


def main() -> None:
  """Runs the worker; see the module's docstring."""
  jobs = {"time": time_clip}
  workload.run_reference("benchmarks.keep_reference", __doc__, MISSING, NEEDS, MODULES, jobs)


if __name__ == "__main__":
  cli.run(main)
