"""The options with which a command takes a pair of prompts, and how it reads them.

A command that compares two runs takes either two prompt files with `--answer` and `--wrong`, or a
task with known answers (`--task ioi --n 16 --seed 0`):

    def main(files: PairFiles = None, answer: Answer = None, wrong: Wrong = None,
             task: TaskName = None, n: N = None, seed: Seed = None,
             corruption: Corruption = None, template: Template = None, ...):
        request = PairRequest.checked(files, answer, wrong, task, n, seed, corruption, template)
        ...
        pair = request.load(model, prepend_bos=prepend_bos)

Nothing here imports torch before `load`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from analyses import cli
from analyses.tasks import TASKS, get_task, unknown

if TYPE_CHECKING:
    from analyses.pairs import PromptPair
    from interp import HookedGPT2

PairFiles = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CLEAN CORRUPTED",
        help="Two prompt files in UTF-8; - is standard input. Both must have the same number of "
        "tokens. Or leave them out and name a --task.",
        show_default=False,
    ),
]
Answer = Annotated[
    list[str] | None,
    typer.Option(
        help='The next token that the clean prompt asks for, such as " Mary"; may be repeated.',
        metavar="TOKEN",
        show_default=False,
    ),
]
Wrong = Annotated[
    list[str] | None,
    typer.Option(
        help='The token to compare it with, such as " John"; may be repeated.',
        metavar="TOKEN",
        show_default=False,
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help=f"Examples of a task instead of files: {', '.join(TASKS)}.",
        metavar="TASK",
        show_default=False,
    ),
]
N = Annotated[
    int | None,
    typer.Option(
        "--n", help="With --task: how many examples (16).", metavar="N", show_default=False
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="With --task: seed of the examples (0).", metavar="N", show_default=False),
]
Corruption = Annotated[
    str | None,
    typer.Option(
        help="With --task: how the corrupted prompt is made; each task has its own.",
        metavar="NAME",
        show_default=False,
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        help="With --task: examples of this template only, which all have one length.",
        metavar="NAME",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class PairRequest:
    """What pair a command line asks for, checked before a model is loaded.

    Attributes:
        inputs: the files that were read.
        name: what to call the pair.
    """

    inputs: tuple[str, ...]
    name: str
    clean: str | None = None
    corrupted: str | None = None
    answers: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    task: str | None = None
    n: int = 16
    seed: int = 0
    corruption: str | None = None
    template: str | None = None

    @classmethod
    def checked(
        cls,
        files: Sequence[str] | None,
        answer: Sequence[str] | None,
        wrong: Sequence[str] | None,
        task: str | None,
        n: int | None = None,
        seed: int | None = None,
        corruption: str | None = None,
        template: str | None = None,
        *,
        alone: bool = False,
    ) -> "PairRequest":
        """Read the files, or look up the task.

        Args:
            alone: a clean prompt will do; it then stands for the corrupted one too.

        Raises:
            CommandError: neither or both, not two files, options of the other kind, or a file that
                cannot be read.
            ValueError: an unknown task or corruption.
        """
        files = tuple(files or ())
        if task is not None:
            if files or answer or wrong:
                raise cli.CommandError(
                    "--task brings its own prompts and answers: leave out the files, --answer and "
                    "--wrong"
                )
            known = get_task(task).corruptions
            if corruption is not None and corruption not in known:
                raise cli.CommandError(unknown(f"corruption of {task}", corruption, known))
            n = 16 if n is None else n
            if n < 1:
                raise cli.CommandError(f"--n is {n}: expected at least 1 example")
            return cls(
                inputs=(),
                name=task,
                task=task,
                n=n,
                seed=seed or 0,
                corruption=corruption,
                template=template,
            )
        if len(files) != 2 and not (alone and len(files) == 1):
            raise cli.CommandError(
                f"expected two prompt files, CLEAN and CORRUPTED, or --task; got {len(files)} "
                f"file{'s'[: len(files) != 1]}"
            )
        of_tasks = {"--n": n, "--seed": seed, "--corruption": corruption, "--template": template}
        for option, value in of_tasks.items():
            if value is not None:
                raise cli.CommandError(f"{option} goes with --task, not with prompt files")
        for option, given in (("--answer", answer), ("--wrong", wrong)):
            if not given:
                raise cli.CommandError(
                    f'{option} is missing: name a token, for example {option} " Mary"'
                )
        prompts = cli.read_prompts(files)
        clean, corrupted = prompts[0], prompts[-1]
        return cls(
            inputs=files,
            name=", ".join(prompt.source for prompt in prompts),
            clean=clean.text,
            corrupted=corrupted.text,
            answers=tuple(answer or ()),
            wrong=tuple(wrong or ()),
        )

    def load(self, model: "HookedGPT2", *, prepend_bos: bool) -> "PromptPair":
        """The pair as the model's tokens.

        Raises:
            CommandError: prompts of unequal length, answers that are no single token, and what
                `PromptPair` refuses otherwise, with the name of what it was.
        """
        from analyses.pairs import PromptPair

        with cli.about(self.name):
            if self.task is not None:
                return PromptPair.from_task(
                    model,
                    self.task,
                    self.n,
                    self.seed,
                    corruption=self.corruption,
                    template=self.template,
                    prepend_bos=prepend_bos,
                )
            return PromptPair.from_text(
                model,
                self.clean or "",
                self.corrupted or "",
                list(self.answers),
                list(self.wrong),
                prepend_bos=prepend_bos,
                source=self.name,
            )
