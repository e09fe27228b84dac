#!/bin/bash
# A Slurm cluster of one controller and two nodes, as processes on this machine, runs a job array
# of four tasks that convert and one of four that compare; one of each is killed and requeued while it
# works. The results must equal those of single runs.
#
#   tests/cluster/slurm.sh CHECKPOINT [REQUANT [TEXT]]
#
# Needs root and slurm-wlm and munge (Debian: apt-get install slurm-wlm munge). Leaves nothing.
set -euo pipefail
checkpoint=$(realpath "$1")
here=$(realpath "$(dirname "$0")")
REQUANT=$(realpath "${2:-$here/../../target/release/requant}")
export REQUANT
text=$(realpath "${3:-$here/../fixtures/text/heldout.txt}")
dir=$(mktemp -d)
export SLURM_CONF=$dir/slurm.conf
pids=()
cleanup() {
    kill "${pids[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$dir"
}
trap cleanup EXIT

# Kills the program of an array's task whose command line is like this; fails where there is none.
kill_task() {
    local pid found=1
    for pid in $(pgrep -f -- "$1"); do
        if grep -qz "^SLURM_ARRAY_TASK_ID=$2\$" "/proc/$pid/environ" 2>/dev/null; then
            kill -KILL "$pid" && found=0
        fi
    done
    return $found
}

host=$(hostname -s)
mkdir -p "$dir"/{state,spool1,spool2,out,one} /run/munge
[ -f /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none
chown -R munge: /etc/munge /run/munge /var/lib/munge /var/log/munge
chmod 400 /etc/munge/munge.key
pgrep -x munged >/dev/null || runuser -u munge -- munged
cat > "$SLURM_CONF" <<CONF
ClusterName=requant
SlurmctldHost=$host
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
SlurmctldPort=16817
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
ReturnToService=2
MpiDefault=none
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=1 State=UNKNOWN
NodeName=node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=1 State=UNKNOWN
PartitionName=all Nodes=node1,node2 Default=YES State=UP MaxTime=INFINITE
CONF
mkdir -p "$dir/spoolnode1" "$dir/spoolnode2"
slurmctld -D & pids+=($!)
slurmd -D -N node1 & pids+=($!)
slurmd -D -N node2 & pids+=($!)
for _ in $(seq 60); do
    [ "$(sinfo -h -t idle -o %D 2>/dev/null || true)" = 2 ] && break
    sleep 1
done
sinfo

size=$(du -sb "$checkpoint" | awk '{ print int($1 / 16) }')
job=$(sbatch --parsable --array=1-4 --chdir="$dir" --output="$dir/task-%a.log" \
    "$here/convert.sbatch" "$checkpoint" "$dir/out/model.gguf" Q4_K_M "$size")
killed=no
while squeue -h -j "$job" 2>/dev/null | grep -q .; do
    if [ $killed = no ] && [ -s "$dir/out/model.gguf.2-of-4.journal" ] &&
        [ "$(wc -l < "$dir/out/model.gguf.2-of-4.journal")" -gt 3 ]; then
        kill_task "$dir/out/model.gguf.*--shard auto" 2 && scontrol requeue "${job}_2" && killed=yes
    fi
    sleep 0.2
done
cat "$dir"/task-*.log
[ $killed = yes ] || { echo "no task could be killed in time; use a larger checkpoint"; exit 1; }
"$REQUANT" convert "$checkpoint" "$dir/one/model.gguf" --type Q4_K_M --split-max-size "$size" -q
diff -r "$dir/out" "$dir/one"
echo "the array's files equal a single run's"

first=$(find "$dir/one" -name '*.gguf' | sort | head -1)
mkdir "$dir/scratch"
measured=(compare "$checkpoint" "$first" --text "$text" --ctx 256 --by-tensor)
job=$(sbatch --parsable --array=1-4 --chdir="$dir" --output="$dir/share-%a.log" \
    "$here/measure.sbatch" "$dir/part" "${measured[@]}" --scratch "$dir/scratch")
killed=no
while squeue -h -j "$job" 2>/dev/null | grep -q .; do
    # Two tasks run at a time.
    if [ $killed = no ] && [ "$(find "$dir/scratch" -name '*.journal' -size +0 | wc -l)" -gt 3 ]; then
        kill_task "--part $dir/part" 2 && scontrol requeue "${job}_2" && killed=yes
    fi
    sleep 0.2
done
cat "$dir"/share-*.log
[ $killed = yes ] || { echo "no share could be killed in time; use a longer text"; exit 1; }
"$REQUANT" join "$dir"/part.*-of-4 --json -q > "$dir/joined.json"
"$REQUANT" "${measured[@]}" --json -q > "$dir/single.json"
cmp "$dir/joined.json" "$dir/single.json"
echo "the joined shares equal a single run"
