"""Text as it comes: whole characters, and stop strings wherever the borders between tokens are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.text_stream import StopStrings, TextStream
from interp.tokenizer import Tokenizer

TEXTS = [
    "plain words, and a line\nend",
    "smile 😀 and 👩‍👩‍👧 too",
    "你好世界 这是一只猫",
    "naïve café – Ünïcödé",
    "🏳️‍🌈<|endoftext|>🦊",
]


@pytest.fixture(scope="module")
def tokenizer(mini):
    return mini.tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_characters_come_whole(tokenizer, text):
    (ids,) = tokenizer.to_tokens(text, prepend_bos=False).tolist()
    assert len(ids) > 3
    stream = TextStream(tokenizer)
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) == text and stream.finish() == ""
    assert "\ufffd" not in "".join(pieces)
    if any(ord(char) > 0xFFFF for char in text):
        assert "" in pieces, "a character of several tokens waits for its last byte"


@given(ids=st.lists(st.integers(0, 8191), max_size=40))
def test_joined_it_is_the_text_of_all_tokens(mini, ids):
    """Also of bytes that form no character."""
    stream = TextStream(mini.tokenizer)
    text = "".join(stream.push(id) for id in ids) + stream.finish()
    assert text == (mini.tokenizer.to_string(ids) if ids else "")
    cut = len(ids) // 2
    after = TextStream(mini.tokenizer, ids[:cut])
    rest = "".join(after.push(id) for id in ids[cut:]) + after.finish()
    assert after.text_before + rest == text


def test_what_never_becomes_whole(tokenizer):
    ids = tokenizer.to_tokens("😀", prepend_bos=False)[0].tolist()
    stream = TextStream(tokenizer)
    assert [stream.push(id) for id in ids[:-1]] == [""] * (len(ids) - 1)
    assert stream.finish() == tokenizer.to_string(ids[:-1])


def test_a_tokenizer_of_words():
    """One that is not byte-level, whose decoder joins with blanks."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    backend = Backend(models.WordLevel({"the": 0, "cat": 1, "sat": 2}, unk_token="the"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    words = Tokenizer(backend, d_vocab=4)
    stream = TextStream(words, [0])
    assert stream.text_before == "the"
    assert [stream.push(id) for id in (1, 2)] == [" cat", " sat"]
    assert stream.finish() == ""


@pytest.mark.parametrize(
    ("pieces", "strings", "found"),
    [
        (["one ", "two"], ["two"], [None, "two"]),
        (["a\n", "\nb"], ["\n\n"], [None, "\n\n"]),
        (["ab", "", "cab"], ["bca"], [None, None, "bca"]),
        (["x.y", "z"], [".", "yz"], [".", "yz"]),
        (["abcd"], ["bcd", "abc"], ["abc"]),
        (["aaab"], ["aab", "b"], ["aab"]),
        (["a", "b", "a", "c"], ["abac", "xx"], [None, None, None, "abac"]),
        (["no", "thing"], ["nox"], [None, None]),
    ],
    ids=str,
)
def test_stop_strings(pieces, strings, found):
    watch = StopStrings(strings)
    assert [watch.push(piece) for piece in pieces] == found


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=4), st.randoms())
def test_stop_strings_do_not_depend_on_the_borders(text, string, random):
    pieces, rest = [], text
    while rest:
        n = random.randint(0, len(rest))
        pieces.append(rest[:n])
        rest = rest[n:]
    watch, seen = StopStrings([string]), ""
    for piece in pieces:
        seen += piece
        hit = watch.push(piece)
        assert (hit is not None) == (string in seen)
        if hit:
            return


def test_bytes_of_tokens(tokenizer):
    for id in range(0, 8192, 97):
        string = tokenizer.to_bytes(id).decode("utf-8", "replace")
        assert string == tokenizer.to_string([id])
    with pytest.raises(ValueError, match="out of range"):
        tokenizer.to_bytes(10**6)
