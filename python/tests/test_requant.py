"""The module as its users see it, against gguf-py where that has an answer."""

import dataclasses
import http.server
import pathlib
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

import requant

FIXTURES = pathlib.Path(__file__).parents[2] / "tests" / "fixtures"
MODEL = FIXTURES / "reference" / "tiny-r1-bf16.gguf"
CHECKPOINT = FIXTURES / "tiny-r1"
TEXT = FIXTURES / "text" / "heldout.txt"
CALIBRATION = FIXTURES / "text" / "calibration.txt"


def weights(rows=3, n=512, seed=1):
    return np.random.default_rng(seed).normal(0, 0.02, (rows, n)).astype(np.float32)


def blocks():
    return [f for f in requant.formats() if f["kind"] == "blocks" and f["target"]]


def test_formats_are_those_of_the_program():
    names = {format["name"] for format in requant.formats()}
    assert {"F32", "BF16", "Q4_K", "IQ2_XXS", "MXFP4"} <= names


@pytest.mark.parametrize("format", blocks(), ids=lambda f: f["name"])
def test_blocks_stand_for_what_gguf_says(format):
    gguf = pytest.importorskip("gguf")
    name = format["name"]
    importance = np.linspace(0.5, 2, 512) if format["importance"] == "required" else None
    data = requant.quantize(weights(), name, importance)
    assert data.dtype == np.uint8
    assert data.shape == (3, 512 // format["block_len"] * format["block_bytes"])
    values = requant.dequantize(data, name)
    assert values.shape == (3, 512)
    try:
        expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])
    except (KeyError, NotImplementedError):
        pytest.skip(f"gguf does not know {name}")
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(values, requant.dequantize(data.tobytes(), name, (3, 512)))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_bytes_are_those_of_gguf(name):
    gguf = pytest.importorskip("gguf")
    expected = gguf.quants.quantize(weights(), gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(requant.quantize(weights(), name), expected)


def test_arrays_are_what_files_hold(tmp_path):
    done = []
    path = tmp_path / "out.gguf"
    plan = requant.convert(MODEL, path, "Q4_K_M", progress=lambda n, all: done.append((n, all)))
    assert path.stat().st_size == plan.file_bytes
    assert plan == requant.plan(MODEL, "Q4_K_M")
    assert done and done[-1][0] == done[-1][1] > 0
    original, made = requant.open(MODEL), requant.open(path)
    assert list(made) == [tensor.name for tensor in plan.tensors]
    assert set(made) == set(original)
    kinds = set()
    for name, tensor in made.items():
        assert tensor.shape == original[name].shape
        kinds.add(tensor.type)
        if tensor.type != "F32":
            own = requant.quantize(original[name].numpy(), tensor.type)
            np.testing.assert_array_equal(own, tensor.blocks())
            np.testing.assert_array_equal(requant.dequantize(own, tensor.type), tensor.numpy())
    assert {"Q4_K", "Q6_K", "F32"} <= kinds
    with pytest.raises(OSError, match="exists"):
        requant.convert(MODEL, path, "Q4_K_M")


def test_narrower_arrays_are_widened():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for narrow in [weights().astype(np.float16), weights().astype(ml_dtypes.bfloat16)]:
        wide = requant.quantize(narrow.astype(np.float32), "Q5_K")
        np.testing.assert_array_equal(requant.quantize(narrow, "Q5_K"), wide)
    with pytest.raises(TypeError, match="float64"):
        requant.quantize(weights().astype(np.float64), "Q5_K")


def test_tensors_of_torch_are_arrays():
    torch = pytest.importorskip("torch")
    for dtype in [torch.float32, torch.float16, torch.bfloat16]:
        narrow = torch.from_numpy(weights()).to(dtype)
        wide = requant.quantize(narrow.to(torch.float32).numpy(), "Q5_K")
        np.testing.assert_array_equal(requant.quantize(narrow, "Q5_K"), wide)


def test_each_matrix_may_have_its_own_importances():
    stack = weights(6).reshape(2, 3, 512)
    importance = np.random.default_rng(2).uniform(0.1, 9, (2, 512)).astype(np.float32)
    together = requant.quantize(stack, "Q3_K", importance)
    for part, own, expected in zip(stack, importance, together):
        np.testing.assert_array_equal(requant.quantize(part, "Q3_K", own), expected)
    assert (together != requant.quantize(stack, "Q3_K")).any()


def test_a_wider_search_is_nearer_to_the_weights():
    array = weights()
    for name in ("Q2_K", "Q4_K", "IQ4_XS", "Q5_1"):
        errors = []
        for search in (False, True):
            back = requant.dequantize(requant.quantize(array, name, search=search), name)
            errors.append(float(np.square(back - array).sum()))
        assert errors[1] < errors[0], name


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: requant.quantize(weights(n=500), "Q4_K"), "256"),
        (lambda: requant.quantize(weights(), "Q4_J"), "Q4_J"),
        (lambda: requant.quantize(weights(), "IQ2_XXS"), "importance"),
        (lambda: requant.quantize(weights(), "Q4_K", np.ones(7)), "importance"),
        (lambda: requant.quantize(weights(), "Q4_K", np.full(512, np.nan)), "finite"),
        (lambda: requant.quantize(weights() * np.nan, "Q4_K"), "finite|NaN|nan"),
        (lambda: requant.dequantize(b"1234567", "Q4_K"), "whole"),
        (lambda: requant.dequantize(b"1234567", "Q4_K", (1, 256)), "whole"),
    ],
)
def test_what_cannot_be_is_an_error(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_files_are_read_row_by_row(tmp_path):
    file = requant.open(MODEL)
    assert file.metadata["general.architecture"] == "deepseek2"
    assert isinstance(file.metadata["tokenizer.ggml.tokens"], list)
    tensor = file["blk.0.attn_q_a.weight"]
    assert tensor.type == "BF16"
    np.testing.assert_array_equal(tensor.numpy(slice(2, 5)), tensor.numpy()[2:5])
    np.testing.assert_array_equal(np.asarray(tensor), tensor.numpy())
    checkpoint = requant.open(CHECKPOINT)
    assert checkpoint.metadata["architectures"] == ["DeepseekV3ForCausalLM"]
    assert checkpoint["blk.0.attn_q_a.weight"].shape == tensor.shape
    # The checkpoint's vocabulary begins texts with a token, the file's does not say so.
    assert checkpoint.encode("a text")[1:] == file.encode("a text") != []
    with pytest.raises(OSError, match="nowhere"):
        requant.open(tmp_path / "nowhere.gguf")


def test_tokens_are_text_again(tmp_path):
    text = "Ünïcode, 12 tokens — and\n\tspaces  "
    file = requant.open(MODEL)
    for model in [file, requant.open(CHECKPOINT)]:
        tokens = model.encode(text)
        assert model.decode(tokens) == text
    assert requant.open(CHECKPOINT).decode(tokens, special=True) != text, "it begins with a token of its own"
    with pytest.raises(OSError, match="there is no token 1000000"):
        file.decode([1000000])


def test_several_types_are_written_in_one_pass(tmp_path):
    plans = requant.convert_all(CHECKPOINT, tmp_path / "all", ["Q8_0", "Q4_K_M"])
    single = tmp_path / "single.gguf"
    assert [path.rsplit("-", 1)[1] for path in plans] == ["Q8_0.gguf", "Q4_K_M.gguf"]
    for (path, plan), type in zip(plans.items(), ["Q8_0", "Q4_K_M"]):
        assert plan == requant.convert(CHECKPOINT, single, type, force=True)
        assert single.read_bytes() == pathlib.Path(path).read_bytes()
    with pytest.raises(ValueError, match="at least one type"):
        requant.convert_all(CHECKPOINT, tmp_path, [])


def test_losses_are_measured(tmp_path):
    own = requant.perplexity(MODEL, TEXT, ctx=64, chunks=4)
    assert 60 < own.perplexity < 120 and own.tokens_scored == 4 * 31
    path = tmp_path / "small.gguf"
    requant.convert(MODEL, path, "Q2_K")
    same, worse = requant.compare(MODEL, [MODEL, path], TEXT, ctx=64, chunks=4)
    assert same.kl_divergence == 0 and same.same_top == 1
    assert worse.kl_divergence > 0.01 and worse.bits_per_weight < 5
    assert worse.kl_percentiles and dataclasses.asdict(worse)["path"] == str(path)
    assert same.perplexity == own.perplexity
    judged = requant.gate(MODEL, path, [TEXT], max_kld=1e-4, min_same_top=0.01, ctx=64, chunks=32)
    assert judged.verdict == "fail" and judged.chunks <= judged.chunks_available == 32
    assert {check.verdict for check in judged.checks} == {"pass", "fail"}


def test_mixes_keep_to_a_size(tmp_path):
    recipe, known = tmp_path / "mix.toml", tmp_path / "known.json"
    common = dict(types=["Q3_K", "Q6_K"], sensitivities=known, ctx=64, chunks=8)
    told = []
    mix = requant.mix(
        MODEL, CALIBRATION, recipe, bits_per_weight=5, progress=lambda *pair: told.append(pair), **common
    )
    assert 4.5 < mix.bits_per_weight <= 5 and mix.kl_divergence > 0 and told[-1][0] == told[-1][1]
    plan = requant.plan(MODEL, str(recipe))
    assert plan.file_bytes == mix.file_bytes
    assert mix.types.items() <= {tensor.name: tensor.type for tensor in plan.tensors}.items()
    # What groups cost is known now.
    written = known.read_bytes()
    smaller = requant.mix(MODEL, CALIBRATION, recipe, bytes=mix.file_bytes - 300_000, **common)
    assert smaller.file_bytes <= mix.file_bytes - 300_000
    assert smaller.expected_kl_divergence > mix.expected_kl_divergence
    kept = requant.mix(
        MODEL, CALIBRATION, recipe, bytes=mix.file_bytes, keep={"attn_v_b": "Q3_K"}, floors={"output": "Q6_K"}, **common
    )
    assert kept.types["output.weight"] == "Q6_K"
    assert {type for name, type in kept.types.items() if "attn_v_b" in name} == {"Q3_K"}
    assert known.read_bytes() == written
    with pytest.raises(OSError, match="searched scales"):
        requant.mix(MODEL, CALIBRATION, recipe, bytes=mix.file_bytes, search=True, **common)
    own = common | {"sensitivities": None}
    searched = requant.mix(MODEL, CALIBRATION, recipe, bytes=mix.file_bytes, search=True, **own)
    assert searched.expected_kl_divergence < mix.expected_kl_divergence
    for wrong, words in [({}, "either"), ({"bytes": 1, "floors": {"outputs": "Q6_K"}}, "outputs")]:
        with pytest.raises(ValueError, match=words):
            requant.mix(MODEL, CALIBRATION, recipe, **wrong, **common)
    with pytest.raises(OSError, match="too few"):
        requant.mix(MODEL, CALIBRATION, recipe, bytes=1000, **common)


class Ranges(http.server.BaseHTTPRequestHandler):
    """Serves the fixtures, and parts of them."""

    def do_GET(self):
        path = FIXTURES / self.path.lstrip("/")
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2]), len(data) - 1)) if asked else (0, len(data) - 1)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(data[first : last + 1])

    def log_message(self, *_):
        pass


@pytest.fixture
def served():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_is_elsewhere_is_as_what_is_here(served, tmp_path):
    url = f"{served}/{MODEL.relative_to(FIXTURES)}"
    there, here = requant.open(url), requant.open(MODEL)
    assert there.metadata == here.metadata and list(there) == list(here) and there.path == url
    name = "blk.0.attn_q_a.weight"
    np.testing.assert_array_equal(there[name].numpy(slice(2, 5)), here[name].numpy(slice(2, 5)))
    assert requant.plan(url, "Q4_K_M").tensors == requant.plan(MODEL, "Q4_K_M").tensors
    checkpoint = f"{served}/{CHECKPOINT.name}"
    assert requant.open(checkpoint).encode("a text") == requant.open(CHECKPOINT).encode("a text")
    paths = tmp_path / "there.gguf", tmp_path / "here.gguf"
    for source, path in zip([checkpoint, CHECKPOINT], paths):
        requant.convert(source, path, "Q8_0")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    own = requant.perplexity(url, TEXT, ctx=64, chunks=2)
    assert own == requant.perplexity(MODEL, TEXT, ctx=64, chunks=2)
    with pytest.raises(OSError, match="nowhere"):
        requant.open(f"{served}/nowhere")


def test_importances_are_collected(tmp_path):
    path = tmp_path / "imatrix.gguf"
    assert requant.imatrix(MODEL, TEXT, path, ctx=64, chunks=2) > 20
    plan = requant.convert(MODEL, tmp_path / "out.gguf", "IQ2_XXS", imatrix=path)
    assert any(tensor.type == "IQ2_XXS" for tensor in plan.tensors)


def test_work_can_be_stopped(tmp_path):
    def stop(done, all):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        requant.perplexity(MODEL, TEXT, progress=stop)


def test_the_program_is_there(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "requant", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = run("--version")
    assert done.returncode == 0 and done.stdout == f"requant {requant.__version__}\n"
    done = run("inspect", "nowhere.gguf")
    assert done.returncode == 1 and "nowhere.gguf" in done.stderr
