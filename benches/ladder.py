#!/usr/bin/env python3
"""Ten types of one checkpoint: `requant convert --types` against a run for each, in one go, and whether the
files are equal. Prints a table of wall time, processor time and bytes read by calls. Linux.

    benches/ladder.py CHECKPOINT [--types Q8_0,Q6_K,...] [--imatrix FILE] [--requant target/release/requant]

Where others use the machine, wall time says little; processor time is the program's own.
"""
import argparse, filecmp, os, re, shlex, subprocess, sys, tempfile, time

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("checkpoint"); ap.add_argument("--imatrix"); ap.add_argument("--threads", default=str(os.cpu_count()))
ap.add_argument("--types", default="Q8_0,Q6_K,Q5_K_M,Q5_K_S,Q4_K_M,Q4_K_S,IQ4_XS,Q3_K_L,Q3_K_M,Q2_K")
ap.add_argument("--requant", default=os.path.join(os.path.dirname(__file__), "../target/release/requant"))
ap.add_argument("--dir", help="folder for outputs (default: a temporary one)")
a = ap.parse_args()
more = ["--threads", a.threads, "-q"] + (["--imatrix", a.imatrix] if a.imatrix else [])

def run(*options):
    """Wall and processor seconds, bytes read, peak resident memory."""
    command = [a.requant, "convert", a.checkpoint, *options, *more]
    started = time.time()
    child = subprocess.Popen(command)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    wall = time.time() - started
    read = int(re.search(r"rchar: (\d+)", open(f"/proc/{child.pid}/io").read())[1])
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(shlex.join(command))
    return wall, usage.ru_utime + usage.ru_stime, read, usage.ru_maxrss * 1024

def row(name, wall, processor, read, memory):
    print(f"| {name} | {wall:.1f} s | {processor:.1f} s | {read / 1e9:.2f} GB | {memory / 2**20:.0f} MiB |", flush=True)

with tempfile.TemporaryDirectory(dir=a.dir) as work:
    print("| run | wall time | processor time | read | peak memory |\n|---|---|---|---|---|")
    folder = os.path.join(work, "ladder")
    row("all in one pass", *run(folder, "--types", a.types))
    found = []
    for ty in a.types.split(","):
        single = os.path.join(work, "single.gguf")
        found.append(run(single, "--type", ty))
        row(ty, *found[-1])
        name = next(f for f in os.listdir(folder) if f.endswith(f"-{ty}.gguf"))
        if not filecmp.cmp(single, os.path.join(folder, name), shallow=False):
            sys.exit(f"{name} is not that of its own run")
        os.remove(single)
    row("one by one, together", *[sum(f[i] for f in found) for i in range(3)], max(f[3] for f in found))
