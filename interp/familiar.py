"""What GPT-2 code written for TransformerLens calls and is a line or two here; and, for names that
are not here, what to use instead.

The methods are those of `HookedGPT2`. Why something differs is in docs/transformer_lens.md.
"""

from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooks.names import layer_of, resolve
from interp.generate import Generating
from interp.points import hook_points

if TYPE_CHECKING:
    from interp.hooked import HookedGPT2

_SWITCH = "it needs no switch: name it in names_filter, or hook it, and it is computed"
_WEIGHTS = "Weights are loaded as they are; model.processed() gives a folded and centred model"
LOADED = {
    "fold_ln": _WEIGHTS,
    "center_writing_weights": _WEIGHTS,
    "center_unembed": _WEIGHTS,
    "fold_value_biases": _WEIGHTS,
    "refactor_factored_attn_matrices": "interp.FactoredMatrix has the factors of QK and OV",
    "hf_model": "give the model object in place of the name",
    "model_name": "it is source, the first argument",
    "tokenizer": "a folder and a Hub id bring theirs; from_state_dict and from_config take one",
    "default_prepend_bos": "say prepend_bos in a call; it is True for text",
    "default_padding_side": "say padding_side in a call",
    "torch_dtype": "it is dtype",
}
_ELSEWHERE = {
    "set_use_attn_result": f"hook_result: {_SWITCH}",
    "set_use_split_qkv_input": f"hook_q_input, hook_k_input, hook_v_input: {_SWITCH}",
    "set_use_attn_in": f"hook_attn_in: {_SWITCH}",
    "set_use_hook_mlp_in": f"hook_mlp_in: {_SWITCH}",
    "loss_fn": 'model(tokens, return_type="loss"), also with loss_per_token=True and '
    "attention_mask=; of logits that you have, analyses.metrics.loss()",
    "add_perma_hook": "with model.hooks(...), or add_hook",
    "mod_dict": "hook_dict",
    "remove_all_hook_fns": "reset_hooks()",
    "list_hooks": "model.hook_dict[name].fwd_hooks and .bwd_hooks",
    "add_caching_hooks": "run_with_cache, or generate(record=...)",
    "get_caching_hooks": "run_with_cache, or generate(record=...)",
    "cache_some": "run_with_cache(names_filter=...)",
    "cache_all": "run_with_cache",
    "hook_embed": 'it goes by name, as in cache["hook_embed"] or hook_dict["hook_embed"]',
    "hook_pos_embed": 'it goes by name, as in cache["hook_pos_embed"]',
    "pos_embed": "the weights are model.W_pos, what it gives is at hook_pos_embed",
    "fold_layer_norm": "model.processed(fold_ln=True)",
    "center_writing_weights": "model.processed(center_writing_weights=True)",
    "center_unembed": "model.processed(center_unembed=True)",
    "fold_value_biases": "model.processed(fold_value_biases=True)",
    "process_weights_": "model.processed(), which leaves this model as it is",
    "load_and_process_state_dict": "HookedGPT2.from_state_dict(cfg, state_dict)",
    "set_tokenizer": "HookedGPT2.from_state_dict(model.cfg, model.state_dict(), tokenizer=...)",
    "input_to_embed": "model(text, stop_at_layer=0)",
    "get_residual": "model(text, stop_at_layer=layer)",
    "init_weights": "HookedGPT2.from_config(cfg, seed=...)",
    "sample_datapoint": "there is no data set in the package; analyses.tasks makes prompts",
    "load_sample_training_dataset": "there is no data set in the package",
    "W_gate": "GPT-2 has no gated MLPs",
    "W_E_pos": "torch.cat([model.W_E, model.W_pos])",
    "n_params_total": "sum(p.numel() for p in model.parameters())",
    "mps": 'model.to("mps")',
}


class Familiar(Generating):
    """Names of TransformerLens' `HookedTransformer`. The methods are those of `HookedGPT2`."""

    @classmethod
    def from_pretrained_no_processing(cls, source: Any, **options: Any) -> "HookedGPT2":
        """`from_pretrained`, which processes nothing."""
        return cls.from_pretrained(source, **options)  # type: ignore[attr-defined]

    def all_head_labels(self) -> list[str]:
        """`L0H0`, `L0H1`, ...: every head's name, as TransformerLens writes it."""
        heads, layers = range(self.cfg.n_heads), range(self.cfg.n_layers)
        return [f"L{layer}H{head}" for layer in layers for head in heads]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """The sum of the biases that attention and MLPs wrote before a layer.

        Args:
            layer: 0 (nothing) to n_layers (all).
            mlp_input: up to that layer's MLP, so its attention's bias too.
            include_mlp_biases: whether those of MLPs count.

        Raises:
            IndexError: the layer is out of range, or `n_layers` with `mlp_input`.
        """
        n_layers = self.cfg.n_layers
        if not 0 <= layer <= n_layers - mlp_input:
            what = " and mlp_input" if mlp_input else ""
            raise IndexError(
                f"layer {layer}{what} is out of range: this model has {n_layers} layers, so it "
                f"goes from 0 to {n_layers - mlp_input}."
            )
        total = self.b_O[: layer + mlp_input].sum(0)
        return total + self.b_out[:layer].sum(0) if include_mlp_biases else total

    def tokens_to_residual_directions(
        self, tokens: str | int | Int[Tensor, "..."]
    ) -> Float[Tensor, "*directions d_model"]:
        """The columns of `W_U`: what the final layer norm's output is multiplied by for a logit.

        In the residual stream itself the layer norm's gain belongs to the direction: fold it in
        first (`model.processed()`).

        Args:
            tokens: text that is one token, an id, or ids of any shape (a single one, of any shape,
                gives one direction).

        Raises:
            ValueError: text that is several tokens.
            IndexError: an id that this model does not predict.
        """
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)  # type: ignore[attr-defined]
        ids = torch.as_tensor(tokens, device=self.W_U.device)
        n = self.W_U.shape[1]
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < n):
            raise IndexError(f"token ids go from 0 to {n - 1}, got {tokens}")
        return self.W_U.T[ids.reshape(()) if ids.numel() == 1 else ids]

    def get_token_position(
        self,
        single_token: str | int,
        input: str | Int[Tensor, "..."],
        mode: Literal["first", "last"] = "first",
        prepend_bos: bool = True,
    ) -> int:
        """Where a token stands in a text or in one row of ids.

        Args:
            single_token: text that is one token, or an id.
            input: a text, or ids, `[pos]` or `[1 pos]`.
            mode: the first or the last place.
            prepend_bos: put `<|endoftext|>` before text, which moves all by one.

        Raises:
            ValueError: it is not there, or no single token; several rows; another mode.
        """
        if mode not in ("first", "last"):
            raise ValueError(f"mode is 'first' or 'last', not {mode!r}.")
        if isinstance(input, str):
            input = self.to_tokens(input, prepend_bos=prepend_bos)  # type: ignore[attr-defined]
        assert isinstance(input, Tensor)
        if input.ndim not in (1, 2) or (input.ndim == 2 and len(input) != 1):
            raise ValueError(f"one row of token ids is expected, got shape {list(input.shape)}.")
        named = repr(single_token)
        if isinstance(single_token, str):
            single_token = self.to_single_token(single_token)  # type: ignore[attr-defined]
        places = [at for at, id in enumerate(input.reshape(-1).tolist()) if id == single_token]
        if not places:
            raise ValueError(f"{named} is none of the {input.numel()} tokens.")
        return places[0 if mode == "first" else -1]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in _ELSEWHERE:
                raise
        raise AttributeError(f"HookedGPT2 has no {name!r}; instead: {_ELSEWHERE[name]}")


def get_act_name(name: str, layer: int | None = None, layer_type: str | None = None) -> str:
    """The full name of a hook point: `get_act_name("k", 6)` is `blocks.6.attn.hook_k`.

    Functions here take `("k", 6)` wherever they take a name; this is for code that calls
    TransformerLens' `utils.get_act_name`.

    Args:
        name: a short form or a full name.
        layer: which block, from 0.
        layer_type: `"ln1"` or `"ln2"`, where a block has two of the name.

    Raises:
        UnknownHookName: GPT-2 has no such point; names the nearest.
    """
    depth = (layer_of(name) if layer is None else layer) or 0
    return resolve((name, layer, layer_type), list(hook_points(depth + 1)))
