#!/usr/bin/env python3
"""Times `requant quantize` against llama-quantize, type by type, on the same BF16 file in the page
cache, in turn, and prints a Markdown table of user-visible seconds.

    benches/against_reference.py LLAMA_BIN [--requant target/release/requant] [--weights 16]
                                 [--threads 1] [--runs 3] [--simd LEVEL] [--types Q4_K,...]

LLAMA_BIN is the folder of llama.cpp's built tools. Needs the `gguf` package. The input has rows of
7168 and of 2048, half the weights each; every figure is the least of the runs, process start and
writing included. Run it on an otherwise idle machine.
"""
import argparse, os, subprocess, tempfile, time
import numpy as np
from gguf_files import mixes, write_importances, write_model
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("bin"); p.add_argument("--requant", default="target/release/requant")
p.add_argument("--weights", type=int, default=16, help="millions"); p.add_argument("--threads", default="1")
p.add_argument("--runs", type=int, default=3); p.add_argument("--simd"); p.add_argument("--types")
a = p.parse_args()
rng = np.random.default_rng(1)

def rows(width): return rng.standard_normal((a.weights * 500_000 // width, width), dtype=np.float32) * 0.02

def seconds(command):
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start

with tempfile.TemporaryDirectory() as tmp:
    source, matrix, theirs, ours = (f"{tmp}/{n}" for n in ["in.gguf", "imatrix.gguf", "theirs.gguf", "ours.gguf"])
    tensors = {"blk.0.ffn_gate.weight": 7168, "blk.0.ffn_down.weight": 2048}
    write_model(source, {name: (rows(width), "BF16") for name, width in tensors.items()})
    write_importances(matrix, {name: rng.random(width, dtype=np.float32) * 100 + 1 for name, width in tensors.items()})
    print("| type | importances | llama-quantize | requant | ratio |\n|---|---|---|---|---|")
    for weighed, kinds in mixes(a.requant):
        for kind in kinds:
            if a.types and kind not in a.types.split(","): continue
            options = ["--imatrix", matrix] if weighed else []
            best = [1e9, 1e9]
            for _ in range(a.runs):
                best[0] = min(best[0], seconds([f"{a.bin}/llama-quantize", "--pure", *options, source, theirs, kind, a.threads]))
                simd = ["--simd", a.simd] if a.simd else []
                best[1] = min(best[1], seconds([a.requant, "quantize", source, ours, kind, "--pure", *options, *simd, "--threads", a.threads, "-q", "-f"]))
            assert open(theirs, "rb").read() == open(ours, "rb").read(), f"{kind}: the files differ"
            print(f"| {kind} | {'yes' if weighed else 'no'} | {best[0]:.2f} s | {best[1]:.2f} s | {best[0] / best[1]:.1f} |", flush=True)
