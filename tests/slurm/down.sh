#!/usr/bin/env bash
# Ends the Slurm that `up.sh FOLDER` started, its jobs first.
export SLURM_CONF=$1/slurm.conf
timeout 10 scancel --user root --full --signal KILL
for daemon in slurmd.pid slurmctld.pid munge/pid; do
    [ -s "$1/$daemon" ] && kill "$(cat "$1/$daemon")"
done
true
