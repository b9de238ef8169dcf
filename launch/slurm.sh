#!/usr/bin/env bash
# Trains on GPUs of a SLURM cluster: a process a node, with all GPUs of it.
#
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh python -m keep_jax.train --config ... --workdir RUN
#
# Submitted from the repository, whose .venv has jax[cuda12]; it and the workdir are on all nodes.
# The trainer is started again until it ends with 0 or 2. When the job reaches its time limit or is
# preempted, it saves first, at the SIGTERM that SLURM sends 120 seconds before, and is queued again.
# DRY_RUN=1 prints the command: DRY_RUN=1 launch/slurm.sh python -m ...
#SBATCH --job-name=vsr-jax
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

if [ $# -eq 0 ]; then
  echo "error: give the command to be run, such as python -m keep_jax.train --config ..." >&2
  exit 2
fi
if [ ! -x launch/restart.sh ]; then
  echo "error: launch/restart.sh is not in $PWD; submit from the repository's root" >&2
  exit 2
fi
multihost=()
[ "${SLURM_NNODES:-1}" -le 1 ] || multihost=(--multihost)
export PATH="$PWD/.venv/bin:$PATH"

stopped=
stop() {
  stopped=1
  scancel --signal=TERM "$SLURM_JOB_ID" # to the trainers; this shell is not among them
}
trap stop TERM

launch/restart.sh srun --kill-on-bad-exit=1 "$@" "${multihost[@]}" &
wait $!
code=$?
while kill -0 $! 2>/dev/null; do # a signal ends `wait`, but not yet the command
  wait $!
  code=$?
done
if [ -n "$stopped" ] && [ "$code" -ne 0 ]; then
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
