"""Where in a prompt its subject is."""

from torch import Tensor

from analyses import cli
from analyses.prompts import Prompts
from interp import HookedGPT2


def subject_positions(
    model: HookedGPT2,
    prompt: str | Tensor,
    subject: str | range,
    prompts: Prompts,
    occurrence: int | None,
) -> range:
    """The positions of a subject's tokens.

    Args:
        prompt: as it was given.
        subject: a part of the text, or positions.
        prompts: the prompt as tokens.
        occurrence: which one, where it is in the text several times.

    Raises:
        ValueError: it is not in the prompt, or several times and none was chosen, or it begins or
            ends within a token, or there are no positions.
        IndexError: positions out of range, or no such occurrence.
        TypeError: text, where the prompt is ids.
    """
    strings = prompts.str_tokens[0]
    if isinstance(subject, range):
        return _checked_range(subject, len(strings), occurrence)
    if not isinstance(prompt, str):
        raise TypeError(
            f"the prompt is token ids: give the subject as a range of positions, not {subject!r}"
        )
    start, end = _characters(prompt, subject, occurrence)
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer: give ids and a range of positions")
    encoding = model.tokenizer.backend.encode(prompt, add_special_tokens=False)
    inside = [i for i, (a, b) in enumerate(encoding.offsets) if a < end and b > start]
    first, last = encoding.offsets[inside[0]][0], encoding.offsets[inside[-1]][1]
    prepended = len(strings) - len(encoding.ids)
    found = range(prepended + inside[0], prepended + inside[-1] + 1)
    # A blank before a word belongs to its token; anything else is no part of the subject.
    if prompt[first:start].strip() or prompt[end:last].strip():
        tokens = " ".join(cli.visible(strings[pos]) for pos in found)
        raise ValueError(
            f"the subject {prompt[start:end]!r} begins or ends within a token; its tokens are "
            f"{tokens}. Give {prompt[first:last].strip()!r}, or positions: {found!r}"
        )
    return found


def _checked_range(subject: range, n_tokens: int, occurrence: int | None) -> range:
    if occurrence is not None:
        raise ValueError("occurrence goes with a subject given as text, not with positions")
    if subject.step != 1 or not len(subject):
        raise ValueError(f"a subject is one or more tokens in a row, not {subject!r}")
    if subject.start < 0 or subject.stop > n_tokens:
        raise IndexError(
            f"subject {subject!r} is out of range: the prompt has {n_tokens} tokens, 0 to "
            f"{n_tokens - 1}"
        )
    return subject


def _characters(prompt: str, subject: str, occurrence: int | None) -> tuple[int, int]:
    """Where in the text the subject begins and ends."""
    text = subject.strip()
    if not text:
        raise ValueError("the subject is empty: give a part of the prompt")
    starts = [i for i in range(len(prompt)) if prompt.startswith(text, i)]
    if not starts:
        at = prompt.casefold().find(text.casefold())
        hint = f" Did you mean {prompt[at : at + len(text)]!r}?" if at >= 0 else ""
        raise ValueError(f"the subject {subject!r} is not in the prompt {prompt!r}.{hint}")
    if occurrence is None and len(starts) > 1:
        raise ValueError(
            f"the subject {subject!r} is in the prompt {len(starts)} times, at characters "
            f"{', '.join(map(str, starts))}: choose one with occurrence (0 is the first)"
        )
    chosen = occurrence or 0
    if not 0 <= chosen < len(starts):
        raise IndexError(
            f"occurrence={chosen} is out of range: {subject!r} is in the prompt {len(starts)} "
            f"time{'s'[: len(starts) != 1]}"
        )
    return starts[chosen], starts[chosen] + len(text)
