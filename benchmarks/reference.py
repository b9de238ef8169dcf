"""Worker: runs the released PyTorch code from its own folder, as its test and training loops do.

    python -m benchmarks.reference restoration|training --folder DIR [--frames 4] ...

`model.py` is imported from DIR, a checkout of the released repository; nothing of it is here.
"""

from __future__ import annotations

import argparse
import sys
import time
import types
from typing import Any

import numpy as np

from benchmarks import workload
from vsr_jax import cli
from vsr_jax.errors import UserError

try:
  import einops  # noqa: F401  what the released model imports besides torch
  import torch
except ImportError as e:
  MISSING = e.name
else:
  MISSING = None

RATE = 2e-4
WEIGHTS = {  # of the L1 terms of the joint stage, as in the released experiment.cfg
  "recon": 0.1,
  "hr_warp": 0.1 * 0.1,
  "image_flow": 0.1 * 1e-4,
  "F_sharp_D": 0.1 * 0.1,
  "output": 1.0,
  "lr_warp": 0.1,
  "F_sharp_R": 0.1,
}


def load(args: argparse.Namespace) -> torch.nn.Module:
  """The released model with deterministic weights, on the GPU if there is one."""
  if not (args.folder / "model.py").is_file():
    raise UserError(f"{args.folder}: no model.py; give a checkout of the released FMA-Net")
  sys.path.insert(0, str(args.folder))
  from model import FMANet  # only now is its folder known

  torch.set_num_threads(args.threads)
  released = workload.released(args.model)
  model = FMANet(types.SimpleNamespace(**released.config))
  model.load_state_dict({key: torch.from_numpy(x) for key, x in released.state.items()})
  return model.to(device())


def device() -> str:
  """Where PyTorch computes: on the GPU if it sees one, as the released code would."""
  return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
  """The kind of device, named as our worker names it."""
  return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def device_memory() -> int | None:
  """The most bytes that PyTorch's arrays took on the GPU so far; None on a CPU."""
  return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def to_reference(images: np.ndarray) -> torch.Tensor:
  """uint8 RGB [... t h w 3] -> float BGR in [0, 1], [... 3 t h w], as the released loader gives."""
  x = np.moveaxis(images[..., ::-1], -1, -4)
  return (torch.from_numpy(x.astype(np.float32)) / 255).to(device())


def time_clip(args: argparse.Namespace) -> dict[str, Any]:
  """Restores the clip window by window; times are from the process's start.

  The ends are replicated, so that all frames are restored as on our side: the released loader
  would leave out one at each end.
  """
  model = load(args).eval()
  reach = workload.released(args.model).config["num_seq"] // 2
  frames = list(workload.clip(args.frames, args.height, args.width))
  ready = time.time() - args.started
  ends = []
  with torch.no_grad():
    for i in range(args.frames):
      window = [frames[min(max(j, 0), args.frames - 1)] for j in range(i - reach, i + reach + 1)]
      output = model(to_reference(np.stack(window)[None]))["output"][0]
      output = output.cpu().permute(1, 2, 0).flip(-1)
      (255 * output.clamp(0, 1)).round().byte().numpy()
      ends.append(time.time() - args.started)
      if i == workload.CHECKED and args.keep:
        np.save(args.keep, output.numpy())
  return {
    "device": device_name(),
    "ready": ready,
    "first_frame": ends[0],
    "last_frame": ends[-1],
    "seconds": workload.intervals(ends),
    "memory": workload.peak_memory(),
    "device_memory": device_memory(),
  }


def time_steps(args: argparse.Namespace) -> dict[str, Any]:
  """Forward, backward and Adam of both networks; seconds of each step, and its loss."""
  config = workload.released(args.model).config
  frames, scale = config["num_seq"], config["scale"]
  model = load(args).train()
  optimizers = [
    torch.optim.Adam(net.parameters(), lr=RATE)
    for net in (model.degradation_learning_network, model.restoration_network)
  ]
  batch = workload.training_batch(frames, scale, args.batch, args.crop)
  blurry, sharp, sharp_lr = (to_reference(batch[key]) for key in ("blurry", "sharp", "sharp_lr"))
  flow = torch.from_numpy(np.moveaxis(batch["flow"], -1, 1).copy()).to(device())
  c = frames // 2
  targets = {
    "recon": blurry[:, :, c],
    "hr_warp": sharp[:, :, c : c + 1].expand_as(sharp),
    "image_flow": flow,
    "F_sharp_D": sharp_lr,
    "output": sharp[:, :, c],
    "lr_warp": blurry[:, :, c : c + 1].expand_as(blurry),
    "F_sharp_R": sharp_lr,
  }
  ends, losses = [time.perf_counter()], []
  for _ in range(args.steps):
    outputs = model(blurry, sharp)
    loss = sum(
      weight * torch.nn.functional.l1_loss(outputs[name], targets[name])
      for name, weight in WEIGHTS.items()
    )
    for optimizer in optimizers:
      optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
      optimizer.step()
    if torch.cuda.is_available():
      torch.cuda.synchronize()
    losses.append(loss.item())
    ends.append(time.perf_counter())
  first, *steps = workload.intervals(ends)
  return {
    "device": device_name(),
    "first_step": first,
    "seconds": steps,
    "losses": losses,
    "memory": workload.peak_memory(),
    "device_memory": device_memory(),
  }


def main() -> None:
  """Runs the worker; see the module's docstring."""
  needs = "torch and einops"
  modules, jobs = ("torch", "einops"), {"restoration": time_clip, "training": time_steps}
  workload.run_reference("benchmarks.reference", __doc__, MISSING, needs, modules, jobs)


if __name__ == "__main__":
  cli.run(main)
