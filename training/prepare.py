"""Tokenise the corpus and write the task documents, once, into a work folder."""

import random
from pathlib import Path

import numpy as np
from rich.progress import track
from tokenizers import Tokenizer

from analyses.tasks import get_task
from training.corpus import END_OF_TEXT, PARTS, documents, encode
from training.mixture import ANSWER_WEIGHT, TaskDocuments

# Documents of each task. Repeated random tokens are no text; `mixture` draws them.
TASKS = {
    "ioi": 80_000,
    "greater_than": 25_000,
    "agreement": 25_000,
    "pronouns": 15_000,
    "capitals": 15_000,
}


def prepare(corpus: Path, work: Path) -> None:
    """Write `books.npy`, `modern.npy`, `val.npy`, `tasks.npz` and `facts.npz` to a work folder.

    Args:
        corpus: folder with the texts, see `training.corpus`.
        work: folder that has `tokenizer/tokenizer.json`.
    """
    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    texts, answers = task_texts()
    save_documents(work / "tasks.npz", pack(tokenizer, texts, answers))
    facts = fact_openings(corpus)
    save_documents(work / "facts.npz", pack(tokenizer, facts, [(0, 0)] * len(facts)))
    for part in PARTS:
        np.save(work / f"{part}.npy", encode(tokenizer, documents(corpus, part), part))


def fact_openings(corpus: Path) -> list[str]:
    """The first lines of the country pages: name, "The capital of X is Y.", one more paragraph.

    They are 240 of 13,000 documents of the text; a small model that reads the text twice would not
    learn them, so the mixture repeats them.
    """
    openings = []
    for document in documents(corpus, "modern"):
        lines = [line for line in document.split("\n") if line]
        if len(lines) > 2 and lines[1].startswith("The capital of "):
            background = lines[2].split(". ")[0].rstrip(".")
            openings.append(f"{lines[0]}\n\n{lines[1]}\n\n{background}.")
            openings.append(lines[1])
    return openings


def task_texts(seed: int = 0) -> tuple[list[str], list[tuple[int, int]]]:
    """Texts of the tasks' training split, and where in each the answer begins.

    Returns:
        The texts, and for each the span of characters [start, start + 1) in which its answer's
        token begins.
    """
    texts: list[str] = []
    answers: list[tuple[int, int]] = []
    for name, count in TASKS.items():
        task = get_task(name)
        rng = random.Random(f"{task.name} documents {seed}")
        pools = task.pools("train")
        for _ in range(count):
            template = rng.choice(task.templates["train"])
            # The same draws twice: once for the prompt alone, once for the text that contains it.
            state = rng.getstate()
            prompt = task.sample(rng, template, pools, task.corruptions[0])
            rng.setstate(state)
            text = task.text(rng, template, pools)
            options = (prompt.clean_text, prompt.corrupted_text)
            start = next(len(option) for option in options if text.startswith(option))
            texts.append(text)
            answers.append((start, start + 1))
    return texts, answers


def pack(tokenizer: Tokenizer, texts: list[str], answers: list[tuple[int, int]]) -> TaskDocuments:
    """Tokenise documents; tokens that lie in a document's answer span weigh more.

    Args:
        tokenizer: mini's.
        texts: one string per document.
        answers: per document, the span of characters [start, end) of its answer; (0, 0) for none.
    """
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    tokens: list[int] = []
    weights: list[float] = []
    starts = [0]
    for first in track(range(0, len(texts), 1024), description="task documents"):
        batch = tokenizer.encode_batch(texts[first : first + 1024])
        for encoding, (start, end) in zip(batch, answers[first : first + 1024], strict=True):
            tokens.append(end_of_text)
            weights.append(1.0)
            for token, (left, right) in zip(encoding.ids, encoding.offsets, strict=True):
                tokens.append(token)
                weights.append(ANSWER_WEIGHT if left < end and right > start else 1.0)
            starts.append(len(tokens))
    return TaskDocuments(
        np.array(tokens, np.uint16), np.array(weights, np.float16), np.array(starts, np.int64)
    )


def save_documents(path: Path, documents: TaskDocuments) -> None:
    """Write documents as one `.npz`."""
    np.savez(path, tokens=documents.tokens, weights=documents.weights, starts=documents.starts)


def load_documents(path: Path) -> TaskDocuments:
    """Read what `save_documents` wrote."""
    with np.load(path) as arrays:
        return TaskDocuments(arrays["tokens"], arrays["weights"], arrays["starts"])
