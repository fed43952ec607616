"""Names of TransformerLens: those that are here give what its definitions say, and the error for
those that are not names what to use."""

import inspect

import pytest
import torch

from analyses import attribution
from hooks import UnknownHookName
from hooks import cache as caches
from interp import HookedGPT2, HookedGPT2Config, familiar
from interp import config as configs
from interp.familiar import get_act_name
from interp.points import hook_points

CFG = HookedGPT2Config(n_layers=3, d_model=8, n_heads=2, n_ctx=8, d_vocab=11)


@pytest.fixture(scope="module")
def model() -> HookedGPT2:
    model = HookedGPT2.from_config(CFG, dtype="float64").requires_grad_(False)
    for parameter in model.parameters():  # biases begin as zeros
        parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model


def test_labels_of_heads(model):
    assert model.all_head_labels() == ["L0H0", "L0H1", "L1H0", "L1H1", "L2H0", "L2H1"]


@pytest.mark.parametrize("layer", range(4))
def test_accumulated_bias(model, layer):
    """What the biases alone have written, block by block."""
    total = torch.zeros(8, dtype=torch.float64)
    heads_alone = total.clone()
    for block in model.blocks[:layer]:
        total += block.attn.b_O + block.mlp.b_out
        heads_alone += block.attn.b_O
    torch.testing.assert_close(model.accumulated_bias(layer), total)
    torch.testing.assert_close(model.accumulated_bias(layer, include_mlp_biases=False), heads_alone)
    if layer < 3:
        both = total + model.b_O[layer]
        torch.testing.assert_close(model.accumulated_bias(layer, mlp_input=True), both)


@pytest.mark.parametrize(("layer", "mlp_input"), [(4, False), (3, True), (-1, False)])
def test_biases_of_layers_that_are_not_there(model, layer, mlp_input):
    with pytest.raises(IndexError, match=f"layer {layer}.* is out of range: this model has 3"):
        model.accumulated_bias(layer, mlp_input)


def test_residual_directions(model, mini):
    """Times what the final layer norm gives, they are the logits."""
    tokens = torch.tensor([[3, 1, 4]])
    logits, cache = model.run_with_cache(tokens)
    out = model.ln_final(cache["resid_post", -1])
    ids = torch.tensor([[0, 10], [7, 3]])
    directions = model.tokens_to_residual_directions(ids)
    assert directions.shape == (2, 2, 8)
    torch.testing.assert_close(directions @ out[0, 1], logits[0, 1, ids])
    for one in (7, torch.tensor([[7]])):
        assert model.tokens_to_residual_directions(one).equal(model.W_U[:, 7])
    mary = mini.to_single_token(" Mary")
    assert mini.tokens_to_residual_directions(" Mary").equal(mini.W_U[:, mary])
    for wrong in (11, -1, torch.tensor([0, 11])):
        with pytest.raises(IndexError, match="token ids go from 0 to 10"):
            model.tokens_to_residual_directions(wrong)


def test_position_of_a_token(mini):
    text = "John met Mary and John"
    ids = mini.to_tokens(text)
    john = mini.to_single_token(" John")
    assert mini.to_str_tokens(text)[mini.get_token_position(" Mary", text)] == " Mary"
    last = mini.get_token_position(" John", text, mode="last")
    assert last == ids.shape[1] - 1 == mini.get_token_position(john, ids, mode="last")
    assert mini.get_token_position(" John", text, "last", prepend_bos=False) == last - 1
    assert mini.get_token_position(0, ids[0]) == 0
    with pytest.raises(ValueError, match="' Anna' is none of the"):
        mini.get_token_position(" Anna", text)
    with pytest.raises(ValueError, match="one row of token ids is expected"):
        mini.get_token_position(0, ids.repeat(2, 1))


@pytest.mark.usefixtures("unchecked")
def test_position_of_another_mode(mini):
    with pytest.raises(ValueError, match="mode is 'first' or 'last', not 'middle'"):
        mini.get_token_position(" John", " John", mode="middle")


def test_loading_without_processing():
    same = HookedGPT2.from_pretrained_no_processing("mini", dtype="float64")
    assert isinstance(same, HookedGPT2) and same.dtype == torch.float64


def test_names_of_points():
    for name in hook_points(3):
        assert get_act_name(name) == name
    assert get_act_name("k", 6) == "blocks.6.attn.hook_k"
    assert get_act_name("pre", 2) == "blocks.2.mlp.hook_pre"
    assert get_act_name("embed") == "hook_embed"
    assert get_act_name("normalized", 27, "ln2") == "blocks.27.ln2.hook_normalized"
    with pytest.raises(UnknownHookName, match="no hook point 'kk' in layer 1"):
        get_act_name("kk", 1)


def test_hook_points_are_not_on_blocks(model):
    block = model.blocks[0]
    for holder, name in (block, "hook_resid_pre"), (block.attn, "hook_z"), (block.mlp, "hook_post"):
        with pytest.raises(AttributeError, match=rf"no '{name}': .*model\.hook_dict"):
            getattr(holder, name)
    with pytest.raises(AttributeError, match=r"LayerNormWeights has no 'weight'$"):
        getattr(block.ln1, "weight")  # noqa: B009


@pytest.mark.parametrize("name", familiar._ELSEWHERE)
def test_a_missing_name_of_the_model_says_what_to_use(model, name):
    with pytest.raises(AttributeError, match=f"no '{name}'; instead: "):
        getattr(model, name)


@pytest.mark.parametrize("name", caches._ELSEWHERE)
def test_a_missing_name_of_a_cache_says_what_to_use(model, name):
    _, cache = model.run_with_cache(torch.tensor([[1, 2]]))
    with pytest.raises(AttributeError, match=f"no '{name}'; instead: ") as error:
        getattr(cache, name)
    if "attribution." + name in str(error.value):
        taken = list(inspect.signature(getattr(attribution, name)).parameters)
        assert taken[:2] == ["model", "cache"]


@pytest.mark.parametrize("name", configs._ELSEWHERE)
def test_a_missing_name_of_a_config_says_what_to_use(name):
    with pytest.raises(AttributeError, match=f"no '{name}'; instead: "):
        getattr(CFG, name)


def test_other_missing_names_are_missing(model):
    _, cache = model.run_with_cache(torch.tensor([[1, 2]]))
    for thing in (model, cache, CFG):
        assert not hasattr(thing, "no_such_name")
        with pytest.raises(AttributeError, match="no_such_name"):
            _ = thing.no_such_name


@pytest.mark.parametrize("name", familiar.LOADED)
def test_loading_says_what_became_of_a_keyword(name):
    with pytest.raises(TypeError, match=f"unknown keyword '{name}'. .*from_pretrained takes: dev"):
        HookedGPT2.from_pretrained("mini", **{name: True})
    with pytest.raises(TypeError, match=r"unknown keyword 'dtyp'\. Did you mean 'dtype'"):
        HookedGPT2.from_pretrained("mini", dtyp="float64")


@pytest.mark.parametrize("name", ["return_cache_object", "reset_hooks_end", "clear_contexts"])
def test_a_run_says_what_became_of_a_keyword(model, name):
    with pytest.raises(TypeError, match=f"unknown keyword '{name}'. [A-Zdm].* A run takes"):
        model.run_with_hooks(torch.tensor([[1, 2]]), **{name: True})
