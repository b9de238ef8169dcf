"""The scripts that start trainers again: what they run, and when they end."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TRAINER = [
  "python",
  "-m",
  "keep_jax.train",
  "--config",
  "configs/keep/vqgan.py",
  "--workdir",
  "a b",
]
NAMES = ["restart.sh", "slurm.sh", "tpu_pod.sh"]


def run(script, *arguments, **environment):
  path = f"{environment.pop('folder', ROOT)}:{os.environ['PATH']}"
  return subprocess.run(
    [ROOT / "launch" / script, *arguments],
    cwd=environment.pop("cwd", ROOT),
    env=os.environ | {"PATH": path, "PAUSE": "0"} | environment,
    capture_output=True,
    text=True,
    timeout=30,
  )


def write_command(folder, name, text):
  """A command on PATH that keeps what it is called with; it is called the `$n`-th time."""
  file = folder / name
  file.write_text(
    f'#!/bin/bash\nprintf "%s\\n" "$*" >> {file}.calls\nn=$(wc -l < {file}.calls)\n{text}\n'
  )
  file.chmod(0o755)
  return lambda: pathlib.Path(f"{file}.calls").read_text().splitlines()


@pytest.mark.parametrize("script", NAMES)
def test_without_a_command_one_line_tells_what_is_missing(script):
  ended = run(script)
  assert ended.returncode == 2
  assert len(ended.stderr.splitlines()) == 1
  assert ended.stderr.startswith("error: ")


@pytest.mark.parametrize("script", ["restart.sh", "tpu_pod.sh"])
@pytest.mark.parametrize("pause", ["soon", "-1", "1.5", "1m", "1\n2"])
def test_a_pause_that_is_no_whole_number_of_seconds_is_refused(script, pause):
  ended = run(script, "false", PAUSE=pause, NAME="pod", ZONE="z")
  assert ended.returncode == 2
  (line,) = ended.stderr.splitlines()
  assert line.startswith("error: PAUSE is ")
  assert line.endswith("not a whole number of seconds")


def test_a_job_from_another_folder_is_refused(tmp_path):
  ended = run("slurm.sh", *TRAINER, cwd=tmp_path)
  assert ended.returncode == 2
  (line,) = ended.stderr.splitlines()
  assert line.endswith("submit from the repository's root")


def test_the_dry_form_prints_what_would_be_run():
  assert run("restart.sh", *TRAINER, DRY_RUN="1").stdout.split()[-2:] == ["'a", "b'"]
  alone = run("slurm.sh", *TRAINER, DRY_RUN="1").stdout
  assert alone.startswith("'srun' '--kill-on-bad-exit=1' 'python' '-m' 'keep_jax.train'")
  assert "--multihost" not in alone
  assert run("slurm.sh", *TRAINER, DRY_RUN="1", SLURM_NNODES="2").stdout.endswith("'--multihost'\n")
  options = {"NAME": "pod", "ZONE": "us-central2-b", "MAKE": "make-pod"}
  command, make = run("tpu_pod.sh", *TRAINER, DRY_RUN="1", **options).stdout.splitlines()
  want = "'gcloud' 'compute' 'tpus' 'tpu-vm' 'ssh' 'pod' '--zone=us-central2-b' '--worker=all'"
  assert command.startswith(want)
  assert "--multihost" in command
  assert make == "make-pod"


@pytest.mark.parametrize("code", [0, 2, 3, 126, 127, 130])
def test_a_trainer_starts_again_until_its_end_is_final(tmp_path, code):
  calls = write_command(tmp_path, "trainer", f"[ $n -lt 3 ] && exit 137; exit {code}")
  ended = run("restart.sh", "trainer", "--x", folder=tmp_path)
  assert ended.returncode == code
  assert calls() == ["--x"] * 3
  assert ended.stderr == "ended with 137; started again in 0 s\n" * 2


def test_sigterm_goes_to_the_trainer_and_ends_the_loop(tmp_path):
  calls = write_command(tmp_path, "trainer", "trap 'exit 2' TERM; while true; do sleep 0.05; done")
  process = subprocess.Popen([ROOT / "launch" / "restart.sh", tmp_path / "trainer"])
  while not (tmp_path / "trainer.calls").exists():
    time.sleep(0.05)
  time.sleep(0.3)  # until its trap is set
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=20) == 2
  assert len(calls()) == 1


@pytest.mark.parametrize("last", [0, 2, 3, 126, 127])
def test_a_pod_is_made_anew_until_its_hosts_are_done(tmp_path, last):
  lost, done = (
    "\n".join(f'echo "exit code of a host: {code}"' for code in codes)
    for codes in ((1, 0), (0, last))
  )
  text = f"if [ $n -eq 1 ]; then exit 255; elif [ $n -eq 2 ]; then\n{lost}\nelse\n{done}\nfi"
  calls = write_command(tmp_path, "gcloud", text)
  made = write_command(tmp_path, "make-pod", "exit 1")
  options = {"NAME": "pod", "ZONE": "z", "MAKE": "make-pod x", "folder": tmp_path}
  assert run("tpu_pod.sh", "trainer", **options).returncode == last
  assert len(calls()) == 3
  assert made() == ["x", "x"]


def test_a_pod_of_which_no_host_speaks_is_tried_three_times_in_a_row(tmp_path):
  text = '[ $n -eq 3 ] && echo "exit code of a host: 1"; exit 1'
  calls = write_command(tmp_path, "gcloud", text)
  ended = run("tpu_pod.sh", "trainer", NAME="pod", ZONE="z", folder=tmp_path)
  assert ended.returncode == 2
  assert len(calls()) == 6
  *others, last = ended.stderr.splitlines()
  assert others[1:3] == [
    "the hosts ended with no exit code; started again in 0 s",
    "the hosts ended with 1; started again in 0 s",
  ]
  assert last.startswith("error: three tries in a row ended without a word from a host")


def test_the_hosts_of_a_pod_print_their_exit_codes(tmp_path):
  """The command that gcloud would run there, run here."""
  (tmp_path / "vsr-jax").mkdir()
  calls = write_command(tmp_path, "trainer", "exit 2")
  text = f'cd {tmp_path}; for x in "$@"; do true; done; bash -c "${{x#--command=}}"'
  write_command(tmp_path, "gcloud", text)
  ended = run("tpu_pod.sh", "trainer", "a b", NAME="pod", ZONE="z", folder=tmp_path)
  assert ended.returncode == 2
  assert ended.stdout == "exit code of a host: 2\n"
  assert calls() == ["a b --multihost"]


def test_a_job_that_is_told_to_stop_saves_and_is_queued_again(tmp_path):
  write_command(tmp_path, "srun", "trap 'exit 2' TERM; while true; do sleep 0.05; done")
  cancelled = write_command(tmp_path, "scancel", f'kill -TERM "$(cat {tmp_path}/pid)"')
  queued = write_command(tmp_path, "scontrol", "exit 0")
  text = (tmp_path / "srun").read_text().replace("\n", f"\necho $$ > {tmp_path}/pid\n", 1)
  (tmp_path / "srun").write_text(text)
  environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
  process = subprocess.Popen([ROOT / "launch" / "slurm.sh", "trainer"], cwd=ROOT, env=environment)
  while not (tmp_path / "srun.calls").exists():
    time.sleep(0.05)
  time.sleep(0.3)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=20) == 0
  assert cancelled() == ["--signal=TERM 7"]
  assert queued() == ["requeue 7"]
