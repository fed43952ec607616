"""`HookedGPT2`: what a researcher holds. Loading, running, looking, editing."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooks import (
    ActivationCache,
    Edit,
    HookFunction,
    HookPoint,
    Listeners,
    UnknownHookName,
    select,
)
from hooks.cache import CacheBuilder, Index
from hooks.names import NameFilter
from hooks.point import check_function
from interp import points, processing, weights
from interp.config import HookedGPT2Config
from interp.familiar import LOADED, Familiar
from interp.kv_cache import KeyValueCache
from interp.run import Output, ReturnType, Run, checked_run, known_arguments
from interp.tokenizer import TokenBatch, Tokenizer

Hooks = Sequence[tuple[NameFilter, HookFunction]]
Input = str | Sequence[str] | TokenBatch | Tensor


class HookedGPT2(Familiar):
    """A GPT-2 in which every activation has a name, and can be read and replaced there.

    Make one with `from_pretrained`, `from_config` or `from_state_dict`. Weights are the
    checkpoint's, unprocessed, so logits are the checkpoint's too (see `processed`). There is no
    dropout.

    Attributes:
        cfg: sizes and variants.
        tokenizer: text to tokens and back (a `Tokenizer`; a fast `transformers` one is converted),
            or None for a model made without one.
        hook_dict: the hook points by full name, in order of the forward pass.
    """

    def __init__(
        self,
        cfg: HookedGPT2Config,
        parameters: dict[str, Tensor],
        tokenizer: Any = None,
    ) -> None:
        super().__init__(cfg, parameters)
        if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
            tokenizer = Tokenizer.from_hf(tokenizer, d_vocab=cfg.d_vocab)
        self.tokenizer = tokenizer
        # What was added inside each open `hooks` context, the innermost last.
        self._contexts: list[list[tuple[list[HookFunction], HookFunction]]] = []
        self.hook_dict: dict[str, HookPoint] = points.hook_points(cfg.n_layers)
        self.eval()

    # ---------------------------------------------------------------- making one

    @classmethod
    def from_pretrained(
        cls,
        source: Any,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        **unknown: Any,
    ) -> "HookedGPT2":
        """Load a GPT-2.

        Args:
            source: a Hugging Face Hub id (`gpt2`, `gpt2-medium`, `distilgpt2`, any checkpoint of
                the architecture), a local folder in Hugging Face's layout, `mini` (the small
                trained model that ships with this package), or a `transformers` GPT-2 model
                object, which is left unchanged.
            device: where the weights go.
            dtype: what they are computed in; float32 unless said.
            revision: branch, tag or commit on the Hub.

        A local folder, the bundled model and an id in the local cache need no network.

        Raises:
            weights.SourceError: there is no such model, or it cannot be read; says why.
            weights.UnsupportedModelError: it uses what this model cannot honour; says what.
            TypeError: another keyword; says what to do instead of TransformerLens' own.
        """
        known_arguments(unknown, ("device", "dtype", "revision"), "from_pretrained", LOADED)
        loaded = weights.load(source, device=device, dtype=dtype, revision=revision)
        return cls(loaded.cfg, loaded.parameters, loaded.tokenizer)

    @classmethod
    def from_config(
        cls,
        cfg: HookedGPT2Config,
        seed: int = 0,
        *,
        tokenizer: Any = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
    ) -> "HookedGPT2":
        """A model with random weights, initialised as GPT-2 was; the same seed gives the same."""
        _check_config(cfg)
        parameters = weights.allocate(cfg, device=device, dtype=dtype)
        weights.initialise(parameters, cfg, seed)
        return cls(cfg, parameters, tokenizer)

    @classmethod
    def from_state_dict(
        cls,
        cfg: HookedGPT2Config,
        state_dict: Mapping[str, Tensor],
        *,
        tokenizer: Any = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
    ) -> "HookedGPT2":
        """A model with copies of the weights in `state_dict`, in one of these layouts.

        Hugging Face's (Conv1D, `x @ W`), minGPT's and nanoGPT's (Linear, transposed), or that of
        this class' own `state_dict`; unembedding tied or untied.

        Raises:
            ValueError: keys are missing, unexpected or of the wrong shape; lists them all.
        """
        _check_config(cfg)
        parameters = weights.from_state_dict(cfg, state_dict, device=device, dtype=dtype)
        return cls(cfg, parameters, tokenizer)

    def processed(
        self,
        *,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
    ) -> "HookedGPT2":
        """A new model with weights that are easier to read; this one stays as it is.

        The defaults are what TransformerLens' `from_pretrained` does unasked. Every step leaves
        the predicted probabilities as they are; `center_unembed` moves all logits of a position
        by a common amount, the others leave logits alone.

        Args:
            fold_ln: move each layer norm's gain and shift into the weights that read it, and
                centre what those read.
            center_writing_weights: make all that writes to the residual stream have mean zero.
            center_unembed: make the logits of each position have mean zero over the vocabulary.
            fold_value_biases: move value biases into the attention output bias (every pattern
                sums to one).
        """
        parameters = processing.process(
            self.cfg,
            dict(self.named_parameters()),
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases,
        )
        cfg = replace(self.cfg, tie_word_embeddings=False)
        return type(self)(cfg, parameters, self.tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are computed in."""
        return self.W_E.dtype

    # ---------------------------------------------------------------- text and tokens

    def tokenize(
        self,
        text: str | Sequence[str],
        *,
        prepend_bos: bool = True,
        padding_side: Literal["left", "right"] = "right",
    ) -> TokenBatch:
        """Tokens of one or more prompts, with the mask that prompts of unequal length need.

        The result can be given to `forward` and every `run_*` in place of tokens.

        Raises:
            ValueError: an empty prompt, one longer than `n_ctx`, or a model without tokenizer.
        """
        batch = self._tokenizer().tokenize(
            text, prepend_bos=prepend_bos, padding_side=padding_side, n_ctx=self.cfg.n_ctx
        )
        return batch.to(self.device)

    def to_tokens(
        self,
        text: str | Sequence[str],
        prepend_bos: bool = True,
    ) -> Int[Tensor, "batch pos"]:
        """Token ids of one prompt, or of several of equal length.

        Raises:
            ValueError: the prompts differ in length (a plain tensor cannot carry the mask: use
                `tokenize`), or as `tokenize`.
        """
        tokens = self._tokenizer().to_tokens(text, prepend_bos=prepend_bos, n_ctx=self.cfg.n_ctx)
        return tokens.to(self.device)

    def to_string(self, tokens: Int[Tensor, "..."] | Sequence[int]) -> str | list[str]:
        """Text of a sequence of ids, or the texts of a batch of them."""
        return self._tokenizer().to_string(tokens)

    def to_str_tokens(
        self, input: str | Int[Tensor, "..."] | Sequence[int], prepend_bos: bool = True
    ) -> list[str]:
        """One string per token of a text (or of ids, to which nothing is prepended)."""
        return self._tokenizer().to_str_tokens(input, prepend_bos=prepend_bos)

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token.

        Raises:
            ValueError: it is several tokens; says which.
        """
        return self._tokenizer().to_single_token(text)

    def to_single_str_token(self, token: int) -> str:
        """The text of one token id."""
        return self._tokenizer().to_single_str_token(token)

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(
                "this model has no tokenizer: pass token ids, or make it with tokenizer=..."
            )
        return self.tokenizer

    # ---------------------------------------------------------------- running

    def forward(
        self,
        input: Input,
        return_type: ReturnType = "logits",
        *,
        loss_per_token: bool = False,
        prepend_bos: bool = True,
        padding_side: Literal["left", "right"] = "right",
        attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"] | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: KeyValueCache | None = None,
    ) -> Output:
        """Run the model.

        Args:
            input: text, several texts, what `tokenize` gave, token ids (`batch pos` or `pos`),
                or with `start_at_layer` the residual `batch pos d_model` that enters that block.
            return_type: "logits" (`batch pos d_vocab`), "loss" (mean next-token cross-entropy in
                nats over tokens that are not padding), "both", or None for nothing (the
                unembedding is then left out, the final layer norm is not).
            loss_per_token: loss as `batch pos-1`, NaN where the token or its successor is padding.
            prepend_bos: put `<|endoftext|>` before text; ids are taken as they are.
            padding_side: where shorter texts are padded.
            attention_mask: `batch pos`, 1 or True on real tokens; with `past_kv_cache` over the
                new tokens. Not with text or a TokenBatch, which bring their own.
            start_at_layer: begin at this block.
            stop_at_layer: end before this block and return the residual `batch pos d_model`
                that would enter it; `n_layers` gives the last residual. Negative layers count
                from the end.
            past_kv_cache: keys and values of the tokens before; the new ones are appended.

        Raises:
            ValueError, TypeError, IndexError: an argument that does not fit; says which and why.
        """
        run = self._checked_run(
            input,
            return_type,
            loss_per_token=loss_per_token,
            prepend_bos=prepend_bos,
            padding_side=padding_side,
            attention_mask=attention_mask,
            start_at_layer=start_at_layer,
            stop_at_layer=stop_at_layer,
            past_kv_cache=past_kv_cache,
        )
        return run.answer(self._execute(run, Listeners(self.hook_dict, _padding(run))))

    def run_with_cache(
        self,
        input: Input,
        return_type: ReturnType = "logits",
        *,
        names_filter: NameFilter | None = None,
        incl_bwd: bool | Callable[[Any], Tensor] = False,
        pos_slice: Index | None = None,
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        **forward: Any,
    ) -> tuple[Output, ActivationCache]:
        """Run the model and keep activations.

        Args:
            input, return_type, forward: as in `forward`.
            names_filter: which points: a name, short form, glob, list of those, or function of
                the name. Without it every point the run passes but those computed on request.
            incl_bwd: also keep gradients, under `name + "_grad"`. Of the output where that is
                one number (`return_type="loss"`), else of `incl_bwd(output)`. Weights gather no
                gradient.
            pos_slice: keep these positions only (of attention: queries).
            device: keep activations there.
            remove_batch_dim: leave out the axis `batch` of a single prompt.

        Returns:
            what `forward` gives, and the cache.

        Raises:
            UnknownHookName: a name stands for nothing, the filter picks nothing, or this run
                does not pass the point.
            others: as `forward`.
        """
        run = self._checked_run(input, return_type, **known_arguments(forward))
        if remove_batch_dim and run.input.shape[0] != 1:
            raise ValueError(
                f"remove_batch_dim needs a batch of one prompt, this one has {run.input.shape[0]}."
            )
        names = self._passed(names_filter, run)
        if run.input.is_floating_point():
            run = replace(run, input=run.input.clone())  # it is cached; the caller's own is not
        builder = CacheBuilder(pos_slice, device)
        listeners = Listeners(self.hook_dict, _padding(run))
        listeners.collect(names, builder)
        if incl_bwd is False:
            output = run.answer(self._execute(run, listeners))
        else:
            output = self._with_gradients(run, listeners, names, builder, incl_bwd)
        cache = builder.cache(**run.about)
        if run.stop is not None and isinstance(output, Tensor):
            output = output.clone()  # it is cached too
        return output, cache.remove_batch_dim() if remove_batch_dim else cache

    def run_with_hooks(
        self,
        input: Input,
        return_type: ReturnType = "logits",
        *,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        edits: Edit | Sequence[Edit] = (),
        **forward: Any,
    ) -> Output:
        """Run the model with functions listening, and edits on, for this run only.

        Args:
            input, return_type, forward: as in `forward`.
            fwd_hooks: pairs of a name (or filter, as in `run_with_cache`) and a function
                `fn(activation, hook)` that returns a replacement, or edits in place, or only
                looks.
            bwd_hooks: likewise on gradients; they run when the output, or what is made of it, is
                differentiated.
            edits: changes given as values; at one point they come after the functions.

        Raises:
            UnknownHookName: as `run_with_cache`.
            HookError: a function that cannot be called so, or answers with anything but a tensor
                of the same shape, dtype and device; an edit that does not fit its point.
            others: as `forward`, and what a hook raises.
        """
        run = self._checked_run(input, return_type, **known_arguments(forward))
        listeners = Listeners(self.hook_dict, _padding(run))
        for names, fn in [*_pairs(fwd_hooks, "fwd_hooks"), *_edit_pairs(edits)]:
            for name in self._passed(names, run):
                listeners.add(name, fwd=[fn])
        for names, fn in _pairs(bwd_hooks, "bwd_hooks"):
            for name in self._passed(names, run):
                listeners.add(name, bwd=[fn])
        return run.answer(self._execute(run, listeners))

    def _execute(self, run: Run, listeners: Listeners, *, frozen: bool = False) -> Tensor:
        out = self.compute(
            run.input,
            run.visible,
            listeners,
            start_at_layer=run.start,
            stop_at_layer=run.stop,
            unembed=run.return_type is not None,
            past=run.past,
            frozen=frozen,
        )
        if run.past is not None:
            run.past.commit(run.visible.mask)
        return out

    def _with_gradients(
        self,
        run: Run,
        listeners: Listeners,
        names: list[str],
        builder: CacheBuilder,
        incl_bwd: bool | Callable[[Any], Tensor],
    ) -> Output:
        if torch.is_inference_mode_enabled():
            raise ValueError("incl_bwd needs gradients, but this is torch.inference_mode.")
        kept = listeners.keep_for_gradients(names)
        with torch.enable_grad():
            output = run.answer(self._execute(run, listeners, frozen=True))
            value = incl_bwd(output) if callable(incl_bwd) else output
            if not isinstance(value, Tensor) or value.numel() != 1:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"incl_bwd differentiates one number, this is {got}: use return_type='loss', "
                    f"or incl_bwd=function from the output to one number."
                )
        # Not `backward`: that would gather gradients in the weights too.
        tensors = list(kept.values())
        gradients = torch.autograd.grad(value, tensors, materialize_grads=True)
        for name, gradient in zip(kept, gradients, strict=True):
            builder(self.hook_dict[name], gradient, suffix="_grad")
        return output

    # ---------------------------------------------------------------- hooks that stay

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        edits: Edit | Sequence[Edit] = (),
    ) -> Iterator["HookedGPT2"]:
        """A context in which functions listen, and edits are on, in every run.

        Leaving it, however that happens, removes them and whatever `add_hook` added inside it.
        """
        added: list[tuple[list[HookFunction], HookFunction]] = []
        self._contexts.append(added)
        try:
            for names, fn in [*_pairs(fwd_hooks, "fwd_hooks"), *_edit_pairs(edits)]:
                self.add_hook(names, fn, "fwd")
            for names, fn in _pairs(bwd_hooks, "bwd_hooks"):
                self.add_hook(names, fn, "bwd")
            yield self
        finally:
            # By identity: contexts of two threads may overlap without being nested.
            self._contexts[:] = [one for one in self._contexts if one is not added]
            for functions, fn in reversed(added):
                places = [i for i, one in enumerate(functions) if one is fn]
                if places:  # unless `reset_hooks` was there first
                    del functions[places[-1]]

    def add_hook(
        self, name: NameFilter, hook: HookFunction, dir: Literal["fwd", "bwd"] = "fwd"
    ) -> None:
        """Add a function that listens in every run until `reset_hooks`.

        Args:
            name: a name or filter, as in `run_with_cache`.
            hook: `fn(activation, hook)`, or with `dir="bwd"` `fn(gradient, hook)`.

        Raises:
            UnknownHookName, HookError: as `run_with_hooks`; nothing is added then.
        """
        names = select(name, list(self.hook_dict))
        check_function(hook, names[0])
        for full_name in names:
            point = self.hook_dict[full_name]
            point.add_hook(hook, dir)
            if self._contexts:
                functions = point.fwd_hooks if dir == "fwd" else point.bwd_hooks
                self._contexts[-1].append((functions, hook))

    def reset_hooks(self, dir: Literal["fwd", "bwd", "both"] = "both") -> None:
        """Remove every function added by `add_hook` (or inside an open `hooks` context)."""
        for point in self.hook_dict.values():
            point.remove_hooks(dir)

    def hook_points(self) -> None:
        """Print the table of hook points, with the shapes that this model has there."""
        from rich.console import Console
        from rich.table import Table

        sizes = points.axis_sizes(self.cfg)
        table = Table(title=f"Hook points of {self.cfg.model_name}")
        for column in ("name", "shape", "computed"):
            table.add_column(column, no_wrap=True)
        for name, point in points.hook_points(1).items():
            shown = name.replace("blocks.0.", f"blocks.{{0..{self.cfg.n_layers - 1}}}.")
            shape = " ".join(
                "1" if axis == "one" else f"{axis}={sizes[axis]}" if axis in sizes else axis
                for axis in point.axes
            )
            table.add_row(shown, shape, "on request" if point.on_request else "always")
        # A terminal that is too narrow wraps lines; rich would cut names short instead.
        needed = Console(width=1000).measure(table).maximum
        Console(width=max(needed, Console().width)).print(table)

    def _passed(self, names_filter: NameFilter | None, run: Run) -> list[str]:
        """The points that a filter picks among those that this run passes."""
        everything = list(self.hook_dict)
        here = {name for name, point in self.hook_dict.items() if run.passes(point)}
        if names_filter is None:
            return [n for n in everything if n in here and not self.hook_dict[n].on_request]
        single = isinstance(names_filter, str | tuple) or callable(names_filter)
        entries: list[Any] = [names_filter] if single else list(cast(Iterable, names_filter))
        chosen = here.intersection(select(names_filter if single else entries, everything))
        for entry in entries:
            if not here.intersection(select(entry, everything)):
                raise UnknownHookName(
                    f"this run does not pass {entry!r}: it runs layers {run.start} to "
                    f"{run.end - 1} (start_at_layer, stop_at_layer)."
                )
        return [n for n in everything if n in chosen]

    def _checked_run(
        self,
        input: Input,
        return_type: ReturnType = "logits",
        *,
        prepend_bos: bool = True,
        padding_side: Literal["left", "right"] = "right",
        attention_mask: Tensor | None = None,
        **arguments: Any,
    ) -> Run:
        about: dict[str, Any] = {}
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is 'left' or 'right', not {padding_side!r}.")
        if isinstance(input, Tensor | TokenBatch) and padding_side == "left":
            raise ValueError("padding_side goes with text: these are tokens already.")
        if isinstance(input, TokenBatch) and input.prepend_bos and not prepend_bos:
            raise ValueError("prepend_bos=False, but these tokens were made with prepend_bos=True.")
        if not isinstance(input, Tensor | TokenBatch):
            past = arguments.get("past_kv_cache")
            if prepend_bos and past is not None and past.length:
                raise ValueError(
                    "this text goes on where past_kv_cache ends: pass prepend_bos=False, or "
                    "<|endoftext|> would stand in the middle."
                )
            if not isinstance(input, str) and any(not isinstance(one, str) for one in input):
                raise TypeError("a run takes text, several texts, or token ids in a tensor.")
            input = self.tokenize(input, prepend_bos=prepend_bos, padding_side=padding_side)
        if isinstance(input, TokenBatch):
            if attention_mask is not None:
                raise ValueError("text brings its own mask: attention_mask goes with token ids.")
            about = {"str_tokens": input.str_tokens, "prepend_bos": input.prepend_bos}
            attention_mask, input = input.attention_mask, input.tokens
        return checked_run(
            self.cfg,
            self.W_E,
            input,
            return_type=return_type,
            attention_mask=attention_mask,
            about=about,
            **arguments,
        )

    def __repr__(self) -> str:
        c = self.cfg
        return (
            f"HookedGPT2({c.model_name!r}, n_layers={c.n_layers}, d_model={c.d_model}, "
            f"n_heads={c.n_heads}, n_ctx={c.n_ctx}, d_vocab={c.d_vocab}, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device})"
        )


def _padding(run: Run) -> Tensor | None:
    """Where the real tokens of a padded run are. With earlier tokens in a cache, positions are
    those of the new tokens, and of none that is padding."""
    return run.mask if run.past is None else None


def _pairs(hooks: Iterable, what: str) -> list[tuple[NameFilter, HookFunction]]:
    pairs = list(hooks)
    for pair in pairs:
        if isinstance(pair, Edit):
            raise TypeError(f"{what} takes pairs (name, function): give {pair!r} to edits=.")
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"{what} takes pairs (name, function), not {pair!r}.")
        if isinstance(pair[1], str | tuple):
            raise TypeError(
                f"{what} takes pairs (name, function): {pair!r} is the other way round."
            )
    return [cast(tuple[NameFilter, HookFunction], tuple(pair)) for pair in pairs]


def _edit_pairs(edits: Edit | Sequence[Edit]) -> list[tuple[NameFilter, HookFunction]]:
    listed = [edits] if isinstance(edits, Edit) else edits
    if not isinstance(listed, Sequence) or not all(isinstance(edit, Edit) for edit in listed):
        raise TypeError(
            f"edits are Patch, Ablate, Scale or Add, one or a list of them, not {edits!r}."
        )
    return [(edit.point, edit) for edit in listed]


def _check_config(cfg: object) -> None:
    if not isinstance(cfg, HookedGPT2Config):
        raise TypeError(
            f"cfg is a HookedGPT2Config, not {type(cfg).__name__} (HookedGPT2Config.from_hf makes "
            f"one of a transformers config)."
        )
