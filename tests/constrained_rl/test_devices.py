"""Runs go where they were not made. There is no GPU here: its states are written by hand.

A CUDA generator's state is 16 bytes (seed, offset), an Apple one's 44; a CPU's is 5 056.
"""

import hashlib
import json
import shutil
import tomllib
import warnings

import numpy as np
import pytest
import tomli_w
import torch

import constrained_rl as crl_package
from constrained_rl.agent import Agent
from constrained_rl.checkpoint import checkpoints, load_state, save_state
from constrained_rl.config import RunConfig
from constrained_rl.devices import DeviceNotice, choose_device, device_here, restore_generator
from constrained_rl.distributed import connect
from constrained_rl.errors import InputError
from constrained_rl.settings import validate
from llm_env import cli
from tests.bad_input.case import finished_run
from tests.constrained_rl.helpers import CARTPOLE, DETOUR, tiny, weights

CUDA = torch.tensor([7] + [0] * 15, dtype=torch.uint8)
APPLE = torch.arange(44, dtype=torch.uint8)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def moved(state, generator=CUDA):
    """A state as a GPU would have saved it."""
    return state | {"collector": state["collector"] | {"generator": generator}}


def saved(folder, agent, device, generator=CUDA):
    config = agent.config.model_copy(update={"device": device})
    parts = moved(agent.parts.state_dict(), generator)
    save_state(folder, {"config": config.model_dump_json(), "parts": parts})


# which device


def test_devices_are_names_with_a_number_or_without(two_gpus):
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    for name in ("cuda:0", "cuda:11", "mps", "cpu"):
        assert validate(RunConfig, {"device": name}, "test").device == name
    with pytest.raises(InputError, match=r"'cuda:2', but torch sees 2 GPU"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "cuda:-1", "GPU", ""])
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match=r"expected auto, cpu, cuda, cuda:0"):
        choose_device(name)
    with pytest.raises(InputError, match=r"device: found"):
        validate(RunConfig, {"device": name}, "test")


def test_what_is_begun_on_a_device_that_is_absent_is_refused(no_gpu):
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(InputError, match=r"torch sees no .*device=cpu or auto"):
            tiny(device=name)


def test_what_was_made_there_goes_on_here_and_says_so(no_gpu):
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.warns(DeviceNotice, match=f"device={name}, but torch sees no .*device=cpu"):
            assert device_here(name) == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [device_here(name) for name in ("auto", "cpu")] == ["auto", "cpu"]


def test_a_gpu_of_another_number_takes_its_place(two_gpus):
    with pytest.warns(DeviceNotice, match="device=cuda:5, but torch sees 2"):
        assert device_here("cuda:5") == "cuda"
    assert device_here("cuda:1") == "cuda:1"


def test_ranks_of_a_job_take_gpus_of_their_own(two_gpus, monkeypatch):
    for name, value in {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(InputError, match=r"device is 'cuda:1', but each of 2 ranks .*device=cuda"):
        connect(choose_device("cuda:1"), 1.0)


# random numbers


def test_a_state_of_the_same_kind_is_restored_to_the_bit():
    first, second = torch.Generator().manual_seed(3), torch.Generator()
    torch.rand(5, generator=first)
    restore_generator(second, first.get_state())
    assert torch.equal(torch.rand(9, generator=first), torch.rand(9, generator=second))


@pytest.mark.parametrize("state", [CUDA, APPLE], ids=["cuda", "mps"])
def test_a_state_of_another_device_is_a_seed(state):
    generator = torch.Generator()
    with pytest.warns(DeviceNotice, match="of another device than cpu"):
        restore_generator(generator, state)
    digest = hashlib.sha256(bytes(state.tolist())).digest()
    seed = int.from_bytes(digest[:8], "little") // 2
    expected = torch.rand(4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.rand(4, generator=generator), expected)


def test_a_cpus_state_is_a_seed_for_a_gpu():
    class OnGPU:
        """What a CUDA generator does with states."""

        device, seeds = torch.device("cuda"), ()

        def get_state(self):
            return CUDA

        def set_state(self, state):
            raise RuntimeError("RNG state is wrong size")

        def manual_seed(self, seed):
            self.seeds = (*self.seeds, seed)

    generator = OnGPU()
    with pytest.warns(DeviceNotice, match="of another device than cuda"):
        restore_generator(generator, torch.Generator().manual_seed(1).get_state())
    (seed,) = generator.seeds
    assert 0 <= seed < 2**63


# agents


@pytest.mark.parametrize("env", [DETOUR, CARTPOLE])
@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1", "mps"])
def test_an_agent_of_a_gpu_is_loaded_and_trained_on(no_gpu, tmp_path, env, device):
    agent = tiny(env=env, limit=1.0)
    agent.train(64)
    saved(tmp_path / "agent", agent, device)
    with pytest.warns(DeviceNotice) as told:
        loaded = Agent.load(tmp_path / "agent")
    assert sum("begin anew" in str(notice.message) for notice in told) == 1
    assert any(device in str(notice.message) for notice in told) == (device != "auto")
    assert torch.equal(weights(loaded), weights(agent))
    assert loaded.train(32)["iteration"] == 3
    # twice the same: the seed is that of the state
    with pytest.warns(DeviceNotice):
        again = Agent.load(tmp_path / "agent", device="cpu")
    again.train(32)
    assert torch.equal(weights(again), weights(loaded))


def test_the_device_that_is_asked_for_is_taken(no_gpu, tmp_path):
    agent = tiny()
    agent.save(tmp_path / "agent")
    obs = np.zeros((4, 11), np.float32)
    loaded = crl_package.load(tmp_path / "agent", device="cpu")
    assert loaded.config.device == "cpu"
    assert np.array_equal(loaded.predict(obs), agent.predict(obs))
    with pytest.raises(InputError, match="torch sees no GPU"):
        crl_package.load(tmp_path / "agent", device="cuda")


# runs on disk and the command line


@pytest.fixture
def run(tmp_path, no_gpu):
    """A finished run whose config and checkpoints say that a GPU made them."""
    folder = shutil.copytree(finished_run(), tmp_path / "run")
    config = tomllib.loads((folder / "config.toml").read_text()) | {"device": "cuda:1"}
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    for place in checkpoints(folder / "checkpoints"):
        save_state(place, moved(load_state(place)))
    return folder


@pytest.fixture
def crl(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["crl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr()
        return stop.value.code or 0, said.out, " ".join(said.err.split())

    return call


@pytest.mark.parametrize("device", [(), ("--device", "cpu")])
def test_a_run_of_a_gpu_is_evaluated_certified_and_reported(run, crl, device):
    code, out, err = crl("evaluate", run, "--episodes", 8, "--json", *device)
    assert code == 0
    assert len(json.loads(out)["policies"]) == 2
    assert "warning: the saved random numbers are of another device than cpu" in err
    assert ("device=cuda:1, but torch sees no GPU; it goes on with device=cpu" in err) != bool(
        device
    )
    assert crl("certify", run, "--episodes", 8, *device)[0] in (0, 1)
    assert crl("report", run, *device)[0] == 0
    assert (run / "report.html").is_file()


def test_a_device_that_is_absent_or_unknown_is_refused_by_name(run, crl):
    for name, said in (("cuda", "torch sees no GPU"), ("tpu", "expected auto, cpu")):
        for command in ("evaluate", "certify", "report"):
            code, _, err = crl(command, run, "--device", name)
            assert code == 2
            assert f"device is '{name}'" in err
            assert said in err


def test_a_run_of_a_gpu_is_resumed_where_there_is_none(run, crl):
    (run / "policy.safetensors").unlink()
    shutil.rmtree(checkpoints(run / "checkpoints")[-1])
    code, _, err = crl("resume", run)
    assert code == 0
    assert "it goes on with device=cpu" in err
    assert (run / "policy.safetensors").is_file()
    assert tomllib.loads((run / "config.toml").read_text())["device"] == "cuda:1"
