"""Published figures of GPT-2 small, where the Hugging Face Hub can be reached.

Sources: TransformerLens' Exploratory Analysis and Main demos (stored outputs of versions with
`HookedTransformer`, processed weights, `<|endoftext|>` prepended), and its test-suite ("Hello
world!").
"""

import pytest
import torch

from interp import HookedGPT2

pytestmark = pytest.mark.hub


@pytest.fixture(scope="module")
def gpt2() -> HookedGPT2:
    return HookedGPT2.from_pretrained("gpt2").requires_grad_(False)


@pytest.mark.parametrize("name", ["gpt2", "distilgpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
@torch.no_grad()
def test_published_checkpoints_equal_the_reference(name):
    from transformers import AutoTokenizer, GPT2LMHeadModel

    reference = GPT2LMHeadModel.from_pretrained(name).eval()
    model = HookedGPT2.from_pretrained(name)
    text = "The Eiffel Tower stands in Paris, and the Colosseum stands in"
    tokens = model.to_tokens(text)
    ids = AutoTokenizer.from_pretrained(name)(text)["input_ids"]
    assert tokens.tolist()[0] == [50256, *ids]
    ours, theirs = model(tokens), reference(tokens).logits
    assert (ours - theirs).abs().max() <= 1e-4
    assert ours.argmax(-1).equal(theirs.argmax(-1))


def test_loss_of_hello_world(gpt2):
    assert gpt2("Hello world!", "loss").item() == pytest.approx(5.33186, abs=1e-4)


def test_mary(gpt2):
    text = "After John and Mary went to the store, John gave a bottle of milk to"
    logits = gpt2.processed()(text)[0, -1]
    mary = gpt2.to_single_token(" Mary")
    assert logits.argmax() == mary
    assert logits[mary].item() == pytest.approx(18.09, abs=0.005)
    assert logits.softmax(-1)[mary].item() == pytest.approx(0.7007, abs=5e-5)


@pytest.mark.parametrize(
    ("giver", "receiver", "published"), [("John", "Mary", 3.337), ("Mary", "John", 3.202)]
)
def test_indirect_object(gpt2, giver, receiver, published):
    logits = gpt2(f"When John and Mary went to the shops, {giver} gave the bag to")[0, -1]
    answers = [gpt2.to_single_token(f" {name}") for name in (receiver, giver)]
    difference = logits[answers[0]] - logits[answers[1]]
    assert difference.item() == pytest.approx(published, abs=2e-3)
