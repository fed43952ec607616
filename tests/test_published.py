"""The published figures: as facts, measured on the bundled model, judged, and run as a command.

Where the Hugging Face Hub can be reached, GPT-2's own are reproduced (marker `hub`).
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from _commands import help_without_torch

from analyses import cli
from analyses.tasks import generate
from benchmarks.published import __main__ as command
from benchmarks.published import ioi, page, years
from benchmarks.published.bench import MEASURES, Bench, by_group, figure, ranked, read_facts
from benchmarks.published.facts import (
    CHECKPOINTS,
    Published,
    Tolerance,
    published,
    recorded,
    sources,
)
from benchmarks.published.figures import Measured, compared, judged, not_run
from benchmarks.published.run import figures_of, run
from interp import HookedGPT2

FIGURES = published()
ON_MINI = [one.id for one in figures_of("", list(FIGURES)) if one.needs != "text"]


@pytest.fixture(scope="module")
def bench(mini) -> Bench:
    return Bench(mini, n_prompts=command.N_OTHER)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as wide as they wish, however narrow the terminal is, if there is one."""
    monkeypatch.setenv("COLUMNS", "200")


def status(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of the command, blanks as single spaces."""
    code = cli.status(command.main, "python -m benchmarks.published", arguments)
    out, err = capsys.readouterr()
    return code, " ".join(out.split()), " ".join(err.split())


# ------------------------------------------------------------------ the facts


def test_every_figure_has_a_measure_and_the_other_way_round():
    assert set(MEASURES) == set(FIGURES)
    assert {one.source for one in FIGURES.values()} == set(sources())
    assert {one.model for one in FIGURES.values()} == set(CHECKPOINTS)


def test_shapes_of_arrays():
    layers = {"gpt2": 12, "distilgpt2": 6}
    for one in FIGURES.values():
        if one.axes == ("layer", "head"):
            assert np.shape(one.value) == (layers[one.model], 12), one.id
        if one.axes:
            assert np.ndim(one.value) == len(one.axes), one.id
        if one.labels:
            assert np.shape(one.value) == (len(one.labels),), one.id


def value(id: str) -> np.ndarray:
    found = FIGURES[id].value
    assert isinstance(found, np.ndarray)
    return found


def test_published_numbers_agree_with_each_other():
    mean = value("exploratory/logit-differences").mean()
    assert mean == pytest.approx(value("exploratory/ends")[0], abs=6e-4)
    last = value("exploratory/accumulated")[-1]
    assert last == pytest.approx(mean, abs=6e-4)
    assert value("exploratory/layers").sum() == pytest.approx(last, abs=3e-5)
    # Heads and the biases of their layers make up the attention layers.
    attention = value("exploratory/layers")[2::2]
    assert value("exploratory/heads").sum(1) == pytest.approx(attention, abs=0.02)
    assert value("exploratory/heads")[9, 9] == pytest.approx(2.985, abs=1e-3)
    residual = value("exploratory/patch-residual")
    assert residual[0].tolist() == [0] * 10 + [1] + [0] * 4
    eigenvalues = value("main/ov-eigenvalues")
    score = eigenvalues[:, 0].sum() / np.hypot(*eigenvalues.T).sum()
    assert score == pytest.approx(value("main/ov-copying")[11, 11], abs=1e-5)


def test_a_measure_needs_a_published_figure_and_is_alone():
    with pytest.raises(ValueError, match=r"main/no-such is not published"):
        figure("main/no-such")
    with pytest.raises(ValueError, match="measured twice"):
        figure("exploratory/heads")


# ------------------------------------------------------------------ the bundled model


@pytest.mark.parametrize("id", ON_MINI)
def test_the_bundled_model_gives_what_is_recorded(bench, id):
    (outcome,) = run(bench, [FIGURES[id]], name="mini")
    assert outcome.verdict == "pass", outcome
    if isinstance(outcome.value, list) and isinstance(outcome.value[0], str):
        # Neighbours in a ranking may be closer than float32 is exact.
        assert set(outcome.value[:3]) & set(recorded()["figures"][id][:3])
    else:
        ours = np.asarray(outcome.value)
        assert ours == pytest.approx(np.asarray(recorded()["figures"][id]), abs=2e-4, rel=2e-5)


def test_every_figure_is_recorded():
    assert list(recorded()["figures"]) == ON_MINI


def test_a_figure_without_its_input_is_not_run(bench):
    (outcome,) = run(bench, [FIGURES["main/description-loss"]], name="mini")
    assert (outcome.verdict, outcome.ours, outcome.theirs) == ("not run", "", "")
    assert "--text FILE" in outcome.detail
    (outcome,) = run(replace(bench, text="Once upon a time."), [FIGURES["main/description-loss"]])
    with torch.no_grad():
        expected = bench.model("Once upon a time.", "loss").item()
    assert outcome.value == pytest.approx(expected, abs=1e-5)


def test_a_figure_that_cannot_be_measured_does_not_end_the_run(mini, monkeypatch):
    def broken(bench: Bench) -> Measured:
        raise ValueError("no name is\n one token")

    monkeypatch.setitem(MEASURES, "ioi/copy-score", broken)
    figures = [FIGURES["ioi/copy-score"], FIGURES["tests/hello-world"]]
    for checkpoint, verdict in (("gpt2", "FAIL"), ("", "not run")):
        first, second = run(Bench(mini, checkpoint), figures)
        assert (first.verdict, first.ours, first.value) == (verdict, "", None)
        assert first.detail == "cannot be measured: no name is one token"
        assert second.value is not None


@torch.no_grad()
def test_eigenvalues_are_those_of_the_whole_product(reference_model):
    cfg = dict(n_layer=2, n_head=3, n_embd=24, vocab_size=40, n_positions=8, bos_token_id=None)
    small = Bench(HookedGPT2.from_pretrained(reference_model(cfg | {"eos_token_id": None})))
    model = small.processed
    full = model.W_E @ model.W_V[1, 2] @ model.W_O[1, 2] @ model.W_U
    values = torch.linalg.eigvals(full.double())
    expected = float(values.sum().real / values.abs().sum())
    ours = MEASURES["main/full-ov-copying"](small).value
    assert np.asarray(ours)[1, 2] == pytest.approx(expected, abs=1e-4)
    values = torch.linalg.eigvals((model.W_V[1, 2] @ model.W_O[1, 2]).double())
    kept = values[values.abs().argsort(descending=True)[:8]]
    theirs = np.stack([kept.real.numpy(), kept.imag.numpy()], -1)
    record = FIGURES["main/ov-eigenvalues"]
    by = Tolerance(rule="points", abs=1e-4, why="")
    assert judged(record, theirs, MEASURES[record.id](small), by).verdict == "pass"


def test_the_circuit_between_its_ends(bench, monkeypatch):
    """Of the heads none is left, those of the figure, or all at the positions that have names."""
    few = Bench(
        bench.model, shared=bench.shared | {"ioi prompts": ioi.prompts(bench).select([0, 1])}
    )
    del few.shared["ioi answers"]
    heads = [(layer, head) for layer in range(4) for head in range(6)]
    positions = ("IO", "S1", "S1+1", "S2", "END")
    found = []
    for kept in ({}, ioi.circuit(bench), dict.fromkeys(positions, heads)):
        monkeypatch.setattr(ioi, "circuit", lambda bench, kept=kept: kept)
        found.append(float(np.asarray(ioi.faithfulness(few).value)))
    assert abs(found[0]) < 0.2
    assert found[1] == pytest.approx(1, abs=0.1)
    assert found[2] == pytest.approx(1, abs=0.02)


def test_the_circuit_of_years_between_its_ends(bench, monkeypatch):
    """All heads inside and nothing frozen before the last third: between 01 prompts and clean."""
    clean = float(np.asarray(years.probability_difference(bench).value))
    monkeypatch.setattr(years, "_heads", lambda bench, first: [])
    data = years.years(bench)
    with torch.no_grad():
        logits = bench.model(data.pair.corrupted)
    probabilities = years._probabilities(bench, logits)
    corrupted = float(years._difference(probabilities, data.starts).mean())
    assert float(np.asarray(years.circuit(bench).value)) == pytest.approx(corrupted, abs=1e-5)
    every = [(layer, head) for layer in range(4) for head in range(6)]
    monkeypatch.setattr(years, "_heads", lambda bench, first: every)
    monkeypatch.setattr(years, "_FIRST_MLP_SHARE", 0.0)
    assert float(np.asarray(years.circuit(bench).value)) == pytest.approx(clean, abs=1e-5)


def test_sharpness_and_difference_by_hand(bench):
    data = years.years(bench)
    with torch.no_grad():
        probs = bench.model(data.pair.clean)[:, -1].softmax(-1)
    differences, steps = [], []
    for row, start in zip(probs, data.starts.tolist(), strict=True):
        of = [float(row[bench.model.to_single_token(f"{half:02d}")]) for half in range(100)]
        differences.append(sum(of[start + 1 :]) - sum(of[: start + 1]))
        steps.append(of[start + 1] - of[start - 1])
    ours = years.probability_difference(bench)
    assert float(np.asarray(ours.value)) == pytest.approx(np.mean(differences), abs=1e-5)
    assert float(np.asarray(years.sharpness(bench).value)) == pytest.approx(
        np.mean(steps), abs=1e-6
    )
    assert "".join(data.pair.str_tokens[0]).startswith("<|endoftext|> The ")


def test_prompts_of_the_paper_have_nothing_prepended(bench):
    assert ioi.prompts(bench).prepend_bos is False
    assert ioi.some(bench).prepend_bos is False
    assert bench.demo.prepend_bos is True
    assert bench.demo.lengths.unique().tolist() == [15]
    assert bench.trace.traces[0].prepend_bos is False


def test_heads_of_another_model_are_its_own(mini):
    own = Bench(mini).heads("ioi/name-movers", lambda: ("3.0", "1.5", "3.4", "2.2"))
    assert own == [(3, 0), (1, 5), (3, 4)]
    theirs = Bench(mini, "gpt2").heads("ioi/name-movers", lambda: pytest.fail("not asked"))
    assert theirs == [(9, 9), (10, 0), (9, 6)]


def test_standard_error_over_groups():
    values, groups = torch.tensor([1.0, 3.0, 5.0, 7.0, 12.0]), ["a", "a", "b", "b", "c"]
    found = by_group(values, groups)
    assert float(np.asarray(found.value)) == pytest.approx(5.6)
    assert found.spread is not None
    assert float(found.spread) == pytest.approx(np.std([2, 6, 12], ddof=1) / np.sqrt(3))
    assert found.n == 5


def test_ranking():
    assert ranked(torch.tensor([[1.0, 5.0], [3.0, -2.0]])) == ("0.1", "1.0", "0.0", "1.1")


# ------------------------------------------------------------------ verdicts


def record(theirs, rule: str, **tolerance) -> Published:
    heads = isinstance(theirs, tuple)
    return Published(
        id="x/y",
        what="",
        source="ioi",
        place="",
        model="gpt2",
        value=theirs if heads else np.asarray(theirs, dtype=float),
        labels=(),
        axes=() if heads else ("row", "column")[: np.ndim(theirs)],
        needs="",
        also=(),
        tolerance=Tolerance(rule=rule, why="because", **tolerance),
    )


@pytest.mark.parametrize(
    ("theirs", "tolerance", "good", "bad"),
    [
        (2.0, dict(rule="same", abs=0.1), Measured.of(2.09), Measured.of(2.11)),
        (2.0, dict(rule="same", abs=0.1), Measured.of(1.91), Measured.of(1.89)),
        (
            [0.0, 5.0],
            dict(rule="same", abs=(0.0, 0.1)),
            Measured.of([0, 5.05]),
            Measured.of([1, 5.0]),
        ),
        (
            [[1.0, 2.0], [3.0, 4.0]],
            dict(rule="same", abs=0.1),
            Measured.of([[1.0, 2.0], [3.0, 4.05]]),
            Measured.of([[1.0, 2.0], [3.2, 4.0]]),
        ),
        (
            0.5,
            dict(rule="prompts", abs=0.1, z=3.0),
            Measured.of(0.79, 0.1, 50),
            Measured.of(0.81, 0.1, 50),
        ),
        (
            0.5,
            dict(rule="prompts", abs=0.1, z=3.0),
            Measured.of(0.59, 0.0, 50),
            Measured.of(0.61, 0.001, 50),
        ),
        (
            0.5,
            dict(rule="prompts", abs=0.1, z=3.0),
            Measured.of(0.79, 10.0, 50),
            Measured.of(0.81, 10.0, 50),
        ),
        # z sd sqrt(1/10 + 1/40) + abs = 5 * 0.2 * 0.3536 + 0.01 = 0.3636
        (
            1.0,
            dict(rule="sampled", abs=0.01, z=5.0, n=10),
            Measured.of(1.36, 0.2, 40),
            Measured.of(1.37, 0.2, 40),
        ),
        (0.95, dict(rule="least", abs=0.02), Measured.of(1.0), Measured.of(0.92)),
        (
            [[1.0, 0.0], [0.0, 1.0]],
            dict(rule="points", abs=0.1),
            Measured.of([[0.05, 1.0], [1.0, 0.0]]),
            Measured.of([[0.0, 1.0], [0.0, 1.0]]),
        ),
        (
            ("9.9", "10.0"),
            dict(rule="heads", among=2),
            Measured(("10.0", "9.9", "8.1")),
            Measured(("10.0", "8.1", "9.9")),
        ),
        (
            ("9.9", "10.0", "9.6"),
            dict(rule="heads", among=4, least=2),
            Measured(("0.1", "9.9", "0.2", "9.6")),
            Measured(("0.1", "9.9", "0.2", "0.3")),
        ),
    ],
)
def test_verdicts(theirs, tolerance, good, bad):
    one = record(theirs, **tolerance)
    assert compared(one, good).verdict == "pass"
    outcome = compared(one, bad)
    assert outcome.verdict == "FAIL"
    assert "because" in outcome.detail


@pytest.mark.parametrize("ours", [float("nan"), float("inf"), [1.0, 2.0]])
def test_what_is_no_such_number_fails(ours):
    assert compared(record(2.0, "same", abs=1e9), Measured.of(ours)).verdict == "FAIL"


def test_too_few_points_fail():
    one = record([[1.0, 0.0], [1.0, 0.0]], "points", abs=0.1)
    assert compared(one, Measured.of([[1.0, 0.0]])).verdict == "FAIL"


def test_where_an_array_is_worst():
    one = replace(record(np.zeros((12, 12)), "same", abs=0.1), axes=("layer", "head"))
    ours = np.zeros((12, 12))
    ours[9, 6], ours[3, 2] = -0.5, 0.3
    outcome = compared(one, Measured.of(ours))
    assert outcome.verdict == "FAIL"
    assert outcome.difference == "-5.0e-01"
    assert "worst at 9.6" in outcome.detail


def test_a_figure_that_was_not_run_shows_nothing_as_ours():
    outcome = not_run(FIGURES["ioi/probability"], "why")
    assert (outcome.theirs, outcome.ours, outcome.difference) == ("0.49", "", "")
    assert (outcome.verdict, outcome.value) == ("not run", None)


# ------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def twelve(tmp_path_factory, mini) -> Path:
    """A folder with a random model of 12 layers of 12 heads, which says it is GPT-2 small."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    cfg = GPT2Config(n_layer=12, n_head=12, n_embd=48, vocab_size=8192, n_positions=256)
    GPT2LMHeadModel(cfg).save_pretrained(folder)
    source = Path(__file__).parents[1] / "interp" / "mini" / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(source.read_bytes())
    return folder


def test_a_checkpoint_that_is_not_gpt2_fails(twelve, capsys, tmp_path):
    # What is cheap, of every source.
    ids = (
        "exploratory/logit-differences exploratory/heads exploratory/induction main/ov-copying "
        "main/ov-eigenvalues tests/hello-world ioi/logit-difference ioi/name-mover-attention "
        "ioi/copy-score greater-than/circuit main/description-loss"
    ).split()
    only = [part for id in ids for part in ("--only", id)]
    out = tmp_path / "out.json"
    code, shown, _ = status(
        capsys, "--model", str(twelve), "--as", "gpt2", "--n", "80", "--json", str(out), *only
    )
    rows = {row["id"]: row for row in json.loads(out.read_text())}
    assert code == 1
    assert list(rows) == [id for id in FIGURES if id in ids]
    failed = {id for id, row in rows.items() if row["verdict"] == "FAIL"}
    assert failed == set(ids) - {"main/description-loss"}
    assert rows["main/description-loss"]["verdict"] == "not run"
    assert rows["main/description-loss"]["value"] is None
    assert np.shape(rows["exploratory/heads"]["value"]) == (12, 12)
    assert "10 figures run: 0 pass, 10 fail; 1 not run" in shown


def test_another_shape_is_no_such_checkpoint(capsys):
    code, _, err = status(capsys, "--model", "mini", "--as", "gpt2", "--only", "tests/hello-world")
    assert code == 1
    assert "mini has 4 layers of 6 heads, gpt2 12 of 12: it is another model" in err


def test_the_bundled_model_passes(capsys, tmp_path):
    out = tmp_path / "out.csv"
    code, shown, _ = status(
        capsys, "--model", "mini", "--only", "exploratory/heads", "--csv", str(out)
    )
    assert code == 0
    assert "recorded ours difference verdict" in shown
    assert "1 figure run: 1 pass, 0 fail; 0 not run" in shown
    assert "exploratory/heads" in out.read_text("utf-8").splitlines()[1]


def test_a_changed_model_fails_its_record(capsys, monkeypatch):
    load = command._load

    def changed(*arguments):
        model = load(*arguments)
        model.W_O[1, 5] *= 1.01
        return model

    monkeypatch.setattr(command, "_load", changed)
    code, shown, _ = status(capsys, "--model", "mini", "--only", "exploratory/heads")
    assert code == 1
    assert "worst at" in shown


def test_a_model_of_ones_own_is_measured_and_not_judged(twelve, capsys):
    code, shown, _ = status(capsys, "--model", str(twelve), "--only", "tests/hello-world")
    assert code == 0
    assert re.search(r"tests/hello-world \d+\.\d+ -", shown)


def test_checkpoints_out_of_reach_are_listed(capsys, monkeypatch):
    def unreachable(choice: cli.Choice, **_: str) -> HookedGPT2:
        raise OSError(f"no {choice.name} here")

    monkeypatch.setattr(cli, "load_model", unreachable)
    code, shown, _ = status(capsys)
    assert code == 2
    for id in FIGURES:
        assert id in shown
    assert "the checkpoint cannot be reached: no gpt2 here" in shown
    assert "--facts FILE" in shown
    assert f"0 figures run: 0 pass, 0 fail; {len(FIGURES)} not run" in shown


def test_a_named_model_that_is_missing_is_an_error(capsys, tmp_path):
    code, _, err = status(capsys, "--model", str(tmp_path / "none"))
    assert code == 1
    assert "no such folder" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "ioi/name-mover"], "Did you mean 'ioi/name-movers'"),
        (["--only", "zzz/*"], "--list names them"),
        (["--n", "10"], "expected at least 80"),
        (["--as", "gpt2"], "goes with --model"),
        (["--model", "mini", "--as", "gpt3"], "one of gpt2, distilgpt2, gpt2-xl"),
        (["--record"], "goes with --model mini"),
        (["--model", "mini", "--record", "--n", "100"], "goes with --model mini"),
        (["--csv", "/no/such/folder/x.csv"], "no folder"),
        (["--text", "/no/such/file"], "no file"),
        (["--facts", "/no/such/file"], "/no/such/file"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    code, out, err = status(capsys, *arguments)
    assert code == 1
    assert message in err
    assert out == ""


def test_list_names_every_figure(capsys):
    code, shown, _ = status(capsys, "--list")
    assert code == 0
    for one in FIGURES.values():
        assert one.id in shown
        assert " ".join(one.what.split()) in shown


def test_recording(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "DATA", tmp_path)
    command._record({"a/b": Measured.of([1.23456789, 2.0]), "c/d": Measured(("1.2", "3.4"))})
    found = json.loads((tmp_path / "mini.json").read_text())
    assert found["figures"] == {"a/b": [1.234568, 2.0], "c/d": ["1.2", "3.4"]}
    assert found["torch"] == torch.__version__


def test_help_needs_no_torch():
    assert "--facts" in help_without_torch("benchmarks.published")


# ------------------------------------------------------------------ facts of a user


def test_facts_from_a_file(tmp_path, mini):
    path = tmp_path / "facts.json"
    data = generate("capitals", mini.tokenizer, 3, seed=0, prepend_bos=False)
    subjects = [
        row[int(at)].strip()
        for row, at in zip(data.str_tokens, data.positions["SUBJECT"], strict=True)
    ]
    entries = [
        {"known_id": i, "prompt": f"{prompt} ", "subject": subject}
        for i, (prompt, subject) in enumerate(zip(data.clean_prompts, subjects, strict=True))
    ]
    path.write_text(json.dumps(entries))
    facts = read_facts(path)
    assert [fact.prompt for fact in facts] == list(data.clean_prompts)
    assert [fact.answer for fact in facts] == [None] * 3
    found = Bench(mini, facts=facts)
    assert MEASURES["rome/total-effect"](found).n == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("[]", "expected a list"),
        ('{"prompt": "a"}', "expected a list"),
        ('[{"prompt": "a", "subject": "b"}, {"prompt": "a"}]', 'entry 1 has no text "subject"'),
        ("[3]", 'entry 0 has no text "prompt"'),
    ],
)
def test_facts_that_are_none(tmp_path, content, message):
    path = tmp_path / "facts.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_facts(path)


# ------------------------------------------------------------------ the page


def test_the_page_is_not_stale():
    assert page.PAGE.read_text("utf-8") == page.text(), "run python -m benchmarks.published.page"


def test_the_page_names_every_figure_and_source():
    shown = page.text()
    for one in FIGURES.values():
        assert f"`{one.id}`" in shown
    for source in sources().values():
        assert source.where in shown


# ------------------------------------------------------------------ GPT-2 itself


@pytest.mark.hub
@pytest.mark.parametrize("name", ["gpt2", "distilgpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
@torch.no_grad()
def test_published_checkpoints_equal_the_reference(name):
    from transformers import AutoTokenizer, GPT2LMHeadModel

    reference = GPT2LMHeadModel.from_pretrained(name).eval()
    model = HookedGPT2.from_pretrained(name)
    text = "The Eiffel Tower stands in Paris, and the Colosseum stands in"
    tokens = model.to_tokens(text)
    ids = AutoTokenizer.from_pretrained(name)(text)["input_ids"]
    assert tokens.tolist()[0] == [50256, *ids]
    ours, theirs = model(tokens), reference(tokens).logits
    assert (ours - theirs).abs().max() <= 1e-4
    assert ours.argmax(-1).equal(theirs.argmax(-1))


@pytest.fixture(scope="module")
def checkpoints():
    """Published checkpoints, each loaded once."""
    loaded: dict[str, Bench] = {}

    def load(name: str) -> Bench:
        if name not in loaded:
            loaded[name] = Bench(HookedGPT2.from_pretrained(name).requires_grad_(False), name)
        return loaded[name]

    return load


@pytest.mark.hub
@pytest.mark.parametrize("id", [one.id for one in FIGURES.values() if not one.needs])
def test_gpt2_gives_what_was_published(checkpoints, id):
    (outcome,) = run(checkpoints(FIGURES[id].model), [FIGURES[id]])
    assert outcome.verdict == "pass", outcome
