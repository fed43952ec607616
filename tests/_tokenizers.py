"""A tokenizer without training, for tests that need every text to have tokens."""

from collections.abc import Sequence

from interp.tokenizer import Tokenizer


def byte_tokenizer(texts: Sequence[str], d_vocab: int) -> Tokenizer:
    """Every byte is a token; so are some texts, that try to break out of pages and terminals."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    backend.add_tokens([AddedToken(text, normalized=False) for text in texts])
    return Tokenizer(backend, d_vocab=d_vocab)
