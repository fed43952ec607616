"""Floor 3: questions about a model, one file each.

Every file reads the same way (question and method, a pure function, a small frozen result, a thin
command line), and works from Python as from a shell:

    from analyses.logit_lens import logit_lens
    logit_lens(model, "When Mary and John went to the store, John gave a drink to").plot()

    python -m analyses.logit_lens prompt.txt --html lens.html

| module | question |
|---|---|
| `analyses.logit_lens` | what would the model predict if it stopped after this layer? |
| `analyses.attention` | where does every head look? |
| `analyses.heads` | what kind of head is it? |
| `analyses.next_token` | what comes next, and how surprised was the model? |
| `analyses.activation_patching` | which activation, put into the other run, carries the answer? |
| `analyses.ablation` | what is lost without a head, a layer, a neuron? |
| `analyses.attribution` | which part of the model wrote the answer? |
| `analyses.attribution_patching` | patching of all nodes at once, to first order |
| `analyses.edge_attribution` | patching of all edges between parts at once, to first order |
| `analyses.path_patching` | what does a head pass on to another, directly? |
| `analyses.circuit_discovery` | which connections do the work, and are they enough alone? |
| `analyses.causal_tracing` | where in the model does noise on a subject do harm? |
| `analyses.circuits` | what could each part do, by its weights alone? |
| `analyses.tasks` | how well does it do on tasks with known answers? |
"""
