"""Bad data and settings of `crl llm sft` and `score`."""

import lzma

from tests.bad_input.case import Case
from tests.bad_input.project import SCORE, TUNED, cut, gone, lines, pair, project, written


def sft(*settings):
    return (*TUNED, *settings, "--out", "run")


def score(*settings):
    return ("llm", "score", "score.toml", *settings, "--out", "run")


def demonstrations(*rows):
    return project(written("demonstrations.jsonl", lines(*rows)))


def pairs(*rows):
    return project(written("pairs.jsonl", lines(*rows)))


def packed(folder):
    """An xz archive whose end is lost."""
    text = lines(*(pair(str(i)) for i in range(50)))
    (folder / "pairs.jsonl.xz").write_bytes(lzma.compress(text.encode())[:-20])


CASES = (
    Case(
        "data is no list",
        "a file name where a list of sources is expected",
        sft("data=file.json"),
        ("data: found 'file.json': expected a list", "on a command line 'data=[{path ="),
        project(),
    ),
    Case(
        "data format unknown",
        "a format of another library",
        sft('data=[{path="demonstrations.jsonl",format="trl"}]'),
        ("data.0.format: found 'trl'; Expected 'auto', 'pku', 'hh',",),
        project(),
    ),
    Case(
        "demonstration empty",
        "an empty response to imitate",
        sft(),
        ("demonstrations.jsonl:1: response: is empty: nothing to imitate",),
        demonstrations({"prompt": "a", "response": ""}, {"prompt": "b", "response": "c"}),
    ),
    Case(
        "demonstration without answer",
        "demonstrations under other names",
        sft(),
        ("holds rows of prompts, but demonstrations are rows of alpaca, messages",),
        demonstrations({"prompt": "a", "answer": "b"}),
    ),
    Case(
        "demonstrations too long",
        "demonstrations over the limit",
        sft("fit.max_tokens=8"),
        ("5 of 5 examples do not fit the limit of 8 tokens", "over_length = 'drop'"),
        project(),
    ),
    Case(
        "held out too long",
        "held-out demonstrations over the limit",
        sft("held_out=[{path='long.jsonl'}]"),
        ("1 of 1 examples do not fit the limit of 64 tokens",),
        project(written("long.jsonl", lines({"prompt": "a " * 50, "response": "b"}))),
    ),
    Case(
        "everything held out",
        "a held-out share that leaves nothing",
        sft("held_out_share=0.99"),
        ("held_out_share = 0.99 leaves nothing to learn from",),
        project(),
    ),
    Case(
        "tuned model cut short",
        "a model to tune that was cut short",
        sft(),
        ("policy is damaged (model.safetensors",),
        project(cut("policy/model.safetensors")),
    ),
    Case(
        "labels contradict",
        "a label that contradicts another",
        score(),
        ("pairs.jsonl:2: safer_response_id: names response 1, which is labelled unsafe",),
        pairs(pair(), pair("hello", safer_response_id=1)),
    ),
    Case(
        "responses identical",
        "two identical responses",
        score(),
        ("pairs.jsonl:2: response_1: is identical to response_0; nothing is compared",),
        pairs(pair(), pair("hello", response_1="no")),
    ),
    Case(
        "pairs in a damaged archive",
        "an xz archive that is not complete",
        score("data=[{path='pairs.jsonl.xz'}]"),
        ("pairs.jsonl.xz: is a damaged or incomplete archive",),
        project(packed),
    ),
    Case(
        "pairs without a subject",
        "preferences that do not say what was compared",
        score("data=[{path='hh.jsonl'}]"),
        ("hh.jsonl: rows of hh do not say what was compared; set compares = 'helpfulness'",),
        project(
            written(
                "hh.jsonl",
                lines(
                    {
                        "chosen": "\n\nHuman: a\n\nAssistant: b",
                        "rejected": "\n\nHuman: a\n\nAssistant: c",
                    }
                ),
            )
        ),
    ),
    Case(
        "categories without labels",
        "harm categories that the data do not have",
        score("kind=costs", "categories.violence=['Violence']"),
        ("pairs.jsonl: a row has no response_0_harm_category", "v1; earlier releases"),
        project(),
    ),
    Case(
        "kind of score unknown",
        "a kind of score that there is not",
        score("kind=harm"),
        ("kind: found 'harm'; Expected 'reward', 'cost' or 'costs'",),
        project(),
    ),
    Case(
        "fit with adapters of no layer",
        "a fit with adapters beside layers that the model does not have",
        sft("model.lora.targets=c_attn"),
        ("lora.targets is 'c_attn', but 'c_attn' fits no linear layer of LlamaForCausalLM",),
        project(),
    ),
    Case(
        "fit below a file",
        "an output folder of a fit below a file",
        (*TUNED, "--out", "policy/config.json/run"),
        ("config.json/run cannot be made", "config.json is a file"),
        project(gone("demonstrations.jsonl")),
    ),
    Case(
        "scores without categories",
        "several costs without categories",
        score("kind=costs"),
        ("kind = 'costs' needs categories",),
        project(),
    ),
    Case(
        "two starts of a score",
        "two models to start a score from",
        score("score_model=cost"),
        ("give one start: model.path, a language model, or score_model",),
        project(),
    ),
    Case(
        "score model to go on with missing",
        "a score model to train on that is not there",
        score("score_model=nowhere"),
        ("model folder nowhere does not exist",),
        project(written("score.toml", SCORE.replace('model.path = "policy"\n', ""))),
    ),
    Case(
        "data of a fit missing",
        "a fit without its data",
        sft(),
        ("demonstrations.jsonl: cannot be read (No such file or directory)",),
        project(gone("demonstrations.jsonl")),
    ),
)
