#!/usr/bin/env bash
# Trains on all hosts of a TPU pod until the run is done, through preemptions.
#
#   NAME=pod ZONE=us-central2-b launch/tpu_pod.sh python -m keep_jax.train --config ... --workdir RUN
#
# NAME and ZONE are the pod's. FOLDER is that of this repository on its hosts (vsr-jax), which has a
# .venv with jax[tpu]. The workdir must be in a bucket, gs://, or on a file system
# that all hosts share.
# The script ends with 0 where the trainer did on all hosts that say so, and with 2, 3, 126 or 127
# where it did on one. After any other end, such as a broken connection, all of it starts again after
# PAUSE seconds, a whole number (60). MAKE, if it is set, is a command that is run before that, to
# create the pod anew. After three tries in a row in which no host says anything, it ends with 2.
# DRY_RUN=1 prints the commands.
set -u

if [ -z "${NAME:-}" ] || [ -z "${ZONE:-}" ] || [ $# -eq 0 ]; then
  echo "error: set NAME and ZONE to those of the pod, and give the command to be run on its hosts" >&2
  exit 2
fi
pause=${PAUSE:-60}
if [[ ! $pause =~ ^[0-9]+$ ]]; then
  echo "error: PAUSE is ${pause@Q}, not a whole number of seconds" >&2
  exit 2
fi
# gcloud does not hand on the hosts' exit codes, so they print them.
said="exit code of a host:"
remote="cd ${FOLDER:-vsr-jax} && PATH=.venv/bin:\$PATH ${*@Q} --multihost; echo \"$said \$?\""
command=(gcloud compute tpus tpu-vm ssh "$NAME" "--zone=$ZONE" --worker=all "--command=$remote")

if [ -n "${DRY_RUN:-}" ]; then
  echo "${command[*]@Q}"
  [ -z "${MAKE:-}" ] || echo "$MAKE"
  exit 0
fi
output=$(mktemp)
trap 'rm -f "$output"' EXIT
trap 'exit 130' INT
silent=0
while true; do
  "${command[@]}" | tee "$output"
  codes=$(sed -n "s/.*$said \([0-9]*\).*/\1/p" "$output" | sort -u)
  for final in 2 3 126 127; do
    [[ $'\n'$codes$'\n' != *$'\n'$final$'\n'* ]] || exit "$final"
  done
  [ "$codes" != 0 ] || exit 0
  silent=$((silent + 1))
  [ -z "$codes" ] || silent=0
  if [ "$silent" -eq 3 ]; then
    echo "error: three tries in a row ended without a word from a host; see what gcloud says" >&2
    exit 2
  fi
  ended=${codes//$'\n'/, }
  echo "the hosts ended with ${ended:-no exit code}; started again in $pause s" >&2
  sleep "$pause"
  [ -z "${MAKE:-}" ] || bash -c "$MAKE" || echo "MAKE failed; trying the pod that is there" >&2
done
