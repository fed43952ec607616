"""Text as it comes: whole characters from tokens that may hold parts of them, and stop strings."""

import codecs
from collections.abc import Iterable, Sequence

from interp.tokenizer import Tokenizer


class TextStream:
    """The text of tokens that come one by one.

    A character is given out when its last byte has come. All that is given out, joined, is what
    `Tokenizer.to_string` makes of the tokens together.

    Args:
        tokenizer: whose tokens they are.
        before: tokens that come first and whose text is not given out (it is `text_before`).
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: list[int] = []
        self._given = 0
        self.text_before = "".join(map(self.push, before))

    def push(self, id: int) -> str:
        """What becomes readable with this token; may be empty."""
        if self._tokenizer.is_byte_level:
            return self._utf8.decode(self._tokenizer.to_bytes(id))
        self._ids.append(id)
        text = str(self._tokenizer.to_string(self._ids))
        return "" if text.endswith("\ufffd") else self._rest(text)

    def finish(self) -> str:
        """What is left: U+FFFD for a character that never became whole."""
        if self._tokenizer.is_byte_level:
            return self._utf8.decode(b"", final=True)
        return self._rest(str(self._tokenizer.to_string(self._ids))) if self._ids else ""

    def _rest(self, text: str) -> str:
        new, self._given = text[self._given :], len(text)
        return new


class StopStrings:
    """Watches one text for strings that end it.

    Args:
        strings: the strings.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = tuple(strings)
        self._longest = max(map(len, self._strings), default=0)
        self._tail = ""

    def push(self, text: str) -> str | None:
        """The string that is complete with this text, the one that ends first; or None."""
        seen = self._tail + text
        ends = [(seen.find(one) + len(one), one) for one in self._strings if one in seen]
        # Of the longest string all but the last character may have come.
        self._tail = seen[max(0, len(seen) - self._longest + 1) :]
        return min(ends)[1] if ends else None
