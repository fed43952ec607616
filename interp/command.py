"""What the command lines of this package share: options, the model, output files, errors.

A command's `main` takes its options from here and ends in `run(main, __spec__)`. Whatever goes
wrong is one line on standard error and a non-zero status: 2 for an unknown option or a value of the
wrong type, 130 for Ctrl-C, 1 for the rest unless the command says otherwise. Nothing here imports
torch before it must, so `--help` and wrong options answer at once.
"""

import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from interp import HookedGPT2

DTYPES = ("float32", "bfloat16", "float16", "float64")
HUB_TIMEOUT_S = 3.0
STDIN = "-"
# How wide output is where no terminal says so; COLUMNS overrides it, as in every program.
PIPE_WIDTH = 120

# ------------------------------------------------------------------ options

Model = Annotated[
    str | None,
    typer.Option(
        help="Hub id, local folder, or mini (comes with this package). Left out: gpt2 if it is in "
        "the local Hub cache or the Hub answers at once, else mini; the first line says which.",
        metavar="NAME",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.", metavar="NAME")]
Dtype = Annotated[str, typer.Option(help=f"{', '.join(DTYPES)}.", metavar="NAME")]
Json = Annotated[
    str | None,
    typer.Option("--json", help="Write everything as JSON; - is standard output.", metavar="PATH"),
]


class CommandError(Exception):
    """What the user has to know and can put right, in one line."""


# ------------------------------------------------------------------ running a command


def run(
    command: Callable[..., int | None], spec: ModuleSpec | None, *, on_error: int = 1
) -> NoReturn:
    """Run `command` with the arguments of this process, and exit.

    Args:
        command: a function annotated with the options of this module; it may return a status.
        spec: the caller's `__spec__`, for the name shown in usage lines.
        on_error: the status when the input is wrong or the machine fails.
    """
    name = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).name
    sys.exit(status(command, f"python -m {name}", sys.argv[1:], on_error=on_error))


def status(
    command: Callable[..., int | None], name: str, arguments: Sequence[str], *, on_error: int = 1
) -> int:
    """Run `command` and return its exit status; errors go to standard error, one line each.

    Mistakes of the user and failures of the machine come as the exceptions caught here. Anything
    else is a mistake of ours, for which the traceback is the right message.
    """
    for stream in (sys.stdout, sys.stderr):
        # A token that the terminal's encoding lacks is shown escaped rather than ending the run.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(no_args_is_help=False)(command)
    try:
        code = typer.main.get_command(app)(list(arguments), name, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except (CommandError, ValueError, LookupError, OSError, RuntimeError, MemoryError) as error:
        return _report(in_one_line(error), on_error)
    except Exception as error:
        # A wrong call. Which class that is depends on typer's version: click's, or its own copy.
        if not hasattr(error, "format_message"):
            raise
        return _report(f"{error.format_message()} (see {name} --help)", 2)  # type: ignore[attr-defined]
    if code == 130:
        return _report("interrupted", 130)
    return code if isinstance(code, int) else 0


def _report(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def in_one_line(error: BaseException) -> str:
    """What an exception says, without line ends."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif type(error) is KeyError and error.args:
        text = str(error.args[0])  # a KeyError's own text is the repr of its message
    elif isinstance(error, MemoryError):
        text = f"not enough memory. {error}"
    else:
        text = str(error) or type(error).__name__
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def call(spec_name: str, arguments: Sequence[str]) -> str:
    """The command as one could type it again."""
    return printable_path(shlex.join(["python", "-m", spec_name, *arguments]))


# ------------------------------------------------------------------ the model


@dataclass(frozen=True)
class Choice:
    """Which model a command uses, and why.

    Attributes:
        name: what `HookedGPT2.from_pretrained` takes.
        why: the reason, to be shown.
    """

    name: str
    why: str

    def __str__(self) -> str:
        return f"model: {self.name} ({self.why})"


def choose_model(name: str | None, option: str = "--model") -> Choice:
    """The model the user named, or else `gpt2` where it can be had, or else the bundled one.

    A model that the user named is never replaced. Without one: `gpt2` when it is in the local Hub
    cache or the Hub answers within `HUB_TIMEOUT_S` seconds, otherwise `mini`.

    Args:
        name: as given; None: not given.
        option: where it is given, for the reason.
    """
    if name is not None:
        return Choice(name, "as asked")
    from interp import sources

    if sources.is_cached("gpt2"):
        return Choice("gpt2", f"no {option} given; it is in the local Hub cache")
    if sources.hub_answers("gpt2", HUB_TIMEOUT_S):
        return Choice("gpt2", f"no {option} given; not in the local Hub cache, but the Hub has it")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    hub = "HF_HUB_OFFLINE is set" if offline else "the Hub does not answer"
    return Choice(
        sources.MINI,
        f"the bundled model: no {option} given, gpt2 is not in the local Hub cache and {hub}",
    )


def load_model(choice: Choice, *, device: str, dtype: str) -> "HookedGPT2":
    """Load the chosen model, after a check that the device and the dtype exist.

    Raises:
        CommandError: an unknown device or dtype; the message lists those there are.
        ValueError: the model cannot be loaded; says why.
    """
    check_device_and_dtype(device, dtype)
    from interp import HookedGPT2

    return HookedGPT2.from_pretrained(choice.name, device=device, dtype=dtype)


def check_device_and_dtype(device: str, dtype: str) -> None:
    """Refuse a device or a dtype that is not there.

    Raises:
        CommandError: it lists those there are.
    """
    from hooks.names import nearest

    if dtype not in DTYPES:
        raise CommandError(
            f"unknown dtype {dtype!r}.{nearest(dtype, DTYPES)} Expected {', '.join(DTYPES)}"
        )
    import torch

    try:
        if torch.device(device).type == "meta":
            raise ValueError("a meta device holds no numbers")
        torch.empty(0, device=device)
    except Exception:  # torch says it by AssertionError, RuntimeError, ImportError and others
        raise CommandError(
            f"no such device here: {device!r}; there is {', '.join(_devices())}"
        ) from None


def _devices() -> list[str]:
    import torch

    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


# ------------------------------------------------------------------ output


def check_outputs(
    *, html: str | None, csv: str | None, json: str | None, inputs: Sequence[str] = ()
) -> None:
    """Refuse output paths that cannot be written, before anything is computed.

    Args:
        inputs: the files that are read, which no output may replace.

    Raises:
        CommandError: a missing folder, a folder where a file should be, no permission, the same
            file twice or one of the inputs (under whatever name), or a page on standard output.
    """
    given = {"--html": html, "--csv": csv, "--json": json}
    read = {_place(file): file for file in inputs if file != STDIN}
    seen: dict[object, str] = {}
    for option, value in given.items():
        if value is None:
            continue
        if option == "--html" and value == STDIN:
            raise CommandError("--html needs a path; only --csv and --json write to - (stdout)")
        place = STDIN if value == STDIN else _place(value)
        shown = printable_path(value)
        if place in seen:
            raise CommandError(f"{seen[place]} and {option} would both write to {shown}")
        if place in read:
            file = printable_path(read[place])
            raise CommandError(f"{option} {shown} would overwrite the prompt file {file}")
        seen[place] = option
        if value != STDIN:
            _check_writable(option, Path(value))


def _place(path: str) -> object:
    """The same for all names of one file: `z`, `a/../z`, and links to it."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _check_writable(option: str, path: Path) -> None:
    shown = printable_path(str(path))
    if not path.parent.is_dir():
        raise CommandError(f"{option} {shown}: there is no folder {path.parent}")
    if path.is_dir():
        raise CommandError(f"{option} {shown}: this is a folder; a file name was expected")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise CommandError(f"{option} {shown}: no permission to write there")


def write_text(path: str, text: str) -> None:
    """Write UTF-8 to a file, or to standard output for `-`."""
    if path == STDIN:
        sys.stdout.write(text)
    else:
        Path(path).write_text(text, encoding="utf-8", newline="\n")


def finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite(item) for item in value]
    return {k: finite(v) for k, v in value.items()} if isinstance(value, dict) else value


def json_text(data: Any) -> str:
    """Plain data as JSON, with letters as they are."""
    return dumps(data, ensure_ascii=False, indent=1) + "\n"


def console(*, data_on_stdout: bool = False) -> "Console":
    """Where a command prints: standard output, or standard error while that carries data.

    Colour only on a terminal. Elsewhere lines are `PIPE_WIDTH` wide unless COLUMNS is set.
    """
    from rich.console import Console

    stream = sys.stderr if data_on_stdout else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


@contextmanager
def bar(what: str, *, shown: bool = True) -> Iterator[Callable[[float], None]]:
    """A bar on standard error, where that is a terminal. Yields a function that moves it on by a
    share of the whole."""
    if not (shown and sys.stderr.isatty()):
        yield lambda share: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as display:
        task = display.add_task(what, total=1.0)
        yield lambda share: display.advance(task, share)


def progress(items: Sequence[int], what: str) -> Iterable[int]:
    """The items, with a bar on standard error where that is a terminal and there are several."""
    if len(items) < 2 or not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, what, console=Console(stderr=True), transient=True)


# ------------------------------------------------------------------ text


def printable_path(path: str) -> str:
    """A path as text that can be printed and written: odd bytes and control characters escaped."""
    text = path.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else escape(c) for c in text)


def escape(char: str) -> str:
    """A character as one would write it in a Python string."""
    return char.encode("unicode_escape").decode()
