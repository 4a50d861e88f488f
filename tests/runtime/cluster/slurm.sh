#!/usr/bin/env bash
# A real Slurm on this machine: each node a network namespace with a host name, an address and a cable that can be pulled.
#   slurm.sh up N | down | on NODE COMMAND... | cut NODE | heal NODE        nodes: ctl, n0, n1, ...
# CLUSTER_DIR holds its state; CLUSTER_NAME, a few letters, keeps two of them apart. Needs root, and no systemd or cgroups.
set -euo pipefail
dir=$CLUSTER_DIR name=${CLUSTER_NAME:-c}
export SLURM_CONF=$dir/slurm.conf
# shellcheck disable=SC2016
on() { local node=$1; shift; ip netns exec "$name-$node" unshare --uts sh -c 'hostname "$0" && exec "$@"' "$node" "$@"; }
configure() {
    local last=$(($1 - 1))
    cat > "$dir/slurm.conf" << CONF
ClusterName=$name
SlurmctldHost=ctl
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$dir/munge.sock,cred_expire=3
SlurmctldPidFile=$dir/ctl.pid
SlurmctldLogFile=$dir/ctl.log
SlurmdPidFile=$dir/%n.pid
SlurmdLogFile=$dir/%n.log
SlurmdSpoolDir=$dir/spool.%n
StateSaveLocation=$dir/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout=15
KillWait=10
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=1,bf_interval=1
RebootProgram=/bin/true
NodeName=n[0-$last] CPUs=16 RealMemory=4000 Gres=gpu:8
PartitionName=batch Nodes=n[0-$last] Default=YES PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=n[0-$last] PriorityTier=10 PreemptMode=OFF
CONF
    echo "Name=gpu File=$dir/gpu[0-7]" > "$dir/gres.conf"  # a bare Count would drain the nodes
    echo CgroupPlugin=cgroup/v1 > "$dir/cgroup.conf"
    for gpu in 0 1 2 3 4 5 6 7; do mknod "$dir/gpu$gpu" c 1 3; done
    (umask 077; head -c 1024 /dev/urandom > "$dir/munge.key")
}
add_node() {  # NODE ADDRESS
    ip netns add "$name-$1"
    mkdir -p "/etc/netns/$name-$1"
    cp "$dir/hosts" "/etc/netns/$name-$1/hosts"
    ip -n "$name-switch" link add "to-$1" type veth peer name eth0 netns "$name-$1"
    ip -n "$name-switch" link set "to-$1" master bridge up
    ip -n "$name-$1" link set lo up
    ip -n "$name-$1" addr add "$2/24" dev eth0
    ip -n "$name-$1" link set eth0 up
}
case $1 in
up)
    mkdir -p "$dir/state"
    chmod 711 "$dir"
    configure "$2"
    { echo 127.0.0.1 localhost; echo 10.213.7.1 ctl; for ((i = 0; i < $2; i++)); do echo "10.213.7.$((i + 2)) n$i"; done; } > "$dir/hosts"
    ip netns add "$name-switch"
    ip -n "$name-switch" link add bridge type bridge
    ip -n "$name-switch" link set bridge up
    while read -r address node; do [ "$node" = localhost ] || add_node "$node" "$address"; done < "$dir/hosts"
    munged --force -S "$dir/munge.sock" --key-file="$dir/munge.key" --pid-file="$dir/munged.pid" \
        --log-file="$dir/munged.log" --seed-file="$dir/munge.seed"
    on ctl slurmctld -c
    for ((i = 0; i < $2; i++)); do on "n$i" slurmd; done
    for _ in $(seq 300); do
        [ "$(on ctl sinfo -h -N -p batch -t idle -o %N 2> /dev/null | wc -l)" = "$2" ] && exit 0
        sleep 0.1
    done
    on ctl sinfo -N -l >&2
    exit 1
    ;;
on) shift; on "$@" ;;
cut) ip -n "$name-switch" link set "to-$2" down ;;
heal) ip -n "$name-switch" link set "to-$2" up ;;
down)
    for file in "$dir"/*.pid; do kill -KILL "$(cat "$file")" 2> /dev/null || true; done
    for space in $(ip netns list | awk -v p="$name-" 'index($1, p) == 1 {print $1}'); do
        ip netns pids "$space" | xargs -r kill -KILL 2> /dev/null || true  # what jobs left
        ip netns del "$space"
        rm -rf "/etc/netns/$space"
    done
    ;;
*) sed -n 3,4p "$0" >&2; exit 2 ;;
esac
