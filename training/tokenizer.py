"""Train mini's tokenizer: byte-level BPE of GPT-2's kind, 8,192 entries.

It differs from GPT-2's in one thing: a run of digits is cut into pieces of two before merging,
so " 1732" is always " 17" + "32", which is how GPT-2 itself reads most years.
"""

import json
import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from training.corpus import END_OF_TEXT, documents, pieces

N_ENTRIES = 8192
# GPT-2's own pattern, except for {1,2} where it has + after \p{N}.
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def new_tokenizer() -> Tokenizer:
    """An empty byte-level BPE tokenizer with mini's pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def sample_texts(corpus: Path, seed: int = 0, books_share: float = 0.25) -> Iterator[str]:
    """What the merges are counted on: all of `modern` twice and a sample of `books`."""
    modern = list(pieces(documents(corpus, "modern")))
    yield from modern
    yield from modern
    books = list(pieces(documents(corpus, "books")))
    yield from random.Random(seed).sample(books, round(books_share * len(books)))


def train_tokenizer(corpus: Path, words: Iterable[str], boost: int = 4000) -> Tokenizer:
    """Train the tokenizer so that each of `words` is a single entry.

    Args:
        corpus: folder with the texts, see `training.corpus`.
        words: strings as they stand in a text, with their leading space where they have one.
        boost: how often each word is counted besides its own occurrences.

    Raises:
        ValueError: a word did not become a single entry.
    """
    words = list(words)

    def texts() -> Iterator[str]:
        yield from sample_texts(corpus)
        # A newline would attach to the next piece; each word stands alone in its own text.
        for word in words:
            for _ in range(boost):
                yield word

    tokenizer = new_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=N_ENTRIES,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=True,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    split = [word for word in words if len(tokenizer.encode(word).ids) != 1]
    if split:
        raise ValueError(f"{len(split)} words are not single entries, first {split[:5]}")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, n_ctx: int) -> None:
    """Write `tokenizer.json` and the `tokenizer_config.json` that transformers reads.

    The class is named so that transformers takes the file as it stands: `GPT2Tokenizer` would
    rebuild it from its entries and lose the two-digit rule.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "model_max_length": n_ctx,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the two tokenizer files from one folder to another."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, target / name)
