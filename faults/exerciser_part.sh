#!/bin/sh
# A part that is a sub-command of the exerciser: its name, then the arguments of a part.
command=$1
shift
seed=1 scale=
while [ $# -gt 0 ]; do
  case $1 in
    --seed) seed=$2; shift 2 ;;
    --scale) [ "$2" = full ] || scale=--short; shift 2 ;;
    *) echo "$0: unknown argument $1" >&2; exit 2 ;;
  esac
done
"$CKPTD_FAULTS" "$command" --scratch "$FAULTS_SCRATCH" --seed "$seed" $scale
# 1: violations, which the rows tell.
[ $? -le 1 ]
