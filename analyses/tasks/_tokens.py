"""What a task asks of a tokenizer: ids, strings, and whether a word is one token."""

from tokenizers import Tokenizer as Backend

from analyses.tasks._base import Entry, Pools
from interp.tokenizer import Tokenizer


class Tokens:
    """Ids and strings of a tokenizer, special tokens never added.

    Args:
        tokenizer: interp's `Tokenizer` (a model's `.tokenizer`), one of the `tokenizers` library,
            or a fast one of the `transformers` library.

    Raises:
        TypeError: another kind of object.
    """

    def __init__(self, tokenizer: object) -> None:
        if tokenizer is None:
            raise TypeError("a tokenizer is needed, got None (a model loaded without one?)")
        if isinstance(tokenizer, Backend):
            tokenizer = Tokenizer(tokenizer)
        elif not isinstance(tokenizer, Tokenizer):
            tokenizer = Tokenizer.from_hf(tokenizer)
        self._tokenizer = tokenizer
        # The same words and pieces of templates come again and again.
        self._ids: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """The token ids of a text."""
        if text not in self._ids:
            encoding = self._tokenizer.backend.encode(text, add_special_tokens=False)
            self._ids[text] = encoding.ids
        return self._ids[text]

    def strings(self, ids: list[int]) -> tuple[str, ...]:
        """The text of each token."""
        return tuple(self._tokenizer.to_str_tokens(ids))

    def bos(self) -> int:
        """The id of the beginning-of-text token.

        Raises:
            ValueError: the tokenizer has none.
        """
        if self._tokenizer.bos_token_id is None:
            raise ValueError(
                "this tokenizer has no beginning-of-text token (such as <|endoftext|>) to prepend; "
                "pass prepend_bos=False"
            )
        return self._tokenizer.bos_token_id

    def ordinary(self) -> list[int]:
        """All ids that the model has, but the special ones; ascending."""
        backend = self._tokenizer.backend
        special = {*backend.get_added_tokens_decoder(), self._tokenizer.bos_token_id}
        ids = set(backend.get_vocab(with_added_tokens=False).values()) - special
        return sorted(token for token in ids if token < self._tokenizer.d_vocab)

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
        kept: dict[str, list[Entry]] = {}
        dropped: dict[str, tuple[str, ...]] = {}
        for name, pool in pools.items():
            fits = [self.keeps(entry) for entry in pool]
            kept[name] = [entry for entry, fit in zip(pool, fits, strict=True) if fit]
            lost = [entry for entry, fit in zip(pool, fits, strict=True) if not fit]
            if lost:
                dropped[name] = tuple("".join(entry).strip() for entry in lost)
        return kept, dropped
