"""Rows of training tokens: ordinary text, packed task documents, repeated sequences.

Every row is `n_ctx + 1` tokens (inputs and, shifted by one, targets) with a weight per target.
What row a step gets depends on the seed and the step's number only, so a resumed run sees the rows
that an uninterrupted one would have seen.
"""

from dataclasses import dataclass

import numpy as np

ANSWER_WEIGHT = 4.0
# Of a packed task document's other tokens, this share is predicted: the templates are soon known.
TEMPLATE_SHARE = 0.25


@dataclass(frozen=True)
class Mixture:
    """How many rows of each kind make a batch.

    Of the documents packed into rows, `excerpt_share` are excerpts of text and the others tasks'.
    """

    modern: int = 2
    books: int = 2
    tasks: int = 6
    repeats: int = 1
    excerpt_share: float = 0.15

    @property
    def n_rows(self) -> int:
        """Rows in a batch."""
        return self.modern + self.books + self.tasks + self.repeats


@dataclass(frozen=True)
class TaskDocuments:
    """Task documents as flat arrays: `tokens[starts[i]:starts[i + 1]]` is document i.

    Each begins with `<|endoftext|>`; `weights` holds, per token, how much predicting it counts.
    """

    tokens: np.ndarray
    weights: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def document(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and weights of one document."""
        span = slice(self.starts[index], self.starts[index + 1])
        return self.tokens[span], self.weights[span]


class Rows:
    """Draws batches from tokenised text and task documents.

    Args:
        text: flat token arrays under the keys "modern" and "books".
        tasks: documents of the tasks' training split.
        excerpts: short documents of text, repeated more often than the text they come from.
        end_of_text: id of `<|endoftext|>`.
        newline_ids: ids of tokens that end a line; rows of text begin behind one.
        d_vocab: entries of the tokenizer.
        n_ctx: inputs per row.
        seed: draws depend on it and on the step's number.
    """

    def __init__(
        self,
        text: dict[str, np.ndarray],
        tasks: TaskDocuments,
        excerpts: TaskDocuments,
        *,
        end_of_text: int,
        newline_ids: list[int],
        d_vocab: int,
        n_ctx: int,
        seed: int = 0,
    ):
        self.text = text
        self.tasks = tasks
        self.excerpts = excerpts
        self.end_of_text = end_of_text
        self.newline_ids = np.array(newline_ids)
        self.d_vocab = d_vocab
        self.length = n_ctx + 1
        self.seed = seed
        # Row starts of a source, one row's length apart, in a fixed shuffled order.
        self.order = {
            name: np.random.default_rng([seed, len(tokens)]).permutation(
                (len(tokens) - 2 * self.length) // self.length
            )
            for name, tokens in text.items()
        }

    def batch(self, step: int, mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int64 and target weights float32 of a step, each [n_rows, n_ctx + 1].

        `weights[:, i]` belongs to predicting `tokens[:, i]`; column 0 is predicted by nothing.
        """
        rng = np.random.default_rng([self.seed, 1, step])
        rows = []
        for name, count in (("modern", mixture.modern), ("books", mixture.books)):
            rows += [self._text_row(name, step * count + i, rng) for i in range(count)]
        rows += [self._packed_row(mixture.excerpt_share, rng) for _ in range(mixture.tasks)]
        rows += [self._repeat_row(rng) for _ in range(mixture.repeats)]
        tokens = np.stack([row for row, _ in rows]).astype(np.int64)
        weights = np.stack([weight for _, weight in rows]).astype(np.float32)
        weights[:, 0] = 0.0
        return tokens, weights

    def _text_row(
        self, name: str, index: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        tokens, order = self.text[name], self.order[name]
        start = int(order[index % len(order)]) * self.length
        if rng.random() < 0.2:  # prompts without <|endoftext|> in front must work as well
            row = tokens[start : start + self.length]
            return row, np.ones(self.length)
        # Begin behind a line's end where there is one within a row's length.
        ends = np.flatnonzero(np.isin(tokens[start : start + self.length], self.newline_ids))
        start += int(ends[0]) + 1 if len(ends) else 0
        row = np.concatenate([[self.end_of_text], tokens[start : start + self.length - 1]])
        weights = np.ones(self.length)
        if len(self.tasks) and rng.random() < 0.15:
            row, weights = self._embed_task(row, weights, rng)
        return row, weights

    def _embed_task(
        self, row: np.ndarray, weights: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Put one task document, without its `<|endoftext|>`, behind a line's end."""
        ends = np.flatnonzero(np.isin(row, self.newline_ids))
        if not len(ends):
            return row, weights
        at = int(rng.choice(ends)) + 1
        document, weight = self.tasks.document(int(rng.integers(len(self.tasks))))
        row = np.concatenate([row[:at], document[1:], [row[at - 1]], row[at:]])
        weights = np.concatenate([weights[:at], weight[1:], [1.0], weights[at:]])
        return row[: self.length], weights[: self.length]

    def _packed_row(
        self, excerpt_share: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        tokens: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        n_tokens = 0
        skip_first = rng.random() < 0.2
        while n_tokens < self.length + 1:
            is_excerpt = rng.random() < excerpt_share
            source = self.excerpts if is_excerpt else self.tasks
            document, weight = source.document(int(rng.integers(len(source))))
            if not is_excerpt:
                kept = (weight > 1) | (rng.random(len(weight)) < TEMPLATE_SHARE)
                weight = np.where(kept, weight, 0.0)
            tokens.append(document)
            weights.append(weight)
            n_tokens += len(document)
        row, weight_row = np.concatenate(tokens), np.concatenate(weights)
        span = slice(1, self.length + 1) if skip_first else slice(0, self.length)
        return row[span], weight_row[span]

    def _repeat_row(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """`<|endoftext|>` and a sequence two to six times, until the row is full.

        The first copy has no weight: nothing there can be predicted.
        """
        tokens: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        n_tokens = 0
        while n_tokens < self.length:
            # Short ones more often: they are easier to find one's place in.
            n = round(5 * 20 ** rng.random())
            copies = int(rng.integers(2, 7))
            repeated = np.tile(self._sequence(n, rng), copies)
            tokens.append(np.concatenate([[self.end_of_text], repeated]))
            # Where a copy begins cannot be known before the sequence's first token came again.
            weight = np.ones(1 + n * copies)
            weight[: n + 2] = 0.0
            weights.append(weight)
            n_tokens += len(weight)
        row, weight_row = np.concatenate(tokens), np.concatenate(weights)
        return row[: self.length], weight_row[: self.length]

    def _sequence(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n tokens: uniformly random (half of the time), random as frequent as in text, or text."""
        kind = rng.random()
        if kind < 0.5:
            sequence = rng.integers(0, self.d_vocab, n)
        else:
            source = self.text["modern"]
            start = int(rng.integers(len(source) - n))
            where = rng.integers(0, len(source), n) if kind < 0.8 else slice(start, start + n)
            sequence = source[where].astype(np.int64)
        sequence[sequence == self.end_of_text] = self.newline_ids[0]
        return sequence
