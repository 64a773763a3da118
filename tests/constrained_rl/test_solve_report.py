import io
import json

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from constrained_rl.front import pareto_front
from constrained_rl.oracle import Average, Discounted, Horizon, multiplier_ranges, save_cmdp, solve
from constrained_rl.solve_report import as_json, print_front, print_solution
from llm_env.cli import app
from tests.constrained_rl.small_cmdps import coin, leave


def shown(cmdp, criterion=Discounted()):  # noqa: B008  a frozen value
    console = Console(file=io.StringIO(), width=100)
    solution = solve(cmdp, criterion)
    ranges = multiplier_ranges(cmdp, criterion) if solution.feasible else None
    print_solution(cmdp, criterion, solution, ranges, console)
    return console.file.getvalue()


def call(*arguments):
    result = CliRunner().invoke(app, ["solve", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_one_json_object_has_value_multipliers_cost_and_policy(tmp_path):
    save_cmdp(coin(), tmp_path / "coin.npz")
    found = json.loads(call(tmp_path / "coin.npz", "--json"))
    assert found["feasible"] is True
    assert found["value"] == pytest.approx(1)
    assert found["multipliers"] == pytest.approx([1])
    assert found["cost"] == pytest.approx([1])
    assert found["unique"] == [True]
    assert found["policy"] == [pytest.approx([0.5, 0.5])]
    assert "least_cost" not in found


def test_an_infeasible_problem_is_an_answer_with_the_least_costs(tmp_path):
    save_cmdp(coin(cost=[[[1.0, 0.25]]], limit=[0.4]), tmp_path / "coin.npz")
    found = json.loads(call(tmp_path / "coin.npz", "--json"))
    assert found.pop("least_cost") == pytest.approx([0.5])
    assert found == {"feasible": False, "value": None, "multipliers": None, "cost": None}
    text = call(tmp_path / "coin.npz")
    assert "infeasible: no policy keeps all limits at once" in text
    assert "0.5" in text


def test_infinite_prices_and_settling_policies_are_valid_json():
    corner = coin(limit=[0.0])
    found = as_json(solve(corner), multiplier_ranges(corner), None)
    assert found["multiplier_range"] == [[pytest.approx(1), None]]
    average = as_json(solve(leave(), Average()), multiplier_ranges(leave(), Average()), None)
    assert average["settling"]["settle"] == pytest.approx([0.5, 1])
    assert "policy" not in average
    json.dumps([found, average], allow_nan=False)


def test_criteria_and_fronts_are_asked_for_by_options(tmp_path):
    save_cmdp(coin(limit=[0.25]), tmp_path / "coin.npz")
    assert json.loads(call(tmp_path / "coin.npz", "--json", "--average"))["value"] == 0.25
    found = json.loads(call(tmp_path / "coin.npz", "--json", "--horizon", 4, "--front", 0))
    assert found["value"] == pytest.approx(0.25)
    assert np.shape(found["policy"]) == (4, 1, 2)
    assert found["front"]["limit"] == pytest.approx([0, 4], abs=1e-8)
    assert found["front"]["price"] == pytest.approx([1])
    text = call(tmp_path / "coin.npz", "--horizon", 4, "--front", 0)
    assert "undiscounted sums of episodes of 4 decision(s)" in " ".join(text.split())
    assert "best value under every limit 0" in text


def test_people_see_prices_and_the_policy_with_its_probabilities():
    text = " ".join(shown(coin()).split())
    assert "1 state(s), 2 action(s), 1 constraint(s); discounted sums, γ = 0.5" in text
    assert "│ 0 │ 1 │ 1 │ 1 │" in text  # constraint, limit, cost, price
    assert "│ 0 │ 0, 1 │ 0.5, 0.5 │" in text
    assert "(not binding)" in shown(coin(limit=[5.0]))
    assert "0 … 1" in shown(coin(limit=[2.0]))
    assert "unbounded" in shown(coin(limit=[0.0]))


def test_states_of_one_choice_share_a_line_and_unvisited_ones_are_counted():
    onwards = np.eye(5)[[1, 2, 4, 3, 4]][:, None]  # 0 → 1 → 2 → 4; 3 is apart
    cmdp = coin(
        transition=onwards,
        reward=np.ones((5, 1)),
        cost=np.zeros((1, 5, 1)),
        initial=np.eye(5)[0],
    )
    text = shown(cmdp)
    assert "│ 0–2, 4 │ 0" in text
    assert "1 state(s) are never visited" in text


def test_what_has_no_table_of_states_is_said():
    assert "--json has it as settling" in shown(leave(), Average())
    assert "too large to be shown" in shown(coin(), Horizon(3))
    assert "totals of episodes" in shown(leave(limit=[3.0]))


def test_a_front_is_a_table_of_its_corners():
    console = Console(file=io.StringIO(), width=100)
    print_front(pareto_front(coin()), 0, console)
    text = " ".join(console.file.getvalue().split())
    assert "│ 0 │ 0 │ 1 │" in text
    assert "│ 2 │ 2 │ 0 │" in text
