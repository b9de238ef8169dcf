"""Worker: trains a stage with the released PyTorch code of KEEP, from its own folder.

    python -m benchmarks.keep_training_reference vqgan|prediction|fusion --folder DIR ...

`basicsr` is imported from DIR, a checkout of the training release (v1.0.0) with its submodule
GMFlow; nothing of it is here. A step does what the released trainer does in an iteration, but for
LPIPS, logs and the weights' moving average. Needs what `benchmarks.keep_reference` needs.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import keep_stages, workload
from benchmarks.keep_reference import MISSING, MODULES, NEEDS, device, device_name, import_keep
from vsr_jax import cli
from vsr_jax.errors import UserError

if MISSING is None:
  import torch
  from torch.nn import functional

Step = Callable[[], list[float]]


def time_stage(stage: str, args: argparse.Namespace) -> dict[str, Any]:
  """Forward, backward and Adam of every network of a stage; seconds of each step, its losses."""
  import_keep(args.folder)
  networks = sys.modules["basicsr.archs.vqgan_arch"]
  if not hasattr(networks, "Discriminator3D"):
    raise UserError(f"{args.folder}: cannot train; give a checkout of KEEP's training release")
  torch.set_num_threads(args.threads)
  make = {"vqgan": vqgan_step, "prediction": prediction_step, "fusion": fusion_step}[stage]
  step = make(keep_stages.task(stage), networks)
  return {
    "device": device_name(),
    **workload.time_steps(step, args.steps),
    "memory": workload.peak_memory(),
  }


def vqgan_step(task: keep_stages.Task, networks: Any) -> Step:
  """A step of stage I."""
  w = keep_stages.WEIGHTS["vqgan"]
  model = placed(networks.VQAutoEncoder(**task.config), task.state)
  judge = placed(networks.VQGANDiscriminator(ndf=keep_stages.WIDTHS["vqgan"]), task.opponent)
  optimizers = adams("vqgan", model.parameters(), judge.parameters())
  truth = signed(task.batch["gt"])
  last = model.generator.blocks[-1].weight

  def step() -> list[float]:
    judge.requires_grad_(False)
    optimizers[0].zero_grad()
    output, codebook, _ = model(truth)
    loss = w["pixel"] * functional.l1_loss(output, truth)
    adversarial = -judge(output).mean()
    norms = [
      torch.linalg.vector_norm(torch.autograd.grad(term, last, retain_graph=True)[0])
      for term in (loss, adversarial)
    ]
    weight = w["adversarial"] * torch.clamp(norms[0] / (norms[1] + 1e-4), 0, 1).detach()
    loss = loss + weight * adversarial + w["codebook"] * codebook
    loss.backward()
    optimizers[0].step()
    return [loss.item(), *train_judge(judge, optimizers[1], truth, output)]

  return step


def prediction_step(task: keep_stages.Task, networks: Any) -> Step:
  """A step of stage II; the L1 loss of the frames, which has no gradient, is left out."""
  w = keep_stages.WEIGHTS["prediction"]
  frozen = ["generator", "quantize", "flownet", "cft", "hq_encoder"]
  model = placed(keep_class()(**task.config, fix_modules=frozen), task.state)
  names = ("img_size", "codebook_size", "attn_resolutions")
  sizes = {name: task.config[name] for name in names}
  teacher = networks.VQHQEncoder(nf=64, ch_mult=[1, 2, 2, 4, 4, 8], **sizes)
  own = {key.removeprefix("hq_"): x for key, x in task.state.items()
         if key.startswith(("hq_encoder.", "quantize."))}  # fmt: skip
  teacher = placed(teacher, own).eval().requires_grad_(False)
  (optimizer,) = adams("prediction", (p for p in model.parameters() if p.requires_grad))
  low, truth = signed(task.batch["lq"]), signed(task.batch["gt"])

  def step() -> list[float]:
    optimizer.zero_grad()
    with torch.no_grad():
      latent = teacher.encoder(truth.flatten(0, 1))
      codes = teacher.quantize(latent)[2]["min_encoding_indices"].view(len(latent), -1)
    _, logits, observed, _ = model(low, detach_16=True, early_feat=True)
    b, c, h, _ = observed.shape
    wanted = model.quantize.get_codebook_feat(codes, shape=[b, h, h, c])
    loss = w["code"] * functional.mse_loss(observed, wanted.detach())
    loss = loss + w["cross_entropy"] * functional.cross_entropy(logits.mT, codes)
    loss.backward()
    optimizer.step()
    return [loss.item()]

  return step


def fusion_step(task: keep_stages.Task, networks: Any) -> Step:
  """A step of stage III."""
  w = keep_stages.WEIGHTS["fusion"]
  model = keep_class()(**task.config, fix_modules=None)
  for modules in (model.cft, model.cfa):  # by the sides of the full size
    for name in list(modules):
      modules[keep_stages.SIDES[name]] = modules.pop(name)
  model = placed(model, task.state).requires_grad_(False)
  model.cft.requires_grad_(True)
  model.cfa.requires_grad_(True)
  judge = placed(networks.Discriminator3D(nf=keep_stages.WIDTHS["fusion"]), task.opponent)
  optimizers = adams(
    "fusion", (p for p in model.parameters() if p.requires_grad), judge.parameters()
  )
  low, truth = signed(task.batch["lq"]), signed(task.batch["gt"])
  tools = sys.modules["basicsr.archs.arch_util"]

  def temporal(features: torch.Tensor) -> torch.Tensor:
    flows = model.get_flow(truth).flatten(0, 1)
    flows = tools.resize_flow(flows, "shape", features.shape[-2:]).permute(0, 2, 3, 1)
    warped = tools.flow_warp(features[:, :-1].flatten(0, 1), flows)
    return torch.sqrt((features[:, 1:].flatten(0, 1) - warped) ** 2 + 1e-12).mean()

  def step() -> list[float]:
    judge.requires_grad_(False)
    optimizers[0].zero_grad()
    output, _, _, features = model(low, detach_16=True, early_feat=True)
    loss = sum(w["temporal"] * temporal(x) for x in features.values())
    loss = loss + w["pixel"] * functional.l1_loss(output, truth)
    loss = loss - w["adversarial"] * judge(output).mean()
    loss.backward()
    optimizers[0].step()
    return [loss.item(), *train_judge(judge, optimizers[1], truth, output)]

  return step


def train_judge(judge: Any, optimizer: Any, truth: torch.Tensor, output: torch.Tensor) -> list:
  """The discriminator's update and its two hinge losses, backward one after the other."""
  judge.requires_grad_(True)
  optimizer.zero_grad()
  losses = []
  for sign, images in ((-1, truth), (1, output.detach())):
    loss = functional.relu(1 + sign * judge(images)).mean()
    loss.backward()
    losses.append(loss.item())
  optimizer.step()
  return losses


def keep_class() -> Any:
  """The released model's class."""
  return sys.modules["basicsr.archs.keep_arch"].KEEP


def placed(net: torch.nn.Module, state: Any) -> torch.nn.Module:
  """A network with the given tensors in training mode, on the GPU if there is one."""
  net.load_state_dict({key: torch.from_numpy(x) for key, x in state.items()})
  return net.to(device()).train()


def adams(stage: str, *params: Any) -> list[torch.optim.Optimizer]:
  """Adam for the networks and for the discriminator."""
  rates = keep_stages.RATES[stage].values()
  return [
    torch.optim.Adam(list(p), lr=rate, betas=keep_stages.BETAS)
    for p, rate in zip(params, rates, strict=True)
  ]


def signed(images: np.ndarray) -> torch.Tensor:
  """uint8 RGB [... h w 3] -> float in [-1, 1], [... 3 h w]."""
  x = np.moveaxis(images, -1, -3).astype(np.float32) / 127.5 - 1
  return torch.from_numpy(np.ascontiguousarray(x)).to(device())


def main() -> None:
  """Runs the worker; see the module's docstring."""
  jobs = {stage: functools.partial(time_stage, stage) for stage in keep_stages.STAGES}
  workload.run_reference(
    "benchmarks.keep_training_reference", __doc__, MISSING, NEEDS, MODULES, jobs
  )


if __name__ == "__main__":
  cli.run(main)
