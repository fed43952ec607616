"""The training text: where its files are, its documents, and its tokens as one flat array.

A corpus folder holds `books.txt.xz`, `modern.txt.xz` and `val.txt.xz`: UTF-8 text in which a line
`<|endoftext|>` separates documents.
"""

import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from rich.progress import track
from tokenizers import Tokenizer

Part = Literal["books", "modern", "val"]
PARTS: tuple[Part, ...] = ("books", "modern", "val")
END_OF_TEXT = "<|endoftext|>"


def documents(corpus: Path, part: Part) -> list[str]:
    """Read the documents of one part of the corpus, in file order.

    Raises:
        FileNotFoundError: the folder has no `{part}.txt.xz`.
    """
    path = corpus / f"{part}.txt.xz"
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in the corpus folder {corpus}")
    with lzma.open(path, "rt", encoding="utf-8") as file:
        text = file.read()
    parts = (document.strip("\n") for document in text.split(f"{END_OF_TEXT}\n"))
    return [document for document in parts if document]


def pieces(texts: list[str], size: int = 50_000) -> Iterator[str]:
    """Cut long documents at line ends, so that work on them spreads over threads.

    The pieces of a document, joined, are the document.
    """
    for text in texts:
        start = 0
        while start < len(text):
            end = text.find("\n", start + size)
            # Newlines stay together: a tokenizer may read a run of them as one token.
            while 0 <= end < len(text) and text[end] == "\n":
                end += 1
            end = len(text) if end < 0 else end
            yield text[start:end]
            start = end


def encode(tokenizer: Tokenizer, texts: list[str], label: str) -> np.ndarray:
    """Tokens of documents as one flat uint16 array, `<|endoftext|>` before each document."""
    end_of_text = tokenizer.get_vocab()[END_OF_TEXT]
    rows: list[np.ndarray] = []
    for first in track(range(0, len(texts), 64), description=f"tokens of {label}"):
        for text in texts[first : first + 64]:
            rows.append(np.array([end_of_text], dtype=np.uint16))
            for encoding in tokenizer.encode_batch(list(pieces([text]))):
                rows.append(np.array(encoding.ids, dtype=np.uint16))
    return np.concatenate(rows)
