"""What shape a GPT-2 has and which of the architecture's variants it uses."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hooks.names import nearest
from interp.activations import ACTIVATIONS

__all__ = ["ACTIVATIONS", "HookedGPT2Config", "UnsupportedModelError"]

# Hugging Face's key -> the alternative key its `attribute_map` also accepts.
_SWITCH = "such points need no switch: they are computed when something listens there"
# What TransformerLens' config has, and is no matter of the architecture here.
_ELSEWHERE = {
    "device": "model.device",
    "dtype": "model.dtype",
    "n_params": "sum(p.numel() for p in model.parameters())",
    "seed": "HookedGPT2.from_config(cfg, seed=...)",
    "default_prepend_bos": "prepend_bos= of a call; it is True for text",
    "tokenizer_name": "model.tokenizer",
    "use_attn_result": _SWITCH,
    "use_split_qkv_input": _SWITCH,
    "use_attn_in": _SWITCH,
    "use_hook_mlp_in": _SWITCH,
}
_HF_ALIASES = {
    "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
}

# Hugging Face's key -> (our field, the value the key has when a config.json leaves it out).
_HF_FIELDS: dict[str, tuple[str, Any]] = {
    "n_layer": ("n_layers", 12),
    "n_embd": ("d_model", 768),
    "n_head": ("n_heads", 12),
    "n_inner": ("d_mlp", None),
    "n_positions": ("n_ctx", 1024),
    "vocab_size": ("d_vocab", 50257),
    "activation_function": ("act_fn", "gelu_new"),
    "layer_norm_epsilon": ("eps", 1e-5),
    "tie_word_embeddings": ("tie_word_embeddings", True),
    "scale_attn_weights": ("scale_attn_weights", True),
    "scale_attn_by_inverse_layer_idx": ("scale_attn_by_inverse_layer_idx", False),
    "reorder_and_upcast_attn": ("reorder_and_upcast_attn", False),
    "initializer_range": ("initializer_range", 0.02),
    "bos_token_id": ("bos_token_id", 50256),
    "eos_token_id": ("eos_token_id", 50256),
}


class UnsupportedModelError(ValueError):
    """A config that asks for what a GPT-2 language model does not have."""


@dataclass(frozen=True, kw_only=True)
class HookedGPT2Config:
    """The shape and the variant of a GPT-2, with TransformerLens' field names.

    Lengths are counts (of layers, heads, numbers per position, positions, tokens). The defaults
    of everything but the first three fields are GPT-2's.

    Attributes:
        n_layers: number of blocks.
        d_model: width of the residual stream.
        n_heads: attention heads per block.
        d_head: width of one head; derived, ``d_model / n_heads``, and may only be given as that.
        d_mlp: width of the MLP's hidden layer; ``4 * d_model`` when left out.
        n_ctx: most positions the model can read.
        d_vocab: number of tokens; may exceed the tokenizer's (padded vocabularies).
        act_fn: the MLP's activation, a key of ``ACTIVATIONS``.
        eps: added to the variance in every layer norm.
        tie_word_embeddings: whether the unembedding is the transposed embedding.
        scale_attn_weights: whether scores are divided by ``sqrt(d_head)``; TransformerLens calls
            it ``use_attn_scale``, which also works.
        scale_attn_by_inverse_layer_idx: whether layer ``l`` also divides its scores by ``l + 1``.
        reorder_and_upcast_attn: whether attention scores and softmax are computed in float32
            however coarse the model's dtype.
        initializer_range: standard deviation of freshly initialised weights.
        bos_token_id, eos_token_id: as the checkpoint declares them. A checkpoint with a resized
            vocabulary may declare ids it does not have; the tokenizer's are the ones in use.
        model_name: where the model came from, for display.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int = None  # pyright: ignore[reportAssignmentType]  (an int once constructed)
    d_mlp: int = None  # pyright: ignore[reportAssignmentType]
    n_ctx: int = 1024
    d_vocab: int = 50257
    act_fn: str = "gelu_new"
    eps: float = 1e-5
    tie_word_embeddings: bool = True
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = 50256
    eos_token_id: int | tuple[int, ...] | None = 50256
    model_name: str = "gpt2-from-config"

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_heads", "n_ctx", "d_vocab"):
            _check_count(name, getattr(self, name))
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model must be divisible by n_heads, got d_model={self.d_model}, "
                f"n_heads={self.n_heads}"
            )
        d_head = self.d_model // self.n_heads
        if self.d_head is None:
            object.__setattr__(self, "d_head", d_head)
        _check_count("d_head", self.d_head)
        if self.d_head != d_head:
            raise ValueError(
                f"d_head must be d_model / n_heads = {self.d_model} / {self.n_heads} = {d_head} "
                f"in GPT-2, got {self.d_head}"
            )
        if self.d_mlp is None:
            object.__setattr__(self, "d_mlp", 4 * self.d_model)
        _check_count("d_mlp", self.d_mlp)
        if not isinstance(self.act_fn, str):
            raise TypeError(f"act_fn must be a name, got {_show(self.act_fn)}")
        if self.act_fn not in ACTIVATIONS:
            raise ValueError(
                f"Unknown act_fn {self.act_fn!r}.{nearest(self.act_fn.lower(), ACTIVATIONS)} "
                f"Known: {', '.join(ACTIVATIONS)}."
            )
        for name in ("eps", "initializer_range"):
            _check_size(name, getattr(self, name))
        for name in (
            "tie_word_embeddings",
            "scale_attn_weights",
            "scale_attn_by_inverse_layer_idx",
            "reorder_and_upcast_attn",
        ):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {_show(getattr(self, name))}")
        ends = self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)
        for name, value in (
            ("bos_token_id", self.bos_token_id),
            *(("eos_token_id", e) for e in ends),
        ):
            if value is not None and (not _is_int(value) or value < 0):
                raise ValueError(
                    f"{name} must be a token id (an int >= 0) or None, got {_show(value)}"
                )

    # TransformerLens' names for what is fixed in GPT-2 or follows from the fields.

    def __getattr__(self, name: str) -> Any:
        hint = _ELSEWHERE.get(name)
        told = "" if hint is None else f"; instead: {hint}"
        raise AttributeError(f"HookedGPT2Config has no {name!r}{told}")

    @property
    def use_attn_scale(self) -> bool:
        """TransformerLens' name for ``scale_attn_weights``."""
        return self.scale_attn_weights

    @property
    def attn_scale(self) -> float:
        """What attention scores are divided by, before any division by the layer's number."""
        return math.sqrt(self.d_head) if self.scale_attn_weights else 1.0

    @property
    def d_vocab_out(self) -> int:
        """Number of logits per position: ``d_vocab``."""
        return self.d_vocab

    @property
    def normalization_type(self) -> str:
        """``"LN"``: layer norm with weight and bias."""
        return "LN"

    @property
    def positional_embedding_type(self) -> str:
        """``"standard"``: learned, added to the token embedding."""
        return "standard"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name; ``HookedGPT2Config(**cfg.to_dict()) == cfg``."""
        return asdict(self)

    @classmethod
    def from_hf(cls, config: Any, *, model_name: str | None = None) -> "HookedGPT2Config":
        """Read a Hugging Face GPT-2 config.

        Dropout rates are not read: the model here always computes what the reference does in
        evaluation mode. Unknown keys are ignored, as ``transformers`` ignores them.

        Args:
            config: the contents of a ``config.json``, or a ``transformers`` config object.
            model_name: replaces the name the config carries.

        Raises:
            TypeError: ``config`` is neither.
            UnsupportedModelError: the config asks for something that cannot be honoured; the
                message names it.
            ValueError: a size or value that no GPT-2 can have.
        """
        if not isinstance(config, Mapping):
            to_dict = getattr(config, "to_dict", None)
            if not callable(to_dict):
                raise TypeError(
                    "from_hf expects a transformers config or the dict in a config.json, "
                    f"got {_show(config)}"
                )
            config = to_dict()
        config = dict(config)  # pyright: ignore[reportCallIssue, reportArgumentType]
        _refuse(config)
        for key, alias in _HF_ALIASES.items():
            if alias in config:
                if config.get(key, config[alias]) != config[alias]:
                    raise ValueError(
                        f"config gives both {key}={config[key]!r} and {alias}={config[alias]!r}, "
                        "which mean the same thing"
                    )
                config[key] = config[alias]
        values = {field: config.get(key, default) for key, (field, default) in _HF_FIELDS.items()}
        if values["d_mlp"] is None:  # what n_inner says where it says nothing
            del values["d_mlp"]
        if isinstance(values["eos_token_id"], list):
            values["eos_token_id"] = tuple(values["eos_token_id"])
        name = model_name or config.get("_name_or_path") or cls.model_name
        try:
            return cls(**values, model_name=name)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{error} (from Hugging Face config {name!r})") from None

    def to_hf(self) -> dict[str, Any]:
        """Return the contents of a ``config.json`` that ``transformers`` reads as this model."""
        config: dict[str, Any] = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
        config |= {key: getattr(self, field) for key, (field, _) in _HF_FIELDS.items()}
        if isinstance(self.eos_token_id, tuple):
            config["eos_token_id"] = list(self.eos_token_id)
        return config


def _refuse(config: dict[str, Any]) -> None:
    """Raise for whatever in a Hugging Face config would make its model a different one."""
    model_type = config.get("model_type")
    if model_type is None and not {"n_embd", "n_layer", "n_head"} <= config.keys():
        raise UnsupportedModelError(
            "config has neither model_type nor GPT-2's n_layer, n_head and n_embd; "
            f"its keys: {', '.join(sorted(map(str, config))) or 'none'}"
        )
    if model_type not in (None, "gpt2"):
        raise UnsupportedModelError(f"config.model_type must be 'gpt2', got {model_type!r}")
    for key, why in (
        ("add_cross_attention", "blocks with cross-attention are not GPT-2 language models"),
        ("is_encoder_decoder", "an encoder-decoder reads a second sequence"),
        ("quantization_config", "load it with full weights (float32, bfloat16 or float16) instead"),
        ("pruned_heads", "heads cut out of the weights change their shapes"),
    ):
        if config.get(key):
            raise UnsupportedModelError(f"config.{key}={config[key]!r} cannot be honoured: {why}")
    act_fn = config.get("activation_function")
    if act_fn in ("prelu", "xielu"):
        raise UnsupportedModelError(
            f"config.activation_function={act_fn!r} cannot be honoured: "
            "it has parameters of its own"
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_count(name: str, value: Any) -> None:
    if not _is_int(value):
        raise TypeError(f"{name} must be an int, got {_show(value)}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _check_size(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {_show(value)}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {value}")


def _show(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"
