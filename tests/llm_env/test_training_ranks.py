"""`crl llm train` on several ranks: the same run directory as one process makes."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from constrained_rl.checkpoint import load_latest
from constrained_rl.errors import InputError
from constrained_rl.logging import read_metrics
from constrained_rl.settings import to_toml, validate
from llm_env.training import run
from llm_env.training.config import TrainConfig
from llm_env.training.evaluation import read_samples
from tests.llm_env.ranks import free_port, on_ranks
from tests.llm_env.test_training import models, tree  # noqa: F401 (a fixture)


def config(models, **over):  # noqa: F811
    # costs that differ between responses: of a constant, a critic explains 0 / 0
    over = {"align": {"iterations": 2, "constraint": {"transform": "probability"}}} | over
    return validate(TrainConfig, tree(models, **over), "test")


def started(config, folder):
    return run.start(config, folder)


def exported(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "policy").state_dict()


def same_run(folder, other):
    """Metrics, exported weights."""
    pairs = zip(read_metrics(folder), read_metrics(other), strict=True)
    for row, expected in pairs:
        quiet = [name for name in expected if not name.startswith("time/")]
        assert [row[n] for n in quiet] == pytest.approx([expected[n] for n in quiet], abs=1e-4)
    for (name, a), b in zip(
        exported(folder.parent).items(), exported(other.parent).values(), strict=True
    ):
        assert_close(a, b, atol=1e-4, rtol=1e-3, msg=name)


def on_two(models, tmp_path, **over):  # noqa: F811
    """A run of two ranks beside the same one of one."""
    alone = {key: value for key, value in over.items() if key != "distributed"}
    run.start(config(models, **alone), tmp_path / "one")
    on_ranks(started, 2, tmp_path / "ranks", config(models, **over), tmp_path / "two")
    same_run(tmp_path / "two" / "metrics.jsonl", tmp_path / "one" / "metrics.jsonl")
    assert samples(tmp_path / "two") == samples(tmp_path / "one")


def samples(folder):
    """Mode, prompt and response of every evaluation's responses."""
    files = sorted((folder / "samples").iterdir())
    assert files
    found = [row for file in files for row in read_samples(file)]
    return [(row["mode"], row["prompt"], row["response"]) for row in found]


def test_two_ranks_make_the_run_that_one_process_makes(models, tmp_path):  # noqa: F811
    held_out = tmp_path / "five.txt"
    held_out.write_text("use fire\nhow do i\nbake bread\ntrap a wolf\nwho is it\n")
    five = {"prompts": [{"path": str(held_out)}], "batch": 2}  # 2 and 3 of a rank
    on_two(models, tmp_path, evaluation=five)


def test_a_job_resumed_on_two_ranks_evaluates_and_ends_as_it_would_have(models, tmp_path):  # noqa: F811
    whole = config(models, evaluation={"patience": 1}, align={"iterations": 4})
    on_ranks(started, 2, tmp_path / "first", whole, tmp_path / "whole")
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    shutil.rmtree(cut / "policy")
    shutil.rmtree(sorted((cut / "checkpoints").iterdir())[-1])
    assert on_ranks(run.resume, 2, tmp_path / "second", cut) == [True, True]
    for name in ("policy", "best"):
        weights = [f / name / "model.safetensors" for f in (tmp_path / "whole", cut)]
        assert weights[0].is_file() == weights[1].is_file()
        if weights[0].is_file():
            assert weights[0].read_bytes() == weights[1].read_bytes()
    assert on_ranks(run.resume, 2, tmp_path / "third", cut) == [False, False]


def test_fewer_held_out_prompts_than_ranks_are_refused(models, tmp_path):  # noqa: F811
    with pytest.raises(AssertionError, match=r"evaluation.prompts gives 2, but there are 3 ranks"):
        on_ranks(started, 3, tmp_path / "ranks", config(models), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_adapters_are_trained_on_two_ranks(models, tmp_path):  # noqa: F811
    pytest.importorskip("peft")
    adapters = {"policy": {"lora": {"rank": 4}}, "critic": {"trunk": "shared"}}
    on_two(models, tmp_path, **adapters)
    saved = load_latest(tmp_path / "two" / "checkpoints")["policy"]["module"]
    assert saved
    assert all("lora" in name for name in saved)


@pytest.mark.slow
@pytest.mark.parametrize(
    "over",
    [
        {"distributed": {"engine": "deepspeed", "zero": 3}},
        {"distributed": {"engine": "deepspeed", "zero": 2}, "policy": {"lora": {"rank": 4}}},
    ],
)
def test_deepspeed_makes_the_run_that_one_process_makes(models, tmp_path, over):  # noqa: F811
    pytest.importorskip("deepspeed")
    pytest.importorskip("peft")
    on_two(models, tmp_path, **over)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "lora"), [(2, False), (3, False), (2, True)])
def test_deepspeed_in_bfloat16_begins_as_one_process_does(models, tmp_path, stage, lora):  # noqa: F811
    pytest.importorskip("deepspeed")
    over = {"policy": {"dtype": "bfloat16"}, "align": {"iterations": 2}}
    if lora:
        pytest.importorskip("peft")
        over["policy"]["lora"] = {"rank": 4}
        over["critic"] = {"trunk": "shared"}
    run.start(config(models, **over), tmp_path / "one")
    over["distributed"] = {"engine": "deepspeed", "zero": stage}
    on_ranks(started, 2, tmp_path / "ranks", config(models, **over), tmp_path / "two")
    found, expected = (read_metrics(tmp_path / n / "metrics.jsonl")[0] for n in ("two", "one"))
    assert found["lambda/harm"] == expected["lambda/harm"]
    assert found["return/mean"] == pytest.approx(expected["return/mean"])
    for name in ("loss/policy", "loss/value/reward", "kl/approx"):  # bfloat16 counts to 1 in 256
        assert found[name] == pytest.approx(expected[name], rel=0.05)


def test_zero_stages_without_deepspeed_are_refused(models, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match=r"set distributed.engine='deepspeed'"):
        run.start(config(models, distributed={"zero": 2}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sharded_adapters_are_refused(models, tmp_path):  # noqa: F811
    pytest.importorskip("deepspeed")
    pytest.importorskip("peft")
    over = {"distributed": {"engine": "deepspeed", "zero": 3}, "policy": {"lora": {"rank": 4}}}
    with pytest.raises((InputError, AssertionError), match=r"set distributed.zero to 2 or less"):
        on_ranks(started, 1, tmp_path / "ranks", config(models, **over), tmp_path / "run")


def launch(models, tmp_path, *launcher, **over):  # noqa: F811
    """Run `llm_env llm train` by a launcher; its exit code and what it wrote."""
    file, folder = tmp_path / "config.toml", tmp_path / "run"
    file.write_text(to_toml(config(models, **over)))
    variables = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [*launcher, "llm_env", "llm", "train", str(file), "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=variables)
    return done, folder


def torchrun():
    bound = ["--nproc-per-node", "2", "--master-port", str(free_port()), "-m"]
    return [sys.executable, "-m", "torch.distributed.run", *bound]


@pytest.mark.slow
def test_torchrun_starts_a_run_of_two_ranks(models, tmp_path):  # noqa: F811
    done, folder = launch(models, tmp_path, *torchrun())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished:") == 1  # the first rank alone speaks
    run.start(config(models), tmp_path / "one")
    same_run(folder / "metrics.jsonl", tmp_path / "one" / "metrics.jsonl")


@pytest.mark.slow
def test_the_deepspeed_launcher_starts_a_run(models, tmp_path):  # noqa: F811
    pytest.importorskip("deepspeed")
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2"]
    launcher += ["--master_port", str(free_port()), "--module"]
    over = {"distributed": {"engine": "deepspeed", "zero": 3}}
    done, folder = launch(models, tmp_path, *launcher, **over)
    assert done.returncode == 0, done.stderr
    assert torch.isfinite(exported(folder)["lm_head.weight"]).all()


@pytest.mark.slow
def test_torchrun_ends_with_the_message_of_the_rank_that_failed(models, tmp_path):  # noqa: F811
    (models / "broken").mkdir(exist_ok=True)
    over = {"reward": {"path": str(models / "broken")}}
    done, folder = launch(models, tmp_path, *torchrun(), **over)
    assert done.returncode != 0
    assert "broken" in done.stderr
    assert not folder.exists()
