"""For the scripts that compare with llama-quantize: the types, a model of nothing but given tensors, and
an importance matrix. Writing needs the `gguf` package."""
import json, subprocess

def formats(requant):
    """The types that weights are quantized to, as the program knows them."""
    listed = subprocess.run([requant, "formats", "--json"], check=True, capture_output=True).stdout
    return [f for f in json.loads(listed)["formats"] if f["target"] and f["name"] != "F32"]

def mixes(requant):
    """A mix for each type that has one: those made without importances, those that importances weigh."""
    made = [f for f in formats(requant) if f["kind"] == "blocks" and f["mixes"]]
    mix = lambda f: min(f["mixes"], key=lambda name: name != f["name"])
    return [(False, [mix(f) for f in made if f["importance"] in ("ignored", "weighs")]),
            (True, [mix(f) for f in made if f["importance"] != "ignored"])]

def finish(w):
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()

def write_model(path, tensors):
    """`tensors`: name to rows as f32 and the name of the type that they are stored in."""
    import gguf
    rows, width = next(iter(tensors.values()))[0].shape
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(1); w.add_context_length(512); w.add_embedding_length(width); w.add_feed_forward_length(rows)
    w.add_head_count(1); w.add_layer_norm_rms_eps(1e-6); w.add_vocab_size(32); w.add_file_type(0)
    for name, (x, form) in tensors.items():
        form = gguf.GGMLQuantizationType[form]
        w.add_tensor(name, gguf.quants.quantize(x, form), raw_dtype=form)
    finish(w)

def write_importances(path, sums):
    """`sums`: name of a tensor to a sum of squares for each of its columns, of 100 tokens."""
    import gguf, numpy as np
    w = gguf.GGUFWriter(path, "")
    w.kv_data[0].clear()
    w.add_string("general.type", "imatrix"); w.add_array("imatrix.datasets", ["noise"])
    w.add_uint32("imatrix.chunk_count", 1); w.add_uint32("imatrix.chunk_size", 512)
    for name, values in sums.items():
        w.add_tensor(f"{name}.in_sum2", values)
        w.add_tensor(f"{name}.counts", np.array([100], np.float32))
    finish(w)
