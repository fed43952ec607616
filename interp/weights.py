"""GPT-2's parameters: their shapes, fresh values, and reading them from checkpoints.

Parameters are stored stacked over layers, each as GPT-2 itself stores it (`x @ W + b`, with the
queries', keys' and values' weights fused in `attn.c_attn`). Every reader first compares all names
and shapes with what the config says, and only then allocates and copies, so an error leaves
nothing half done.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooks.names import nearest
from interp import storage
from interp.config import HookedGPT2Config, UnsupportedModelError
from interp.sources import SourceError, read_json, resolve, tokenizer_folder, weight_files
from interp.storage import Reader, SafetensorsReader, StateDictReader, WeightsError, unpickle
from interp.tokenizer import Tokenizer

__all__ = [
    "Loaded",
    "SourceError",
    "UnsupportedModelError",
    "WeightsError",
    "allocate",
    "from_folder",
    "from_hf_model",
    "from_state_dict",
    "initialise",
    "is_hf_model",
    "load",
    "parameter_shapes",
    "parse_device",
    "parse_dtype",
]

Shapes = dict[str, tuple[int, ...]]
Parameters = dict[str, Tensor]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

# What Linear layers store transposed, when compared with GPT-2's own Conv1D.
_MATRICES = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# Put in front of names by torch.compile, DistributedDataParallel and the language-model head.
_PREFIXES = ("_orig_mod.", "module.", "transformer.")
# Older checkpoints store the causal mask, which is no weight, under these names.
CAUSAL_MASK = re.compile(r"h\.(\d+)\.attn\.(bias|masked_bias)")
_SHOWN = 6


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """The dtype meant by ``dtype``: a ``torch.dtype``, its name, or None for float32.

    Raises:
        ValueError: not one of float32, bfloat16, float16 and float64.
    """
    if dtype is None:
        return torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(
            f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.{nearest(name, DTYPES)}"
        )
    return DTYPES[name]


def parse_device(device: torch.device | str) -> torch.device:
    """The device meant by ``device``, checked to be there.

    Raises:
        ValueError: no such kind of device, or torch finds none of it here.
    """
    try:
        parsed = torch.device(device)
    except RuntimeError:
        kind = str(device).partition(":")[0].lower()
        raise ValueError(
            f"Unknown device {device!r}; expected 'cpu', 'cuda', 'cuda:1', 'mps' or the like."
            f"{nearest(kind, ['cpu', 'cuda', 'mps'])}"
        ) from None
    if parsed.type == "meta":
        raise ValueError("device 'meta' holds no numbers, so no model can run there")
    if parsed.type == "cuda" and (parsed.index or 0) >= (found := torch.cuda.device_count()):
        raise ValueError(f"device {str(device)!r} is not there: torch finds {found} CUDA devices")
    if parsed.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' is not there: torch finds no Apple GPU")
    return parsed


def parameter_shapes(
    cfg: HookedGPT2Config, *, tied: bool | None = None, unembed_bias: bool = False
) -> Shapes:
    """Name and shape of every parameter, in the order data flows.

    Those of the blocks (`ln_1`, `attn`, `ln_2`, `mlp`) have `layer` as first axis.

    Args:
        cfg: the model's shape.
        tied: whether the unembedding is the embedding; `cfg.tie_word_embeddings` when left out.
        unembed_bias: whether there is a `lm_head.bias`.
    """
    d, n, hidden = cfg.d_model, cfg.n_layers, cfg.d_mlp
    shapes: Shapes = {
        "wte": (cfg.d_vocab, d),
        "wpe": (cfg.n_ctx, d),
        "ln_1.weight": (n, d),
        "ln_1.bias": (n, d),
        "attn.c_attn.weight": (n, d, 3 * d),
        "attn.c_attn.bias": (n, 3 * d),
        "attn.c_proj.weight": (n, d, d),
        "attn.c_proj.bias": (n, d),
        "ln_2.weight": (n, d),
        "ln_2.bias": (n, d),
        "mlp.c_fc.weight": (n, d, hidden),
        "mlp.c_fc.bias": (n, hidden),
        "mlp.c_proj.weight": (n, hidden, d),
        "mlp.c_proj.bias": (n, d),
        "ln_f.weight": (d,),
        "ln_f.bias": (d,),
    }
    if not (cfg.tie_word_embeddings if tied is None else tied):
        shapes["lm_head.weight"] = (cfg.d_vocab, d)
    if unembed_bias:
        shapes["lm_head.bias"] = (cfg.d_vocab,)
    return shapes


def allocate(
    cfg: HookedGPT2Config,
    *,
    tied: bool | None = None,
    unembed_bias: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
) -> Parameters:
    """Uninitialised parameters with the names and shapes of [`parameter_shapes`][]."""
    device, dtype = parse_device(device), parse_dtype(dtype)
    shapes = parameter_shapes(cfg, tied=tied, unembed_bias=unembed_bias)
    return storage.empty(shapes, device, dtype)


@torch.no_grad()
def initialise(parameters: Parameters, cfg: HookedGPT2Config, seed: int = 0) -> None:
    """Overwrite `parameters` with fresh weights, as GPT-2 starts its training.

    Normal with standard deviation `cfg.initializer_range`, divided by `sqrt(2 * n_layers)` for the
    matrices that write to the residual stream; biases 0, layer-norm weights 1 (Radford et al. 2019,
    "Language Models are Unsupervised Multitask Learners", section 2.3). The same seed gives the
    same weights on every device and, up to rounding, in every dtype. torch's global random state
    is not used.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in parameters.items():
        if name.endswith("bias"):
            value.zero_()
        elif name.startswith("ln_"):
            value.fill_(1.0)
        else:
            std = cfg.initializer_range
            if name.endswith("c_proj.weight"):
                std /= math.sqrt(2 * cfg.n_layers)
            # Layer by layer, so that the draw in float32 is never a second copy of all layers.
            for part in value if value.dim() == 3 else (value,):
                part.copy_(
                    torch.randn(part.shape, generator=generator, dtype=torch.float32).mul_(std)
                )


# ------------------------------------------------------------------ which key goes where


@dataclass(frozen=True)
class _Copy:
    """One tensor of a checkpoint and the parameter, or layer of one, that it fills."""

    key: str
    name: str
    layer: int | None
    transposed: bool


@dataclass(frozen=True)
class _Plan:
    """How a checkpoint's tensors fill the parameters."""

    copies: list[_Copy]
    tied: bool
    unembed_bias: bool
    # The keys of embedding and unembedding, when they are said to be tied and both are there.
    must_agree: tuple[str, str] | None
    without_biases: bool


def _plan(cfg: HookedGPT2Config, shapes: Mapping[str, tuple[int, ...]], where: str) -> _Plan:
    """Match a checkpoint's names and shapes with the config's, or raise naming what differs."""
    found: dict[str, str] = {}
    for key in shapes:
        short = without_prefixes(key)
        if short in found:
            raise WeightsError(f"{where}: {found[short]!r} and {key!r} are the same parameter")
        found[short] = key
    for short in list(found):
        mask = CAUSAL_MASK.fullmatch(short)
        if mask and int(mask[1]) < cfg.n_layers:
            del found[short]

    stacked = "attn.c_attn.weight" in found
    query_key_value = "h.0.attn.c_attn.weight"
    linear = (
        not stacked
        and query_key_value in found
        and shapes[found[query_key_value]] == (3 * cfg.d_model, cfg.d_model)
    )

    embedding, head = ("wte" if stacked else "wte.weight"), "lm_head.weight"
    must_agree = None
    if cfg.tie_word_embeddings and head in found:
        if embedding in found:
            must_agree = (found[embedding], found[head])
        else:
            found[embedding] = found.pop(head)
    expected = _expected(cfg, stacked, linear, "lm_head.bias" in found)
    if must_agree:
        expected[head] = expected[embedding]

    biases = {short for short in expected if short.endswith("bias") and short != "lm_head.bias"}
    # nanoGPT's bias=False: no bias anywhere, in the layer norms neither.
    without_biases = linear and not biases & found.keys()
    if without_biases:
        for short in biases:
            del expected[short]

    check_fit(expected, found, shapes, where)
    copies = [
        _Copy(found[short], name, layer, transposed=linear and name in _MATRICES)
        for short, (name, layer, _) in expected.items()
        if not (must_agree and short == head)
    ]
    return _Plan(
        copies, cfg.tie_word_embeddings, "lm_head.bias" in found, must_agree, without_biases
    )


def without_prefixes(key: str) -> str:
    """A name without what wrappers and the language-model head put in front of it."""
    while prefix := next((p for p in _PREFIXES if key.startswith(p)), None):
        key = key.removeprefix(prefix)
    return key


def _expected(
    cfg: HookedGPT2Config, stacked: bool, linear: bool, unembed_bias: bool
) -> dict[str, tuple[str, int | None, tuple[int, ...]]]:
    """Name in the checkpoint -> (parameter, layer, shape in the checkpoint)."""
    expected: dict[str, tuple[str, int | None, tuple[int, ...]]] = {}
    for name, shape in parameter_shapes(cfg, unembed_bias=unembed_bias).items():
        if stacked:
            expected[name] = (name, None, shape)
        elif name in ("wte", "wpe"):
            expected[f"{name}.weight"] = (name, None, shape)
        elif name.startswith(("ln_f", "lm_head")):
            expected[name] = (name, None, shape)
        else:
            one = shape[:0:-1] if linear and name in _MATRICES else shape[1:]
            for layer in range(cfg.n_layers):
                expected[f"h.{layer}.{name}"] = (name, layer, one)
    return expected


def check_fit(
    expected: Mapping[str, tuple[str, int | None, tuple[int, ...]]],
    found: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
) -> None:
    """Compare a checkpoint's names and shapes with what is expected.

    Args:
        expected: name -> (parameter, layer, shape).
        found: names there are -> as the checkpoint writes them.
        shapes: of the checkpoint's tensors, by its names.
        where: what to call it.

    Raises:
        WeightsError: names missing, unexpected or of the wrong shape, all in one message.
    """
    missing = [short for short in expected if short not in found]
    unexpected = [short for short in found if short not in expected]
    misshaped = [
        f"{found[short]} is {_show(shapes[found[short]])}, expected {_show(shape)}"
        for short, (_, _, shape) in expected.items()
        if short in found and shapes[found[short]] != shape
    ]
    # Suggest only names from the other list: one that is both there and expected is no answer.
    problems = [
        _listed("missing", [f"{m}.{nearest(m, unexpected)}".rstrip(".") for m in missing]),
        _listed(
            "unexpected", [f"{found[u]}.{nearest(u, missing)}".rstrip(".") for u in unexpected]
        ),
        _listed("wrong shape", misshaped),
    ]
    if any(problems):
        raise WeightsError(
            f"{where} does not fit the config: "
            + "; ".join(problem for problem in problems if problem)
        )


def _listed(title: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{title} ({len(items)}): {', '.join(items[:_SHOWN])}{more}"


def _show(shape: Iterable[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


@torch.no_grad()
def _fill(
    cfg: HookedGPT2Config, reader: Reader, device: torch.device, dtype: torch.dtype
) -> Parameters:
    """Allocate the parameters and put every tensor of a checkpoint into its place."""
    plan = _plan(cfg, reader.shapes, reader.where)
    if plan.must_agree:
        embedding, head = (reader.tensor(key) for key in plan.must_agree)
        if embedding.data_ptr() != head.data_ptr() and not torch.equal(embedding, head):
            raise WeightsError(
                f"{reader.where}: the config ties the unembedding to the embedding, but "
                f"{plan.must_agree[1]} differs from {plan.must_agree[0]}; with "
                "tie_word_embeddings=False in the config both are used"
            )
        del embedding, head
    parameters = allocate(
        cfg, tied=plan.tied, unembed_bias=plan.unembed_bias, device=device, dtype=dtype
    )
    for copy in plan.copies:
        target = parameters[copy.name]
        if copy.layer is not None:
            target = target[copy.layer]
        reader.copy_into(copy.key, target.T if copy.transposed else target)
    if plan.without_biases:
        for name, value in parameters.items():
            if name.endswith("bias") and name != "lm_head.bias":
                value.zero_()
    _refuse_not_finite(parameters, reader.where, dtype)
    return parameters


def _refuse_not_finite(parameters: Parameters, where: str, dtype: torch.dtype) -> None:
    """Raise if a weight is NaN or infinite, as after a training that diverged."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, value in parameters.items():
        # The sum is read at memory's speed; a sum may overflow where no number does. A bias of
        # -inf makes a token impossible.
        if name == "lm_head.bias" or value.sum(dtype=wide).isfinite() or value.isfinite().all():
            continue
        wrong = int((~value.isfinite()).sum())
        raise WeightsError(
            f"{where}: {wrong:,} of the {value.numel():,} numbers of {name!r} are NaN or infinite "
            f"in {dtype}; expected finite ones. Either the training of this checkpoint diverged, "
            "or its numbers are too large for the dtype"
        )


# ------------------------------------------------------------------ from memory


def from_state_dict(
    cfg: HookedGPT2Config,
    state_dict: Mapping[Any, Any],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
) -> Parameters:
    """Copy the weights of a state dict into parameters of this package.

    Accepts Hugging Face's layout (Conv1D, `x @ W`), that of minGPT and nanoGPT (Linear, transposed;
    without any bias too), and the stacked one of [`parameter_shapes`][]. The prefixes
    `transformer.`, `_orig_mod.` and `module.` may be there or not; causal masks stored as buffers
    are ignored. `state_dict` is left as it is and shares no memory with the result.

    Args:
        cfg: what the weights should fit. When it ties the unembedding, `lm_head.weight` may be
            left out or must equal the embedding.
        state_dict: weights by name.
        device: where the parameters go.
        dtype: theirs, whatever the state dict's is; float32 when left out.

    Raises:
        WeightsError: names missing, unexpected or of the wrong shape, all in one message; or
            numbers that are NaN or infinite.
    """
    device, dtype = parse_device(device), parse_dtype(dtype)
    where = "the state dict"
    for key, value in state_dict.items():
        check_tensor(key, value, where)
    return _fill(cfg, StateDictReader(state_dict, where), device, dtype)


def check_tensor(key: object, value: object, where: str) -> None:
    """Refuse what is no name or no weight.

    Raises:
        WeightsError: says what it is.
    """
    if not isinstance(key, str):
        raise WeightsError(f"{where}: keys must be strings, got {key!r}")
    if not isinstance(value, Tensor):
        inside = f"; pass what lies under {key!r} instead" if isinstance(value, Mapping) else ""
        raise WeightsError(f"{where}: {key!r} must be a tensor, got {type(value).__name__}{inside}")
    if CAUSAL_MASK.fullmatch(without_prefixes(key)):
        return
    if not value.dtype.is_floating_point or value.itemsize < 2:
        raise WeightsError(
            f"{where}: {key!r} is {value.dtype}; expected one of {', '.join(DTYPES)} "
            "(quantised weights cannot be used)"
        )
    if value.is_meta:
        raise WeightsError(f"{where}: {key!r} is on device 'meta' and holds no numbers")


def is_hf_model(source: object) -> bool:
    """Whether `source` is a model of `transformers`. Does not import it."""
    return any(
        cls.__module__.partition(".")[0] == "transformers" and cls.__name__ == "PreTrainedModel"
        for cls in type(source).__mro__
    )


def from_hf_model(
    model: Any,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
) -> tuple[HookedGPT2Config, Parameters]:
    """Config and copied weights of a `transformers` GPT-2 in memory, which is left as it is.

    Its weights have the last word on whether the unembedding is tied: one that was tied in the
    config but replaced since is used, and the returned config says so.

    Args:
        model: a `GPT2LMHeadModel`, or a `GPT2Model` whose config ties the unembedding.
        device: where the parameters go.
        dtype: theirs; float32 when left out, whatever the model's is.

    Raises:
        TypeError: `model` is none of `transformers`.
        ValueError: a model that is no GPT-2, or a variant that cannot be honoured.
        WeightsError: weights beyond those of a GPT-2 language model (classifiers, adapters).
    """
    if not is_hf_model(model):
        raise TypeError(f"expected a transformers GPT-2 model, got {type(model).__name__}")
    cfg = HookedGPT2Config.from_hf(model.config)
    state = model.state_dict()
    short = {without_prefixes(key): value for key, value in state.items()}
    embedding, head = short.get("wte.weight"), short.get("lm_head.weight")
    if cfg.tie_word_embeddings and embedding is not None and head is not None:
        same = embedding.data_ptr() == head.data_ptr()
        if not (same or torch.equal(embedding, head)):
            cfg = replace(cfg, tie_word_embeddings=False)
    return cfg, from_state_dict(cfg, state, device=device, dtype=dtype)


# ------------------------------------------------------------------ from files


def from_folder(
    path: str | PathLike[str],
    cfg: HookedGPT2Config,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
) -> Parameters:
    """Read the weights in a folder, tensor by tensor, straight into their place.

    Reads `model.safetensors`, else the shards of `model.safetensors.index.json`, else
    `pytorch_model.bin` or its shards, unpickled with `weights_only=True`. The layouts are those of
    [`from_state_dict`][].

    Args:
        path: folder with the files of one checkpoint.
        cfg: what the weights should fit.
        device: where the parameters go.
        dtype: theirs; float32 when left out, so that weights stored in float16 are computed
            with in float32.

    Raises:
        SourceError: no such folder, no weights in it, or a shard is missing.
        WeightsError: a file that is cut short or not of its format, or weights that do not fit.
    """
    device, dtype = parse_device(device), parse_dtype(dtype)
    with opened(weight_files(Path(path))) as reader:
        return _fill(cfg, reader, device, dtype)


@contextmanager
def opened(files: Sequence[Path]) -> Iterator[Reader]:
    """A reader of one file of weights, or of all shards of one checkpoint.

    Raises:
        WeightsError: a file that is cut short or not of its format.
    """
    where = str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} shards)"
    if files[0].suffix == ".safetensors":
        with SafetensorsReader(files, where) as reader:
            yield reader
    else:
        yield StateDictReader(_unpickle(files), where)


def _unpickle(files: Iterable[Path]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in files:
        for key, value in unpickle(file).items():
            check_tensor(key, value, str(file))
            if key in state:
                raise WeightsError(f"{file}: {key!r} is in an earlier shard too")
            state[key] = value
    return state


# ------------------------------------------------------------------ all together


@dataclass(frozen=True)
class Loaded:
    """What a source holds: config, parameters, and the tokenizer if there is one."""

    cfg: HookedGPT2Config
    parameters: Parameters
    tokenizer: Tokenizer | None


def load(
    source: Any,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
) -> Loaded:
    """Load a model by name, from a folder, or from a `transformers` model object.

    The tokenizer of a model object is the one in the folder or cached repository it was loaded
    from, if any; the network is not asked for it.

    Args:
        source: as in [`interp.sources.resolve`][], or a `transformers` GPT-2.
        device: where the parameters go.
        dtype: theirs; float32 when left out.
        revision: branch, tag or commit on the Hub.

    Raises:
        SourceError: no such model, or files missing.
        UnsupportedModelError: a variant that cannot be honoured.
        WeightsError: weights that cannot be read or do not fit the config.
    """
    device, dtype = parse_device(device), parse_dtype(dtype)
    if is_hf_model(source):
        if revision is not None:
            raise SourceError(f"revision={revision!r} cannot be used with a model object")
        cfg, parameters = from_hf_model(source, device=device, dtype=dtype)
        folder = tokenizer_folder(source.config.name_or_path)
        return Loaded(cfg, parameters, _tokenizer(folder, cfg))
    files = resolve(source, revision)
    cfg = HookedGPT2Config.from_hf(read_json(files.config), model_name=files.name)
    tokenizer = _tokenizer(files.folder if files.tokenizer else None, cfg)
    parameters = from_folder(files.folder, cfg, device=device, dtype=dtype)
    return Loaded(cfg, parameters, tokenizer)


def _tokenizer(folder: Path | None, cfg: HookedGPT2Config) -> Tokenizer | None:
    return None if folder is None else Tokenizer.from_folder(folder, d_vocab=cfg.d_vocab)
