import numpy as np
import pytest

from constrained_rl.errors import InputError
from constrained_rl.finite import (
    Average,
    Discounted,
    Horizon,
    criterion_of,
    load_cmdp,
    require_ends,
    save_cmdp,
)
from tests.constrained_rl.small_cmdps import coin, leave


def test_arrays_are_stored_as_float64_copies():
    reward = np.array([[1, 0]])
    cmdp = coin(reward=reward)
    reward[0, 0] = 7
    assert cmdp.reward.dtype == np.float64
    assert cmdp.reward.tolist() == [[1.0, 0.0]]
    assert cmdp.sizes == (1, 2, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": [1.0, 0.0]}, r"reward has shape \(2,\), expected \[S, A\]"),
        ({"cost": [[1.0, 0.0]]}, r"cost has shape \(1, 2\), expected \(1, 1, 2\)"),
        ({"limit": [1.0, 2.0]}, r"cost has shape \(1, 1, 2\), expected \(2, 1, 2\)"),
        ({"transition": [[[1.0], [0.9]]]}, r"transition\[0, 1\] sums to 0.9, expected 1"),
        ({"transition": [[[1.0], [-0.5]]]}, r"transition\[0, 1, 0\] is -0.5, expected a prob"),
        ({"initial": [0.5]}, r"initial sums to 0.5, expected 1"),
        ({"initial": [0.5, 0.0, 0.5]}, r"initial\[2\] is 0.5, but there are only S = 1 states"),
        ({"discount": 1.5}, "discount is 1.5, expected 0 ≤ discount ≤ 1"),
        ({"limit": [np.inf]}, r"limit\[0\] is inf \(1 of 1 entries are NaN or infinite\)"),
        ({"cost": [[[0.0, np.nan]]]}, r"cost\[0, 0, 1\] is nan"),
        ({"reward": [["a", "b"]]}, "reward is not an array of numbers"),
    ],
)
def test_malformed_problems_are_refused_with_the_entry_and_what_was_found(changes, message):
    with pytest.raises(InputError, match=message):
        coin(**changes)


def test_a_problem_is_read_back_as_it_was_written(tmp_path):
    save_cmdp(leave(), tmp_path / "leave.npz")
    found = load_cmdp(tmp_path / "leave.npz")
    for name, array in vars(leave()).items():
        assert np.array_equal(getattr(found, name), array), name
    with pytest.raises(InputError, match=r"end its name in \.npz"):
        save_cmdp(leave(), tmp_path / "leave.npy")


def test_a_file_without_an_array_is_refused_by_the_name_of_the_array(tmp_path):
    arrays = vars(coin())
    np.savez(tmp_path / "part.npz", **{name: arrays[name] for name in ("reward", "cost")})
    with pytest.raises(InputError, match=r"no array transition, initial, discount, limit; found"):
        load_cmdp(tmp_path / "part.npz")


def test_a_wrong_array_is_named_with_its_file(tmp_path):
    np.savez(tmp_path / "bad.npz", **{**vars(coin()), "initial": np.array([0.5])})
    with pytest.raises(InputError, match=r"bad\.npz: CMDP initial sums to 0\.5"):
        load_cmdp(tmp_path / "bad.npz")


def test_files_that_are_no_archives_of_plain_arrays_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "single.npy", np.ones(3))
    np.savez(tmp_path / "pickle.npz", **{**vars(coin()), "reward": np.array([{}], dtype=object)})
    for name in ("text.npz", "single.npy", "pickle.npz"):
        with pytest.raises(InputError, match=r"not a readable \.npz archive of plain arrays"):
            load_cmdp(tmp_path / name)
    with pytest.raises(InputError, match=r"absent\.npz cannot be read \(No such file"):
        load_cmdp(tmp_path / "absent.npz")


def test_a_state_is_absorbing_when_it_pays_nothing_and_is_never_left():
    assert leave().absorbing.tolist() == [False, True]
    pays = np.array([[1.0, 0.0], [0.0, 0.1]])
    assert leave(reward=pays).absorbing.tolist() == [False, False]
    costs = np.array([[[1.0, 0.0], [0.1, 0.0]]])
    assert leave(cost=costs).absorbing.tolist() == [False, False]


def test_undiscounted_totals_need_a_way_to_an_end_from_every_state():
    require_ends(leave())
    require_ends(coin())  # its discount ends episodes
    with pytest.raises(InputError, match="no state is absorbing"):
        require_ends(coin(discount=1.0))
    # state 0 goes to 1 or 2; 1 is absorbing, 2 pays for ever
    there = np.zeros((3, 2, 3))
    there[0, 0, 1] = there[0, 1, 2] = 1
    there[1, :, 1] = there[2, :, 2] = 1
    rewards = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    stuck = leave(
        transition=there, reward=rewards, cost=np.zeros((1, 3, 2)), initial=[1.0, 0.0, 0.0]
    )
    with pytest.raises(InputError, match="from state 2 no absorbing state can be reached"):
        require_ends(stuck)


def test_options_name_a_criterion():
    assert criterion_of() == Discounted()
    assert criterion_of(average=True) == Average()
    assert criterion_of(horizon=3) == Horizon(3)
    with pytest.raises(InputError, match="both --average and --horizon"):
        criterion_of(average=True, horizon=3)
    with pytest.raises(InputError, match="horizon is 0, expected at least 1"):
        criterion_of(horizon=0)
