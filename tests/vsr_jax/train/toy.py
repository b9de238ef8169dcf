"""A stage that compiles in a moment, and its real Grain batches; also a command to interrupt."""

from __future__ import annotations

import os
import sys

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vsr_jax import cli
from vsr_jax.data_prep import batching
from vsr_jax.sharding import host_rows, make_mesh
from vsr_jax.train.hosts import join, watched
from vsr_jax.train.loop import fit
from vsr_jax.train.stage import Stage

WIDTH = 8
# Few batches ahead: 500, of which most are never used, take longer than the steps.
READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def init_params(key):
  kernels = jax.random.uniform(key, (3, WIDTH, WIDTH), minval=-0.6, maxval=0.6)
  names = ("encoder", "decoder", "teacher")
  return {name: {"kernel": kernels[i], "bias": jnp.zeros(WIDTH)} for i, name in enumerate(names)}


def dense(net, x):
  return x @ net["kernel"] + net["bias"][None]


def predict(params, batch):
  hidden = jnp.tanh(dense(params["encoder"], batch["x"]))
  return dense(params["decoder"], hidden), hidden


def loss(params, batch, keys):
  y, hidden = predict(params, batch)
  if "noise" in keys:
    y += 1e-2 * jax.random.normal(keys["noise"], y.shape)
  terms = {
    "l2": ((y - batch["y"]) ** 2).mean(),
    "teacher": 0.1 * ((hidden - jnp.tanh(dense(params["teacher"], batch["x"]))) ** 2).mean(),
  }
  return terms["l2"] + terms["teacher"], terms


def images(params, batch):
  y, _ = predict(params, batch)
  small = jnp.clip(batch["x"], 0, 1)[:, :, None, None] * jnp.ones((1, 1, WIDTH, 3))
  large = jnp.clip(y, 0, 1)[:, :, None, None] * jnp.ones((1, 1, 2 * WIDTH, 3))
  return {"input": small, "output": large.repeat(2, axis=1)}


def make_stage(**changes):
  """The decoder learns by Adam with a decaying rate, the encoder by SGD; the teacher is frozen."""
  rate = optax.exponential_decay(3e-2, 20, 0.5)
  values = {
    "name": "toy",
    "loss": loss,
    "optimizers": {"decoder": optax.adam(rate), "encoder": optax.sgd(1e-1)},
    "schedules": {"decoder": rate},
  }
  return Stage(**values | changes)


STAGE = make_stage()


class Samples:
  """Sample i is drawn from seed i."""

  def __len__(self):
    return 32

  def __getitem__(self, i):
    x = np.random.default_rng(i).normal(size=WIDTH).astype(np.float32)
    return {"x": x, "y": np.sin(2 * x)}


def batches(size=8, rows=None):
  samples = grain.MapDataset.source(Samples()).seed(7).shuffle().repeat()
  return iter(batching.batch(samples, size, rows=rows).to_iter_dataset(READ))


class Listed:
  """The given batches, as an iterator that keeps its position."""

  def __init__(self, items):
    self.items, self.at = items, 0

  def __next__(self):
    if self.at == len(self.items):
      raise StopIteration
    self.at += 1
    return self.items[self.at - 1]

  def get_state(self):
    return {"at": self.at}

  def set_state(self, state):
    self.at = state["at"]


def main():
  """WORKDIR STEPS [COORDINATOR HOST HOSTS]: trains until it is interrupted."""
  workdir, steps, *cluster = sys.argv[1:]
  if cluster:
    host, hosts = map(int, cluster[1:])
    jax.config.update("jax_num_cpu_devices", 2)
    join(cluster[0], hosts, host)
  # The hosts take turns along the mesh, as chips of a torus may, so that none has adjacent rows.
  devices = sorted(jax.devices(), key=lambda device: (device.id % 2, device.process_index))
  mesh = make_mesh(devices=devices)
  data = batches(rows=host_rows(mesh, 8))
  options = {"workdir": workdir, "steps": int(steps), "log_every": 1, "fsdp_min_size": 64}
  with watched():
    fit(STAGE, init_params, data, mesh=mesh, meta={"config": os.environ.get("CHANGE")}, **options)


if __name__ == "__main__":
  cli.run(main)
