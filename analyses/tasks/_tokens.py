"""One way to talk to a tokenizer, whether of the `tokenizers` or of the `transformers` library."""

from typing import Any, Protocol, runtime_checkable

from analyses.tasks._base import Entry, Pools

BOS = "<|endoftext|>"


@runtime_checkable
class TokenizerLike(Protocol):
    """A tokenizer of the `tokenizers` or the `transformers` library."""

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """Text to token ids, or to an object with `.ids`."""
        ...

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Token ids to text."""
        ...

    def get_vocab(self, *args: Any, **kwargs: Any) -> dict[str, int]:
        """Token strings to ids."""
        ...


class Tokens:
    """Ids and strings of a tokenizer, special tokens never added."""

    def __init__(self, tokenizer: TokenizerLike) -> None:
        self._tokenizer = tokenizer
        self._strings: dict[int, str] = {}

    def ids(self, text: str) -> list[int]:
        """The token ids of a text."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return list(getattr(encoded, "ids", encoded))

    def string(self, token: int) -> str:
        """The text of one token."""
        if token not in self._strings:
            self._strings[token] = self._tokenizer.decode([token], skip_special_tokens=False)
        return self._strings[token]

    def bos(self) -> int:
        """The id of `<|endoftext|>`.

        Raises:
            ValueError: the tokenizer has no such token.
        """
        token = self._tokenizer.get_vocab().get(BOS)
        if token is None:
            raise ValueError(f"this tokenizer has no {BOS}; pass prepend_bos=False")
        return token

    def ordinary(self) -> list[int]:
        """All ids but the special ones, ascending."""
        tokenizer: Any = self._tokenizer
        if hasattr(tokenizer, "get_added_tokens_decoder"):
            special = set(tokenizer.get_added_tokens_decoder())
        else:
            special = set(tokenizer.all_special_ids)
        special.add(tokenizer.get_vocab().get(BOS))
        return sorted(set(tokenizer.get_vocab().values()) - special)

    def keeps(self, entry: Entry) -> bool:
        """Whether each string of an entry is one token, also when they stand in a row.

        The second part is what makes " 17" + "32" safe: a tokenizer that knows " 1732" as one
        token would never show the two to the model in ordinary text.
        """
        alone = [self.ids(text) for text in entry]
        return all(len(ids) == 1 for ids in alone) and self.ids("".join(entry)) == [
            ids[0] for ids in alone
        ]

    def filter(self, pools: Pools) -> tuple[dict[str, list[Entry]], dict[str, tuple[str, ...]]]:
        """Split pools into what this tokenizer can hold and what it cannot.

        Returns:
            The kept entries by pool, and by pool the dropped entries, written as text.
        """
        kept = {
            name: [entry for entry in pool if self.keeps(entry)] for name, pool in pools.items()
        }
        dropped = {
            name: tuple("".join(e).strip() for e in pool if e not in set(kept[name]))
            for name, pool in pools.items()
        }
        return kept, {name: words for name, words in dropped.items() if words}
