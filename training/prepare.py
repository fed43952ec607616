"""Tokenise the corpus and write the task documents, once, into a work folder."""

import random
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from rich.progress import track
from tokenizers import Tokenizer

from analyses.tasks import get_task
from analyses.tasks._base import Pools, spaced, spaced_pairs
from training.corpus import END_OF_TEXT, PARTS, Part, documents, encode
from training.excerpts import (
    fact_openings,
    lines_about_one_person,
    lines_that_repeat_a_name,
    noun_pairs,
    words_of,
)
from training.mixture import ANSWER_WEIGHT, TaskDocuments
from training.more_templates import MORE_TEMPLATES

# Documents of each task. Repeated random tokens are no text; `mixture` draws them.
TASKS = {
    "ioi": 60_000,
    "greater_than": 5_000,
    "agreement": 24_000,
    "pronouns": 5_000,
    "capitals": 4_000,
}
FACT_COPIES = 2
# How many of a task's documents draw words from the wider pools.
WIDE_SHARE = 0.9
# In how many documents the words that are no slot are disturbed, and how many of them at most.
NOISY_SHARE = 0.7
NOISE = 0.6
Span = tuple[int, int]


@dataclass(frozen=True)
class Document:
    """A text, the character at which its answer's token begins, and its slots' characters."""

    text: str
    answer: int
    slots: tuple[Span, ...]


def prepare(corpus: Path, work: Path) -> None:
    """Write the text as `.npy`, excerpts and task documents as `.npz`, to a work folder.

    Args:
        corpus: folder with the texts, see `training.corpus`.
        work: folder that has `tokenizer/tokenizer.json`.
    """
    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    texts: dict[Part, list[str]] = {part: documents(corpus, part) for part in PARTS}
    for part in PARTS:
        np.save(work / f"{part}.npy", encode(tokenizer, texts[part], part))
    prepare_documents(work, tokenizer, texts)


def prepare_documents(work: Path, tokenizer: Tokenizer, texts: dict[Part, list[str]]) -> None:
    """Write `excerpts.npz` and `tasks.npz`; `books.npy` and `modern.npy` must be there."""
    modern = np.load(work / "modern.npy")
    facts = [Document(text, len(text), ()) for text in fact_openings(texts["modern"])]
    people = [
        Document(line, answer, ())
        for choose_lines in (lines_about_one_person, lines_that_repeat_a_name)
        for line, answer in choose_lines(texts["modern"] + texts["books"])
    ]
    excerpts = pack(tokenizer, FACT_COPIES * facts + people, modern, noise=0.0)
    save_documents(work / "excerpts.npz", excerpts)
    wide = {
        "names": spaced(words_of(tokenizer)),
        "nouns": spaced_pairs(noun_pairs(tokenizer, np.load(work / "books.npy")[:10_000_000])),
    }
    wide["objects"] = wide["places"] = wide["events"] = tuple((a,) for a, _ in wide["nouns"])
    made = task_documents(wide)
    save_documents(work / "tasks.npz", pack(tokenizer, made, modern, noise=NOISE))


def task_documents(wide: Pools, seed: int = 0) -> list[Document]:
    """Documents of the tasks' training split, most of them with words from wider pools.

    Args:
        wide: pool -> entries that also fit where that pool's do.
        seed: of the draws.
    """
    made = []
    for name, count in TASKS.items():
        task = get_task(name)
        rng = random.Random(f"{name} documents {seed}")
        narrow = task.pools("train")
        wider = {**narrow, **{pool: wide[pool] for pool in narrow if pool in wide}}
        for _ in range(count):
            template = rng.choice(task.templates["train"])
            if name in MORE_TEMPLATES and rng.random() < 0.5:
                template = replace(template, text=MORE_TEMPLATES[name](rng))
            pools = wider if rng.random() < WIDE_SHARE else narrow
            # The same draws twice: once for the prompt alone, once for the text that contains it.
            state = rng.getstate()
            prompt = task.sample(rng, template, pools, task.corruptions[0])
            rng.setstate(state)
            text = task.text(rng, template, pools)
            pieces = prompt.clean if text.startswith(prompt.clean_text) else prompt.corrupted
            ends = list(accumulate(len(piece) for _, piece in pieces))
            slots = tuple(
                (end - len(piece), end)
                for (label, piece), end in zip(pieces, ends, strict=True)
                if label
            )
            made.append(Document(text, ends[-1], slots))
    return made


def pack(
    tokenizer: Tokenizer, made: list[Document], modern: np.ndarray, *, noise: float, seed: int = 0
) -> TaskDocuments:
    """Tokenise documents. The token that answers weighs more, a random token nothing.

    Args:
        tokenizer: mini's.
        made: the documents.
        modern: tokens of text, from which random ones are drawn.
        noise: in most documents, up to this share of the tokens before the answer and outside of
            slots is disturbed, so that no template can be learnt by heart.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    end_of_text = tokenizer.get_vocab()[END_OF_TEXT]
    all_tokens: list[np.ndarray] = []
    all_weights: list[np.ndarray] = []
    for first in track(range(0, len(made), 1024), description="documents"):
        batch = made[first : first + 1024]
        for document, encoding in zip(
            batch, tokenizer.encode_batch([document.text for document in batch]), strict=True
        ):
            tokens = np.array([end_of_text, *encoding.ids])
            left, right = np.array([(0, 0), *encoding.offsets]).T
            weights = np.where(
                (left <= document.answer) & (right > document.answer), ANSWER_WEIGHT, 1
            )
            if noise and rng.random() < NOISY_SHARE:
                free = (right <= document.answer) & (right > 0)
                for start, end in document.slots:
                    free &= (right <= start) | (left >= end)
                share = rng.uniform(0, noise)
                tokens, weights = _disturb(tokens, weights, free, share, modern, rng)
            all_tokens.append(tokens.astype(np.uint16))
            all_weights.append(weights.astype(np.float16))
    starts = np.cumsum([0, *map(len, all_tokens)])
    return TaskDocuments(np.concatenate(all_tokens), np.concatenate(all_weights), starts)


def _disturb(
    tokens: np.ndarray,
    weights: np.ndarray,
    free: np.ndarray,
    share: float,
    modern: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Replace, leave out, or follow by a random token some of the free tokens."""
    action = np.where(free & (rng.random(len(tokens)) < share), rng.integers(1, 4, len(tokens)), 0)
    drawn = modern[rng.integers(0, len(modern), len(tokens))]
    # 0: as it is, 1: replaced, 2: left out, 3: followed by a random token.
    tokens, weights = np.where(action == 1, drawn, tokens), np.where(action == 1, 0, weights)
    copies = np.array([1, 1, 0, 2])[action]
    where = np.repeat(np.arange(len(tokens)), copies)
    is_added = np.append(False, where[1:] == where[:-1])
    return np.where(is_added, drawn[where], tokens[where]), np.where(is_added, 0, weights[where])


def save_documents(path: Path, documents: TaskDocuments) -> None:
    """Write documents as one `.npz`."""
    np.savez(path, tokens=documents.tokens, weights=documents.weights, starts=documents.starts)


def load_documents(path: Path) -> TaskDocuments:
    """Read what `save_documents` wrote."""
    with np.load(path) as arrays:
        return TaskDocuments(arrays["tokens"], arrays["weights"], arrays["starts"])
