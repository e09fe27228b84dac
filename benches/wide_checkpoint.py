#!/usr/bin/env python3
"""Writes a checkpoint of R1's widths and a few layers and experts, in block-scaled FP8 with random weights, for timing
and measuring memory where the fixture is too small.

    benches/wide_checkpoint.py FOLDER [--layers 2] [--experts 16] [--hidden 7168]

Vocabulary and configuration are those of tests/fixtures/tiny-r1, whose 2,048 tokens stay.
"""
import argparse, json, os, random, shutil, struct

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("folder"); p.add_argument("--layers", type=int, default=2); p.add_argument("--experts", type=int, default=16)
p.add_argument("--hidden", type=int, default=7168); p.add_argument("--seed", type=int, default=1)
a = p.parse_args()
FIXTURE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests/fixtures/tiny-r1")
HEADS, NOPE, ROPE, VALUES, Q, KV, DENSE, EXPERT, VOCAB = 32, 128, 64, 128, 1536, 512, 18432, 2048, 2048
rng = random.Random(a.seed)
# No NaN among the bytes of a weight, and a BF16 of some 0.02 with either sign.
WITHOUT_NAN = bytes(b - 1 if b & 0x7F == 0x7F else b for b in range(256))

tensors = []
def plain(name, *shape): tensors.append((name, "BF16", shape))
def linear(name, rows, columns):
    tensors.append((name + ".weight", "F8_E4M3", (rows, columns)))
    tensors.append((name + ".weight_scale_inv", "F32", (-(-rows // 128), -(-columns // 128))))
def gated(name, width):
    for part in ("gate_proj", "up_proj"): linear(f"{name}.{part}", width, a.hidden)
    linear(f"{name}.down_proj", a.hidden, width)

plain("model.embed_tokens.weight", VOCAB, a.hidden)
for layer in range(a.layers):
    at = f"model.layers.{layer}"
    for norm in ("input_layernorm", "post_attention_layernorm"): plain(f"{at}.{norm}.weight", a.hidden)
    linear(f"{at}.self_attn.q_a_proj", Q, a.hidden); plain(f"{at}.self_attn.q_a_layernorm.weight", Q)
    linear(f"{at}.self_attn.q_b_proj", HEADS * (NOPE + ROPE), Q)
    linear(f"{at}.self_attn.kv_a_proj_with_mqa", KV + ROPE, a.hidden); plain(f"{at}.self_attn.kv_a_layernorm.weight", KV)
    linear(f"{at}.self_attn.kv_b_proj", HEADS * (NOPE + VALUES), KV)
    linear(f"{at}.self_attn.o_proj", a.hidden, HEADS * VALUES)
    if layer == 0:
        gated(f"{at}.mlp", DENSE)
        continue
    plain(f"{at}.mlp.gate.weight", a.experts, a.hidden)
    tensors.append((f"{at}.mlp.gate.e_score_correction_bias", "F32", (a.experts,)))
    gated(f"{at}.mlp.shared_experts", EXPERT)
    for expert in range(a.experts): gated(f"{at}.mlp.experts.{expert}", EXPERT)
plain("model.norm.weight", a.hidden)
plain("lm_head.weight", VOCAB, a.hidden)

def weights(dtype, n):
    if dtype == "F8_E4M3": return rng.randbytes(n).translate(WITHOUT_NAN)
    if dtype == "F32": return struct.pack("<f", 0.0001) * n
    halves = bytearray(rng.randbytes(2 * n))
    halves[1::2] = bytes(0x3C | b & 0x80 for b in halves[1::2])
    return bytes(halves)

os.makedirs(a.folder, exist_ok=True)
for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
    shutil.copy(os.path.join(FIXTURE, name), a.folder)
config = json.load(open(os.path.join(FIXTURE, "config.json")))
config.update(hidden_size=a.hidden, intermediate_size=DENSE, moe_intermediate_size=EXPERT, n_routed_experts=a.experts,
              num_hidden_layers=a.layers, num_attention_heads=HEADS, num_key_value_heads=HEADS, q_lora_rank=Q, kv_lora_rank=KV,
              num_nextn_predict_layers=0)
json.dump(config, open(os.path.join(a.folder, "config.json"), "w"), indent=1)
SIZES = {"F8_E4M3": 1, "F32": 4, "BF16": 2}
count = lambda shape: shape[0] * (shape[1] if len(shape) > 1 else 1)
header, at = {}, 0
for name, dtype, shape in tensors:
    end = at + count(shape) * SIZES[dtype]
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
    at = end
head = json.dumps(header).encode()
head += b" " * (-len(head) % 8)
with open(os.path.join(a.folder, "model.safetensors"), "wb") as out:
    out.write(struct.pack("<Q", len(head)) + head)
    for _, dtype, shape in tensors: out.write(weights(dtype, count(shape)))
print(f"{len(tensors)} tensors, {at:,} bytes")
