"""Bad input of `crl llm rounds`, `evaluate`, `arena`, `chat` and `serve-scores`."""

import socket
from contextlib import closing

from tests.bad_input.case import Case
from tests.bad_input.project import (
    ROUNDED,
    crl_at,
    cut,
    family,
    gone,
    json_fields,
    project,
    written,
)

HARM = ("costs.harm.path=cost", "costs.harm.direction=higher_is_worse", "costs.harm.sign_check=off")
SCORES = ("--prompts", "held_out.txt", "--reward", "reward")


def rounds(*settings):
    return (*ROUNDED, *settings, "--out", "run")


def evaluate(*items, command="evaluate"):
    return ("llm", command, *items, "--out", "run")


def on_a_used_port():
    with closing(socket.create_server(("127.0.0.1", 0))) as used:
        port = used.getsockname()[1]
        crl_at(port, "llm", "serve-scores", *HARM, f"port={port}")


def another_folder(folder):
    (folder / "run").mkdir()
    (folder / "run/thesis.tex").write_text("precious")


ROUNDS = (
    Case(
        "rounds with adapters of no layer",
        "rounds with adapters beside layers that the model does not have",
        rounds("policy.lora.targets=c_attn"),
        ("but 'c_attn' fits no linear layer of LlamaForCausalLM", "q_proj"),
        project(),
    ),
    Case(
        "evaluation below a file",
        "an output folder of an evaluation below a file",
        ("llm", "evaluate", "policy", *SCORES, "--out", "policy/config.json/run"),
        ("config.json/run cannot be made or written into", "choose another --out"),
        project(),
    ),
    Case(
        "evaluation by a reward of a shorter context",
        "an evaluation by a reward model that sees too few tokens",
        evaluate("policy", *SCORES, "reward.sign_check=off", "max_new_tokens=16"),
        ("reward (reward) sees 16 tokens", "lower max_new_tokens"),
        project(json_fields("reward/config.json", max_position_embeddings=16)),
    ),
    Case(
        "rounds of own prompts missing",
        "rounds of a model without prompts",
        rounds("prompts=[]"),
        ("a policy of your own needs prompts = [{path = …}]",),
        project(),
    ),
    Case(
        "rounds labelled by a simulation",
        "simulated annotators of an own model",
        rounds("annotator.kind=simulated"),
        ("simulated annotators know only the embedded world; set annotator.kind",),
        project(),
    ),
    Case(
        "rounds by an unknown annotator",
        "an annotator that there is not",
        rounds("annotator.kind=people"),
        ("annotator: found 'people'; Expected 'simulated', 'file', 'http'",),
        project(),
    ),
    Case(
        "rounds evaluated on their prompts",
        "evaluation prompts that are trained on",
        rounds("evaluation_prompts=[{path='prompts.txt'}]"),
        ("5 of 5 evaluation_prompts are trained on as well, e.g. 'how do i bake bread'",),
        project(),
    ),
    Case(
        "rounds of a model missing",
        "rounds of a model that is not there",
        rounds(),
        ("model folder policy does not exist",),
        project(gone("policy")),
    ),
    Case(
        "rounds of prompts too long",
        "rounds with a prompt over the context",
        rounds(),
        ("1 of 3 prompts have more than 508 tokens",),
        project(written("prompts.txt", "a " * 600 + "\n")),
    ),
    Case(
        "red team file missing",
        "a red team's file that is not there",
        rounds("red_team.kind=file", "red_team.sources=[{path='nowhere.txt'}]"),
        ("nowhere.txt: cannot be read",),
        project(),
    ),
    Case(
        "red team candidates missing",
        "a red team's candidates that are not there",
        rounds("red_team.candidates=[{path='nowhere.txt'}]"),
        ("nowhere.txt: cannot be read",),
        project(),
    ),
    Case(
        "red team function missing",
        "a red team's function that is not there",
        rounds("red_team.kind=generator", "red_team.function=json:provoke"),
        ("red_team.function = 'json:provoke' cannot be loaded", "module:function"),
        project(),
    ),
    Case(
        "later limit above the first",
        "a looser limit in later rounds",
        rounds("later_limit=3"),
        ("later_limit = 3 is above align.limit = 0.05",),
        project(),
    ),
    Case(
        "rounds demonstrations missing",
        "rounds whose demonstrations are not there",
        rounds("align.ptx_coefficient=1", "demonstrations=[{path='nowhere.jsonl'}]"),
        ("nowhere.jsonl: cannot be read",),
        project(),
    ),
)
ARENA = (
    Case(
        "evaluate without prompts",
        "an evaluation without prompts",
        evaluate("mine=policy"),
        ("no prompts were given; give --prompts FILE",),
        project(),
    ),
    Case(
        "evaluate nobody",
        "an evaluation of no model",
        evaluate("modes=['greedy']", *SCORES),
        ("no model was given; give folders",),
        project(),
    ),
    Case(
        "evaluate a model missing",
        "a model to evaluate that is not there",
        evaluate("nowhere", *SCORES),
        ("model folder nowhere does not exist", "NAME=FOLDER"),
        project(),
    ),
    Case(
        "evaluate a score model",
        "a score model to evaluate",
        evaluate("mine=reward", *SCORES),
        ("model mine (reward): reward holds a score model, which cannot write",),
        project(),
    ),
    Case(
        "evaluate a second model cut short",
        "a second model that was cut short",
        evaluate("mine=policy", "other=other", *SCORES),
        ("model other (other): other is damaged",),
        project(family("other", seed=1), cut("other/model.safetensors")),
    ),
    Case(
        "evaluate on prompts missing",
        "prompts to evaluate on that are not there",
        evaluate("mine=policy", "--prompts", "nowhere.txt"),
        ("prompt file nowhere.txt does not exist",),
        project(),
    ),
    Case(
        "evaluate on prompts too long",
        "a prompt to evaluate on over the context",
        evaluate("mine=policy", *SCORES),
        ("1 of 1 prompts leave no room for an answer", "long_prompts=skip"),
        project(written("held_out.txt", "a " * 600)),
    ),
    Case(
        "evaluate by a score missing",
        "a score that is not there",
        evaluate("mine=policy", "--prompts", "held_out.txt", "--reward", "nowhere"),
        ("score model folder nowhere does not exist", "scoring service (http://…)"),
        project(),
    ),
    Case(
        "evaluate to no reference",
        "a reference that is not there",
        evaluate("mine=policy", *SCORES, "--reference", "nowhere"),
        ("--reference nowhere is neither a folder nor one of the models mine",),
        project(),
    ),
    Case(
        "evaluate into another folder",
        "a folder for an evaluation that holds something else",
        evaluate("mine=policy", *SCORES),
        ("run holds something else than an evaluation",),
        project(another_folder),
    ),
    Case(
        "arena of one",
        "an arena of one model",
        evaluate("mine=policy", *SCORES, command="arena"),
        ("an arena needs two models or more, found mine; for one use crl llm evaluate",),
        project(),
    ),
    Case(
        "arena of the same",
        "an arena of one model twice",
        evaluate("mine=policy", "other=policy", *SCORES, command="arena"),
        ("the model policy was given twice",),
        project(),
    ),
    Case(
        "arena without a judge",
        "an arena without a judge",
        evaluate("mine=policy", "other=other", "--prompts", "held_out.txt", command="arena"),
        ("an arena needs a judge; give --reward, --cost, --held-out or --judge",),
        project(family("other", seed=1)),
    ),
    Case(
        "chat with nobody",
        "a chat with a model that is not there",
        ("llm", "chat", "nowhere"),
        ("model folder nowhere does not exist",),
        project(),
    ),
    Case(
        "chat beyond the context",
        "chat answers longer than the context",
        ("llm", "chat", "policy", "--max-new-tokens", "9999"),
        ("max_new_tokens is 9999, but the model sees 512 tokens in all",),
        project(),
    ),
    Case(
        "serve on a used port",
        "a scoring service on a port in use",
        on_a_used_port,
        ("cannot listen on 127.0.0.1:PORT", "choose another port, or port=0 for any"),
        project(),
    ),
    Case(
        "serve a model missing",
        "a scoring service of a model that is not there",
        ("llm", "serve-scores", "costs.a.path=nowhere", "costs.a.direction=higher_is_worse"),
        ("score model folder nowhere does not exist",),
        project(),
    ),
)
CASES = (*ROUNDS, *ARENA)
