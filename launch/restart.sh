#!/usr/bin/env bash
# Runs a trainer until it is done, and starts it again where it was interrupted.
#
#   launch/restart.sh python -m fmanet_jax.train --config ... --workdir RUN
#
# On one machine with several GPUs that is all: one process uses all of them. On several machines it
# runs on each with --multihost --coordinator HOST:PORT --processes N --process I.
# A trainer that is started again goes on from its last checkpoint. It ends with 0 when it is done, and
# with 2 or 3 when only a person can help or SIGTERM came; then this script ends, too, as it does with
# 126 or 127 for a command that cannot be run, and with 130 after Ctrl-C. After any other end, a lost
# host or device say, it starts again after PAUSE seconds, a whole number (10).
# DRY_RUN=1 prints the command.
set -u

if [ $# -eq 0 ]; then
  echo "error: give the command to be run, such as python -m fmanet_jax.train --config ..." >&2
  exit 2
fi
pause=${PAUSE:-10}
if [[ ! $pause =~ ^[0-9]+$ ]]; then
  echo "error: PAUSE is ${pause@Q}, not a whole number of seconds" >&2
  exit 2
fi
if [ -n "${DRY_RUN:-}" ]; then
  echo "${*@Q}"
  exit 0
fi

stopped=
stop() {
  stopped=1
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
run() { # a command, which gets the SIGTERM that comes meanwhile; its exit code
  "$@" &
  child=$!
  local code
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ends `wait`, but not yet the command
    wait "$child"
    code=$?
  done
  return "$code"
}
child=
trap stop TERM

while true; do
  run "$@"
  code=$?
  case $code in
    0 | 2 | 3 | 126 | 127 | 130) exit "$code" ;;
  esac
  [ -z "$stopped" ] || exit 2
  echo "ended with $code; started again in $pause s" >&2
  run sleep "$pause"
  [ -z "$stopped" ] || exit 2
done
