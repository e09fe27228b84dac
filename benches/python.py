#!/usr/bin/env python3
"""Times the module's quantize and dequantize against gguf-py's, in one run, on normal weights: million weights a
second of each, and the ratio. Needs the packages requant and gguf.

    benches/python.py [--rows 512] [--columns 4096] [--repeat 3]
"""
import argparse, time
import gguf, numpy as np, requant
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--rows", type=int, default=512); p.add_argument("--columns", type=int, default=4096)
p.add_argument("--repeat", type=int, default=3)
a = p.parse_args()
weights = np.random.default_rng(0).normal(0, 0.02, (a.rows, a.columns)).astype(np.float32)
importance = np.ones(a.columns, np.float32)

def rate(call):
    """The best of several, in million weights a second; nothing where the package cannot."""
    best = 0.0
    for _ in range(a.repeat):
        begin = time.perf_counter()
        try:
            call()
        except NotImplementedError:
            return None
        best = max(best, weights.size / (time.perf_counter() - begin) / 1e6)
    return best

def shown(ours, theirs):
    return f"{ours:9.0f} {theirs or 0:9.1f} {ours / theirs:8.0f}x" if theirs else f"{ours:9.0f}         –         –"

print(f"{'':8}  quantize: requant, gguf-py         dequantize: requant, gguf-py")
for format in requant.formats():
    name = format["name"]
    if format["kind"] != "blocks" or not format["target"] or not hasattr(gguf.GGMLQuantizationType, name):
        continue
    kind, needed = gguf.GGMLQuantizationType[name], importance if format["importance"] == "required" else None
    data = requant.quantize(weights, name, needed)
    quantize = rate(lambda: requant.quantize(weights, name, needed)), rate(lambda: gguf.quants.quantize(weights, kind))
    dequantize = rate(lambda: requant.dequantize(data, name)), rate(lambda: gguf.quants.dequantize(data, kind))
    print(f"{name:8} {shown(*quantize)}   {shown(*dequantize)}")
