"""A run in a bucket of an emulator of Google Cloud Storage on this machine."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys
import time
from http import HTTPStatus

import pytest

from tests.data_prep.helpers import write_clip_set, write_flow
from tests.fmanet_jax.test_train import SMALL
from tests.vsr_jax.train.toy import STAGE, batches, init_params
from vsr_jax import paths
from vsr_jax.checkpoint import find_checkpoint, has_checkpoint, read_meta
from vsr_jax.errors import UserError
from vsr_jax.train.loop import fit

WHY = "pip install gcsfs gcp-storage-emulator"
server = pytest.importorskip("gcp_storage_emulator.server", reason=WHY)
# Found, not imported: what `paths` sets in the environment has to come before.
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason=WHY),
]
ROOT = pathlib.Path(__file__).parents[2]


class Emulator:
  """Serves gs://runs on loopback; `closed` makes it refuse to write and remove."""

  def __init__(self, monkeypatch):
    self.closed = False
    emulator, handle = self, server.Router.handle

    def handle_unless_closed(router, method):
      if not emulator.closed or method == "GET":
        return handle(router, method)
      server.Request(router._request_handler, method).data  # noqa: B018 (reads the body)
      response = server.Response(router._request_handler)
      response.status = HTTPStatus.FORBIDDEN
      response.json({"error": {"code": 403, "message": "denied"}})
      return response.close()

    monkeypatch.setattr(server.Router, "handle", handle_unless_closed)
    self.server = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="runs")
    self.server.start()
    deadline = time.monotonic() + 10
    while self.server._api._httpd is None and time.monotonic() < deadline:
      time.sleep(0.01)
    self.url = f"http://127.0.0.1:{self.server._api._httpd.server_address[1]}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", self.url)  # of gcsfs and google.cloud.storage
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", self.url)  # of what Orbax writes with
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # the credentials of a machine there take a while


@pytest.fixture(scope="module")
def emulator():
  with pytest.MonkeyPatch.context() as patch:
    emulator = Emulator(patch)
    yield emulator
    emulator.server.stop()


def command(module, *arguments):
  flags = [f"--config.{name}={value}" for name, value in SMALL.items()]
  words = [*map(str, arguments)]
  if module.endswith("train"):
    words += [*flags, "--config.steps=4", "--config.train.checkpoint_every=1"]
    words += ["--config.train.evaluate_every=100"]
  return [sys.executable, "-m", module, *words]


def run(module, *arguments):
  done = subprocess.run(command(module, *arguments), cwd=ROOT, capture_output=True, text=True)
  return done.returncode, done.stderr


def rows(workdir):
  log = (paths.place(workdir) / "log.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(row).items() if k != "seconds"} for row in log]


def test_a_run_is_trained_killed_resumed_and_evaluated_in_a_bucket(emulator, tmp_path):
  lengths = {"alley": 6, "beach": 8}
  write_clip_set(tmp_path / "set", lengths)
  for name, length in lengths.items():
    write_flow(tmp_path / "set", name, length, 3, 1)
  paths.copy_to(tmp_path / "set", paths.place("gs://runs/set"), last="")
  recipe = "--config", "configs/fmanet/demo.py:joint", "--config.data.root=gs://runs/set"
  once, twice = "gs://runs/once", "gs://runs/twice"
  code, said = run("fmanet_jax.train", *recipe, "--workdir", once)
  assert code == 0, said

  killed = subprocess.Popen(
    command("fmanet_jax.train", *recipe, "--workdir", twice), cwd=ROOT, stderr=subprocess.PIPE
  )
  deadline = time.monotonic() + 300
  while not has_checkpoint(twice):
    assert killed.poll() is None, killed.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.1)
  killed.kill()
  killed.communicate()
  code, said = run("fmanet_jax.train", *recipe, "--workdir", twice)
  assert code == 0, said
  assert read_meta(twice)["step"] == 4
  assert rows(twice) == rows(once)
  assert json.loads((paths.place(twice) / "goodput.json").read_text())["sessions"] == 2

  arguments = "gs://runs/set", "--checkpoint", twice, "--out", "gs://runs/scores", "--frames", "3"
  code, said = run("fmanet_jax.evaluate", *arguments)
  assert code == 0, said
  scores = json.loads(paths.place("gs://runs/scores/metrics.json").read_text())
  assert scores["complete"]
  # The next stage starts from there.
  code, said = run("fmanet_jax.train", *recipe, "--workdir", "gs://runs/next",
                   f"--config.init_from={twice}", "--config.steps=1")  # fmt: skip
  assert code == 0, said


def toy(workdir, **options):
  return fit(
    STAGE, init_params, batches(), workdir=workdir, steps=4, keep=1, checkpoint_every=1,
    evaluate_every=1, **options,
  )  # fmt: skip


def test_what_an_end_in_the_middle_of_a_save_left_is_removed(emulator):
  left = paths.place("gs://runs/left/checkpoints/9/params/d/part")
  left.write_bytes(b"part")
  toy("gs://runs/left")
  assert find_checkpoint("gs://runs/left") == paths.place("gs://runs/left/checkpoints/4")
  assert {name.split("/")[0] for name in paths.sizes(left.parents[3])} == {"4"}


def test_a_bucket_that_is_closed_or_vanishes_in_the_middle_ends_a_run_in_one_line(emulator):
  def close(_, step):
    emulator.closed = step == 3  # the first checkpoint is complete by then
    return {}

  line = r"^gs://runs/closed/checkpoints.*: the bucket cannot be used \(.*denied|Forbidden"
  try:
    with pytest.raises(UserError, match=line):
      toy("gs://runs/closed", evaluate=close)
    with pytest.raises(UserError, match=line):
      toy("gs://runs/closed")  # at once
  finally:
    emulator.closed = False
  assert read_meta("gs://runs/closed")["step"] >= 1

  def wipe(_, step):
    if step == 3:
      emulator.server.wipe()
    return {}

  with pytest.raises(UserError, match=r"^gs://runs/gone.*\(there is no such bucket\)"):
    toy("gs://runs/gone", evaluate=wipe)
