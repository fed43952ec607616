"""The engine under every sweep: what must be recomputed, recomputing it, and reading it.

| file | does |
|---|---|
| `schedule` | from edits to the places that can change, layer by layer |
| `taps` | edits applied where their tensors are born |
| `walk` | one climb through the layers with a growing batch |
| `readout` | metrics of what arrived |
"""
