"""Excerpts of the text that the mixture repeats, and the wider word lists for task documents.

A small model that reads a few million tokens meets the capital of Latvia once and a woman called
Phoebe a few times. Short excerpts of the same text that hold such things are therefore shown more
often. And a model that sees a task with the same 90 names and 32 nouns only learns those by heart:
task documents of the training split also use other words of the vocabulary (never the held-out).
"""

import random
import re

import numpy as np
from tokenizers import Tokenizer

from analyses.tasks import words

PRONOUN = re.compile(r"\b(?:(he|him|his|himself)|(she|her|hers|herself))\b")
LINES_PER_NAME = 80


def fact_openings(modern: list[str]) -> list[str]:
    """The first lines of the country pages: name, "The capital of X is Y.", the next sentence."""
    openings = []
    for document in modern:
        lines = [line for line in document.split("\n") if line]
        if len(lines) > 2 and lines[1].startswith("The capital of "):
            background = lines[2].split(". ")[0].rstrip(".")
            openings.append(f"{lines[0]}\n\n{lines[1]}\n\n{background}.")
            openings.append(lines[1])
    return openings


def lines_about_one_person(texts: list[str], seed: int = 0) -> list[tuple[str, int]]:
    """Lines with one of the tasks' first names and, soon behind it, pronouns of one gender only.

    Which gender is left to the text. At most 80 lines of a name, so that rare ones count as well.

    Returns:
        Each line, with the character at which the first pronoun behind the name begins.
    """
    names = words.NAMES_TRAIN + words.NAMES_HELD_OUT
    pattern = re.compile(rf"(?<= )({'|'.join(names)})\b")
    found: dict[str, list[tuple[str, int]]] = {name: [] for name in names}
    lines = [line for text in texts for line in text.split("\n") if 20 <= len(line) <= 160]
    random.Random(seed).shuffle(lines)
    for line in lines:
        match = pattern.search(line)
        if match is None or len(found[match[1]]) >= LINES_PER_NAME:
            continue
        if len(set(pattern.findall(line))) > 1 or line[match.end() : match.end() + 2] == "'s":
            continue
        genders = {bool(he) for he, _ in PRONOUN.findall(line.lower())}
        pronoun = PRONOUN.search(line, match.end(), match.end() + 60)
        if len(genders) == 1 and pronoun:
            found[match[1]].append((line, pronoun.start()))
    return [line for lines in found.values() for line in lines]


def words_of(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Entries such as " Boston" and " water": a space, then letters; no held-out name or capital.

    Were names only replaced by other names, a model would learn which words may be copied, and
    that held-out names are not among them.
    """
    taken = {*words.NAMES_HELD_OUT, *(word for pair in words.CAPITALS_HELD_OUT for word in pair)}
    entries = (entry[1:] for entry in tokenizer.get_vocab() if entry.startswith("Ġ"))
    chosen = (e for e in entries if re.fullmatch(r"[A-Za-z][a-z]{2,}", e) and e not in taken)
    return tuple(sorted(chosen))


def lines_that_repeat_a_name(texts: list[str], seed: int = 0) -> list[tuple[str, int]]:
    """Lines in which one of the tasks' first names comes twice.

    Returns:
        Each line, with the character at which the name's second occurrence begins. At most 80
        lines of a name.
    """
    names = words.NAMES_TRAIN + words.NAMES_HELD_OUT
    pattern = re.compile(rf"(?<= )({'|'.join(names)})\b")
    found: dict[str, list[tuple[str, int]]] = {name: [] for name in names}
    lines = [line for text in texts for line in text.split("\n") if 20 <= len(line) <= 300]
    random.Random(seed).shuffle(lines)
    for line in lines:
        matches = list(pattern.finditer(line))
        for at, match in enumerate(matches):
            if match[1] in {earlier[1] for earlier in matches[:at]}:
                if len(found[match[1]]) < LINES_PER_NAME:
                    found[match[1]].append((line, match.start()))
                break
    return [line for lines in found.values() for line in lines]


def noun_pairs(
    tokenizer: Tokenizer, tokens: np.ndarray, least: int = 12
) -> tuple[tuple[str, str], ...]:
    """(singular, plural) in -s, both entries of the tokenizer and both common behind " the".

    Args:
        tokenizer: mini's.
        tokens: a text, in which to count.
        least: how often each form must follow " the".
    """
    vocab = tokenizer.get_vocab()
    behind_the = np.bincount(tokens[1:][tokens[:-1] == vocab["Ġthe"]], minlength=len(vocab))
    behind_a = np.bincount(tokens[1:][tokens[:-1] == vocab["Ġa"]], minlength=len(vocab))
    held_out = {word for pair in words.NOUNS_HELD_OUT for word in pair}
    pairs = []
    for entry, singular in vocab.items():
        plural = vocab.get(f"{entry}s")
        word = entry[1:]
        if plural is None or not re.fullmatch(r"Ġ[a-z]{3,}", entry) or word in held_out:
            continue
        if min(behind_the[singular], behind_the[plural], behind_a[singular]) >= least and (
            behind_a[plural] * 10 < behind_a[singular]
        ):
            pairs.append((word, f"{word}s"))
    return tuple(sorted(pairs))
