"""Tasks with known answers, for training, evaluation and analysis alike.

    from analyses.tasks import TASKS, generate, texts

    data = generate("ioi", model.tokenizer, 100, seed=0, split="held_out")
    data.clean_tokens, data.corrupted_tokens     # [example, pos]
    data.answers, data.wrong                     # [example, answer] token ids
    data.positions["S2"], data.labels[0]         # where things are

`texts` needs no tokenizer and neither imports torch, nor do the word lists in `words`;
`generate` and `TaskData` are loaded when they are first used.
"""

import difflib
from typing import TYPE_CHECKING, Any

from analyses.tasks._base import Task, rounds, seeded
from analyses.tasks.agreement import Agreement
from analyses.tasks.capitals import Capitals
from analyses.tasks.greater_than import GreaterThan
from analyses.tasks.induction import Induction
from analyses.tasks.ioi import IOI
from analyses.tasks.pronouns import Pronouns

if TYPE_CHECKING:
    from analyses.tasks.data import TaskData, generate

__all__ = ["TASKS", "Task", "TaskData", "generate", "get_task", "texts"]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (IOI(), Induction(), GreaterThan(), Pronouns(), Agreement(), Capitals())
}


def get_task(name: str) -> Task:
    """A task by its name.

    Raises:
        ValueError: no task has that name; the message gives the nearest and all.
    """
    if name not in TASKS:
        raise ValueError(unknown("task", name, tuple(TASKS)))
    return TASKS[name]


def texts(name: str, n: int, *, seed: int, split: str = "train") -> list[str]:
    """Training texts: prompt, a right answer, and a natural end, as plain sentences.

    Args:
        name: a task of `TASKS`; not "induction", whose random tokens have no text.
        n: how many, at least 1. Texts may repeat when n is large.
        seed: the same seed gives the same texts.
        split: "train", "held_out"; for capitals also "held_out_facts".

    Returns:
        n texts of one or two sentences, without a space or newline around them.

    Raises:
        ValueError: unknown task or split, n < 1, or the induction task.
    """
    task = get_task(name)
    check_request(task, n, split)
    if not task.templates[split]:
        raise ValueError(
            f"{name} is made of random token ids and has no texts: "
            f'use generate("{name}", tokenizer, n, seed=...)'
        )
    rng = seeded(f"{name} texts", split, seed)
    pools = task.pools(split)
    return [task.text(rng, template, pools) for template in rounds(rng, task.templates[split], n)]


def check_request(task: Task, n: int, split: str) -> None:
    """Raise ValueError unless n >= 1 and the task has that split."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if split not in task.templates:
        raise ValueError(unknown(f"split of {task.name}", split, tuple(task.templates)))


def unknown(what: str, got: str, known: tuple[str, ...]) -> str:
    """An error message that names what was asked for, the nearest right name, and all of them."""
    near = difflib.get_close_matches(got, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {got!r}{hint} (known: {', '.join(known)})"


def __getattr__(name: str) -> Any:
    if name in ("TaskData", "generate"):
        from analyses.tasks import data

        return getattr(data, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
