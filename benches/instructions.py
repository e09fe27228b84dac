#!/usr/bin/env python3
"""Counts the instructions that `requant quantize` spends on a weight, type by type, those that `requant convert` spends
on a weight of FP8, and those that `requant perplexity` spends on a token, and compares them with those recorded in
benches/instructions.json: a guard against regressions that needs no quiet machine. Fails if a count grew
by more than 5 %.

    benches/instructions.py [--requant target/release/requant] [--quick] [--types Q4_K_S,...] [--record]

Needs valgrind. Two sizes of input are counted, so that what a run costs whatever its size cancels. At
AVX2; valgrind knows no AVX-512.
"""
import argparse, json, os, random, re, struct, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from gguf_files import mixes
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--requant", default="target/release/requant"); p.add_argument("--types")
p.add_argument("--quick", action="store_true", help="a type of each family")
p.add_argument("--record", action="store_true", help="write benches/instructions.json")
a = p.parse_args()
HERE = os.path.dirname(os.path.abspath(__file__))
RECORD, FIXTURES = os.path.join(HERE, "instructions.json"), os.path.join(HERE, "..", "tests", "fixtures")
QUICK = "Q8_0 Q4_1 Q4_K_S Q6_K IQ4_NL IQ3_XXS IQ1_S TQ1_0".split()
TENSOR, WIDTH, ROWS, CTX, CHUNKS = "blk.0.ffn_gate.weight", 2048, (32, 96), 32, (1, 2)
# glibc clears and copies long stretches with one instruction on some processors, which valgrind counts once a byte.
TUNED = {**os.environ, "GLIBC_TUNABLES": "glibc.cpu.x86_rep_movsb_threshold=1000000000:glibc.cpu.x86_rep_stosb_threshold=1000000000"}
chosen = a.types.split(",") if a.types else QUICK if a.quick else None

def count(*command):
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", a.requant, *command, "--simd", "avx2", "--threads", "1"]
    run = subprocess.run(valgrind, capture_output=True, text=True, env=TUNED)
    if run.returncode:
        sys.exit(run.stderr)
    return int(re.search(r"Collected : (\d+)", run.stderr).group(1))

def counts(commands):
    """The counts of two commands, at the same time."""
    with ThreadPoolExecutor() as pool:
        return pool.map(lambda command: count(*command), commands)

def string(s): return struct.pack("<Q", len(s)) + s.encode()

def write_model(path, rows):
    """A model of one matrix of BF16, drawn from the normal distribution."""
    rng = random.Random(1)
    keys = [("block_count", 1), ("context_length", 512), ("embedding_length", WIDTH), ("feed_forward_length", rows), ("attention.head_count", 1), ("vocab_size", 32)]
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys) + 1) + string("general.architecture") + struct.pack("<I", 8) + string("llama")
    head += b"".join(string(f"llama.{key}") + struct.pack("<II", 4, value) for key, value in keys)
    head += string(TENSOR) + struct.pack("<IQQIQ", 2, WIDTH, rows, 30, 0)
    data = struct.pack(f"<{rows * WIDTH}f", *(rng.gauss(0, 0.02) for _ in range(rows * WIDTH)))
    halves = memoryview(data).cast("H")[1::2].tobytes()
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % 32) + halves)

def write_importances(path):
    """The older format: one entry of 100 calls."""
    rng = random.Random(2)
    values = struct.pack(f"<{WIDTH}f", *(rng.uniform(1, 101) for _ in range(WIDTH)))
    with open(path, "wb") as f:
        f.write(struct.pack("<ii", 1, len(TENSOR)) + TENSOR.encode() + struct.pack("<ii", 100, WIDTH) + values)

recorded, grown = json.load(open(RECORD)) if os.path.exists(RECORD) else {}, []

def compare(name, cost):
    before = recorded.get(name)
    print(f"| {name} | {cost} | {before or 'none'} |", flush=True)
    if before and cost > 1.05 * before and not a.record: grown.append(name)
    recorded[name] = cost

with tempfile.TemporaryDirectory() as tmp:
    matrix, text = f"{tmp}/imatrix.dat", f"{FIXTURES}/text/heldout.txt"
    sources = [f"{tmp}/{rows}.gguf" for rows in ROWS]
    for source, rows in zip(sources, ROWS):
        write_model(source, rows)
    write_importances(matrix)
    print("| what | instructions per weight, per token | recorded |\n|---|---|---|")
    for weighed, kinds in mixes(a.requant):
        options = ["--imatrix", matrix] if weighed else []
        for kind in kinds:
            if chosen and kind not in chosen: continue
            few, many = counts(("quantize", source, source + ".out", kind, "--pure", *options, "-q", "-f") for source in sources)
            compare(kind + (" weighted" if weighed else ""), round((many - few) / (ROWS[1] - ROWS[0]) / WIDTH, 1))
    if not a.types:
        folders = [f"{tmp}/{hidden}" for hidden in (128, 256)]
        for folder in folders:
            subprocess.run([sys.executable, f"{HERE}/wide_checkpoint.py", folder, "--layers", "1", "--hidden", os.path.basename(folder)], check=True, stdout=subprocess.DEVNULL)
        # Nearly all of it are weights of a byte each.
        few, many = (os.path.getsize(f"{folder}/model.safetensors") for folder in folders)
        for kind in ("Q8_0", "BF16"):
            less, more = counts(("convert", folder, folder + ".gguf", "-t", kind, "-q", "-f") for folder in folders)
            compare(f"FP8 to {kind}", round((more - less) / (many - few), 1))
        model = f"{FIXTURES}/reference/tiny-r1-bf16.gguf"
        few, many = counts(("perplexity", model, "--text", text, "--ctx", str(CTX), "--chunks", str(n)) for n in CHUNKS)
        compare("forward pass", round((many - few) / (CHUNKS[1] - CHUNKS[0]) / CTX))
if a.record:
    json.dump(recorded, open(RECORD, "w"), indent=1); open(RECORD, "a").write("\n")
if grown:
    sys.exit("more instructions than recorded: " + ", ".join(grown))
