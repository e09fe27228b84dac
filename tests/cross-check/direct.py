#!/usr/bin/env python3
"""Compares whole files of `requant quantize` with llama-quantize's on large random tensors, type by
type, with and without importances, at each instruction set. Fails if any differ.

    tests/cross-check/direct.py LLAMA_BIN [--requant target/release/requant] [--rows 100000]
        [--width 256] [--types IQ1_S,...] [--kinds gaussian,...] [--importances yes|no]
        [--simd avx2,avx512] [--threads 2] [--seed 1] [--keep DIR]

LLAMA_BIN is the folder of llama.cpp's built tools; needs the `gguf` package. A type's rows are
shared out among the kinds of rows below, a file each. Every type is asked for as `--tensor-type`,
so those without a file type of their own are reached. "refused" is what llama-quantize refuses
itself, such as scales beyond f16 or a lattice type without importances.
"""
import argparse, filecmp, os, subprocess, sys, tempfile
import numpy as np
sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../benches"))
from gguf_files import formats, write_importances, write_model
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("bin"); p.add_argument("--requant", default="target/release/requant")
p.add_argument("--rows", type=int, default=100_000, help="of each type"); p.add_argument("--width", type=int, default=256)
p.add_argument("--types"); p.add_argument("--kinds"); p.add_argument("--importances", choices=["yes", "no"])
p.add_argument("--simd", default="avx2,avx512"); p.add_argument("--threads", default="2")
p.add_argument("--seed", type=int, default=1); p.add_argument("--keep", help="folder for the files of a difference")
a = p.parse_args()
FORMATS = {f["name"]: f for f in formats(a.requant)}

def normal(r, shape): return r.standard_normal(shape, dtype=np.float32)
def scales(r, shape, low, high): return np.exp2(r.integers(low, high, (shape[0], 1))).astype(np.float32)
def spikes(r, shape):
    x = normal(r, shape) * np.float32(1e-3) * (r.random((shape[0], 1)) < 0.5)
    x[np.arange(shape[0]), r.integers(0, shape[1], shape[0])] = normal(r, shape[0]) * 20
    return x
def equal(r, shape):
    x = np.repeat(normal(r, (shape[0], shape[1] // 32)), 32, axis=1)
    x[: shape[0] // 2] = x[: shape[0] // 2, :1]
    return x
def subnormal(r, shape): return (r.integers(0, 2**32, shape, dtype=np.uint32) & 0x807f_ffff).view(np.float32)

# What the reader finds, and rows as f32 from a generator and a shape.
KINDS = {
    "gaussian": ("BF16", lambda r, s: normal(r, s) * np.float32(0.02)),
    "student": ("F32", lambda r, s: (r.standard_t(2, s) * 0.02).clip(-6e4, 6e4)),
    "ties": ("F16", lambda r, s: np.round(normal(r, s) * 8) / 64 * scales(r, s, -6, 6)),
    "zeros": ("BF16", lambda r, s: normal(r, s) * (r.random(s) < 0.5) * np.repeat(r.random((s[0], s[1] // 32)) < 0.7, 32, axis=1)),
    "spikes": ("F32", spikes),
    "equal": ("F32", equal),
    "subnormal": ("F32", lambda r, s: subnormal(r, s) * scales(r, s, 0, 24)),
    "beyond_f16": ("F32", lambda r, s: normal(r, s) * 4e4),
}

TENSOR = "blk.0.ffn_gate.weight"

def model(path, kind, rows):
    form, values = KINDS[kind]
    x = values(np.random.default_rng([a.seed, list(KINDS).index(kind)]), (rows, a.width)).astype(np.float32)
    write_model(path, {TENSOR: (x, form)})

def importances(path):
    v = (np.random.default_rng([a.seed, 99]).random(a.width) ** 6 * 1000).astype(np.float32)
    v[::31] = 0
    write_importances(path, {TENSOR: v})

def run(*command): return subprocess.run(command, capture_output=True, text=True)

kinds = a.kinds.split(",") if a.kinds else list(KINDS)
rows, differ = a.rows // len(kinds), 0
with tempfile.TemporaryDirectory() as tmp:
    matrix, theirs, ours = (f"{tmp}/{name}.gguf" for name in ["imatrix", "llama-quantize", "requant"])
    sources = {kind: f"{tmp}/{kind}.gguf" for kind in kinds}
    for kind, source in sources.items(): model(source, kind, rows)
    importances(matrix)
    for ty in a.types.split(",") if a.types else FORMATS:
        for weighted in [False, True]:
            if weighted and FORMATS[ty]["importance"] == "ignored" or a.importances and weighted != (a.importances == "yes"): continue
            options = ["--pure", "--tensor-type", f"ffn_gate={ty}", *(["--imatrix", matrix] if weighted else [])]
            results = {}
            for kind, source in sources.items():
                if run(f"{a.bin}/llama-quantize", *options, source, theirs, "Q8_0", a.threads).returncode:
                    results.setdefault("refused", []).append(kind)
                    continue
                for simd in a.simd.split(","):
                    made = run(a.requant, "quantize", *options, source, ours, "Q8_0", "--threads", a.threads, "--simd", simd, "-q", "-f")
                    same = made.returncode == 0 and filecmp.cmp(theirs, ours, shallow=False)
                    results.setdefault("equal" if same else "DIFFERENT", []).append(f"{kind}/{simd}")
                    if not same:
                        differ += 1
                        print(f"{kind} {simd}: {made.stderr}", end="", file=sys.stderr)
                        if a.keep: run("cp", source, matrix, theirs, ours, a.keep)
            equal_ = len(results.pop("equal", []))
            rest = "".join(f", {what}: {' '.join(names)}" for what, names in results.items())
            print(f"{ty}{' weighted' if weighted else ''}: {equal_} equal of {rows} rows each{rest}", flush=True)
sys.exit(differ > 0)
