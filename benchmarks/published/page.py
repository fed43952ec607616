"""docs/published.md, made from the facts: `python -m benchmarks.published.page`."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.published.facts import (
    DATA,
    Published,
    Tolerance,
    brief,
    number,
    published,
    recorded,
    shape_of,
    sources,
    strongest,
)

PAGE = Path(__file__).parents[2] / "docs" / "published.md"

_HEAD = """\
# Published results

<!-- Made by `python -m benchmarks.published.page` from benchmarks/published/data. Do not edit. -->

What papers and notebooks print for GPT-2, where they print it, and the command that measures the
same here and says how far off it is:

```
python -m benchmarks.published                              # each checkpoint that can be reached
python -m benchmarks.published --model gpt2 --only 'ioi/*'  # some figures
python -m benchmarks.published --model ./folder --as gpt2   # a local copy of the checkpoint
python -m benchmarks.published --model mini                 # the bundled model, against its record
```

It needs a checkout of the repository. A line per figure: paper, ours, difference, verdict; of an
array its strongest place, and the largest difference anywhere in it. What cannot be run is listed
with the reason, and nothing is printed as ours that was not computed in that run. Exit status: 1 if
a verdict fails, 2 if no figure could be run. `--csv` and `--json` write everything.

**What has been checked, and what has not.** The figures of GPT-2 have not been reproduced where
this page was made: no published checkpoint could be reached there. The code that measures them runs
in the test-suite on the bundled model, whose own figures are the last column, and with
`pytest -m hub` on GPT-2 where the Hub can be reached. The measures of the two demos were compared
by hand with TransformerLens 3.9 on the bundled model's weights and on random weights of GPT-2
small's shape, array by array (figures in [comparison of measures](#comparison-of-measures)).

## Figures

"Allowed" is how far ours may be for the verdict "pass". On the published inputs it is float32 and
the digits printed; where the inputs are random, or are prompts of the same kind but not the same
ones, it comes from the standard error of our sample (z times it), and is at least the number
given; for other prompts at most three times that. Reasons stand with each figure in
`benchmarks/published/data/figures.toml`.
"""

_TAIL = """\
## What you supply

- `--text FILE`: the description text of the Main demo's cell 19 (at the commit named), without a
  newline at its end.
- `--facts FILE`: the facts of causal tracing, a JSON list of objects with `"prompt"` (up to the
  answer) and `"subject"`, as the authors' `known_1000.json` has them. Other keys are ignored, but
  `"answer"` (one token, such as `" Seattle"`), where there, must be what the model predicts, or the
  fact is left out. Without a file GPT-2 XL is not loaded, and models of one's own are traced on the
  capitals of `analyses.tasks`. A shorter file gives a larger standard error, and with it, up to
  three times the number allowed, a wider verdict.

## On the bundled model

Any model can be measured (`--model`); only published checkpoints are compared with papers. On the
bundled model three things differ. Its tokenizer has no single token for " Sid" and " shops": the
demo's prompts say " Sam" and " shop". Random tokens are drawn from as many ids as it has. And where
a figure is of named heads, the heads are those that the same criterion finds in it.

## Comparison of measures

Largest difference of this code from TransformerLens 3.9 (`HookedTransformer`, processed weights, in
the second column with its attention matrices refactored as in the demo), both in float32 on the
same weights and tokens, over all places of each array; in the second column of what is patched in
layers 0, 5 and 11:

| what | bundled model | random, GPT-2 small's shape |
|---|---|---|
COMPARISON
"""


def text() -> str:
    """The page."""
    rows = (
        f"| `{id}` | {_size(mini)} | {_size(shape)} |"
        for id, (mini, shape) in json.loads((DATA / "comparison.json").read_text("utf-8")).items()
    )
    return "\n".join([_HEAD, *_tables(), _TAIL.replace("COMPARISON", "\n".join(rows))])


def _tables() -> Iterator[str]:
    for name, source in sources().items():
        figures = [one for one in published().values() if one.source == name]
        inputs = source.inputs.replace("<|endoftext|>", "`<|endoftext|>`")
        yield f"### {source.title}\n\n{source.where}. Measured on: {inputs}.\n"
        yield "| figure | what | published | allowed | bundled model |\n|---|---|---|---|---|"
        for one in figures:
            model = "" if one.model == "gpt2" else f" ({one.model})"
            cells = (
                f"`{one.id}`",
                f"{one.what}{model}; {one.place}",
                _value(one, one.value),
                _allowed(one.tolerance),
                _own(one),
            )
            yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
        yield ""


def _value(figure: Published, value: np.ndarray | tuple[str, ...]) -> str:
    shown = brief(figure, value, strongest(value))
    if isinstance(value, tuple) or not value.ndim or figure.labels:
        return shown
    return f"{shape_of(value.shape)}; {shown}" if figure.tolerance.rule != "points" else shown


def _own(figure: Published) -> str:
    value = recorded()["figures"].get(figure.id)
    if value is None:
        return ""
    heads = isinstance(value, list) and value and isinstance(value[0], str)
    return _value(figure, tuple(value) if heads else np.asarray(value))


def _size(difference: float) -> str:
    return f"{difference:.0e}" if difference else "0"


def _allowed(by: Tolerance) -> str:
    if by.rule == "heads":
        some = "all" if by.least is None else str(by.least)
        return f"{some} among our first {by.among}"
    floor = ", ".join(map(number, by.abs)) if isinstance(by.abs, tuple) else number(by.abs)
    if by.rule == "least":
        return f"at least that, less {floor}"
    if by.rule in ("sampled", "prompts"):
        return f"{number(by.z)} standard errors, at least {floor}"
    return floor


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8", newline="\n")
