#!/usr/bin/env bash
# Starts a Slurm of one node for the tests, as root, without systemd and without an accounting database. It needs
# `apt-get install slurm-wlm munge`. It has its own folder and ports, so that it changes nothing else on the machine and
# is independent of one that an earlier test left running.
#
#     bash tests/slurm/up.sh FOLDER      # then, to use it: export SLURM_CONF=FOLDER/slurm.conf PATH=$PWD/tests/slurm/bin:$PATH
#     bash tests/slurm/down.sh FOLDER
set -euo pipefail
folder=$(realpath "$1")
mkdir -p "$folder"/{state,spool,log,munge}
chmod 711 "$folder" "$folder/munge"
read -r controller node < <(python3 - <<'PYTHON'
import socket

sockets = [socket.create_server(("", 0)) for _ in range(2)]
print(*(each.getsockname()[1] for each in sockets))
PYTHON
)

# Authentication.
(umask 077; head -c 128 /dev/urandom > "$folder/munge/key")
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/log/munged" --seed-file="$folder/munge/seed"

# Slurm 22.05 fails without a mounted cgroup hierarchy unless it uses cgroup/v1; 23.11 and later can disable it.
version=$(slurmctld -V | grep -o '[0-9]*\.[0-9]*' | head -1)
plugin=$(awk -v version="$version" 'BEGIN { print (version >= 23.11) ? "disabled" : "cgroup/v1" }')
echo "CgroupPlugin=$plugin" > "$folder/cgroup.conf"

# cred_expire: delay of a requeued job. preempt_send_user_signal: jobs get the signal of `--signal` before preemption.
# MinJobAge: finished jobs stay in squeue, which bin/sacct queries. config_overrides: four processors on any machine.
cat > "$folder/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=localhost
SlurmUser=root
SlurmctldPort=$controller
SlurmdPort=$node
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=5,batch_sched_delay=0
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
OverTimeLimit=1
MinJobAge=3600
InactiveLimit=0
NodeName=localhost NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=01:00:00 DefaultTime=00:10:00 PriorityTier=1 GraceTime=30
PartitionName=first Nodes=localhost MaxTime=01:00:00 PriorityTier=10 PreemptMode=OFF
CONF
export SLURM_CONF=$folder/slurm.conf
slurmctld
slurmd -N localhost
for _ in $(seq 60); do
    timeout 5 sinfo --noheader --format %T 2>/dev/null | grep -qE '^(idle|mixed|allocated)$' && exit 0
    sleep 0.25
done
tail -n 5 "$folder"/log/* >&2
exit 1
