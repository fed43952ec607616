"""What the result of a sweep tells: means, errors, intervals, tables."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from _sweeps import run, worlds

from analyses.metrics import logit_diff, prob
from hooks import Ablate


@pytest.fixture(scope="module")
def world(reference_model):
    return worlds(reference_model)


@pytest.fixture(scope="module")
def result(world):
    here = world("even")
    edits = [Ablate(("z", 1), head=h) for h in range(4)]
    return run(here, edits, {"diff": logit_diff(1, 2), "p": prob(3)})


def test_mean_and_error(result):
    values = result.values["diff"].numpy()
    np.testing.assert_allclose(result.mean("diff"), values.mean(1))
    np.testing.assert_allclose(result.stderr("diff"), values.std(1, ddof=1) / math.sqrt(3))


def test_interval(result):
    low, high = result.interval("diff", level=0.9)
    mean = result.mean("diff")
    assert bool(((low <= mean) & (mean <= high)).all())
    wide_low, wide_high = result.interval("diff", level=0.99)
    assert bool((wide_low <= low).all() and (high <= wide_high).all())
    assert torch.equal(result.interval("diff", level=0.9)[0], low)
    with pytest.raises(ValueError, match="level"):
        result.interval("diff", level=95.0)
    # Of three numbers the mean of a draw of three is never outside them.
    assert bool((wide_low >= result.values["diff"].min(1).values - 1e-12).all())


def test_interval_of_many_examples(result):
    """It is that of the normal distribution."""
    values = torch.randn(4, 400, dtype=torch.float64) + 5
    many = replace(result, values={"x": values}, base={"x": values[0]})
    low, high = many.interval()
    error = values.std(1) / 20
    torch.testing.assert_close(many.stderr(), error)
    torch.testing.assert_close(high - low, 2 * 1.96 * error, rtol=0.1, atol=0)
    torch.testing.assert_close((high + low) / 2, values.mean(1), rtol=0.01, atol=0)


def test_interval_of_a_single_example(result):
    values = torch.randn(4, 1, dtype=torch.float64)
    single = replace(result, values={"x": values}, base={"x": values[0]})
    assert all(bool(end.isnan().all()) for end in (*single.interval(), single.stderr()))
    torch.testing.assert_close(single.mean(), values[:, 0])


def test_normalised(result):
    zero, one = result.base["diff"], result.base["diff"] + 4.0
    got = result.normalised(zero, one, "diff")
    torch.testing.assert_close(got, (result.mean("diff") - zero.mean()) / 4)
    torch.testing.assert_close(result.normalised(0.0, 2.0, "diff"), result.mean("diff") / 2)
    with pytest.raises(ValueError, match="no normalised scale"):
        result.normalised(zero, zero, "diff")


def test_frame(result):
    frame = result.to_frame()
    assert list(frame.columns) == ["edit", "edits", "example", "metric", "value", "base"]
    assert len(frame) == 4 * 3 * 2
    row = frame.query("metric == 'p' and edit == 2 and example == 1").iloc[0]
    assert row["value"] == float(result.values["p"][2, 1])
    assert row["base"] == float(result.base["p"][1])
    assert row["edits"] == "Ablate(('z', 1), head=2)"
    assert isinstance(frame, pd.DataFrame)


def test_repr(result):
    text = repr(result)
    assert "4 interventions on 3 prompts" in text
    strongest = int((result.mean("p") - result.base["p"].mean()).abs().argmax())
    assert text.split("p: ")[1].split("Ablate")[1].startswith(f"(('z', 1), head={strongest})")


def test_which_metric(result):
    with pytest.raises(ValueError, match="several metrics"):
        result.mean()
    with pytest.raises(KeyError, match=r"Did you mean 'diff'"):
        result.mean("dif")
