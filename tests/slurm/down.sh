#!/usr/bin/env bash
# Stops the Slurm that `up.sh FOLDER` started, after its jobs.
export SLURM_CONF=$1/slurm.conf
timeout 10 scancel --user root --full --signal KILL
for daemon in slurmd.pid slurmctld.pid munge/pid; do
    [ -s "$1/$daemon" ] && kill "$(cat "$1/$daemon")"
done
true
