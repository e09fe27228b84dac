#!/usr/bin/env python3
"""Times the module's quantize and dequantize against gguf-py's and libgguf's, in one run, on normal weights: million
weights a second of each, and the ratio of ours to theirs. Calls take turns, so that a machine that does other things
as well is slow for all of them. Needs the packages requant, gguf and libgguf.

    benches/python.py [--rows 512] [--columns 4096] [--repeat 3] [--threads N]
"""
import argparse, os, time
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--rows", type=int, default=512); p.add_argument("--columns", type=int, default=4096)
p.add_argument("--repeat", type=int, default=3); p.add_argument("--threads", type=int, help="of requant")
a = p.parse_args()
if a.threads:
    os.environ["RAYON_NUM_THREADS"] = str(a.threads)
import gguf, libgguf, numpy as np, requant
weights = np.random.default_rng(0).normal(0, 0.02, (a.rows, a.columns)).astype(np.float32)
importance = np.ones(a.columns, np.float32)

def rates(*calls):
    """The best of several of each, in million weights a second; 0 where the package cannot."""
    best = [0.0] * len(calls)
    for _ in range(a.repeat):
        for i, call in enumerate(calls):
            begin = time.perf_counter()
            try:
                call()
            except (NotImplementedError, ValueError):
                continue
            best[i] = max(best[i], weights.size / (time.perf_counter() - begin) / 1e6)
    return best

def shown(ours, *others):
    return " | ".join([f"{ours:.0f}", *(f"{rate:.1f} ({ours / rate:.1f})" if rate else "–" for rate in others)])

print("| type | quantize: requant | gguf-py (ratio) | libgguf (ratio) | dequantize: requant | gguf-py (ratio) | libgguf (ratio) |")
print("|---|---|---|---|---|---|---|")
for format in requant.formats():
    name = format["name"]
    if format["kind"] != "blocks" or not format["target"] or not hasattr(gguf.GGMLQuantizationType, name):
        continue
    kind, needed = gguf.GGMLQuantizationType[name], importance if format["importance"] == "required" else None
    data = requant.quantize(weights, name, needed)
    quantize = rates(
        lambda: requant.quantize(weights, name, needed), lambda: gguf.quants.quantize(weights, kind),
        lambda: libgguf.quantize_rows(weights, kind, needed),
    )
    dequantize = rates(
        lambda: requant.dequantize(data, name), lambda: gguf.quants.dequantize(data, kind),
        lambda: libgguf.dequantize_rows(data, kind, n_per_row=a.columns),
    )
    print(f"| {name} | {shown(*quantize)} | {shown(*dequantize)} |", flush=True)
