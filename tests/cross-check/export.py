#!/usr/bin/env python3
"""Opens exported checkpoints with transformers: the original's tokens, special ids, templates and settings.

    export.py REQUANT PYTHON…

Each PYTHON has transformers of another version; the package torch is not needed. tiny-r1 and the models of
family/ get tokenizers of several kinds, are converted and exported, and AutoTokenizer and AutoConfig of the
export are compared with those of the original.
"""
import json, shutil, subprocess, sys, tempfile
from pathlib import Path

FIXTURES = Path(__file__).parent / "../fixtures"
TEXTS = ["", "Hello world", "  two  spaces\n\n\nlines\r\n\tx ", "don't I'M we'll 12345 3.14", "中文，日本語 テスト 한국어", "👩‍👩‍👧 é e\u0301 ﬁ",
         "<｜User｜>hi<｜Assistant｜><think>\nx</think>y<｜end▁of▁sentence｜>", " <think> </think> ", "<|im_start|>user\n<x>Ġ▁", "a\u0000b\u200b"]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
LOOK = """
import json, sys, transformers
transformers.logging.set_verbosity_error()
folder, texts, chat = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
tokenizer, config = transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoConfig.from_pretrained(folder)
try:
    generation = transformers.GenerationConfig.from_pretrained(folder).to_diff_dict()
except OSError:
    generation = {}
special = ["bos", "eos", "unk", "sep", "pad", "mask"]
named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
print(json.dumps({
    "ids": {t: [tokenizer.encode(t, add_special_tokens=s) for s in (False, True)] for t in texts},
    "special": {s: getattr(tokenizer, s + "_token_id") for s in special if getattr(tokenizer, s + "_token")},
    "chat": [tokenizer.apply_chat_template(chat, tokenize=False, chat_template=name) for name in [None, *named] if name or tokenizer.chat_template],
    "config": {k: v for k, v in config.to_dict().items() if k in (
        "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "vocab_size",
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps",
        "max_position_embeddings", "n_routed_experts", "num_experts_per_tok", "routed_scaling_factor", "norm_topk_prob", "topk_method")},
    "generation": {k: v for k, v in generation.items() if k not in ("transformers_version", "_from_model_config")},
}))
"""


def regexes(*splits):
    steps = [{"type": "Split", "pattern": {"Regex": s}, "behavior": "Isolated", "invert": False} for s in splits]
    return {"type": "Sequence", "pretokenizers": [*steps, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]}


QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


def template(bos, eos):
    token = lambda t, n: [{"SpecialToken": {"id": t, "type_id": n}}] if t else []
    around = lambda s, n: token(bos, n) + [{"Sequence": {"id": s, "type_id": n}}] + token(eos, n)
    special = {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in ((bos, 0), (eos, 1)) if t}
    return {"type": "TemplateProcessing", "single": around("A", 0), "pair": around("A", 0) + around("B", 1), "special_tokens": special}


def kinds():
    """Edits of tokenizer.json and tokenizer_config.json, generation_config.json."""
    yield "published", {}, {}, None
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    yield "qwen2", {"pre_tokenizer": regexes(QWEN2), "normalizer": {"type": "NFC"}}, {
        "tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "bos_token": None, "pad_token": "<｜▁pad▁｜>", "unk_token": None,
        "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}, {"name": "tool_use", "template": "T{{ messages[1].content }}"}],
    }, {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    yield "llama3", {"pre_tokenizer": regexes(QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)), "normalizer": None,
                     "post_processor": {"type": "Sequence", "processors": [byte_level, template(BOS, None)]}}, {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "unk_token": "<think>", "sep_token": "<｜User｜>"}, {
        "bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 0.6}
    yield "eos", {"post_processor": template(BOS, EOS)}, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "add_eos_token": True}, None
    yield "plain", {}, {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False}, None


def checkpoint(folder, model, edits, config, generation):
    folder.mkdir()
    for file in model.iterdir():
        shutil.copy(file, folder)
    for name, edit in (("tokenizer.json", edits), ("tokenizer_config.json", config)):
        content = json.loads((FIXTURES / "tiny-r1" / name).read_text())
        content.update(edit)
        if name == "tokenizer.json" and "llama3" in folder.name:
            content["model"]["ignore_merges"] = True
        (folder / name).write_text(json.dumps(content))
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))


def main():
    requant, pythons = sys.argv[1], sys.argv[2:]
    top = Path(tempfile.mkdtemp())
    bad = n = 0
    for model in [FIXTURES / "tiny-r1", *sorted(p for p in (FIXTURES / "family").iterdir() if p.is_dir())]:
        for kind, edits, config, generation in kinds():
            original, file, export = top / f"{model.name}-{kind}", top / "m.gguf", top / f"{model.name}-{kind}-export"
            checkpoint(original, model, edits, config, generation)
            for command in (["convert", original, file, "--outtype", "bf16", "--force", "--strict"], ["export", file, export]):
                done = subprocess.run([requant, *command, "-q"], capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{model.name} {kind}: {command[0]}: {done.stderr}")
            for python in pythons:
                look = lambda folder: json.loads(subprocess.run(
                    [python, "-c", LOOK, folder, json.dumps(TEXTS), json.dumps(CHAT)], check=True, capture_output=True, text=True).stdout.splitlines()[-1])
                a, b = look(original), look(export)
                for part in a if a["generation"] else [part for part in a if part != "generation"]:
                    n += 1
                    if a[part] != b[part]:
                        bad += 1
                        keys = [k for k in {**a[part], **b[part]} if a[part].get(k) != b[part].get(k)] if isinstance(a[part], dict) else ["it"]
                        of = lambda x, k: x[part].get(k) if isinstance(x[part], dict) else x[part]
                        print(f"{model.name} {kind} {Path(python).parent.parent.name}: {part}: " + "; ".join(f"{k!r}: {of(a, k)} is {of(b, k)}" for k in keys[:3]))
            shutil.rmtree(original)
            shutil.rmtree(export)
    shutil.rmtree(top)
    print(f"{bad} of {n} differ")
    sys.exit(bad > 0)


main()
