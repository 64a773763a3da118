import errno
import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from constrained_rl import checkpoint
from constrained_rl.checkpoint import (
    CheckpointWarning,
    checkpoints,
    how_to_continue,
    load_latest,
    load_state,
    out_of_space,
    pack,
    save_checkpoint,
    save_state,
    unpack,
    write_tensors,
    write_text,
)
from constrained_rl.errors import InputError

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.lists(st.floats(allow_nan=False), max_size=3).map(
        lambda x: torch.tensor(x, dtype=torch.float64)
    ),
)
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.integers(), st.text()), inner, max_size=3),
    ),
    max_leaves=10,
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(states)
def test_packing_through_json_and_back_changes_nothing(state):
    tensors = {}
    packed = json.loads(json.dumps(pack(state, tensors)))
    assert same(unpack(packed, tensors), state)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(3.0),
        torch.zeros(0, 4),
        torch.arange(6).reshape(2, 3).t(),
        torch.ones(2, dtype=torch.bool),
        torch.Generator().get_state(),
        torch.ones(2, dtype=torch.bfloat16),
    ],
)
def test_any_tensor_survives_the_disk(tmp_path, value):
    save_state(tmp_path / "state", {"x": value, "same": value})
    found = load_state(tmp_path / "state")
    assert same(found, {"x": value, "same": value})


def test_an_optimizer_continues_from_the_disk(tmp_path):
    def make():
        parameter = torch.nn.Parameter(torch.ones(2))
        return parameter, torch.optim.Adam([parameter], betas=(0.8, 0.9))

    def step(parameter, optimizer):
        parameter.grad = torch.tensor([1.0, -2.0])
        optimizer.step()

    parameter, optimizer = make()
    step(parameter, optimizer)
    save_state(tmp_path / "state", {"w": parameter, "optimizer": optimizer.state_dict()})
    step(parameter, optimizer)
    copy, other = make()
    state = load_state(tmp_path / "state")
    copy.data.copy_(state["w"])
    other.load_state_dict(state["optimizer"])
    step(copy, other)
    assert torch.equal(parameter, copy)


def test_what_a_checkpoint_cannot_hold_is_named_with_its_place():
    with pytest.raises(TypeError, match="set at /parts/0"):
        pack({"parts": [{1, 2}]}, {})


def write(root, *iterations, keep=9):
    for iteration in iterations:
        save_checkpoint(root, iteration, {"iteration": iteration, "w": torch.ones(9)}, keep)


def truncate(folder, name="tensors.safetensors"):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-8])


def test_only_the_newest_are_kept(tmp_path):
    write(tmp_path, 5, 10, 15, 20, keep=2)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["00000015", "00000020"]


def test_without_any_checkpoint_there_is_nothing_to_load(tmp_path):
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "never made") is None


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_truncated_file_is_recognised_and_the_checkpoint_before_is_used(tmp_path, name):
    write(tmp_path, 5, 10)
    truncate(tmp_path / "00000010", name)
    with pytest.warns(UserWarning, match=r"00000010 is not intact.*falling back"):
        assert load_latest(tmp_path)["iteration"] == 5


def test_one_flipped_bit_is_recognised(tmp_path):
    write(tmp_path, 5)
    path = tmp_path / "00000005" / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="SHA-256"):
        load_state(path.parent)


def test_a_flipped_byte_anywhere_in_the_state_is_recognised_or_harmless(tmp_path):
    state = {"iteration": 5, "lam": [0.25, None], 3: "words", "w": torch.ones(2)}
    save_state(tmp_path / "state", state)
    path = tmp_path / "state" / "state.json"
    data = path.read_bytes()
    recognised = 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            assert same(load_state(tmp_path / "state"), state), data[place : place + 20]
        except InputError:
            recognised += 1
    assert recognised == len(data)  # flipping the last bit makes no blank of another blank


GARBAGE = ["", "{", "[]", "3", "null", "{}", '{"sha256": "0", "state": {}}', "[" * 100_000, "\x00"]


@pytest.mark.parametrize("text", GARBAGE)
def test_a_state_that_is_garbage_is_recognised(tmp_path, text):
    write(tmp_path, 5, 10)
    (tmp_path / "00000010" / "state.json").write_text(text)
    with pytest.warns(CheckpointWarning, match=r"00000010 is not intact: .+; falling back"):
        assert load_latest(tmp_path)["iteration"] == 5


def test_an_empty_folder_is_recognised(tmp_path):
    write(tmp_path, 5)
    (tmp_path / "00000010").mkdir()
    with pytest.warns(CheckpointWarning, match="00000010 is not intact"):
        assert load_latest(tmp_path)["iteration"] == 5


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_missing_file_is_recognised(tmp_path, name):
    write(tmp_path, 5)
    (tmp_path / "00000005" / name).unlink()
    with pytest.raises(InputError, match="not intact"):
        load_state(tmp_path / "00000005")


def test_when_all_are_damaged_the_message_says_what_to_do(tmp_path):
    write(tmp_path, 5, 10)
    for folder in checkpoints(tmp_path):
        truncate(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match=r"2 found, all damaged.*restart"):
            load_latest(tmp_path)


def test_a_damaged_checkpoint_can_be_written_again(tmp_path):
    write(tmp_path, 5)
    truncate(tmp_path / "00000005")
    write(tmp_path, 5)
    assert load_latest(tmp_path)["iteration"] == 5


@pytest.mark.parametrize("dies_in", ["write_tensors", "write_text"])
def test_a_kill_while_writing_leaves_the_checkpoint_before_and_no_listed_rest(
    tmp_path, monkeypatch, dies_in
):
    write(tmp_path, 5)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, dies_in, die)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 10)
    assert ".00000010.tmp" in os.listdir(tmp_path)
    assert load_latest(tmp_path)["iteration"] == 5
    write(tmp_path, 10)
    assert sorted(os.listdir(tmp_path)) == ["00000005", "00000010"]


@pytest.mark.parametrize("kill_at", [1, 2])
def test_a_kill_while_a_state_is_replaced_leaves_the_old_or_the_new_one(
    tmp_path, monkeypatch, kill_at
):
    folder = tmp_path / "agent"
    save_state(folder, {"x": 1})
    original, renames = Path.rename, []

    def rename(self, target):
        renames.append(self)
        if len(renames) == kill_at:
            raise KeyboardInterrupt
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            save_state(folder, {"x": 2})
    assert folder.exists() == (kill_at == 1)  # the second rename finds no folder: it is aside
    assert load_state(folder) == {"x": 1}
    save_state(folder, {"x": 3})
    assert load_state(folder) == {"x": 3}
    assert os.listdir(tmp_path) == ["agent"]


# a full disk


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in_rust(*_):
    raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")


@pytest.mark.parametrize(
    ("where", "fails"), [("os.fsync", full), ("save_file", full_in_rust), ("Path.write_text", full)]
)
def test_a_full_disk_leaves_what_was_there_and_no_rest(tmp_path, monkeypatch, where, fails):
    write(tmp_path, 5, keep=1)
    write_text(tmp_path / "notes", "before")
    with monkeypatch.context() as patch:
        patch.setattr(f"constrained_rl.checkpoint.{where}", fails)
        with pytest.raises(OSError, match="No space left") as caught:
            write(tmp_path, 10, keep=1)
        assert caught.value.errno == errno.ENOSPC
        assert "00000010" in caught.value.filename
        if where != "save_file":
            with pytest.raises(OSError, match="No space left"):
                write_text(tmp_path / "notes", "after")
    assert sorted(os.listdir(tmp_path)) == ["00000005", "notes"]
    assert load_latest(tmp_path)["iteration"] == 5
    assert (tmp_path / "notes").read_text() == "before"


def test_the_message_of_a_full_disk_says_what_stands_and_what_to_do(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device", "/disk/metrics.jsonl")
    assert str(out_of_space(error, tmp_path)) == (
        "no space to write /disk/metrics.jsonl: No space left on device; what was finished before "
        "is intact. Free space, then give the same command again: the run had not begun"
    )
    (tmp_path / "config.toml").touch()
    write(tmp_path / "checkpoints", 5, 10)
    found = str(out_of_space(error, tmp_path))
    assert "the last good checkpoint is iteration 10. Free space, then continue with:" in found
    assert found.endswith(f"crl resume {tmp_path}")
    assert how_to_continue(tmp_path) == f"continue with: crl resume {tmp_path}"
    assert out_of_space(PermissionError(errno.EACCES, "no"), tmp_path) is None


def test_what_kills_left_behind_is_removed_by_the_next_checkpoint(tmp_path):
    for name in (".00000003.tmp", ".00000004.old"):
        (tmp_path / name).mkdir()
    write(tmp_path, 5)
    assert os.listdir(tmp_path) == ["00000005"]


def test_a_folder_that_holds_anything_else_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt.*nothing was changed"):
        save_state(tmp_path, {"w": torch.ones(1)})
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(InputError, match="nothing was changed"):
        save_state(tmp_path / "thesis.txt", {"w": torch.ones(1)})


def test_equal_weights_give_equal_bytes_whatever_their_memory(tmp_path):
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bool)}
    # The same numbers as a non-contiguous view, with gradient, in another order.
    other = {"b": weights["b"].clone(), "a": weights["a"].t().contiguous().t().requires_grad_()}
    write_tensors(tmp_path / "one", weights)
    write_tensors(tmp_path / "two", other)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]
