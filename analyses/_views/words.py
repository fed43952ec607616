"""Words that tables, pages and `repr`s share."""


def bos_note(prepend_bos: bool | None) -> str:
    """What happened to `<|endoftext|>`."""
    if prepend_bos is None:
        return "given as token ids"
    return f"<|endoftext|> {'' if prepend_bos else 'not '}prepended"


def bos_sentence(prepend_bos: bool | None) -> str:
    """The same as the beginning of a sentence."""
    note = bos_note(prepend_bos)
    return note[0].upper() + note[1:]


def count(n: int, what: str) -> str:
    """`1 token`, `2 tokens`."""
    return f"{n} {what}{'s'[: n != 1]}"
