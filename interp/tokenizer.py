"""Text to tokens and back, with the tokens used always visible.

One rule for the beginning-of-text token, everywhere: with `prepend_bos=True`, the default, exactly
one is put in front of every text; a text that already begins with it is refused rather than given
a second one. A special token spelled out in a text (`"<|endoftext|>"`) is encoded as that token, as
in `transformers`. Nothing is ever cut off, and nothing but this token and padding is ever added.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from hooks.names import nearest
from interp.sources import read_json, tokenizer_files

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"

PaddingSide = Literal["left", "right"]


class TokenizerError(ValueError):
    """Text that cannot become tokens, ids that are none, or files that hold no tokenizer."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Prompts as tokens, padded to the length of the longest.

    Attributes:
        tokens: token ids. Padding holds the tokenizer's padding token.
        attention_mask: False on padding.
        str_tokens: one string per entry of `tokens`, padding included.
        prepend_bos: whether a beginning-of-text token was put in front of every prompt.
    """

    tokens: Int64[Tensor, "batch pos"]
    attention_mask: Bool[Tensor, "batch pos"]
    str_tokens: list[list[str]]
    prepend_bos: bool

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self.tokens)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt, the padding not counted."""
        return self.attention_mask.sum(dim=1).tolist()

    @property
    def is_padded(self) -> bool:
        """Whether any prompt is shorter than the longest."""
        return not bool(self.attention_mask.all())

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The same batch with its tensors on `device`."""
        return TokenBatch(
            self.tokens.to(device),
            self.attention_mask.to(device),
            self.str_tokens,
            self.prepend_bos,
        )


class Tokenizer:
    """GPT-2's byte-level tokenizer, or whichever a checkpoint brings.

    Args:
        backend: a `tokenizers.Tokenizer`. A copy is used, with padding and truncation off.
        bos_token_id: put in front of texts; `<|endoftext|>` when left out and there is one.
        eos_token_id: ends a text; likewise.
        pad_token_id: fills shorter rows of a batch; the end-of-text token when left out, or when
            the model has no such token.
        d_vocab: how many tokens the model has, when not as many as the tokenizer. More of them
            (vocabularies padded to a round number): the ids in between are shown as
            `<unused 50300>`. Fewer (a token added without resizing the model): a text that needs
            one of the others is refused.
    """

    def __init__(
        self,
        backend: "tokenizers.Tokenizer",
        *,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        d_vocab: int | None = None,
    ) -> None:
        from tokenizers import Tokenizer as Backend

        self.backend = Backend.from_str(backend.to_str())
        # A tokenizer.json can carry both, and would silently cut or pad every text.
        self.backend.no_truncation()
        self.backend.no_padding()
        self.vocab_size = self.backend.get_vocab_size(with_added_tokens=True)
        self.d_vocab = self.vocab_size if d_vocab is None else d_vocab
        end_of_text = self.backend.token_to_id(END_OF_TEXT)
        self.bos_token_id = end_of_text if bos_token_id is None else bos_token_id
        self.eos_token_id = end_of_text if eos_token_id is None else eos_token_id
        if pad_token_id is None or pad_token_id >= self.d_vocab:
            pad_token_id = self.eos_token_id
        self.pad_token_id = pad_token_id
        self._added = {
            id: token.content for id, token in self.backend.get_added_tokens_decoder().items()
        }
        self._is_byte_level = type(self.backend.decoder).__name__ == "ByteLevel"
        self._strings: dict[int, str] = {}
        self._lost_bytes = (
            {byte for byte, char in _BYTE_TO_CHAR.items() if self.backend.token_to_id(char) is None}
            if self._is_byte_level
            else set()
        )

    def __repr__(self) -> str:
        return (
            f"Tokenizer(vocab_size={self.vocab_size}, bos_token_id={self.bos_token_id}, "
            f"eos_token_id={self.eos_token_id}, pad_token_id={self.pad_token_id})"
        )

    @classmethod
    def from_folder(cls, path: str | PathLike[str], *, d_vocab: int | None = None) -> "Tokenizer":
        """Read `tokenizer.json`, or else `vocab.json` and `merges.txt`, in the folder `path`.

        `tokenizer_config.json`, where there is one, says which tokens begin, end and pad.

        Raises:
            TokenizerError: none of these files, or one that cannot be read.
        """
        from tokenizers import Tokenizer as Backend

        folder = Path(path)
        files = tokenizer_files(folder)
        if not files:
            raise TokenizerError(
                f"{folder} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt"
            )
        settings = _optional(folder / "tokenizer_config.json")
        try:
            if len(files) == 1:
                backend = Backend.from_file(str(files[0]))
            else:
                backend = _from_vocab_and_merges(folder, bool(settings.get("add_prefix_space")))
                _add_tokens(backend, _optional(folder / "added_tokens.json"))
        except Exception as error:  # `tokenizers` raises bare Exception
            names = " and ".join(file.name for file in files)
            raise TokenizerError(f"{folder}: {names} cannot be read: {error}") from error
        roles = _optional(folder / "special_tokens_map.json") | settings
        return cls(backend, d_vocab=d_vocab, **_role_ids(backend, roles, str(folder)))

    @classmethod
    def from_hf(cls, tokenizer: Any, *, d_vocab: int | None = None) -> "Tokenizer":
        """Copy the backend of a `transformers` tokenizer, which is left as it is.

        Raises:
            TypeError: an object without such a backend (a tokenizer written in Python).
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TypeError(
                "expected a fast transformers tokenizer (with a backend_tokenizer, as "
                f"GPT2TokenizerFast has), got {type(tokenizer).__name__}"
            )
        return cls(
            backend,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            d_vocab=d_vocab,
        )

    # ------------------------------------------------------------------ text -> tokens

    def tokenize(
        self,
        text: str | Sequence[str],
        *,
        prepend_bos: bool = True,
        padding_side: PaddingSide = "right",
        n_ctx: int | None = None,
    ) -> TokenBatch:
        """Encode one or several texts, shorter ones padded.

        Args:
            text: one text, or one per row.
            prepend_bos: put the beginning-of-text token in front of each.
            padding_side: on which side shorter rows are padded.
            n_ctx: refuse texts of more tokens than this, `prepend_bos`' included.

        Raises:
            TokenizerError: no text or an empty one, one that begins with the beginning-of-text
                token when another would be put before it, or one longer than `n_ctx`.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(
                f"padding_side must be 'left' or 'right', got {padding_side!r}."
                f"{nearest(str(padding_side).lower(), ['left', 'right'])}"
            )
        rows = self._encode(text, prepend_bos, n_ctx)
        longest = max(map(len, rows))
        if any(len(row) < longest for row in rows) and self.pad_token_id is None:
            raise TokenizerError(
                "texts of different lengths need a padding token, and this tokenizer has none"
            )
        tokens = torch.full((len(rows), longest), self.pad_token_id or 0, dtype=torch.int64)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for index, row in enumerate(rows):
            place = slice(len(row)) if padding_side == "right" else slice(longest - len(row), None)
            tokens[index, place] = torch.tensor(row, dtype=torch.int64)
            mask[index, place] = True
        strings = [self._to_strings(row) for row in tokens.tolist()]
        return TokenBatch(tokens, mask, strings, prepend_bos)

    def to_tokens(
        self, text: str | Sequence[str], prepend_bos: bool = True, *, n_ctx: int | None = None
    ) -> Int64[Tensor, "batch pos"]:
        """Encode one text, or several of the same number of tokens; one text gives a batch of one.

        Raises:
            TokenizerError: as [`tokenize`][]; also texts of different lengths, as a tensor alone
                cannot say what is padding.
        """
        rows = self._encode(text, prepend_bos, n_ctx)
        if len({len(row) for row in rows}) > 1:
            raise TokenizerError(
                f"the texts have {', '.join(str(len(row)) for row in rows)} tokens, and a tensor "
                "cannot say which are padding; tokenize() pads them and carries the mask along"
            )
        return torch.tensor(rows, dtype=torch.int64)

    def to_single_token(self, text: str) -> int:
        """The id of the one token that `text` is, e.g. `" Mary"`.

        Raises:
            TokenizerError: `text` is several tokens (the message shows them) or empty.
        """
        (ids,) = self._encode(text, prepend_bos=False, n_ctx=None)
        if len(ids) != 1:
            spaced = self.backend.encode(f" {text}", add_special_tokens=False).ids
            hint = f"; with a space in front it is one: {f' {text}'!r}" if len(spaced) == 1 else ""
            raise TokenizerError(
                f"{text!r} is {len(ids)} tokens, not one: {self._to_strings(ids)}{hint}"
            )
        return ids[0]

    # ------------------------------------------------------------------ tokens -> text

    def to_string(
        self, tokens: Int[Tensor, "*batch"] | Sequence[int] | Sequence[Sequence[int]]
    ) -> str | list[str]:
        """The text of tokens: a string for one row (or one id), a list of strings for several.

        Special tokens are spelled out. Bytes that form no whole character become U+FFFD, as in
        `transformers`; [`to_str_tokens`][] shows them.

        Raises:
            TokenizerError: an id that is no token; the message names the first.
        """
        ids: Any = _listed(tokens)
        if isinstance(ids, int):
            return self._decode([ids])
        if ids and isinstance(ids[0], Iterable):
            return [self._decode(list(row)) for row in ids]
        return self._decode(ids)

    def to_str_tokens(
        self,
        text: str | Int[Tensor, "*batch"] | Sequence[int],
        prepend_bos: bool = True,
    ) -> list[str]:
        r"""One string per token of a text, or of one row of token ids.

        A token that holds part of a character of several bytes shows those bytes escaped: the two
        tokens of an emoji may read `"\xf0\x9f"` and `"\x98\x80"`. Where there are no such tokens,
        the strings joined are the text.

        Args:
            text: a text, or the ids themselves, `[pos]` or `[1, pos]`.
            prepend_bos: as in [`tokenize`][]; ids are shown as they are.

        Raises:
            TokenizerError: as [`tokenize`][] for a text; an id that is no token; more than one row.
        """
        if isinstance(text, str):
            (ids,) = self._encode(text, prepend_bos, n_ctx=None)
            return self._to_strings(ids)
        if isinstance(text, Tensor):
            if text.dim() > 1 and text.shape[:-1].numel() != 1:
                raise TokenizerError(
                    f"to_str_tokens shows one row of tokens, got shape {list(text.shape)}; "
                    "tokenize() gives the strings of every row"
                )
            text = text.reshape(-1).tolist()
        ids = _listed(text)
        if any(isinstance(one, str) for one in ids):
            raise TokenizerError("to_str_tokens takes one text; of several, tokenize().str_tokens")
        return self._to_strings(ids)

    def to_single_str_token(self, token: int) -> str:
        """The string of one token, as [`to_str_tokens`][] shows it."""
        return self._to_strings([token])[0]

    @property
    def is_byte_level(self) -> bool:
        """Whether every token is a sequence of bytes, which `to_bytes` gives."""
        return self._is_byte_level

    def to_bytes(self, token: int) -> bytes:
        """The bytes of one token of a byte-level tokenizer: those of several, joined, are the text
        in UTF-8.

        Raises:
            TokenizerError: an id that is no token.
        """
        self._check_ids([token])
        if token >= self.vocab_size:
            return self._show(token).encode()
        string = self.backend.id_to_token(token) or ""
        if all(char in _CHAR_TO_BYTE for char in string):
            return bytes(_CHAR_TO_BYTE[char] for char in string)
        return string.encode()

    # ------------------------------------------------------------------ how

    def _encode(
        self, text: str | Sequence[str], prepend_bos: bool, n_ctx: int | None
    ) -> list[list[int]]:
        """The ids of each text, checked and with the beginning-of-text token as asked."""
        if not isinstance(prepend_bos, bool):
            raise TypeError(f"prepend_bos is True or False, not {prepend_bos!r}")
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise TokenizerError("no text to tokenize: the list is empty")
        bos = self.bos_token_id
        if prepend_bos and bos is None:
            raise TokenizerError(
                "this tokenizer has no beginning-of-text token to prepend; pass prepend_bos=False"
            )
        for index, one in enumerate(texts):
            self._check_text(one, "" if isinstance(text, str) else f" {index}")
        rows = []
        for index, encoding in enumerate(
            self.backend.encode_batch(texts, add_special_tokens=False)
        ):
            ids = encoding.ids
            which = "text" if isinstance(text, str) else f"text {index}"
            if not ids:
                raise TokenizerError(f"{which} gives no tokens: {texts[index]!r}")
            if prepend_bos and bos is not None:
                if ids[0] == bos:
                    raise TokenizerError(
                        f"{which} already begins with {self._show(bos)!r}, and prepend_bos=True "
                        "would put a second one before it; pass prepend_bos=False"
                    )
                ids = [bos, *ids]
            if max(ids) >= self.d_vocab:
                id = next(id for id in ids if id >= self.d_vocab)
                raise TokenizerError(
                    f"{which} needs token {self._show(id)!r} (id {id}), but the model has only "
                    f"{self.d_vocab} tokens"
                )
            if n_ctx is not None and len(ids) > n_ctx:
                with_bos = ", the prepended one included" if prepend_bos else ""
                raise TokenizerError(
                    f"{which} has {len(ids)} tokens{with_bos}; this model reads at most {n_ctx}"
                )
            rows.append(ids)
        return rows

    def _check_text(self, text: object, which: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"text{which} must be a string, got {type(text).__name__}")
        if not text:
            raise TokenizerError(
                f"text{which} is empty; for the beginning-of-text token alone, pass "
                f"{END_OF_TEXT!r} with prepend_bos=False"
            )
        try:
            encoded = text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"text{which} holds {text[error.start]!r} at character {error.start}, half of a "
                "surrogate pair, which is no character"
            ) from None
        if self._lost_bytes and (lost := self._lost_bytes & set(encoded)):
            raise TokenizerError(
                f"text{which} holds bytes that this tokenizer has no token for and would drop: "
                f"{bytes(sorted(lost))!r}"
            )

    def _check_ids(self, ids: Sequence[Any]) -> None:
        for position, id in enumerate(ids):
            if isinstance(id, bool) or not isinstance(id, int):
                raise TypeError(
                    f"token ids must be ints, got {id!r} ({type(id).__name__}) at position "
                    f"{position}"
                )
            if not 0 <= id < max(self.d_vocab, self.vocab_size):
                raise TokenizerError(
                    f"token id {id} at position {position} is out of range: there are "
                    f"{max(self.d_vocab, self.vocab_size)} tokens"
                )

    def _decode(self, ids: list[int]) -> str:
        self._check_ids(ids)
        parts, start = [], 0
        # The backend would drop the ids it has no token for.
        for end, id in enumerate(ids):
            if id >= self.vocab_size:
                parts += [self._decode(ids[start:end]), self._show(id)]
                start = end + 1
        return "".join(parts) + self.backend.decode(ids[start:], skip_special_tokens=False)

    def _to_strings(self, ids: list[int]) -> list[str]:
        self._check_ids(ids)
        strings = self._strings
        for id in ids:
            if id not in strings:
                strings[id] = self._show(id)
        return [strings[id] for id in ids]

    def _show(self, id: int) -> str:
        if id in self._added:
            return self._added[id]
        token = self.backend.id_to_token(id)
        if token is None:
            return f"<unused {id}>"
        if not self._is_byte_level or not all(char in _CHAR_TO_BYTE for char in token):
            return token
        return bytes(_CHAR_TO_BYTE[char] for char in token).decode("utf-8", "backslashreplace")


def _listed(ids: Any) -> Any:
    """Ids of a tensor, an array or a sequence as plain numbers."""
    if hasattr(ids, "tolist"):
        return ids.tolist()
    return ids if isinstance(ids, int) else list(ids)


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte (`bytes_to_unicode` in OpenAI's `encoder.py`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + index) for index, byte in enumerate(rest)
    }


_BYTE_TO_CHAR = _byte_alphabet()
_CHAR_TO_BYTE = {char: byte for byte, char in _BYTE_TO_CHAR.items()}


def _from_vocab_and_merges(folder: Path, add_prefix_space: bool) -> "tokenizers.Tokenizer":
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(
        models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    if backend.token_to_id(END_OF_TEXT) is not None:
        backend.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    return backend


def _add_tokens(backend: "tokenizers.Tokenizer", ids: dict[str, int]) -> None:
    from tokenizers import AddedToken

    for token, id in sorted(ids.items(), key=lambda item: item[1]):
        backend.add_special_tokens([AddedToken(token, normalized=False)])
        if backend.token_to_id(token) != id:
            raise ValueError(f"added_tokens.json gives {token!r} id {id}, which leaves a gap")


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _role_ids(
    backend: "tokenizers.Tokenizer", roles: dict[str, Any], where: str
) -> dict[str, int | None]:
    """The ids of the tokens that a config says begin, end and pad a text."""
    ids: dict[str, int | None] = {}
    for role in ("bos_token", "eos_token", "pad_token"):
        token = roles.get(role)
        # Written either as the string itself or as an object with its content.
        token = token.get("content") if isinstance(token, dict) else token
        if token is None:
            continue
        ids[f"{role}_id"] = backend.token_to_id(token)
        if ids[f"{role}_id"] is None:
            raise TokenizerError(f"{where} names {token!r} as {role}, which is no token of its own")
    return ids
