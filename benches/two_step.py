#!/usr/bin/env python3
"""One checkpoint to GGUF: the reference converter and llama-quantize, against requant, in one run.

    two_step.py CONVERTER_COMMAND LLAMA_QUANTIZE CHECKPOINT [--types Q8_0,Q4_K_M,IQ4_XS]

CONVERTER_COMMAND is quoted and gets `CHECKPOINT --outtype bf16 --outfile FILE` added. Prints a table
of wall time, bytes read and written (sizes of the files that each step goes through), peak resident
memory and peak disk, and below it what bounds requant: the disk's own rates, measured with direct
reads and synced writes. Build requant first: cargo build --release.
"""
import argparse, os, shlex, subprocess, sys, tempfile, time

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("converter"); ap.add_argument("quantize"); ap.add_argument("checkpoint")
ap.add_argument("--types", default="Q8_0,Q4_K_M,IQ4_XS")
ap.add_argument("--threads", default=str(os.cpu_count()))
ap.add_argument("--requant", default=os.path.join(os.path.dirname(__file__), "../target/release/requant"))
ap.add_argument("--dir", help="folder for outputs (default: a temporary one)")
a = ap.parse_args()

def run(*command):
    """Seconds and peak resident memory in bytes."""
    started = time.time()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{shlex.join(command)}:\n{error.decode()}")
    return time.time() - started, usage.ru_maxrss * 1024

def size(path):
    return os.path.getsize(path)

def direct(*arguments):
    out = subprocess.run(["dd", "bs=4M", *arguments], stderr=subprocess.PIPE, text=True).stderr
    return out.strip().rsplit(", ", 1)[-1]

with tempfile.TemporaryDirectory(dir=a.dir) as work:
    source = sum(size(os.path.join(a.checkpoint, f)) for f in os.listdir(a.checkpoint) if f.endswith(".safetensors"))
    middle, ours, theirs = (os.path.join(work, f) for f in ("middle.gguf", "ours.gguf", "theirs.gguf"))
    convert_time, convert_memory = run(*shlex.split(a.converter), a.checkpoint, "--outtype", "bf16", "--outfile", middle)
    between = size(middle)
    print("| type | way | wall time | read | written | peak memory | peak disk |\n|---|---|---|---|---|---|---|")
    gb = lambda n: f"{n / 1e9:.2f} GB"
    for ty in a.types.split(","):
        seconds, memory = run(a.quantize, middle, theirs, ty, a.threads)
        out = size(theirs)
        print(f"| {ty} | two steps | {convert_time + seconds:.1f} s | {gb(source + between)} | {gb(between + out)} "
              f"| {gb(max(memory, convert_memory))} | {gb(between + out)} |")
        os.remove(theirs)
        seconds_ours, memory = run(a.requant, "convert", a.checkpoint, ours, "-t", ty, "-q", "--threads", a.threads)
        print(f"| | requant | {seconds_ours:.1f} s ({(convert_time + seconds) / seconds_ours:.0f} x) | {gb(source)} "
              f"| {gb(size(ours))} | {memory / 1e9:.3f} GB | {gb(size(ours))} |", flush=True)
        os.remove(ours)
    os.remove(middle)
    shard = next(os.path.join(a.checkpoint, f) for f in sorted(os.listdir(a.checkpoint)) if f.endswith(".safetensors"))
    print("\ndisk, read:", direct(f"if={shard}", "of=/dev/null", "iflag=direct"))
    print("disk, write:", direct("if=/dev/zero", f"of={ours}", "count=1000", "conv=fsync"))
