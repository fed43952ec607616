"""Published figures of GPT-2, reproduced: paper | ours | difference | verdict.

    python -m benchmarks.published                   # each checkpoint that can be had
    python -m benchmarks.published --model gpt2 --only 'ioi/*'
    python -m benchmarks.published --model ./my-gpt2 --as gpt2  # a local copy of the checkpoint
    python -m benchmarks.published --model mini                 # against its own recorded figures

What was published, where, and how close a run has to come is data (`data/figures.toml`,
`data/arrays.json`); how a figure is measured is a function with the figure's id (`demos`, `ioi`,
`years`, `tracing`). To add one is to add a record and a function.
"""
