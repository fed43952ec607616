r"""Text to tokens and back: equal to the reference, nothing dropped, nothing silent."""

import json
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from interp.sources import SourceError
from interp.tokenizer import END_OF_TEXT, TokenBatch, Tokenizer, TokenizerError

CORPUS = [
    "When Mary and John went to the store, John gave a drink to Mary.",
    "Hello world! Hello, hello again; the war lasted from 1732 to 1790.",
    "Ein schöner Tag für Ärger, naïve café, 😀 emoji, 日本語のテキスト.",
    "def f(x):\n    return x\t+ 1\n\n\nthe  store   had    many     spaces",
]


def train(**more) -> tokenizers.Tokenizer:
    """A byte-level tokenizer with GPT-2's pre-tokenisation, on a few sentences."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    options: dict[str, Any] = {
        "vocab_size": 500,
        "special_tokens": [END_OF_TEXT],
        "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(),
        "show_progress": False,
    }
    backend.train_from_iterator(
        [*CORPUS, " a b c d e"] * 5, trainers.BpeTrainer(**(options | more))
    )
    return backend


BACKEND = train()
TOKENIZER = Tokenizer(BACKEND)
SIZE = BACKEND.get_vocab_size()
EOT = 0


@pytest.fixture(scope="module")
def both_folders(tmp_path_factory):
    """The same tokenizer as `tokenizer.json`, and as `vocab.json` and `merges.txt`."""
    one, two = tmp_path_factory.mktemp("json"), tmp_path_factory.mktemp("merges")
    BACKEND.save(str(one / "tokenizer.json"))
    BACKEND.model.save(str(two))
    for folder in one, two:
        config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return one, two


@pytest.fixture(scope="module", params=["tokenizer.json", "merges.txt", "object"])
def pair(request, both_folders):
    """Ours and the reference's, read from the same files."""
    folder = both_folders[request.param == "merges.txt"]
    reference = AutoTokenizer.from_pretrained(folder)
    if request.param == "object":
        return Tokenizer.from_hf(reference), reference
    return Tokenizer.from_folder(folder), reference


# Text with every kind of character, whitespace runs, digits, contractions, and the special token.
TEXT = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from([*CORPUS, " ", "  ", "\n", "'s", "'ll", " 1732", END_OF_TEXT, "😀", "é"]),
    ),
    min_size=1,
    max_size=6,
).map("".join)


# ---------------------------------------------------------------- parity


@given(text=TEXT)
@example(text=f"one{END_OF_TEXT}two {END_OF_TEXT} three")
@example(text="\x00\x7f\u200b\ufeff e\u0301")
def test_same_ids_as_the_reference(pair, text):
    ours, reference = pair
    expected = reference(text)["input_ids"]
    if not expected:
        return
    tokens = ours.to_tokens(text, prepend_bos=False)
    assert (tokens.dtype, tokens.tolist()) == (torch.int64, [expected])


@given(text=TEXT.filter(lambda text: text and not text.startswith(END_OF_TEXT)))
def test_with_bos_it_is_one_token_more(pair, text):
    ours, reference = pair
    expected = [EOT, *reference(text)["input_ids"]]
    assert ours.to_tokens(text).tolist() == [expected]
    assert ours.tokenize(text).tokens.tolist() == [expected]
    assert ours.to_str_tokens(text)[0] == END_OF_TEXT


@given(ids=st.lists(st.integers(0, SIZE - 1), max_size=20))
def test_same_text_as_the_reference(pair, ids):
    ours, reference = pair
    text = reference.decode(ids, clean_up_tokenization_spaces=False)
    assert ours.to_string(ids) == text
    assert ours.to_string(torch.tensor(ids, dtype=torch.int64)) == text


def test_same_special_tokens_as_the_reference(pair):
    ours, reference = pair
    assert ours.bos_token_id == reference.bos_token_id == EOT
    assert ours.eos_token_id == reference.eos_token_id == EOT
    assert ours.vocab_size == len(reference)
    assert ours.pad_token_id == EOT


@pytest.mark.parametrize("side", ["left", "right"])
def test_same_padding_as_the_reference(pair, side):
    ours, reference = pair
    reference.pad_token, reference.padding_side = END_OF_TEXT, side
    batch = ours.tokenize(CORPUS, prepend_bos=False, padding_side=side)
    expected = reference(CORPUS, padding=True, return_tensors="pt")
    assert torch.equal(batch.tokens, expected["input_ids"])
    assert torch.equal(batch.attention_mask, expected["attention_mask"].bool())


def test_the_reference_class_itself(both_folders):
    reference = GPT2Tokenizer.from_pretrained(both_folders[1])
    ours = Tokenizer.from_hf(reference)
    for text in CORPUS:
        assert ours.to_tokens(text, prepend_bos=False)[0].tolist() == reference(text)["input_ids"]


@given(text=TEXT)
def test_there_and_back(text):
    if text:
        ids = TOKENIZER.to_tokens(text, prepend_bos=False)
        assert TOKENIZER.to_string(ids) == [text]
        assert TOKENIZER.to_string(ids[0]) == text


# ---------------------------------------------------------------- batches


def test_one_text_is_a_batch_of_one():
    batch = TOKENIZER.tokenize("Mary had")
    assert isinstance(batch, TokenBatch)
    assert batch.tokens.shape == (1, len(batch.str_tokens[0]))
    assert (len(batch), batch.prepend_bos, batch.is_padded) == (1, True, False)
    assert batch.str_tokens == [[END_OF_TEXT, *TOKENIZER.to_str_tokens("Mary had", False)]]
    assert batch.attention_mask.all()


@given(
    texts=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5),
    side=st.sampled_from(["left", "right"]),
    prepend_bos=st.booleans(),
)
def test_batches(texts, side, prepend_bos):
    batch = TOKENIZER.tokenize(texts, prepend_bos=prepend_bos, padding_side=side)
    alone = [TOKENIZER.to_tokens(text, prepend_bos)[0].tolist() for text in texts]
    assert batch.lengths == [len(ids) for ids in alone]
    assert batch.prepend_bos is prepend_bos
    assert batch.is_padded == (len(set(batch.lengths)) > 1)
    for row, ids in enumerate(alone):
        mask = batch.attention_mask[row]
        assert batch.tokens[row, mask].tolist() == ids
        first = 0 if side == "right" else batch.tokens.shape[1] - len(ids)
        assert mask.nonzero().flatten().tolist() == list(range(first, first + len(ids)))
        assert (batch.tokens[row, ~mask] == TOKENIZER.pad_token_id).all()
        assert batch.str_tokens[row] == TOKENIZER.to_str_tokens(batch.tokens[row])


def test_to_moves_the_tensors_alone():
    batch = TOKENIZER.tokenize(["a", "b c d"])
    moved = batch.to("cpu")
    assert torch.equal(moved.tokens, batch.tokens)
    assert torch.equal(moved.attention_mask, batch.attention_mask)
    assert (moved.str_tokens, moved.prepend_bos) == (batch.str_tokens, True)


def test_to_tokens_of_equal_lengths():
    tokens = TOKENIZER.to_tokens(["a b", "c d"])
    assert tokens.shape == (2, 3)
    assert torch.equal(tokens, TOKENIZER.tokenize(["a b", "c d"]).tokens)


def test_to_tokens_of_unequal_lengths():
    with pytest.raises(TokenizerError, match=r"have 2, 4 tokens, .* tokenize\(\) pads them"):
        TOKENIZER.to_tokens(["a", "b c d"])


# ---------------------------------------------------------------- token strings


@given(text=st.text(min_size=1, max_size=30))
def test_str_tokens_joined_are_the_text(text):
    strings = TOKENIZER.to_str_tokens(text, prepend_bos=False)
    assert len(strings) == TOKENIZER.to_tokens(text, prepend_bos=False).shape[1]
    escaped = "".join(strings)
    # Bytes of characters that were split over tokens are shown as escapes.
    if "\\" not in text:
        parts, position = b"", 0
        while position < len(escaped):
            if escaped.startswith("\\x", position):
                parts += bytes([int(escaped[position + 2 : position + 4], 16)])
                position += 4
            else:
                parts += escaped[position].encode()
                position += 1
        assert parts.decode() == text


def test_bytes_of_split_characters_are_shown():
    assert TOKENIZER.to_str_tokens("a🜁", False) == ["a", r"\xf0\x9f", r"\x9c", r"\x81"]
    # All whole characters: nothing to escape.
    for text in (" café", " spaces   and\n\nlines\t"):
        assert "".join(TOKENIZER.to_str_tokens(text, prepend_bos=False)) == text


def test_str_tokens_of_ids():
    expected = TOKENIZER.to_str_tokens("Mary had", prepend_bos=False)
    tokens = TOKENIZER.to_tokens("Mary had", prepend_bos=False)
    assert TOKENIZER.to_str_tokens(tokens) == expected
    assert TOKENIZER.to_str_tokens(tokens[0]) == expected
    assert TOKENIZER.to_str_tokens(tokens[0].int()) == expected
    assert TOKENIZER.to_str_tokens(tokens[0].tolist()) == expected
    assert TOKENIZER.to_str_tokens([]) == []
    assert TOKENIZER.to_str_tokens(torch.tensor(EOT)) == [END_OF_TEXT]
    with pytest.raises(TokenizerError, match=r"one row of tokens, got shape \[2, 3\]"):
        TOKENIZER.to_str_tokens(TOKENIZER.to_tokens(["a b", "c d"]))


def test_to_string_of_rows():
    assert TOKENIZER.to_string([[EOT], [EOT, EOT]]) == [END_OF_TEXT, END_OF_TEXT * 2]
    assert TOKENIZER.to_string(torch.tensor(EOT)) == END_OF_TEXT
    assert TOKENIZER.to_string([]) == ""
    tokens = TOKENIZER.to_tokens(["a b", "c d"], prepend_bos=False)
    assert TOKENIZER.to_string(tokens) == ["a b", "c d"]


def test_single_tokens():
    mary = TOKENIZER.to_single_token(" Mary")
    assert TOKENIZER.to_single_str_token(mary) == " Mary"
    assert TOKENIZER.to_single_token(END_OF_TEXT) == EOT
    with pytest.raises(TokenizerError, match=r"' Mary had' is 2 tokens, not one: \[' Mary', "):
        TOKENIZER.to_single_token(" Mary had")
    with pytest.raises(TokenizerError, match=r"one: \['Mar', .*; with a space in front .*' Mary'"):
        TOKENIZER.to_single_token("Mary")
    with pytest.raises(TokenizerError, match="text is empty"):
        TOKENIZER.to_single_token("")


# ---------------------------------------------------------------- the rule about the first token


def test_a_second_beginning_is_refused():
    text = f"{END_OF_TEXT}Mary"
    for call in (TOKENIZER.tokenize, TOKENIZER.to_tokens, TOKENIZER.to_str_tokens):
        with pytest.raises(TokenizerError, match=r"already begins with '<\|endoftext\|>', and"):
            call(text)
    with pytest.raises(TokenizerError, match="text 1 already begins"):
        TOKENIZER.tokenize(["a", text])
    without = TOKENIZER.to_tokens(text, prepend_bos=False)
    assert torch.equal(without, TOKENIZER.to_tokens("Mary"))
    # Anywhere else it is just a token.
    assert TOKENIZER.to_tokens(f"a{END_OF_TEXT}")[0].tolist()[::2] == [EOT, EOT]


def test_without_a_beginning_token():
    backend = train(special_tokens=[])
    tokenizer = Tokenizer(backend)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (None,) * 3
    with pytest.raises(TokenizerError, match=r"no beginning-of-text token .* prepend_bos=False"):
        tokenizer.to_tokens("Mary")
    assert tokenizer.to_string(tokenizer.to_tokens("Mary", prepend_bos=False)) == ["Mary"]
    with pytest.raises(TokenizerError, match="different lengths need a padding token"):
        tokenizer.tokenize(["a", "b c d"], prepend_bos=False)
    assert len(tokenizer.tokenize(["a", "b"], prepend_bos=False)) == 2


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"text is empty; for the beginning-of-text token alone, pass '<\|endoftext\|>'"),
        (["a", ""], "text 1 is empty"),
        ([], "no text to tokenize: the list is empty"),
        ("a\ud800b", r"text holds '\\ud800' at character 1, half of a surrogate pair"),
        (["a", "\udfff"], r"text 1 holds '\\udfff' at character 0"),
    ],
)
@pytest.mark.parametrize("prepend_bos", [True, False])
def test_refuses_text(text, message, prepend_bos):
    with pytest.raises(TokenizerError, match=message):
        TOKENIZER.tokenize(text, prepend_bos=prepend_bos)
    with pytest.raises(TokenizerError, match=message):
        TOKENIZER.to_tokens(text, prepend_bos)


@pytest.mark.parametrize("text", [3, None, b"bytes", ["a", 3], [["a"]]])
def test_refuses_what_is_no_text(text):
    with pytest.raises(TypeError):
        TOKENIZER.tokenize(text)


def test_never_cuts():
    text = "a b c d e"
    assert TOKENIZER.tokenize(text, n_ctx=6).tokens.shape == (1, 6)
    with pytest.raises(TokenizerError, match=r"has 6 tokens, the prepended one .* at most 5"):
        TOKENIZER.tokenize(text, n_ctx=5)
    with pytest.raises(TokenizerError, match="text 1 has 5 tokens; this model reads at most 4"):
        TOKENIZER.tokenize(["a", text], prepend_bos=False, n_ctx=4)
    with pytest.raises(TokenizerError, match="at most 5"):
        TOKENIZER.to_tokens(text, n_ctx=5)


def test_padding_side_is_checked():
    wrong: Any = "Left"
    with pytest.raises((ValueError, TypeError)):
        TOKENIZER.tokenize("a", padding_side=wrong)


@pytest.mark.parametrize("wrong", [SIZE, -1, 10**12])
def test_ids_out_of_range(wrong):
    message = f"token id {wrong} at position 1 is out of range: there are {SIZE} tokens"
    for call in (TOKENIZER.to_string, TOKENIZER.to_str_tokens):
        for ids in ([EOT, wrong, -7], torch.tensor([EOT, wrong, -7])):
            with pytest.raises(TokenizerError, match=message):
                call(ids)
    with pytest.raises(TokenizerError, match=message):
        TOKENIZER.to_string(torch.tensor([[EOT, EOT], [EOT, wrong]]))


# ---------------------------------------------------------------- vocabularies of other sizes


def test_model_with_more_tokens_than_the_tokenizer():
    # As nanoGPT's 50304 with GPT-2's 50257.
    tokenizer = Tokenizer(BACKEND, d_vocab=SIZE + 9)
    assert tokenizer.to_str_tokens([SIZE - 1, SIZE + 8])[1] == f"<unused {SIZE + 8}>"
    assert tokenizer.to_string([SIZE, EOT]) == f"<unused {SIZE}>{END_OF_TEXT}"
    mary = tokenizer.to_single_token(" Mary")
    text = f" Mary Mary<unused {SIZE}><unused {SIZE + 1}> Mary"
    assert tokenizer.to_string([mary, mary, SIZE, SIZE + 1, mary]) == text
    with pytest.raises(TokenizerError, match=f"there are {SIZE + 9} tokens"):
        tokenizer.to_str_tokens([SIZE + 9])


def test_model_with_fewer_tokens_than_the_tokenizer():
    # As with a padding token that was added without resizing the model.
    backend = tokenizers.Tokenizer.from_str(BACKEND.to_str())
    backend.add_special_tokens(["[PAD]"])
    tokenizer = Tokenizer(backend, pad_token_id=SIZE, d_vocab=SIZE)
    assert tokenizer.pad_token_id == EOT
    assert tokenizer.tokenize(["a", "b c"]).tokens.max() < SIZE
    with pytest.raises(TokenizerError, match=rf"token '\[PAD\]' \(id {SIZE}\), .* only {SIZE} "):
        tokenizer.to_tokens("a[PAD]")


def test_added_tokens():
    backend = tokenizers.Tokenizer.from_str(BACKEND.to_str())
    backend.add_special_tokens(["<|user|>", "Ünïcode"])
    tokenizer = Tokenizer(backend)
    assert tokenizer.vocab_size == SIZE + 2
    assert tokenizer.to_str_tokens("a<|user|>Ünïcode", False) == ["a", "<|user|>", "Ünïcode"]
    assert tokenizer.to_single_token("<|user|>") == SIZE


def test_bytes_without_a_token_are_not_dropped():
    # Trained without the byte alphabet: the library would leave such bytes out of the text.
    tokenizer = Tokenizer(train(initial_alphabet=[]))
    assert tokenizer.to_string(tokenizer.to_tokens("Mary", prepend_bos=False)) == ["Mary"]
    with pytest.raises(TokenizerError, match=r"text 1 holds bytes .* would drop: b'\^'"):
        tokenizer.tokenize(["Mary", "Mary^"])


# ---------------------------------------------------------------- files


def test_truncation_and_padding_in_a_file_are_off(tmp_path):
    backend = tokenizers.Tokenizer.from_str(BACKEND.to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, EOT)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (Tokenizer.from_folder(tmp_path), Tokenizer(backend)):
        tokens = tokenizer.to_tokens("a b c d e", prepend_bos=False)
        assert torch.equal(tokens, TOKENIZER.to_tokens("a b c d e", prepend_bos=False))
    assert backend.truncation is not None


def test_special_tokens_from_files(tmp_path):
    backend = tokenizers.Tokenizer.from_str(BACKEND.to_str())
    backend.add_special_tokens(["<s>", "</s>", "<pad>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "</s>", "bos_token": "</s>"}')
    settings = {"bos_token": {"content": "<s>"}, "pad_token": "<pad>", "unk_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.from_folder(tmp_path)
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert ids == [backend.token_to_id(token) for token in ("<s>", "</s>", "<pad>")]
    assert tokenizer.to_str_tokens("a") == ["<s>", "a"]
    settings["pad_token"] = "[PAD]"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(TokenizerError, match=r"names '\[PAD\]' as pad_token, which is no token"):
        Tokenizer.from_folder(tmp_path)


def test_added_tokens_beside_merges(both_folders, tmp_path):
    for file in both_folders[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    added = tmp_path / "added_tokens.json"
    added.write_text(json.dumps({"<|b|>": SIZE + 1, "<|a|>": SIZE}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.to_tokens("x<|b|><|a|>", prepend_bos=False)[0, 1:].tolist() == [SIZE + 1, SIZE]
    added.write_text('{"<|b|>": 6000}')
    with pytest.raises(TokenizerError, match=r"'<\|b\|>' id 6000, which leaves a gap"):
        Tokenizer.from_folder(tmp_path)


def test_broken_files(both_folders, tmp_path):
    with pytest.raises(TokenizerError, match=r"expected tokenizer\.json, or vocab\.json and"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(TokenizerError, match="has no tokenizer"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "merges.txt").write_text("only-one-part\n")
    with pytest.raises(TokenizerError, match=r"vocab\.json and merges\.txt cannot be read"):
        Tokenizer.from_folder(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = (both_folders[0] / "tokenizer.json").read_text()
    for content in ("", "{}", whole[:-50], "[1]"):
        path.write_text(content)
        with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
            Tokenizer.from_folder(tmp_path)
    path.write_text(whole)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(SourceError, match=r"tokenizer_config\.json is not JSON"):
        Tokenizer.from_folder(tmp_path)


def test_refuses_tokenizers_without_backend():
    with pytest.raises(TypeError, match=r"fast transformers tokenizer .* got object"):
        Tokenizer.from_hf(object())


def test_a_transformers_tokenizer_is_left_alone(both_folders):
    reference = AutoTokenizer.from_pretrained(both_folders[0])
    reference.backend_tokenizer.enable_truncation(2)
    tokenizer = Tokenizer.from_hf(reference)
    assert tokenizer.to_tokens("a b c d").shape == (1, 5)
    assert reference.backend_tokenizer.truncation["max_length"] == 2


def test_other_kinds_of_tokenizer():
    # Not byte-level: token strings are shown as the vocabulary spells them.
    backend = tokenizers.Tokenizer(
        models.WordPiece({"[UNK]": 0, "ha": 1, "##ha": 2}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    tokenizer = Tokenizer.from_hf(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert tokenizer.to_str_tokens("haha", prepend_bos=False) == ["ha", "##ha"]
    assert tokenizer.to_string([1, 2]) == "haha"
    with pytest.raises(TokenizerError, match="gives no tokens: '  '"):
        tokenizer.to_tokens("  ", prepend_bos=False)


def test_repr():
    expected = f"Tokenizer(vocab_size={SIZE}, bos_token_id=0, eos_token_id=0, pad_token_id=0)"
    assert repr(TOKENIZER) == expected
