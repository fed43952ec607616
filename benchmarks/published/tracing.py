"""Figures of "Locating and Editing Factual Associations in GPT" (Meng et al. 2022).

Nothing is prepended, and the noise is that of the authors' code; its size is 3 standard deviations
of the embeddings of the facts' subjects.
"""

import numpy as np

from analyses.causal_tracing import ROLES
from benchmarks.published.bench import Bench, figure
from benchmarks.published.figures import Measured

_LAST = ROLES.index("last subject token")


@figure("rome/total-effect")
def total_effect(bench: Bench) -> Measured:
    effects = np.array([trace.total_effect for trace in bench.trace.traces])
    error = effects.std(ddof=1) / np.sqrt(len(effects)) if len(effects) > 1 else 0.0
    return Measured.of(effects.mean(), error, len(effects))


def _highest(bench: Bench, view: str) -> tuple[float, float, int]:
    """The highest average indirect effect at the last subject token, its error, and its layer."""
    found = bench.trace.views[view]
    effects, errors = found.change[:, _LAST], found.change_stderr[:, _LAST]
    layer = int(effects.argmax())
    return float(effects[layer]), float(errors[layer]), layer


@figure("rome/state")
def state(bench: Bench) -> Measured:
    effect, error, layer = _highest(bench, "resid_post")
    return Measured.of([effect, layer], [error, 0.0], len(bench.trace.traces))


@figure("rome/mlp")
def mlp(bench: Bench) -> Measured:
    effect, error, _ = _highest(bench, "mlp_out")
    return Measured.of(effect, error, len(bench.trace.traces))


@figure("rome/attention")
def attention(bench: Bench) -> Measured:
    effect, error, _ = _highest(bench, "attn_out")
    return Measured.of(effect, error, len(bench.trace.traces))
