"""Floor 3: questions about a model, one file each.

Every file reads the same way (question and method, a pure function, a small frozen result, a thin
command line), and works from Python as from a shell:

    from analyses.logit_lens import logit_lens
    logit_lens(model, "When Mary and John went to the store, John gave a drink to").plot()

    python -m analyses.logit_lens prompt.txt --html lens.html

| module | question |
|---|---|
| `analyses.logit_lens` | what would the model predict if it stopped after this layer? |
| `analyses.tasks` | how well does it do on tasks with known answers? |
"""
