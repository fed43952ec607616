"""What a sweep takes: prompts and metrics in every form; what it refuses, and how."""

import pytest
import torch
from _random_edits import padded
from _sweeps import check, run, worlds

from analyses.metrics import Function, kl, logit_diff, loss
from analyses.sweep import sweep
from hooks import Ablate, Add, HookError, Patch, Scale, UnknownHookName


@pytest.fixture(scope="module")
def world(reference_model):
    return worlds(reference_model)


# ------------------------------------------------------------------ prompts in every form


def test_text_of_unequal_length(mini):
    texts = ["Mary and John went to the store", "Anna saw Tom"]
    edits = [Ablate(("attn_out", 1), pos=pos) for pos in (0, -1)]
    result = sweep(mini, texts, edits, logit_diff(5, 6), progress=False)
    assert result.prepend_bos is True
    assert [len(row) for row in result.str_tokens] == mini.tokenize(texts).attention_mask.sum(
        1
    ).tolist()
    assert all("endoftext" in row[0] for row in result.str_tokens)
    left = mini.tokenize(texts, padding_side="left")
    same = sweep(mini, left, edits, logit_diff(5, 6), progress=False)
    torch.testing.assert_close(
        same.values["logit_diff"], result.values["logit_diff"], rtol=0, atol=1e-4
    )
    bare = sweep(mini, texts, edits, logit_diff(5, 6), prepend_bos=False, progress=False)
    assert bare.prepend_bos is False and "endoftext" not in bare.str_tokens[0][0]


def test_forms_of_ids(world):
    here = world("one")
    edit = [Ablate(("z", 1))]
    whole = sweep(here.model, here.tokens, edit, loss(), progress=False)
    flat = sweep(here.model, here.tokens[0].int(), edit, loss(), progress=False)
    masked = sweep(
        here.model,
        torch.cat([here.tokens, here.tokens[:, :1]], dim=1),
        edit,
        loss(),
        attention_mask=torch.tensor([[1] * 5 + [0]]),
        progress=False,
    )
    for other in (flat, masked):
        torch.testing.assert_close(other.values["loss"], whole.values["loss"])
    assert whole.prepend_bos is None
    assert whole.str_tokens == (tuple(f"<{i}>" for i in here.tokens[0].tolist()),)


def test_metric_forms(world):
    here = world("one")
    edits = [Ablate(("z", 1))]

    def mine(logits):
        assert logits.shape == (1, 5, 31)
        return logits[:, -1, 0]

    several = sweep(here.model, here.tokens, edits, [logit_diff(1, 2), mine, kl()], progress=False)
    assert list(several.values) == ["logit_diff", "mine", "kl"]
    named = sweep(here.model, here.tokens, edits, Function("own", mine), progress=False)
    torch.testing.assert_close(named.values["own"], several.values["mine"])


def test_a_function_that_edits_its_logits(world):
    """What it is given is its own."""
    here = world("left")

    def doubled(logits):
        logits *= 2
        return logits[:, :, 3].sum(1).tanh()

    def first(logits):
        logits[:, 0] = 0.0
        return logits[..., 5].mean(1)

    edits = [Scale(("z", 0), pos=pos, factor=2.0) for pos in (-1, -2, -3)]
    check(here, edits, {"doubled": doubled, "kl": kl(pos=None), "first": first})


# ------------------------------------------------------------------ bad inputs


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (Ablate(("z", 5)), UnknownHookName, "layer 5"),
        (Ablate("blocks.7.attn.hook_z"), UnknownHookName, "0 to 1"),
        (Ablate("blocks.0.attn.hook_zz"), UnknownHookName, "Did you mean 'blocks.0.attn.hook_z'"),
        (Ablate(("rezid_pre", 0)), UnknownHookName, "Did you mean 'resid_pre'"),
        (Ablate(("z", 0), head=4), IndexError, "head 4 .* 0 to 3"),
        (Ablate(("z", 0), head=-5), IndexError, "head -5"),
        (Ablate(("z", 0), pos=4), IndexError, "pos 4 .* prompt 1 has 4 tokens"),
        (Ablate(("z", 0), pos=[0, -5]), IndexError, "pos -5 .* prompt 1"),
        (Ablate(("z", 0), pos=torch.tensor([5, 3, 5])), IndexError, "pos 5 .* prompt 2"),
        (Ablate(("z", 0), pos=torch.tensor([0, 1])), ValueError, "2 rows, there are 3 prompts"),
        (Ablate(("z", 0), pos=[3, -1]), ValueError, "twice"),
        (Ablate(("z", 0), head=[1, -3]), ValueError, "twice"),
        (Ablate(("post", 0), neuron=24), IndexError, "neuron 24 .* 'd_mlp'"),
        (Ablate(("z", 0), neuron=4), IndexError, "neuron 4 .* 'd_head'"),
        (Ablate(("pattern", 0), key=4), IndexError, "key 4 .* prompt 1"),
        (Ablate(("pattern", 0), neuron=0), ValueError, "key"),
        (Ablate(("z", 0), key=0), ValueError, "key is for attention"),
        (Ablate(("resid_pre", 0), head=0), ValueError, "no heads"),
        (Patch(("z", 0), source=zeros(5)), ValueError, r"\(5,\).* batch=3 pos=6 head=4 d_head=4"),
        (Add("hook_embed", pos=0, value=zeros(2, 16)), ValueError, "batch=3 d_model=16"),
        (
            Add("hook_embed", value=torch.zeros(16)),
            ValueError,
            "float32, the activation torch.float64",
        ),
    ],
    ids=repr,
)
def test_an_edit_outside_the_model(world, edit, error, words):
    here = world("left")
    with pytest.raises(error, match=words):
        run(here, [Scale(("z", 0), factor=2.0), edit])
    with pytest.raises(error, match=words):
        run(here, [[Scale(("z", 0), factor=2.0), edit]])
    with pytest.raises(error, match=words):
        run(here, [Scale(("z", 0), factor=2.0)], given=[edit])


def test_a_source_that_does_not_fit(world):
    here, model = world("left"), world("left").model
    _, few = model.run_with_cache(here.tokens, attention_mask=here.mask, names_filter=["*hook_q"])
    with pytest.raises(UnknownHookName, match=r"not kept 'blocks.0.attn.hook_z'.*names_filter"):
        run(here, [Patch(("z", 0), source=few)])
    tokens, mask = padded([6, 5, 5], "left", 31, 0)
    other = model.run_with_cache(tokens, attention_mask=mask)[1]
    with pytest.raises(ValueError, match="prompt 1 has 4 tokens, its source 5"):
        run(here, [Patch(("z", 0), source=other)])
    # Two of four positions: as many as the second prompt here has, and not the same ones.
    tokens, _ = padded([4, 4, 4], "right", 31, 0)
    _, some = model.run_with_cache(tokens, pos_slice=[1, 3])
    with pytest.raises(ValueError, match="some positions only"):
        sweep(model, tokens[:, :2], [Patch(("z", 0), source=some)], logit_diff(1, 2))
    with pytest.raises(ValueError, match="source holds 2 prompts, there are 3"):
        run(here, [Patch(("z", 0), source=other.slice(batch=[0, 1]))])
    with pytest.raises(ValueError, match="axis batch"):
        run(here, [Patch(("z", 0), source=other.slice(batch=0))])
    with pytest.raises(ValueError, match="prompt 1 has 4 tokens, the reference prompts have 5, 6"):
        run(here, [Ablate(("z", 0), kind="resample", reference=other)])
    with pytest.raises(ValueError, match="prompt 1 has 4 tokens, the reference prompts have 5, 6"):
        run(here, [Ablate(("z", 0), kind="mean", per_position=True, reference=other)])
    with pytest.raises(ValueError, match="per_position=True"):
        run(here, [Ablate(("pattern", 0), kind="mean", reference=other)])
    with pytest.raises(ValueError, match="float32"):
        run(here, [Patch(("z", 0), source=here.source.to(torch.float32))])
    small = world("left", n_embd=8).source
    with pytest.raises(ValueError, match="2 along 'd_head', there are 4"):
        run(here, [Patch(("z", 0), source=small)])


def test_prompts_of_different_token_lengths(world):
    here = world("even")
    other = world("one").source
    with pytest.raises(ValueError, match="6 tokens, its source 5"):
        run(here, [Patch(("resid_pre", 0), source=other)])


@pytest.mark.parametrize(
    ("metric", "error", "words"),
    [
        (lambda logits: logits[:, -1], ValueError, r"\(3, 31\).*one number, or one per prompt"),
        (lambda logits: logits[:2, -1, 0], ValueError, r"\(2,\)"),
        (logit_diff([1, 2], 3), ValueError, "answer_tokens has 2 rows, there are 3 prompts"),
        (logit_diff(31, 3), IndexError, "token 31 .* 0 to 30"),
        (logit_diff(1, 2, pos=4), IndexError, "pos 4 .* prompt 1 has 4 tokens"),
        (loss(pos=3), IndexError, "pos 3"),
        (kl(torch.zeros(2, 31, dtype=torch.float64)), ValueError, "3 prompts"),
        (3, TypeError, "metric"),
        ({}, ValueError, "no metric"),
        ([kl(), kl(pos=0)], ValueError, "two metrics are called 'kl'"),
    ],
)
def test_a_metric_that_does_not_fit(world, metric, error, words):
    with pytest.raises(error, match=words):
        run(world("left"), [Ablate(("z", 0))], metric)


def test_a_metric_that_is_no_number(world):
    """NaN names the intervention and the prompt; infinity too is no result."""
    here = world("left")
    plain = run(here, [Ablate(("z", 1))], lambda logits: logits[:, -1, 0])
    level = plain.base[next(iter(plain.base))]

    def broken(logits):
        value = logits[:, -1, 0].clone()
        value[1] = torch.where((value[1] - level[1]).abs() > 1e-6, torch.nan, value[1])
        return value

    edits = [Scale(("z", 1), factor=1.0), Ablate(("z", 1), head=2)]
    with pytest.raises(ValueError, match=r"broken.*(NaN|nan).*prompt 1|example 1") as caught:
        run(here, edits, broken)
    assert repr(edits[1]) in str(caught.value)
    (found,) = caught.value.partial.values.values()
    assert found.isnan().tolist() == [[False] * 3, [False, True, False]]
    nowhere = Patch(("resid_post", 0), pos=1, source=torch.tensor(torch.nan, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"(?i)nan") as caught:
        run(here, [edits[0], [edits[1], nowhere]])
    assert repr(nowhere) in str(caught.value)
    with pytest.raises(ValueError, match=r"(?i)nan"):
        run(here, edits, given=[nowhere])


def test_nothing_to_do(world):
    here = world("even")
    with pytest.raises(ValueError, match="edit"):
        run(here, [])
    with pytest.raises(ValueError, match=r"intervention 1|edits\[1\]"):
        run(here, [Ablate(("z", 0)), []])


@pytest.mark.parametrize("options", [dict(batch_size=0), dict(batch_size=-1), dict(memory_limit=0)])
def test_limits_that_leave_nothing(world, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        run(world("even"), [Ablate(("z", 0))], **options)


def test_unknown_batch_size(world):
    with pytest.raises(Exception, match=r"batch_size"):
        run(world("even"), [Ablate(("z", 0))], batch_size="automatic")


def test_hooks_that_are_active_already(world):
    here = world("even")
    active = [(("z", 0), lambda act, hook: act * 2)]
    with (
        here.model.hooks(fwd_hooks=active),
        pytest.raises(ValueError, match=r"blocks\.0\.attn\.hook_z"),
    ):
        run(here, [Ablate(("z", 1))])
    run(here, [Ablate(("z", 1))])


def test_two_layer_norms_of_one_block(world):
    """As in a full run."""
    here = world("even")
    edits = [Scale(("q_input", 0), factor=2.0), Scale(("scale", 0, "ln1"), factor=2.0)]
    with pytest.raises(HookError, match="hook_q_input"):
        run(here, [edits])
    with pytest.raises(HookError, match="hook_q_input"):
        run(here, edits[:1], given=edits[1:])
    elsewhere = Scale(("scale", 1, "ln1"), factor=2.0)
    check(here, [*edits, [edits[0], elsewhere]], {"last": logit_diff(1, 2)})


def test_wrong_prompts(world):
    model, edits, metric = world("even").model, [Ablate(("z", 0))], logit_diff(1, 2)
    for tokens, mask, error, words in [
        (torch.zeros(2, 3), None, TypeError, "whole numbers"),
        (torch.zeros(0, 3, dtype=torch.long), None, ValueError, "batch pos"),
        (torch.tensor([[0, 31]]), None, (IndexError, ValueError), "31"),
        (torch.zeros(1, 10, dtype=torch.long), None, ValueError, "10"),
        (torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 4), ValueError, "shape"),
        (torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3), ValueError, "without any token"),
        (torch.zeros(1, 3, dtype=torch.long), torch.full((1, 3), 2), ValueError, "0 and 1"),
        ("text", None, ValueError, "tokenizer"),
    ]:
        with pytest.raises(error, match=words):
            sweep(model, tokens, edits, metric, attention_mask=mask, progress=False)
