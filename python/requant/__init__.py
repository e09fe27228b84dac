"""GGUF quantization and conversion for the DeepSeek-R1 family.

Arrays to blocks and back (:func:`quantize`, :func:`dequantize`), files to look into (:func:`open`), and the
program's work as functions: :func:`plan`, :func:`convert`, :func:`convert_all`, :func:`imatrix`, :func:`perplexity`,
:func:`compare`, :func:`gate`, :func:`mix`. A model is a folder, a file, or a URL such as
``hf://organisation/name``. Results are dataclasses; ``dataclasses.asdict`` makes rows for pandas of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np

from . import _native

__version__ = _native.__version__
__all__ = [
    "Check",
    "Comparison",
    "File",
    "Judgement",
    "Mix",
    "Perplexity",
    "Plan",
    "PlannedTensor",
    "Tensor",
    "compare",
    "convert",
    "convert_all",
    "dequantize",
    "formats",
    "gate",
    "imatrix",
    "mix",
    "open",
    "perplexity",
    "plan",
    "quantize",
]

#: Where a file or folder is; models may be URLs too.
PathLike = Union[str, "os.PathLike[str]"]
#: A text file, or several.
Texts = Union[PathLike, Sequence[PathLike]]
#: Is told how much is done, and of how much in all (0 where that is not known yet), ten times a second; where one
#: piece of work follows another, it begins again at 0.
Progress = Callable[[int, int], Any]


def formats() -> list[dict[str, Any]]:
    """Facts about all block formats, a dictionary each, as ``requant formats --json`` prints them."""
    return json.loads(_native.formats())["formats"]


def _stored(array: Any) -> tuple[np.ndarray, str]:
    """An array of F32, F16 or BF16, with the name of that type; nothing is copied where rows lie together."""
    if hasattr(array, "detach"):  # a torch tensor, whose BF16 numpy has no name for
        array = array.detach().cpu().contiguous()
        if str(array.dtype) == "torch.bfloat16":
            import torch

            return array.view(torch.uint16).numpy(), "BF16"
        array = array.numpy()
    elif not isinstance(array, np.ndarray) and hasattr(array, "__dlpack__"):
        array = np.from_dlpack(array)
    array = np.ascontiguousarray(array)
    name = array.dtype.name
    if name == "bfloat16":  # of ml_dtypes
        return array.view(np.uint16), "BF16"
    if name == "float16":
        return array.view(np.uint16), "F16"
    if name == "float32":
        return array, "F32"
    raise TypeError(f"weights must be float32, float16 or bfloat16, not {name}")


def quantize(array: Any, type: str, importance: Any = None, *, search: bool = False) -> np.ndarray:
    """The blocks of an array's rows in a type such as ``"Q4_K"``, byte for byte those of llama.cpp, or with
    ``search``, which takes longer, nearer to the weights.

    ``array`` is a numpy array or torch tensor, or anything with ``__dlpack__``, of float32, float16 or bfloat16
    (``ml_dtypes``), whose last axis is one that a whole number of blocks fits into. ``importance``, the mean square
    of each column's inputs, has the length of the last axis; for an array of three axes it may have one row for
    each matrix. The result is of uint8, with the bytes of a row as its last axis.
    """
    weights, stored = _stored(array)
    if weights.ndim == 0:
        raise ValueError("a single number has no rows")
    n = weights.shape[-1]
    shape = (*weights.shape[:-1], _native.row_bytes(type, n))
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        if importance.ndim == 2 and weights.ndim == 3 and len(importance) == len(weights):
            parts = [quantize(part, type, own, search=search) for part, own in zip(np.asarray(array), importance)]
            return np.stack(parts) if parts else np.empty(shape, np.uint8)
        if importance.ndim != 1:
            raise ValueError("importance must have one axis, or two where weights have three")
    flat = weights.reshape(-1)
    flat = flat if stored == "F32" else flat.view(np.uint8)
    return _native.quantize(flat, stored, n, type, importance, search).reshape(shape)


def dequantize(data: Any, type: str, shape: Optional[Sequence[int]] = None) -> np.ndarray:
    """The float32 weights that blocks stand for.

    ``data`` is bytes, or an array of uint8; ``shape`` that of the weights. Without a shape, the last axis of ``data``
    holds rows.
    """
    blocks = np.frombuffer(data, np.uint8) if not hasattr(data, "shape") else np.ascontiguousarray(data)
    blocks = blocks.view(np.uint8)
    if shape is None:
        block_len, block_bytes = _native.block(type)
        if blocks.shape[-1] % block_bytes:
            raise ValueError(f"{blocks.shape[-1]} bytes are no whole blocks of {block_bytes}, as {type} has")
        shape = (*blocks.shape[:-1], blocks.shape[-1] // block_bytes * block_len)
    shape = tuple(int(extent) for extent in shape)
    if not shape or min(shape) == 0:
        return np.zeros(shape, np.float32)
    return _native.dequantize(blocks.reshape(-1), type, shape[-1]).reshape(shape)


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file. Nothing is read before it is asked for."""

    name: str
    #: As it is stored: ``"Q4_K"``, ``"BF16"``, …
    type: str
    #: Outermost axis first, as numpy counts.
    shape: tuple[int, ...]
    _file: Any
    _index: int

    @property
    def n_rows(self) -> int:
        """Rows, over all matrices."""
        return int(np.prod(self.shape[:-1], dtype=np.int64))

    def numpy(self, rows: Optional[slice] = None) -> np.ndarray:
        """The weights as float32; with ``rows``, only those, as a matrix."""
        first, end, step = (rows or slice(None)).indices(self.n_rows)
        if step != 1:
            raise ValueError("rows must follow each other")
        values = self._file.read(self._index, first, max(end - first, 0))
        shape = self.shape if rows is None else (max(end - first, 0), self.shape[-1])
        return values.reshape(shape)

    def blocks(self) -> Optional[np.ndarray]:
        """The bytes as they are stored, a row of the tensor each; ``None`` where the file does not hold them so."""
        raw = self._file.raw(self._index, 0, self.n_rows)
        return None if raw is None else raw.reshape(*self.shape[:-1], -1)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.numpy() if dtype is None else self.numpy().astype(dtype, copy=False)


class File(Mapping):
    """A GGUF file, split or not, or a checkpoint folder: a mapping from names to tensors, under GGUF's names."""

    def __init__(self, path: PathLike) -> None:
        self._file = _native.File(os.fspath(path))
        self._tensors = {
            name: Tensor(name, type, tuple(shape), self._file, index)
            for index, (name, type, shape) in enumerate(self._file.tensors())
        }

    @property
    def path(self) -> str:
        """Where it is."""
        return str(self._file.path)

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of a GGUF file; of a checkpoint, its config.json."""
        found = self._file.metadata()
        return json.loads(found) if isinstance(found, str) else found

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, as llama.cpp makes them."""
        return self._file.encode(text)

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """The text of tokens; ``special`` shows the names of those that steer the model, which are left out otherwise.

        Tokens may end within a character: what is no UTF-8 becomes U+FFFD.
        """
        return self._file.decode([int(token) for token in tokens], special)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"<requant.File {self.path!r}, {len(self)} tensors>"


def open(path: PathLike) -> File:
    """Opens a GGUF file or a checkpoint for reading, by its path or URL; of what is elsewhere, only what is asked for is
    fetched.
    """
    return File(path)


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of a file that is to be written."""

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What a conversion writes."""

    file_bytes: int
    bits_per_weight: float
    #: An upper bound on the memory of the run, in bytes.
    peak_memory: int
    tensors: tuple[PlannedTensor, ...]


def plan(source: PathLike, type: str, *, imatrix: Optional[PathLike] = None) -> Plan:
    """What :func:`convert` would write: exact sizes, without a byte written."""
    return _plan(source, None, type, imatrix, False, False, 0, None)


def convert(
    source: PathLike,
    output: PathLike,
    type: str,
    *,
    imatrix: Optional[PathLike] = None,
    search: bool = False,
    force: bool = False,
    threads: int = 0,
    progress: Optional[Progress] = None,
) -> Plan:
    """Writes a checkpoint or a GGUF file as a GGUF file of a type or mix, or a recipe file (``.toml``).

    The tensors are byte for byte those of llama.cpp's tools, or with ``search``, which takes longer, nearer to the
    weights. A run that is stopped, by Ctrl-C too, goes on with the same call. ``progress`` is told weights.
    """
    return _plan(source, output, type, imatrix, search, force, threads, progress)


def convert_all(
    source: PathLike,
    folder: PathLike,
    types: Sequence[str],
    *,
    imatrix: Optional[PathLike] = None,
    search: bool = False,
    force: bool = False,
    threads: int = 0,
    progress: Optional[Progress] = None,
) -> dict[str, Plan]:
    """Writes a GGUF file for each of the types into a folder, in one pass that reads the source once.

    Each file is that of its own :func:`convert`. They are named after the source and their types; the result has the
    plan of each path. A run that is stopped goes on with the same call.
    """
    text = _native.ladder(
        os.fspath(source), os.fspath(folder), list(types),
        None if imatrix is None else os.fspath(imatrix), search, force, threads, progress,
    )
    return {written["path"]: _planned(written["plan"]) for written in json.loads(text)}


def _plan(source, output, type, imatrix, search, force, threads, progress) -> Plan:
    text = _native.convert(
        os.fspath(source), None if output is None else os.fspath(output), type,
        None if imatrix is None else os.fspath(imatrix), search, force, threads, progress,
    )
    return _planned(json.loads(text))


def _planned(found: dict[str, Any]) -> Plan:
    tensors = found.pop("tensors")
    tensors = tuple(PlannedTensor(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in tensors)
    return Plan(tensors=tensors, **found)


def _paths(paths: Texts) -> list[str]:
    one = isinstance(paths, (str, os.PathLike))
    return [os.fspath(path) for path in ([paths] if one else paths)]


def imatrix(
    model: PathLike,
    text: Texts,
    output: PathLike,
    *,
    ctx: int = 512,
    chunks: Optional[int] = None,
    threads: int = 0,
    progress: Optional[Progress] = None,
) -> int:
    """Collects the importances of a model's weights on a text and writes them; the number of entries."""
    return _native.imatrix(
        os.fspath(model), _paths(text), os.fspath(output), (ctx, chunks, threads), progress
    )


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text."""

    perplexity: float
    #: Standard error.
    perplexity_error: float
    #: Mean negative log-likelihood of the scored tokens, in nats.
    mean_nll: float
    tokens_scored: int
    #: Sum of the negative log-likelihoods of each chunk's scored tokens.
    nll_per_chunk: tuple[float, ...]

    @classmethod
    def _of(cls, found: dict[str, Any]) -> Perplexity:
        return cls(**{**found, "nll_per_chunk": tuple(found["nll_per_chunk"])})


def perplexity(
    model: PathLike,
    text: Texts,
    *,
    ctx: int = 512,
    chunks: Optional[int] = None,
    threads: int = 0,
    progress: Optional[Progress] = None,
) -> Perplexity:
    """The perplexity of a model, a checkpoint or a GGUF file, on a text file, by llama-perplexity's rules."""
    found = _native.perplexity(
        os.fspath(model), _paths(text), (ctx, chunks, threads), progress
    )
    return Perplexity._of(json.loads(found))


@dataclass(frozen=True)
class Comparison:
    """What a model loses against a reference on a text."""

    path: str
    bytes: int
    bits_per_weight: float
    #: Mean KL divergence in nats, and its standard error with chunks taken as independent (tokens, for one chunk).
    kl_divergence: float
    kl_divergence_error: float
    #: Pairs of a percentage and the divergence that so many tokens lie below.
    kl_percentiles: tuple[tuple[float, float], ...]
    #: Share of tokens for which both find the same token most probable, and its standard error.
    same_top: float
    same_top_error: float
    perplexity: float
    perplexity_error: float


def compare(
    reference: PathLike,
    models: Union[PathLike, Sequence[PathLike]],
    text: Texts,
    *,
    ctx: int = 512,
    chunks: Optional[int] = None,
    threads: int = 0,
    progress: Optional[Progress] = None,
) -> list[Comparison]:
    """Compares models with a reference on a text file, token by token; all pass it together."""
    found = json.loads(
        _native.compare(
            os.fspath(reference), _paths(models), _paths(text),
            (ctx, chunks, threads), progress,
        )
    )
    return [_compared(model) for model in found["models"]]


def _compared(model: dict[str, Any]) -> Comparison:
    own = model["comparison"]
    divergence, same = own["kl_divergence"], own["same_top"]
    error = divergence["mean_error_by_chunk"]
    return Comparison(
        path=model["path"],
        bytes=model["bytes"],
        bits_per_weight=model["bits_per_weight"],
        kl_divergence=divergence["mean"]["value"],
        kl_divergence_error=divergence["mean"]["error"] if error is None else error,
        kl_percentiles=tuple((float(share), value) for share, value in divergence["percentiles"].items()),
        same_top=same["value"],
        same_top_error=same["error"],
        perplexity=own["perplexity"]["perplexity"],
        perplexity_error=own["perplexity"]["perplexity_error"],
    )


@dataclass(frozen=True)
class Check:
    """One limit of a gate, measured."""

    #: ``"mean_kld"``, ``"ppl_ratio"`` or ``"same_top"``.
    what: str
    value: float
    #: Standard error, chunks taken as independent.
    error: float
    limit: float
    #: ``"pass"``, ``"fail"`` or ``"undecided"``.
    verdict: str
    #: Chunks that would decide it in nine of ten cases, if it is undecided.
    chunks_needed: Optional[int]


@dataclass(frozen=True)
class Judgement:
    """What a gate found."""

    verdict: str
    checks: tuple[Check, ...]
    chunks: int
    chunks_available: int


def gate(
    reference: PathLike,
    model: PathLike,
    text: Texts,
    *,
    max_kld: Optional[float] = None,
    max_ppl_ratio: Optional[float] = None,
    min_same_top: Optional[float] = None,
    confidence: float = 0.99,
    ctx: int = 512,
    chunks: Optional[int] = None,
    threads: int = 0,
    progress: Optional[Progress] = None,
) -> Judgement:
    """Whether a model keeps within limits, decided with as few chunks as the confidence allows."""
    limits = [max_kld, max_ppl_ratio, min_same_top]
    if all(limit is None for limit in limits):
        raise ValueError("give at least one limit")
    found = json.loads(
        _native.gate(
            os.fspath(reference), os.fspath(model), _paths(text), limits, confidence,
            (ctx, chunks, threads), progress,
        )
    )
    found["checks"] = tuple(Check(**check) for check in found["checks"])
    return Judgement(**found)


@dataclass(frozen=True)
class Mix:
    """A mix of types that keeps to a size, and what it costs."""

    #: The type of each tensor that was chosen for.
    types: dict[str, str]
    file_bytes: int
    bits_per_weight: float
    #: What was reckoned, from what groups of tensors cost each.
    expected_kl_divergence: float
    #: What the mix was measured to cost on the second half of the text, and its standard error.
    kl_divergence: float
    kl_divergence_error: float


def mix(
    model: PathLike,
    text: PathLike,
    output: PathLike,
    *,
    bytes: Optional[int] = None,
    bits_per_weight: Optional[float] = None,
    types: Sequence[str] = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0"),
    budgets: Mapping[str, int] = {},
    floors: Mapping[str, str] = {},
    keep: Mapping[str, str] = {},
    imatrix: Optional[PathLike] = None,
    sensitivities: Optional[PathLike] = None,
    search: bool = False,
    ctx: int = 512,
    chunks: Optional[int] = None,
    threads: int = 0,
    progress: Optional[Progress] = None,
) -> Mix:
    """Finds the mix of types that loses least for a size, of a file in bytes or bits per weight, and writes it as a
    recipe, which stands in the place of a type.

    What groups of tensors cost is measured on the first half of the text. ``sensitivities`` names a file that keeps
    it, so that other sizes take no time. ``budgets`` gives roles, such as ``"expert"``, bytes of their own,
    ``floors`` the least type that they may have, and ``keep`` the type of tensors whose names fit a regular expression.
    With ``search``, the mix is chosen for files that are made with ``search``.
    """
    if (bytes is None) == (bits_per_weight is None):
        raise ValueError("give either bytes or bits_per_weight")
    within = (list(types), list(budgets.items()), list(floors.items()), list(keep.items()), search)
    found = _native.mix(
        os.fspath(model), os.fspath(text), os.fspath(output), (bytes, bits_per_weight), within,
        None if imatrix is None else os.fspath(imatrix),
        None if sensitivities is None else os.fspath(sensitivities),
        (ctx, chunks, threads), progress,
    )
    return Mix(**json.loads(found))
