#!/usr/bin/env python3
"""The figures of `requant compare`, computed again with numpy from log-probabilities.

    figures.py "REQUANT" REFERENCE MODEL --text FILE [options of compare]

Both models' log-probabilities are saved with --save-base, in llama-perplexity's format of 16 bits,
and everything is computed from these files by its definition, without looking at the program. What
the rounding to 16 bits costs bounds the agreement: see `tolerance`. The format also cuts probabilities
off at e^-16 of the largest: models that find tokens of the text less probable cannot be compared so.
Ends with 1 where a figure is too far off.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


def read(path):
    """Log-probabilities of all scored tokens, one row each, the tokens to predict, and the chunks."""
    data = np.fromfile(path, np.uint8)
    assert data[:8].tobytes() == b"_logits_"
    n_ctx, n_vocab, n_chunk = data[8:20].view(np.int32)
    tokens = data[20:20 + 4 * n_ctx * n_chunk].view(np.int32).reshape(n_chunk, n_ctx)
    width = 8 + 2 * (n_vocab + n_vocab % 2)
    rows = data[20 + 4 * tokens.size:].reshape(-1, width)
    scale, smallest = rows[:, :8].copy().view(np.float32).astype(np.float64).T
    codes = rows[:, 8:].copy().view(np.uint16)[:, :n_vocab]
    first = n_ctx // 2
    return scale[:, None] * codes + smallest[:, None], tokens[:, first + 1:].reshape(-1), n_chunk


def mean(x):
    return x.mean(), np.sqrt((np.mean(x * x) - x.mean() ** 2) / (len(x) - 1))


def figures(p, q, target, n_chunk):
    """Name, value and standard error of everything that is reported."""
    rows = np.arange(len(target))
    a, b = -p[rows, target], -q[rows, target]
    kl = np.where(p > -16, np.exp(p) * (p - q), 0).sum(1)
    change = np.exp(-b) - np.exp(-a)
    # Equal codes have no order: where several are the largest, either model's choice is open.
    tops = [x == x.max(1, keepdims=True) for x in (p, q)]
    either, alone = (tops[0] & tops[1]).any(1), (tops[0].sum(1) == 1) & (tops[1].sum(1) == 1)
    same = either.astype(float)
    (ma, ea), (mb, eb) = mean(a), mean(b)
    ratio, ratio_error = mean(b - a)
    covariance = (np.mean(a * b) - ma * mb) / (len(a) - 1)
    mse, mse_error = mean(change**2)
    by_chunk = mean(kl.reshape(n_chunk, -1).mean(1))[1]
    share = same.mean()
    out = {
        "reference_perplexity.perplexity": np.exp(ma),
        "reference_perplexity.perplexity_error": np.exp(ma) * ea,
        "perplexity.perplexity": np.exp(mb),
        "perplexity.perplexity_error": np.exp(mb) * eb,
        "paired.ln_ratio": ratio,
        "paired.ln_ratio_error": ratio_error,
        "paired.ratio": np.exp(ratio),
        "paired.difference": np.exp(mb) - np.exp(ma),
        "paired.difference_error": np.sqrt(
            np.exp(2 * mb) * eb**2 + np.exp(2 * ma) * ea**2
            - 2 * np.exp(ma + mb) * covariance),
        "correlation": covariance / (ea * eb),
        "kl_divergence.mean.value": kl.mean(),
        "kl_divergence.mean.error": mean(kl)[1],
        "kl_divergence.mean_error_by_chunk": by_chunk,
        "kl_divergence.max": kl.max(),
        "same_top.value": share,
        "same_top.lowest": (either & alone).mean(),
        "p_change.mean.value": change.mean(),
        "p_change.mean.error": mean(change)[1],
        "p_change_rms.value": np.sqrt(mse),
        "p_change_rms.error": 0.5 / np.sqrt(mse) * mse_error,
    }
    for k in (5, 10):
        best = [np.argsort(-x, axis=1, kind="stable")[:, :k] for x in (p, q)]
        out[f"top_k.{k}"] = np.mean([len(np.intersect1d(*pair)) / k for pair in zip(*best)])
    for what, values in (("kl_divergence", kl), ("p_change", change)):
        for percent in (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9):
            out[f"{what}.percentiles.{percent}"] = np.percentile(values, percent)
    return out


# Log-probabilities are in steps of 16 nats / 65535; half of one is the most that each is off.
OFF = 8 / 65535


def tolerance(key, expected, n):
    """How far a figure over `n` tokens may be off, from the rounding of log-probabilities."""
    # The errors are independent and even, with a deviation of OFF / sqrt(3): of a mean, sqrt(n) less.
    # Two models have one each.
    mean = 5 * np.sqrt(2 / 3) * OFF / np.sqrt(n)
    if "error" in key:
        return 2e-3 * expected
    if key.endswith("perplexity.perplexity"):
        return mean * expected
    if key == "paired.difference":
        return None  # In terms of the perplexities: below.
    if key.startswith("top_k"):
        # The last of a set may have the code of the next one.
        return 2e-3
    if key == "correlation":
        return 1e-6
    if "percentiles" in key:
        # Of single tokens, but of many near the one that is met.
        return OFF / 2
    if key.endswith("max"):
        return 2 * OFF
    return mean


def look_up(found, key):
    result = found["models"][0]["result"]
    value = found if key.startswith("reference") else result
    if key.startswith("top_k"):
        return next(top["value"] for top in result["top_k"] if key == f"top_k.{top['k']}")
    *path, last = key.split(".") if "percentiles" not in key else key.split(".", 2)
    for part in path:
        value = value[part]
    if isinstance(value, list):
        return dict((percent, v) for percent, v in value)[float(last)]
    return value[last]


def main():
    requant, reference, model, *rest = sys.argv[1:]
    run = lambda *args: subprocess.run(
        [*shlex.split(requant), "compare", *args, *rest, "-q", "--json"], check=True,
        capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("p", "q")]
        found = json.loads(run(reference, model, "--save-base", files[0]))
        run(model, "--save-base", files[1])
        (p, target, n_chunk), (q, _, _) = map(read, files)
    bad = 0
    expected_figures = figures(p, q, target, n_chunk)
    lowest = expected_figures.pop("same_top.lowest")
    for key, expected in expected_figures.items():
        value = look_up(found, key)
        limit = tolerance(key, expected, len(target))
        if limit is None:
            limit = tolerance("", 0, len(target)) * expected_figures["perplexity.perplexity"]
        close = abs(value - expected) <= limit
        if key == "same_top.value":
            close = lowest - 1e-9 <= value <= expected + 1e-9
        bad += not close
        print(f"{key:42}{value:16.9f}{expected:16.9f}{'' if close else '  <--'}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
