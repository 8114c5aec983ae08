#!/usr/bin/env bash
# A SLURM of one node with counted GPUs that are no GPUs, for tests: one_node_slurm.sh up|down FOLDER
# Wants root and Debian's slurm-wlm and munge; with ACCOUNTING=1 also slurmdbd and mariadb-server. Own ports on the loopback;
# outside FOLDER only the link /etc/slurm/slurm.conf, since Snakemake's jobs lose SLURM_CONF. Refuses a machine with a SLURM.
set -euo pipefail
[ $# = 2 ] || { echo "usage: $0 up|down FOLDER" >&2; exit 2; }
folder=$(realpath -m "$2") host=$(hostname -s) port=${PORT:-26900} link=/etc/slurm/slurm.conf
export SLURM_CONF=$folder/slurm.conf

wait_for() {  # SECONDS COMMAND...
    local end=$((SECONDS + $1)); shift
    until timeout 5 "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { echo "$0: waited in vain for: $*" >&2; return 1; }
        sleep 0.2
    done
}

accounting() {  # a database, slurmdbd, and the account lab for this user
    mkdir -p "$folder/db"; chown mysql: "$folder/db"
    mariadb-install-db --no-defaults --user=mysql --datadir="$folder/db" --skip-test-db \
        --auth-root-authentication-method=normal >"$folder/log/db" 2>&1
    mariadbd --no-defaults --user=mysql --datadir="$folder/db" --socket="$folder/db/socket" --bind-address=127.0.0.1 \
        --port=$((port + 4)) --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 </dev/null >>"$folder/log/db" 2>&1 &
    echo $! >"$folder/pid/mariadbd"
    local client=(mariadb --no-defaults --socket="$folder/db/socket" -uroot)
    wait_for 60 "${client[@]}" -e "select 1"
    "${client[@]}" -e "create database slurm; create user slurm@localhost, slurm@'127.0.0.1';
        grant all on slurm.* to slurm@localhost; grant all on slurm.* to slurm@'127.0.0.1'"
    cat >"$folder/slurmdbd.conf" <<END
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$((port + 3))
SlurmUser=root
LogFile=$folder/log/slurmdbd
PidFile=$folder/pid/slurmdbd
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 4))
StorageUser=slurm
StorageLoc=slurm
END
    chmod 600 "$folder/slurmdbd.conf"
    SLURM_CONF=$folder/slurmdbd.conf slurmdbd
    wait_for 60 sacctmgr -n show cluster
    sacctmgr -i add cluster one_node >/dev/null
    sacctmgr -i add account lab Description=lab Organization=lab >/dev/null
    sacctmgr -i add user "$(id -un)" account=lab defaultaccount=lab >/dev/null
}

case $1 in
up)
    if [ -e $link ] && [ "$(readlink -f $link)" != "$SLURM_CONF" ]; then
        echo "$0: $link belongs to another SLURM: not touched" >&2; exit 1
    fi
    mkdir -p "$folder"/{log,pid,state,spool,gpu,munge} /etc/slurm
    chown munge: "$folder/munge"; chmod 755 "$folder"
    dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
    chown munge: "$folder/munge/key"; chmod 400 "$folder/munge/key"
    setpriv --reuid=munge --regid=munge --clear-groups munged --force --key-file="$folder/munge/key" \
        --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" \
        --seed-file="$folder/munge/seed"
    wait_for 10 munge -S "$folder/munge/socket" -n
    for number in 0 1 2 3; do mknod "$folder/gpu/nvidia$number" c 4 $((40 + number)); done  # unused terminals
    echo "NodeName=n1 Name=gpu File=$folder/gpu/nvidia[0-3]" >"$folder/gres.conf"
    track=linuxproc task=none  # CGROUP=1: as clusters do, where cgroups of version 1 can be written to
    if [ "${CGROUP:-0}" = 1 ]; then track=cgroup task=cgroup; fi
    printf 'CgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\n' >"$folder/cgroup.conf"
    cat >"$SLURM_CONF" <<END
ClusterName=one_node
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$((port + 1))
SlurmdPort=$((port + 2))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5  # a requeued job waits this long: 120 by itself
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/pid/slurmctld
SlurmdPidFile=$folder/pid/slurmd
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd
ProctrackType=proctrack/$track
TaskPlugin=task/$task
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides  # eight CPUs, however many there are
SchedulerParameters=bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
MpiDefault=none
ReturnToService=2
MailProg=/bin/true
GresTypes=gpu
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 Gres=gpu:4
PartitionName=low Nodes=n1 Default=YES MaxTime=60 DefMemPerCPU=100 PriorityTier=1
PartitionName=fragile Nodes=n1 MaxTime=60 DefMemPerCPU=100 PriorityTier=1 PreemptMode=CANCEL
PartitionName=high Nodes=n1 MaxTime=60 DefMemPerCPU=100 PriorityTier=10 PreemptMode=OFF
END
    if [ "${ACCOUNTING:-0}" = 1 ]; then
        cat >>"$SLURM_CONF" <<END
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=$host
AccountingStoragePort=$((port + 3))
AccountingStoragePass=$folder/munge/socket
AccountingStorageEnforce=associations
END
    fi
    ln -sfn "$SLURM_CONF" $link
    if [ "${ACCOUNTING:-0}" = 1 ]; then accounting; fi
    slurmctld
    slurmd -N n1
    wait_for 60 sh -c '[ "$(sinfo -h -p low -o %T)" = idle ]'
    sinfo -N -p low -o '%N %T %c CPUs, %G'
    ;;
down)
    for pid in "$folder"/pid/{slurmd,slurmctld,slurmdbd,mariadbd} "$folder/munge/pid"; do
        if [ -f "$pid" ]; then
            number=$(cat "$pid")
            kill "$number" 2>/dev/null || true
            for _ in $(seq 100); do kill -0 "$number" 2>/dev/null || break; sleep 0.1; done
        fi
    done
    if [ "$(readlink $link 2>/dev/null)" = "$SLURM_CONF" ]; then
        rm -f $link
        find /sys/fs/cgroup/*/slurm* -depth -type d -exec rmdir {} \; 2>/dev/null || true
    fi
    ;;
*) echo "usage: $0 up|down FOLDER" >&2; exit 2 ;;
esac
