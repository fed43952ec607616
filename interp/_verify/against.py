"""The checks against `transformers`: weights, tokens, logits, gradients, activations."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp._verify.bench import (
    Bench,
    Measured,
    NotRun,
    attention,
    distance,
    largest,
    ours_of,
    tensor,
    worst,
)
from interp.command import in_one_line
from interp.kv_cache import KeyValueCache
from interp.tokenizer import TokenizerError

# What text can hold that tokenizers disagree about.
TEXTS = (
    "When Mary and John went to the store, John gave a drink to",
    "  two blanks before, and after  ",
    "line\nline\n\n\ttab\r\nend",
    "it's we'll I'D don't",
    "3.14159 1,000,000 0x1F 2026-11-21",
    "naïve café Ελληνικά русский 日本語 العربية",
    "emoji 😀 👩‍👩‍👧 and e\u0301",
    "def f(x):\n    return x ** 2  # square",
    "<|endoftext|>A text<|endoftext|>",
    "\u00a0\u200b\ufeff",
)

# ------------------------------------------------------------------ what is loaded


def same_weights(bench: Bench) -> Measured:
    """Every weight of theirs is one of ours, number by number, and none of ours is left over."""
    if not bench.is_checkpoint:
        raise NotRun(bench.why_not)
    error, where, count = 0.0, "", 0
    for name, theirs in bench.reference.named_parameters():
        try:
            ours = ours_of(bench.model, name)
        except KeyError:
            return Measured(math.inf, 0.0, f"we have no {name}")
        apart = _apart(ours, theirs)
        if not apart <= error:
            error, where = worst(error, apart), name
        count += ours.numel()
    numbers = sum(parameter.numel() for parameter in bench.model.parameters())
    if count != numbers:
        return Measured(math.inf, 0.0, f"we have {numbers} weights, they have {count}")
    return Measured(error, 0.0, f"{count:,} weights" + (f"; worst: {where}" if where else ""))


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, 0 for equal ones without a copy of either."""
    if ours.shape != theirs.shape:
        return math.inf
    return 0.0 if torch.equal(ours, theirs) else distance(ours, theirs)


def same_layout(bench: Bench) -> Measured:
    """`W_Q[layer, head]` and the like are that head's columns of the checkpoint's matrices."""
    cfg, error, where = bench.cfg, 0.0, ""
    for layer, block in enumerate(bench.reference.transformer.h):
        fused, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        attn = bench.model.blocks[layer].attn
        pairs = [(f"W_O[{layer}]", attn.W_O.flatten(0, 1), block.attn.c_proj.weight)]
        for i, kind in enumerate("QKV"):
            columns = slice(i * cfg.d_model, (i + 1) * cfg.d_model)
            theirs = fused[:, columns].unflatten(1, (cfg.n_heads, -1)).transpose(0, 1)
            pairs.append((f"W_{kind}[{layer}]", getattr(attn, f"W_{kind}"), theirs))
            theirs = bias[columns].unflatten(0, (cfg.n_heads, -1))
            pairs.append((f"b_{kind}[{layer}]", getattr(attn, f"b_{kind}"), theirs))
        mlp = bench.model.blocks[layer].mlp
        pairs += [(f"W_in[{layer}]", mlp.W_in, block.mlp.c_fc.weight)]
        pairs += [(f"W_out[{layer}]", mlp.W_out, block.mlp.c_proj.weight)]
        for name, ours, theirs in pairs:
            if not (apart := _apart(ours, theirs)) <= error:
                error, where = worst(error, apart), name
    note = "W_Q W_K W_V W_O b_Q b_K b_V W_in W_out"
    return Measured(error, 0.0, f"{note}; worst: {where}" if where else note)


def same_tying(bench: Bench) -> Measured:
    """The unembedding is the embedding, or is not, as in the reference and the config."""
    reference, model = bench.reference, bench.model
    theirs = reference.lm_head.weight is reference.transformer.wte.weight
    ours = model.W_U.untyped_storage().data_ptr() == model.W_E.untyped_storage().data_ptr()
    words = {True: "tied", False: "untied"}
    told = (
        f"ours {words[ours]}, theirs {words[theirs]}, config {words[bench.cfg.tie_word_embeddings]}"
    )
    wrong = (ours != theirs) + (ours != bench.cfg.tie_word_embeddings)
    return Measured(float(wrong), 0.0, told)


def _tokenizers(bench: Bench) -> tuple[Any, Any]:
    if bench.folder is None or bench.model.tokenizer is None:
        raise NotRun("no tokenizer comes with this model")
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(bench.folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = in_one_line(error)
        raise NotRun(f"transformers cannot load the tokenizer: {reason}") from error
    return bench.model.tokenizer, theirs


def same_tokens(bench: Bench) -> Measured:
    """The same ids as `AutoTokenizer`, for texts that are hard to agree about."""
    ours, theirs = _tokenizers(bench)
    wrong, refused = [], 0
    for text in TEXTS:
        try:
            ids = ours.to_tokens(text, prepend_bos=False)[0].tolist()
        except TokenizerError:  # letters that this vocabulary lacks; the reference drops them
            refused += 1
            continue
        if ids != theirs(text, add_special_tokens=False)["input_ids"]:
            wrong.append(text)
    if refused == len(TEXTS):
        raise NotRun(f"this tokenizer refuses all {refused} texts")
    note = f"{len(TEXTS) - refused} texts" + (f", {refused} refused" if refused else "")
    return Measured(float(len(wrong)), 0.0, note + (f"; differs: {wrong[0]!r}" if wrong else ""))


def same_text(bench: Bench) -> Measured:
    """Ids become the text that `AutoTokenizer` makes of them; what came from text, that text."""
    ours, theirs = _tokenizers(bench)
    rows = bench.tokens(8, min(16, bench.cfg.n_ctx), seed=5).cpu()
    wrong: list[str] = []
    for row in (rows % min(ours.vocab_size, bench.cfg.d_vocab)).tolist():
        got = ours.to_string(row)
        if got != theirs.decode(row, clean_up_tokenization_spaces=False):
            wrong.append(got)
    texts = 0
    for text in TEXTS:
        try:
            ids = ours.to_tokens(text, prepend_bos=False)[0].tolist()
        except TokenizerError:
            continue
        texts += 1
        if ours.is_byte_level and ours.to_string(ids) != text:
            wrong.append(text)
    note = f"{len(rows)} rows of ids, {texts} texts"
    return Measured(float(len(wrong)), 0.0, note + (f"; differs: {wrong[0]!r}" if wrong else ""))


# ------------------------------------------------------------------ logits


def one_token(bench: Bench) -> Measured:
    """Logits of prompts of one token."""
    return _logits(bench, bench.tokens(4, 1))


def some_tokens(bench: Bench) -> Measured:
    """Logits of a batch of prompts, also while every point is listened to."""
    return _logits(bench, bench.some(3, at_least=2), looked_at=True)


def _logits(bench: Bench, tokens: Tensor, looked_at: bool = False) -> Measured:
    theirs = bench.theirs(tokens).logits
    error = distance(bench.model(tokens), theirs)
    if looked_at:
        error = worst(error, distance(tensor(bench.model.run_with_cache(tokens)[0]), theirs))
    scale = largest(theirs)
    batch, length = tokens.shape
    return Measured(
        error, bench.rounding(scale), f"batch x pos {batch} x {length}, logits up to {scale:.3g}"
    )


def full_length(bench: Bench) -> Measured:
    """Logits of prompts as long as the model reads."""
    whole = bench.whole
    rows = bench.positions // bench.cfg.n_ctx
    note = f"batch x pos {rows} x {bench.cfg.n_ctx}, logits up to {whole.scale:.3g}"
    return Measured(whole.error, bench.rounding(whole.scale), note)


def top_tokens(bench: Bench) -> Measured:
    """The likeliest token at every position; where another was, how much likelier theirs is."""
    whole = bench.whole
    note = f"{whole.differing} of {bench.positions} positions have another"
    return Measured(whole.gap, 2 * bench.rounding(whole.scale), note)


def half_precision(bench: Bench) -> Measured:
    """How far ours is from float32, as a multiple of how far the reference itself is."""
    if not bench.is_half:
        raise NotRun("for bfloat16 and float16 only")
    ratios = {
        kind: ours / theirs if theirs else (math.inf if ours else 1.0)
        for kind, (ours, theirs) in bench.whole.off.items()
    }
    told = (
        f"{kind}: ours {ours:.3g}, theirs {theirs:.3g}"
        for kind, (ours, theirs) in bench.whole.off.items()
    )
    # Both round at random: averaged over n positions, a ratio scatters by about 1 / sqrt(n).
    limit = 1.05 + 1 / math.sqrt(bench.positions)
    return Measured(worst(*ratios.values()), limit, f"ratio; {', '.join(told)}")


def left_padding(bench: Bench) -> Measured:
    """Prompts of unequal length, padded on the left: as in the reference, and as each alone."""
    return _padding(bench, "left")


def right_padding(bench: Bench) -> Measured:
    """Likewise on the right."""
    return _padding(bench, "right")


def _padding(bench: Bench, side: Literal["left", "right"]) -> Measured:
    tokens = bench.some(4, at_least=2, at_most=8)
    length = tokens.shape[1]
    lengths = [length, length - 1, (length + 1) // 2, 1]
    mask = torch.ones_like(tokens)
    for row, kept in enumerate(lengths):
        if side == "left":
            mask[row, : length - kept] = 0
        else:
            mask[row, kept:] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    theirs = bench.theirs(tokens, attention_mask=mask, position_ids=positions).logits
    ours, real = bench.model(tokens, attention_mask=mask), mask.bool()
    error = worst(distance(ours[real], theirs[real]), 0.0 if ours.isfinite().all() else math.inf)
    for row in range(len(tokens)):
        alone = bench.model(tokens[row][real[row]])[0]
        error = worst(error, distance(ours[row][real[row]], alone))
    scale = largest(theirs[real])
    return Measured(
        error, bench.rounding(scale), f"prompts of {', '.join(map(str, lengths))} tokens"
    )


def step_by_step(bench: Bench) -> Measured:
    """A prompt given in parts, with keys and values kept, against the whole of it."""
    tokens = bench.some(2, at_least=2)
    cfg, device = bench.cfg, bench.model.device
    past = KeyValueCache.init_cache(cfg, device, len(tokens), dtype=bench.model.dtype)
    first = tokens.shape[1] // 2
    parts = [tokens[:, :first], *tokens[:, first:].split(1, dim=1)]
    ours = torch.cat([bench.model(part, past_kv_cache=past) for part in parts], dim=1)
    theirs = bench.theirs(tokens).logits
    error = worst(distance(ours, theirs), distance(ours, bench.model(tokens)))
    note = f"{first} tokens, then {len(parts) - 1} one by one"
    return Measured(error, bench.rounding(largest(theirs)), note)


def greedy(bench: Bench) -> Measured:
    """Tokens of greedy generation; where they part, how much likelier the reference's token is."""
    from transformers import GenerationConfig

    prompt = bench.some(2, at_least=2, at_most=max(1, min(8, bench.cfg.n_ctx // 2)))
    start = prompt.shape[1]
    new = min(16, bench.cfg.n_ctx - start)
    ours = tensor(
        bench.model.generate(prompt, new, do_sample=False, stop_at_eos=False, return_type="tokens")
    )
    settings = GenerationConfig(
        max_new_tokens=new, do_sample=False, num_beams=1, repetition_penalty=1.0,
        eos_token_id=None, pad_token_id=0, bos_token_id=0,
    )  # fmt: skip
    before = bench.reference.generation_config
    bench.reference.generation_config = settings
    try:
        theirs = bench.reference.generate(prompt, attention_mask=torch.ones_like(prompt))
    finally:
        bench.reference.generation_config = before
    gap, scale, same = 0.0, 0.0, 0
    for one, other in zip(ours, theirs, strict=True):
        apart = (one != other).nonzero()
        column = int(apart[0]) if len(apart) else len(one)
        same += column - start
        logits = bench.theirs(other[None, :-1]).logits[0, start - 1 :]
        scale = worst(scale, largest(logits))
        if len(apart):
            here = logits[column - start]
            gap = worst(gap, float(here[other[column]] - here[one[column]]))
    note = f"{same} of {new * len(prompt)} tokens before the first that differs"
    return Measured(gap, 2 * bench.rounding(scale), note)


def same_loss(bench: Bench) -> Measured:
    """The mean next-token loss, in nats."""
    tokens = bench.some(2)
    out = bench.theirs(tokens, labels=tokens)
    ours = float(bench.model(tokens, "loss"))
    error = abs(ours - float(_loss(out, tokens)))
    return Measured(error, bench.rounding(largest(out.logits)), f"loss {ours:.4f} nats")


def _loss(out: Any, tokens: Tensor) -> Tensor:
    """The reference's loss. It takes it in float32 even of float64 logits; then we do it."""
    if out.logits.dtype != torch.float64:
        return out.loss
    return F.cross_entropy(out.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


# ------------------------------------------------------------------ gradients and activations


def residual_gradients(bench: Bench) -> Measured:
    """The loss' gradient at the residual stream that enters each block, relative to the largest."""
    tokens = bench.some(2)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(bench.cfg.n_layers)]
    _, cache = bench.model.run_with_cache(tokens, "loss", names_filter=names, incl_bwd=True)
    embedding = bench.reference.get_input_embeddings()
    with torch.enable_grad(), _differentiable(bench.reference, ()):
        embedded = embedding(tokens).detach().requires_grad_(True)
        out = bench.reference(
            inputs_embeds=embedded, labels=tokens, output_hidden_states=True, use_cache=False
        )
        theirs = torch.autograd.grad(_loss(out, tokens), out.hidden_states[: bench.cfg.n_layers])
    return _relative(
        bench, {name: (cache[f"{name}_grad"], t) for name, t in zip(names, theirs, strict=True)}
    )


def weight_gradients(bench: Bench) -> Measured:
    """The loss' gradient in all biases and layer norms, relative to the largest of each.

    The matrices are left out: their gradients take as much memory as a model.
    """
    tokens = bench.some(2)
    ours_by_name = {
        name: parameter
        for name, parameter in bench.model.named_parameters()
        if name.startswith("ln_") or name.endswith("bias")
    }
    theirs_by_name = {
        name: parameter
        for name, parameter in bench.reference.named_parameters()
        if ".ln_" in name or name.endswith("bias")
    }
    with torch.enable_grad(), _differentiable(bench.model, ours_by_name.values()):
        loss = bench.model(tokens, "loss")
        found = torch.autograd.grad(loss, list(ours_by_name.values()))
        ours = dict(zip(ours_by_name, found, strict=True))
    with torch.enable_grad(), _differentiable(bench.reference, theirs_by_name.values()):
        loss = _loss(bench.theirs(tokens, labels=tokens), tokens)
        found = torch.autograd.grad(loss, list(theirs_by_name.values()))
        theirs = dict(zip(theirs_by_name, found, strict=True))
    pairs = {}
    for name, gradient in theirs.items():
        short = name.removeprefix("transformer.")
        if short.startswith("h."):
            _, layer, short = short.split(".", 2)
            pairs[name] = (ours[short][int(layer)], gradient)
        else:
            pairs[name] = (ours[short], gradient)
    return _relative(bench, pairs)


def _relative(bench: Bench, pairs: dict[str, tuple[Tensor, Tensor]]) -> Measured:
    """The worst difference over the largest entry, tensor by tensor. Twice as many operations as
    in a forward pass round: twice the tolerance."""
    error, where = 0.0, ""
    # A gradient that is zero but for rounding (keys' biases: softmax does not see them) is
    # compared on the scale of the others.
    floor = 1e-2 * max((largest(theirs) for _, theirs in pairs.values()), default=0.0)
    for name, (ours, theirs) in pairs.items():
        size = max(largest(theirs), floor)
        apart = distance(ours, theirs) / size if size else distance(ours, theirs)
        if not apart <= error:
            error, where = worst(error, apart), name
    return Measured(error, 2 * bench.rounding(1.0), where and f"relative; worst: {where}")


@contextmanager
def _differentiable(module: nn.Module, chosen: Any) -> Iterator[None]:
    """Only these parameters require a gradient, for a while."""
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


def residual_stream(bench: Bench) -> Measured:
    """The residual that enters each block, and what leaves the final layer norm."""
    tokens = bench.some(2, at_least=1)
    theirs = bench.theirs(tokens, output_hidden_states=True).hidden_states
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(bench.cfg.n_layers)]
    last = f"blocks.{bench.cfg.n_layers - 1}.hook_resid_post"
    _, cache = bench.model.run_with_cache(tokens, names_filter=[*names, last])
    found = {name: (cache[name], t) for name, t in zip(names, theirs, strict=False)}
    found["ln_final"] = (bench.model.ln_final(cache[last]), theirs[-1])
    error, where = 0.0, ""
    for name, (ours, want) in found.items():
        apart = distance(ours, want) / max(largest(want), torch.finfo(want.dtype).tiny)
        if not apart <= error:
            error, where = worst(error, apart), name
    return Measured(error, bench.rounding(1.0), where and f"relative; worst: {where}")


def patterns(bench: Bench) -> Measured:
    """Attention patterns of every head against the reference's eager attention."""
    if bench.is_half:
        raise NotRun(
            "in half precision large scores round by more than the softmax forgives; see float32"
        )
    if bench.cfg.reorder_and_upcast_attn and bench.model.dtype == torch.float64:
        raise NotRun("the reference's eager attention cannot upcast a float64 model")
    tokens = bench.some(2, at_least=2)
    _, cache = bench.model.run_with_cache(
        tokens, names_filter=["*hook_pattern", "*hook_attn_scores"]
    )
    with attention(bench.reference, "eager"):
        theirs = bench.theirs(tokens, output_attentions=True).attentions
    error, where, scale = 0.0, "", 1.0
    for layer, want in enumerate(theirs):
        scores = cache["attn_scores", layer]
        scale = max(scale, largest(scores[scores.isfinite()]))
        apart = distance(cache["pattern", layer], want)
        if not apart <= error:
            error, where = worst(error, apart), f"layer {layer}"
    note = f"scores up to {scale:.3g}" + (f"; worst: {where}" if where else "")
    return Measured(error, bench.rounding(scale), note)
