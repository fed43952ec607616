"""The attention weights of a GPT-2 without the rest of it.

For a checkpoint of which only the attention layers are at hand, and for weights that come from
somewhere else altogether.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.composition import Circuits
from interp.sources import read_json, weight_files
from interp.storage import Reader, StateDictReader, WeightsError
from interp.views import WeightViews
from interp.weights import (
    CAUSAL_MASK,
    check_fit,
    check_tensor,
    opened,
    parse_device,
    parse_dtype,
    without_prefixes,
)

_OF_LAYER = re.compile(r"h\.(\d+)\.(attn\.\w+\.\w+)")
_QKV, _OUT = "attn.c_attn.weight", "attn.c_proj.weight"
# A layer whose number has more digits than this is no layer, and would take long to count up to.
_MOST_DIGITS = 9
_SHOWN = 5


class HeadsUnknown(ValueError):
    """Nobody said how many heads a layer has.

    Attributes:
        why: where it was looked for.
    """

    def __init__(self, why: str) -> None:
        """Say where it was looked for, and what would help."""
        super().__init__(f"{why}: give n_heads")
        self.why = why


@dataclass(frozen=True, eq=False, repr=False)
class AttentionLayers(Circuits):
    """The weights of all heads, `layer head ...`, under TransformerLens' names.

    Has `QK` and `OV` as a model has. Biases are left out, as they are from circuits.

    Attributes:
        W_Q, W_K, W_V: what queries, keys and values are computed with, `x @ W`.
        W_O: what heads write with, `z @ W`.
        name: what to call them.
    """

    W_Q: Float[Tensor, "layer head d_model d_head"]
    W_K: Float[Tensor, "layer head d_model d_head"]
    W_V: Float[Tensor, "layer head d_model d_head"]
    W_O: Float[Tensor, "layer head d_head d_model"]
    name: str = "attention layers"

    def __post_init__(self) -> None:
        """Check that the weights fit together.

        Raises:
            ValueError, TypeError: other shapes, dtypes or devices; says which.
        """
        first = self.W_Q
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or not value.is_floating_point():
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"{name} is a tensor of floating-point numbers, not {kind}")
            axes = "layer head d_head d_model" if name == "W_O" else "layer head d_model d_head"
            if value.ndim != 4:
                raise ValueError(
                    f"{name} is {axes}, not of shape {list(value.shape)} (a single layer is "
                    f"{name}[None])"
                )
            expected = first.mT.shape if name == "W_O" else first.shape
            if value.shape != expected:
                raise ValueError(
                    f"{name} has shape {list(value.shape)}; with W_Q {list(first.shape)} it must "
                    f"be {axes}, {list(expected)}"
                )
            if (value.dtype, value.device) != (first.dtype, first.device):
                raise ValueError(
                    f"{name} is {value.dtype} on {value.device}, W_Q {first.dtype} on "
                    f"{first.device}: all must be of one dtype and on one device"
                )

    @classmethod
    def from_model(cls, model: WeightViews) -> "AttentionLayers":
        """Views of a model's attention weights, outside of the autograd graph."""
        w_q, w_k, w_v = (w.detach() for w in (model.W_Q, model.W_K, model.W_V))
        return cls(w_q, w_k, w_v, model.W_O.detach(), str(model.cfg.model_name))

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Tensor],
        n_heads: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str | None = None,
        name: str = "state dict",
    ) -> "AttentionLayers":
        """Copies of the attention weights in a state dict, which may hold nothing else.

        Reads `h.{layer}.attn.c_attn.weight` and `h.{layer}.attn.c_proj.weight`, with
        `transformer.` before them or not, in Hugging Face's layout or in that of minGPT and nanoGPT
        (transposed), or all layers stacked in `attn.c_attn.weight` and `attn.c_proj.weight`. Layers
        are numbered from 0. Attention biases and whatever else is there (embeddings, MLPs, layer
        norms) is not used.

        Args:
            state_dict: weights by name; stays as it is.
            n_heads: heads per layer, which the weights do not tell.
            device: where they go.
            dtype: theirs; float32 when left out.
            name: what to call them in results.

        Raises:
            WeightsError: no attention weights, a layer that is missing, names among them that do
                not belong there, other shapes.
            ValueError: heads that the width cannot be divided into; no such device or dtype.
            TypeError: `n_heads` is no whole number.
        """
        for key, value in state_dict.items():
            check_tensor(key, value, "the state dict")
        reader = StateDictReader(state_dict, "the state dict")
        return cls._read(reader, n_heads, device, dtype, name)

    @classmethod
    def from_folder(
        cls,
        path: str | PathLike[str],
        n_heads: int | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str | None = None,
    ) -> "AttentionLayers":
        """The attention weights in a folder, or in one file of weights, as in `from_state_dict`.

        Args:
            path: a folder as `HookedGPT2.from_pretrained` reads it, though `config.json` and most
                weights may be missing, or a `.safetensors` or `.bin` file.
            n_heads: heads per layer; None: as the folder's `config.json` says.
            device, dtype: as in `from_state_dict`.

        Raises:
            SourceError: no such folder or file, or no weights in it.
            WeightsError: a damaged file, or as `from_state_dict`.
            HeadsUnknown: n_heads is not said anywhere; it is a ValueError.
            ValueError, TypeError: as `from_state_dict`.
        """
        path = Path(path)
        files = (path,) if path.is_file() else weight_files(path)
        config = files[0].parent / "config.json"
        if n_heads is None:
            if not config.is_file():
                raise HeadsUnknown(
                    f"there is no {config.name} beside {files[0].name} to say how many heads a "
                    "layer has"
                )
            about = read_json(config)
            n_heads = about.get("n_head", about.get("num_attention_heads"))
            if n_heads is None:
                raise HeadsUnknown(f"{config} does not say n_head")
            if isinstance(n_heads, bool) or not isinstance(n_heads, int):
                raise HeadsUnknown(f"n_head in {config} is a whole number, not {n_heads!r}")
        with opened(files) as reader:
            return cls._read(reader, n_heads, device, dtype, str(path))

    @classmethod
    @torch.no_grad()
    def _read(
        cls,
        reader: Reader,
        n_heads: int,
        device: torch.device | str,
        dtype: torch.dtype | str | None,
        name: str,
    ) -> "AttentionLayers":
        device, dtype = parse_device(device), parse_dtype(dtype)
        if isinstance(n_heads, bool) or not isinstance(n_heads, int):
            raise TypeError(f"n_heads is a whole number, not {n_heads!r}.")
        found, n_layers, stacked, sized = _attention(reader)
        shape = reader.shapes[sized][1:] if stacked else reader.shapes[sized]
        d_model = min(shape, default=0)
        if n_heads < 1 or not d_model or d_model % n_heads:
            raise ValueError(
                f"n_heads={n_heads} does not divide the width {d_model} of {sized} evenly"
            )
        # Hugging Face's layout is input by output; that of Linear layers the other way round.
        linear = not stacked and shape == (3 * d_model, d_model)
        one = {_QKV: (3 * d_model, d_model) if linear else (d_model, 3 * d_model)}
        one[_OUT] = (d_model, d_model)
        expected: dict[str, tuple[str, int | None, tuple[int, ...]]] = {}
        for what, of_layer in one.items():
            if stacked:
                expected[what] = (what, None, (n_layers, *of_layer))
            else:
                for layer in range(n_layers):
                    expected[f"h.{layer}.{what}"] = (what, layer, of_layer)
        try:
            check_fit(expected, found, reader.shapes, reader.where)
        except WeightsError as error:
            # Sizes follow from the weights here: there may be no config to fit.
            why = str(error).removeprefix(f"{reader.where} does not fit the config: ")
            raise WeightsError(
                f"the attention weights in {reader.where} do not fit together: {why}"
            ) from None
        filled = {
            _QKV: torch.empty(n_layers, d_model, 3 * d_model, device=device, dtype=dtype),
            _OUT: torch.empty(n_layers, d_model, d_model, device=device, dtype=dtype),
        }
        for short, (what, layer, _) in expected.items():
            target = filled[what] if layer is None else filled[what][layer]
            reader.copy_into(found[short], target.mT if linear else target)
        split = filled[_QKV].view(n_layers, d_model, 3, n_heads, -1).permute(2, 0, 3, 1, 4)
        w_q, w_k, w_v = split.unbind(0)
        w_o = filled[_OUT].view(n_layers, n_heads, -1, d_model)
        return cls(w_q, w_k, w_v, w_o, name)

    def __repr__(self) -> str:
        n_layers, n_heads, d_model, d_head = self.W_Q.shape
        return (
            f"AttentionLayers({self.name!r}, n_layers={n_layers}, n_heads={n_heads}, "
            f"d_model={d_model}, d_head={d_head}, {str(self.W_Q.dtype).removeprefix('torch.')} on "
            f"{self.W_Q.device})"
        )


def _attention(reader: Reader) -> tuple[dict[str, str], int, bool, str]:
    """Names of attention weights as they should be -> as they are; layers; whether stacked;
    one that tells the width, as it is named.

    Raises:
        WeightsError: no attention weights, one twice, a layer without any.
    """
    found: dict[str, str] = {}
    layers: set[int] = set()
    first: dict[str, str] = {}
    for key in reader.shapes:
        short = without_prefixes(key)
        if CAUSAL_MASK.fullmatch(short):
            continue
        of_layer = _OF_LAYER.fullmatch(short)
        what = of_layer[2] if of_layer else short
        if not what.startswith("attn.") or what in ("attn.c_attn.bias", "attn.c_proj.bias"):
            continue
        if short in found:
            raise WeightsError(f"{reader.where}: {found[short]!r} and {key!r} are the same")
        found[short] = key
        if what in (_QKV, _OUT):
            first.setdefault(what, key)
        if of_layer:
            if len(of_layer[1]) > _MOST_DIGITS:
                raise WeightsError(f"{reader.where}: {key[:80]!r} is of no layer there can be")
            layers.add(int(of_layer[1]))
    # Whichever there is: of a layer that has only one, `check_fit` names the other.
    sized = first.get(_QKV) or first.get(_OUT)
    if sized is None:
        raise WeightsError(
            f"{reader.where} has no attention weights: expected h.0.{_QKV} and so on, found "
            f"{', '.join(list(reader.shapes)[:6]) or 'nothing'}"
        )
    if layers:
        _check_layers(layers, reader.where)
        return found, len(layers), False, sized
    if len(reader.shapes[sized]) != 3:
        raise WeightsError(
            f"{reader.where}: {sized} is {list(reader.shapes[sized])}; without the number of a "
            "layer in its name it must hold all layers, stacked along a first of three axes"
        )
    return found, reader.shapes[sized][0], True, sized


def _check_layers(layers: set[int], where: str) -> None:
    """Refuse gaps, before a list as long as the highest number is made.

    Raises:
        WeightsError: some layer below the highest has no attention weights.
    """
    n_missing = max(layers) + 1 - len(layers)
    if not n_missing:
        return
    missing = (layer for layer in range(max(layers)) if layer not in layers)
    raise WeightsError(
        f"{where}: attention weights of {_first(missing, n_missing)} are missing; those of "
        f"{_first(iter(sorted(layers)), len(layers))} are there, and layers are numbered from 0"
    )


def _first(layers: Iterator[int], n: int) -> str:
    """So many layers in words, of which a few are named."""
    more = f" and {n - _SHOWN} more" if n > _SHOWN else ""
    return f"layer{'s' if n > 1 else ''} {', '.join(map(str, islice(layers, _SHOWN)))}{more}"


def heads_of(weights: Any) -> AttentionLayers:
    """The attention weights of a model or of what is nothing but these.

    Raises:
        TypeError: something else.
    """
    if isinstance(weights, AttentionLayers):
        return weights
    if isinstance(weights, WeightViews):
        return AttentionLayers.from_model(weights)
    raise TypeError(
        "weights are a HookedGPT2 or AttentionLayers (AttentionLayers(W_Q, W_K, W_V, W_O), "
        f"from_state_dict, from_folder), not {type(weights).__name__}"
    )
