"""Names and filters of hook points."""

import pytest

from hooks import UnknownHookName, resolve, select
from interp.points import hook_points

NAMES = list(hook_points(3))


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("blocks.2.attn.hook_pattern", "blocks.2.attn.hook_pattern"),
        ("embed", "hook_embed"),
        ("hook_pos_embed", "hook_pos_embed"),
        (("embed",), "hook_embed"),
        (("pattern", 1), "blocks.1.attn.hook_pattern"),
        (("attn", 1), "blocks.1.attn.hook_pattern"),
        (("attn_scores", 0), "blocks.0.attn.hook_attn_scores"),
        (("attn_logits", 0), "blocks.0.attn.hook_attn_scores"),
        (("q", -1), "blocks.2.attn.hook_q"),
        (("key", 0), "blocks.0.attn.hook_k"),
        (("value", 0), "blocks.0.attn.hook_v"),
        (("query", 0), "blocks.0.attn.hook_q"),
        (("result", 0), "blocks.0.attn.hook_result"),
        (("q_input", 1), "blocks.1.hook_q_input"),
        (("pre", 2), "blocks.2.mlp.hook_pre"),
        (("post", 2), "blocks.2.mlp.hook_post"),
        (("mlp_post", 2), "blocks.2.mlp.hook_post"),
        (("resid_post", -3), "blocks.0.hook_resid_post"),
        (("scale", 1, "ln1"), "blocks.1.ln1.hook_scale"),
        (("normalized", 1, "ln2"), "blocks.1.ln2.hook_normalized"),
        (("scale", None, "ln_final"), "ln_final.hook_scale"),
    ],
)
def test_short_forms(short, full):
    assert resolve(short, NAMES) == full


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("blocks.0.attn.hook_patern", "Did you mean 'blocks.0.attn.hook_pattern'"),
        ("blocks.7.hook_resid_pre", "layer 7 is out of range, there are 3 layers, 0 to 2"),
        (("patern", 0), "Did you mean 'pattern'"),
        (("pattern", 3), "there are 3 layers, 0 to 2"),
        (("pattern", -4), "out of range"),
        (("pattern", "0"), "no whole number"),
        (("scale", 0), "ambiguous"),
        ((), "expected a full name"),
        (("a", 0, "b", 1), "expected a full name"),
        ("nonsense", "no hook point 'nonsense'"),
        (
            "z",
            "'z' without a layer: that of layer 0 is ('z', 0), those of all layers are '*hook_z'",
        ),
        ("hook_pattern", "those of all layers are '*hook_pattern'"),
        ("scale", "that of layer 0 is ('scale', 0, 'ln1') or ('scale', 0, 'ln2'), those of all"),
    ],
)
def test_unknown_names_are_told_apart(name, told):
    with pytest.raises(UnknownHookName) as error:
        resolve(name, NAMES)
    assert told in str(error.value)


def test_filters():
    patterns = [f"blocks.{i}.attn.hook_pattern" for i in range(3)]
    assert select("blocks.*.attn.hook_pattern", NAMES) == patterns
    assert select("*hook_pattern", NAMES) == patterns
    assert select(lambda name: name.endswith("pattern"), NAMES) == patterns
    assert select([("pattern", 2), "blocks.[01].attn.hook_pattern"], NAMES) == patterns
    assert select(("pattern", 0), NAMES) == patterns[:1]


@pytest.mark.parametrize(
    ("names_filter", "told"),
    [
        ("*patern", "'*patern' matches none of"),
        (lambda name: False, "picks none"),
        ([], "is empty"),
        (["hook_embed", "hook_embd"], "Did you mean 'hook_embed'"),
        (["hook_embed", "*nothing*"], "'*nothing*' matches none"),
    ],
)
def test_a_filter_that_picks_nothing_says_so(names_filter, told):
    with pytest.raises(UnknownHookName) as error:
        select(names_filter, NAMES)
    assert told in str(error.value)


def test_a_filter_of_no_kind():
    with pytest.raises(TypeError, match="not int"):
        select.__wrapped__(3, NAMES) if hasattr(select, "__wrapped__") else select(3, NAMES)  # type: ignore[arg-type]
