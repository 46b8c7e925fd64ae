"""The verdict table: bounds and intervals decide, and no claim stands without a figure."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import StackError, UsageError
from labkit.experiments.cost.figures import FIGURES
from labkit.experiments.verdict import experiments
from labkit.experiments.verdict.claim import Case, Claim, judge
from labkit.experiments.verdict.claims import CLAIMS
from labkit.experiments.verdict.experiments import EXPERIMENTS, collect, command_line
from labkit.experiments.verdict.figures import Figure, measured, share
from labkit.experiments.verdict.table import frame, markdown

RESULT = {"faults": {"wrong": 0.0}}


def case(when: str, low: float, high: float, **bounds: float) -> Case:
    return Case(when, "x", "faults", lambda _: Figure((low + high) / 2, low, high), **bounds)


def said(*cases: Case) -> str:
    return judge(Claim("for", "It is so", cases), RESULT).verdict


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 10))
def test_a_case_holds_where_its_whole_interval_is_within_the_bounds(
    one: float, other: float, bound: float
) -> None:
    low, high = sorted((one, other))
    least, most = case("a", low, high, at_least=bound), case("b", low, high, at_most=bound)
    assert said(least) == ("holds" if bound <= low else "does not hold")
    assert said(most) == ("holds" if high <= bound else "does not hold")


def test_a_claim_that_holds_in_some_cases_says_in_which() -> None:
    good, bad = case("it rains", 2, 3, at_least=1), case("it snows", 0, 3, at_least=1)
    assert said(good, good) == "holds"
    assert said(good, bad) == "holds if it rains"
    assert said(good, bad, case("it pours", 1, 1, at_least=1)) == "holds if it rains or if it pours"
    assert said(bad) == "does not hold"


def test_a_claim_without_its_figure_is_refused_by_name() -> None:
    claim = Claim("for", "It is so", (Case("a", "lag", "faults", lambda f: f["lost"]),))
    with pytest.raises(UsageError, match=r"'It is so'.*'faults'.*'lag'.*KeyError"):
        judge(claim, RESULT)
    with pytest.raises(UsageError, match="needs the result 'faults'"):
        judge(claim, {})


@pytest.mark.parametrize("ends", [None, (None, 2.0), (1.0,), (float("nan"), 2.0)])
def test_a_figure_without_an_interval_is_none(ends: Any) -> None:
    with pytest.raises(UsageError, match="interval"):
        measured(1.0, ends)


def test_figures_show_three_digits_and_their_interval() -> None:
    assert str(measured(0.123456, (0.1, 0.2), "ms")) == "0.123 (0.100 to 0.200) ms"
    assert str(measured(3.5, (1, 1_234.5))) == "3.50 (1.00 to 1,234)"
    assert str(Figure(11, 11, 11, "lines")) == "11.0 lines"
    none = share(0, 1_000)
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(100 * (1 - 0.025 ** (1 / 1_000)))  # the exact one of 0 of n
    with pytest.raises(UsageError, match="0 of 0"):
        share(0, 0)


def test_every_sentence_of_the_balance_is_there_and_each_can_fail() -> None:
    sides = [claim.side for claim in CLAIMS]
    assert [sides.count(side) for side in ("problem", "against", "for")] == [4, 4, 7]
    cases = [each for claim in CLAIMS for each in claim.cases]
    assert all(each.bound for each in cases), "a case without a bound always holds"
    assert {each.experiment for each in cases} == set(EXPERIMENTS)


def test_the_figures_of_the_cost_that_claims_read_are_there() -> None:
    found = {"median": 2.0, "interval": [1.0, 3.0]}
    made = {
        name: {"unit": "", "arms": {"crud": found, "labkit": found}, "crud_to_labkit": ratio}
        for name in FIGURES
        for ratio in [{"ratio": 2.0, "interval": [1.0, 3.0]}]
    }
    of_cost = [each for claim in CLAIMS for each in claim.cases if each.experiment == "cost"]
    assert len(of_cost) > 10
    for each in of_cost:
        assert each.figure({"figures": made}).low > 0


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Instead of labkit: a program that writes its arguments as the result."""
    ran = list[list[str]]()
    program = (
        "import json, sys, pathlib; a = sys.argv[1:]; "
        "pathlib.Path(a[a.index('--json') + 1]).write_text(json.dumps({'ran': a})); "
        "sys.exit(2 if 'latency' in a else 1)"
    )
    start = experiments.subprocess.run

    def run(line: list[str], **options: Any) -> Any:
        ran.append(line[3:])
        return start([sys.executable, "-c", program, *line[3:]], **options)

    monkeypatch.setattr(experiments.subprocess, "run", run)
    return ran


def test_what_is_missing_is_measured_and_kept(commands: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "workers.json").write_text('{"kept": 1}')
    found = collect(tmp_path, ["workers", "freshness"], 7, "here", lambda _: None)
    assert found["workers"] == {"kept": 1}
    assert [line[:2] for line in commands] == [["bench", "freshness"]]
    assert "--seed 7 --lab here" in " ".join(commands[0])
    again = collect(tmp_path, ["workers", "freshness"], 7, "here", lambda _: None)
    assert again == found
    assert len(commands) == 1
    assert collect(tmp_path, ["workers"], 7, "here", lambda _: None, anew=True) != found
    assert sorted(file.name for file in tmp_path.iterdir()) == ["freshness.json", "workers.json"]


def test_an_experiment_without_a_result_is_an_error_and_leaves_the_last_one(
    commands: list[list[str]], tmp_path: Path
) -> None:
    (tmp_path / "latency.json").write_text('{"kept": 1}')
    with pytest.raises(StackError, match=r"bench latency .*exit code 2"):
        collect(tmp_path, ["latency"], 7, "here", lambda _: None, anew=True)
    assert json.loads((tmp_path / "latency.json").read_text()) == {"kept": 1}
    (tmp_path / "latency.json").write_text("{")
    with pytest.raises(UsageError, match="holds no result"):
        collect(tmp_path, ["latency"], 7, "here", lambda _: None)


def test_the_table_says_claim_figure_bound_and_verdict() -> None:
    claim = Claim("against", "It is hard", (case("one counts", 2, 4, at_least=1.5),))
    verdicts = [judge(claim, RESULT)]
    text = markdown(verdicts, 7)
    assert "| It is hard | x (faults) | ✓ 3.00 (2.00 to 4.00) | at least 1.5 | **holds** |" in text
    assert f"- faults: `{command_line('faults', 7)}`" in text
    assert frame(verdicts).loc[0, "verdict"] == "holds"
