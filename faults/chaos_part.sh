#!/bin/sh
# A part that is a campaign of `chaos`: its name and options, `--`, points at full and at short scale, then the
# arguments of a part.
set -e
chaos=$CKPTD_BIN/chaos
[ -x "$chaos" ] || { echo "$0: $chaos is missing; \`make faults\` builds it" >&2; exit 2; }
campaign=
while [ "$1" != -- ]; do campaign="$campaign $1"; shift; done
full=$2 short=$3 points=$2
shift 3
seed=1
while [ $# -gt 0 ]; do
  case $1 in
    --seed) seed=$2; shift 2 ;;
    --scale) [ "$2" = full ] && points=$full || points=$short; shift 2 ;;
    *) echo "$0: unknown argument $1" >&2; exit 2 ;;
  esac
done
status=0
# What is set on purpose splits into words.
# shellcheck disable=SC2086
"$chaos" $campaign --points "$points" --seed "$seed" || status=$?
# 1: violations, which the row tells.
[ $status -le 1 ]
