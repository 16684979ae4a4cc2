#!/usr/bin/env bash
# A real Slurm with one node, this machine, for the tests: `slurm.sh start` (again: nothing happens) or `slurm.sh stop`.
# Debian or Ubuntu; needs root or sudo, no systemd. It refuses to touch a Slurm that is not its own.
set -euo pipefail
[ "$(id -u)" = 0 ] || exec sudo "$0" "$@"

conf=/etc/slurm/slurm.conf
state=$(dirname "$(mktemp -u)")/lowdim-slurm  # not in the checkout, which may go while the daemons run
mark="# one node, for the tests of Low-Dimensional Learning"

if [ -e "$conf" ] && ! grep -qF "$mark" "$conf"; then
  echo "$conf belongs to another Slurm; it was left alone. Use it: .venv/bin/python -m pytest tests/cluster" >&2
  exit 1
fi

stop() {
  for file in "$state"/slurmd.pid "$state"/slurmctld.pid /run/munge/munged.pid; do
    if [ -s "$file" ]; then kill "$(cat "$file")" 2>/dev/null || true; fi
  done
}

if [ "${1:-}" = stop ]; then stop; exit 0; fi
[ "${1:-}" = start ] || { echo "slurm.sh start or slurm.sh stop" >&2; exit 2; }
if [ -e "$conf" ] && timeout 5 sinfo -h -o %T 2>/dev/null | grep -qE "^(idle|mixed|allocated)$"; then exit 0; fi

if ! command -v slurmctld slurmd squeue munged >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
fi
stop
# All processors: nproc says 1 where OMP_NUM_THREADS is 1, as the Makefile sets it, and jobs would wait for one another.
cpus=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
name=$(hostname -s)
mkdir -p "$state"/state "$state"/spool "$state"/log /run/munge
chown munge:munge /run/munge /var/log/munge /var/lib/munge
[ -e /etc/munge/munge.key ] || su -s /bin/sh munge -c /usr/sbin/mungekey
pgrep -x munged >/dev/null || su -s /bin/sh munge -c "/usr/sbin/munged --force"

# SLURM_CONF would not do: jobs do not inherit it. No cgroups, no accounting; the GPU is a pretended one.
cat > "$conf" <<EOF
$mark
ClusterName=lowdim
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$state/state
SlurmdSpoolDir=$state/spool
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/log/slurmctld.log
SlurmdLogFile=$state/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$state/log/jobs.txt
GresTypes=gpu
NodeName=$name NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.95)}' /proc/meminfo) Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=$name Default=YES MaxTime=INFINITE State=UP
EOF
echo "NodeName=$name Name=gpu File=/dev/zero" > /etc/slurm/gres.conf

/usr/sbin/slurmctld -c
/usr/sbin/slurmd
for _ in $(seq 60); do
  if timeout 5 sinfo -h -o %T 2>/dev/null | grep -q "^idle$"; then exit 0; fi
  sleep 0.5
done
echo "Slurm did not start; its logs are in $state/log." >&2
tail -n 5 "$state"/log/*.log >&2
exit 1
