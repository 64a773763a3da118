"""What is said of a setting that is no list, no table or no known value: where, what to type."""

import pytest

from constrained_rl.errors import InputError
from constrained_rl.setting_places import place
from constrained_rl.settings import parse_override, validate
from llm_env.fitting.config import SFTRunConfig
from llm_env.training.config import TrainConfig

FORMATS = "'auto', 'pku', 'hh', 'alpaca', 'messages', 'demonstrations' or 'prompts'"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "data=file.json",
            "data: found 'file.json': expected a list; write data = [{path = \"file.json\"}], on "
            "a command line 'data=[{path = \"file.json\"}]'",
        ),
        (
            'data=["file.json"]',
            "data.0: found 'file.json': expected a table; write data = [{path = \"file.json\"}], "
            "on a command line 'data=[{path = \"file.json\"}]'",
        ),
        (
            'data={path="a.json",format="trl"}',
            "data: found {'path': 'a.json', 'format': 'trl'}: expected a list; write data = "
            '[{path = "a.json", format = "trl"}], on a command line '
            '\'data=[{path = "a.json", format = "trl"}]\'',
        ),
        (
            'data=[{path="file.json",format="trl"}]',
            f"data.0.format: found 'trl'; Expected {FORMATS}",
        ),
        (
            'data=[{path="file.json",format="message"}]',
            f"data.0.format: found 'message'; did you mean 'messages'? Expected {FORMATS}",
        ),
        ("model=folder", "model: found 'folder': expected a table; write model.path = \"folder\""),
        ("fit=3", "fit: found 3: expected a table"),
    ],
)
def test_one_problem_is_said_once_with_what_to_type(crl, typed, said):
    rest = [t for t in ("model.path=x", 'data=[{path="x"}]') if t[:4] != typed[:4]]
    code, _, error = crl("llm", "sft", *rest, typed)
    assert code == 2
    assert error.splitlines() == ["error: configuration: 1 problem(s)", f"  {said}"]


def test_what_is_advised_is_accepted():
    written = parse_override('data=[{path = "file.json"}]')
    assert (
        validate(SFTRunConfig, {**written, "model": {"path": "x"}}, "t").data[0].path == "file.json"
    )


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"costs": {"harm": {"path": "x", "direction": "up"}}}, "costs.harm.direction: found 'up'"),
        ({"costs": {"harm": {"path": "x"}}}, "costs.harm.direction: is missing"),
        (
            {"costs": {"harm": "x"}},
            "costs.harm: found 'x': expected a table; write costs.harm.path",
        ),
        ({"evaluation": {"prompts": "p.txt"}}, "write evaluation.prompts = \\[{path"),
        ({"align": {"multiplier": "pid"}}, "expected a table; set align.multiplier.kind to one of"),
        ({"align": {"ppo": {"betas": 0.9}}}, "align.ppo.betas: found 0.9: expected a list$"),
    ],
)
def test_a_problem_inside_named_tables_and_lists_keeps_its_whole_path(tree, said):
    whole = {
        "policy": {"path": "x"},
        "reward": {"path": "y", "direction": "higher_is_better"},
        "prompts": [{"path": "p.txt"}],
        **tree,
    }
    with pytest.raises(InputError, match=rf"1 problem\(s\)\n  .*{said}"):
        validate(TrainConfig, whole, "t")


def test_a_location_of_pydantic_becomes_what_somebody_wrote():
    location = ("align", "multiplier", "pid", "kp")
    assert place(TrainConfig, location).path == "align.multiplier.kp"
    assert place(TrainConfig, ("costs", "harm", "service", "timeout")).path == (
        "costs.harm.service.timeout"
    )
    assert place(TrainConfig, ("align", "limit", "tuple[float, ...]", "0")).path == "align.limit.0"
