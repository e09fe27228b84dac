#!/usr/bin/env python3
"""Counts the instructions that `requant quantize` spends on a weight, type by type, and compares them
with those recorded in benches/instructions.json: a guard against regressions that needs no quiet
machine. Fails if a count grew by more than 5 %.

    benches/instructions.py [--requant target/release/requant] [--types Q4_K_S,...] [--record]

Needs valgrind and the `gguf` package. Two sizes of input are counted, so that what a run costs
whatever its size cancels. At AVX2; valgrind knows no AVX-512.
"""
import argparse, json, os, re, subprocess, sys, tempfile
import numpy as np
from gguf_files import mixes, write_importances, write_model
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--requant", default="target/release/requant"); p.add_argument("--types")
p.add_argument("--record", action="store_true", help="write benches/instructions.json")
a = p.parse_args()
RECORD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "instructions.json")
TENSOR, WIDTH, ROWS = "blk.0.ffn_gate.weight", 2048, (32, 96)

def count(command):
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *command]
    run = subprocess.run(valgrind, capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    return int(re.search(r"Collected : (\d+)", run.stderr).group(1))

recorded = json.load(open(RECORD)) if os.path.exists(RECORD) else {}
grown = []
with tempfile.TemporaryDirectory() as tmp:
    matrix, out = f"{tmp}/imatrix.gguf", f"{tmp}/out.gguf"
    sources = [f"{tmp}/{rows}.gguf" for rows in ROWS]
    for source, rows in zip(sources, ROWS):
        x = np.random.default_rng(1).standard_normal((rows, WIDTH), dtype=np.float32) * 0.02
        write_model(source, {TENSOR: (x, "BF16")})
    write_importances(matrix, {TENSOR: np.random.default_rng(2).random(WIDTH, dtype=np.float32) * 100 + 1})
    print("| type | importances | instructions per weight | recorded |\n|---|---|---|---|")
    for weighed, kinds in mixes(a.requant):
        for kind in kinds:
            if a.types and kind not in a.types.split(","): continue
            options = ["--imatrix", matrix] if weighed else []
            few, many = (count([a.requant, "quantize", source, out, kind, "--pure", *options, "--simd", "avx2", "--threads", "1", "-q", "-f"]) for source in sources)
            name, cost = kind + (" weighted" if weighed else ""), round((many - few) / (ROWS[1] - ROWS[0]) / WIDTH, 1)
            before = recorded.get(name)
            print(f"| {kind} | {'yes' if weighed else 'no'} | {cost} | {before or 'none'} |", flush=True)
            if before and cost > 1.05 * before and not a.record: grown.append(name)
            recorded[name] = cost
if a.record:
    json.dump(recorded, open(RECORD, "w"), indent=1); open(RECORD, "a").write("\n")
if grown:
    sys.exit("more instructions than recorded: " + ", ".join(grown))
