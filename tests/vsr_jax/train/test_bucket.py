"""The loop in a bucket of an emulator of Google Cloud Storage on this machine."""

from __future__ import annotations

import signal
import time

import pytest

from tests.support import gcs, hosts
from tests.vsr_jax.train.test_loop import start_both
from tests.vsr_jax.train.toy import STAGE, batches, init_params
from vsr_jax import paths
from vsr_jax.checkpoint import find_checkpoint, read_meta
from vsr_jax.errors import UserError
from vsr_jax.train.loop import fit

pytestmark = pytest.mark.slow


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


def test_two_hosts_train_as_one_and_sigterm_to_one_saves_on_both(emulator):
  workdir = "gs://runs/hosts"
  processes = start_both(workdir, 10**6)
  gcs.wait_until((paths.place(workdir) / "goodput.json").exists, processes[0])  # steps begin
  processes[1].send_signal(signal.SIGTERM)
  for said in hosts.finish(processes, code=2):
    assert said.splitlines()[-1] == "terminated by SIGTERM"
  step = read_meta(workdir)["step"]
  assert {name.split("/")[0] for name in paths.sizes(paths.place(workdir) / "checkpoints")} == {
    str(step)
  }
  hosts.finish(start_both(workdir, step + 2), code=0)
  fit(STAGE, init_params, batches(), workdir="gs://runs/alone", steps=step + 2, log_every=1)
  two, one = gcs.rows(workdir), gcs.rows("gs://runs/alone")
  assert [row["step"] for row in two] == list(range(1, step + 3))
  for row, other in zip(two, one, strict=True):
    assert row == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("state", ["ended", "silent"])
def test_a_network_that_is_lost_for_good_ends_a_run_in_one_line(emulator, state):
  workdir, lost = f"gs://runs/{state}", []

  def lose(_, step):
    if step == 3:
      emulator.network.become(state)
      lost.append(time.monotonic())
    return {}

  try:
    with pytest.raises(UserError, match=f"^{workdir}/.*: the bucket cannot be used"):
      toy(workdir, evaluate=lose)
  finally:
    emulator.network.become("open")
  assert time.monotonic() - lost[0] < 900
  # What was complete stays, and the run goes on from there.
  assert read_meta(workdir)["step"] in (1, 2)
  assert int(toy(workdir).step) == 4
