"""Bad configs, models and data of `crl llm train` and `plan`."""

from transformers import AutoModelForCausalLM

from llm_env.models import ModelSource, load_causal_lm
from tests.bad_input.case import Case
from tests.bad_input.project import (
    TRAIN,
    TRAINED,
    cut,
    family,
    gone,
    json_fields,
    lines,
    pair,
    project,
    written,
)


def train(*settings):
    return (*TRAINED, *settings, "--out", "run")


def plan(*arguments):
    return ("llm", "plan", "train.toml", *arguments)


IDENTITY = "align.constraint.transform=identity"


def padded(folder):
    """A change: the policy's embedding has more rows than its tokenizer has tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder / "policy")
    model.resize_token_embeddings(384, mean_resizing=False)
    model.save_pretrained(folder / "policy")


def without(text):
    """A change: the config lacks something."""
    return written("train.toml", TRAIN.replace(text, ""))


MODELS = (
    Case(
        "policy missing",
        "a policy that is not there",
        train("policy.path=nowhere"),
        ("model folder nowhere does not exist", "one that holds config.json"),
        project(),
    ),
    Case(
        "policy without config",
        "a policy without config.json",
        train(),
        ("policy is no model: config.json is missing", "save_pretrained"),
        project(gone("policy/config.json")),
    ),
    Case(
        "policy is an adapter",
        "an adapter instead of a model",
        train(),
        ("it is an adapter; merge it into its model",),
        project(gone("policy/config.json"), written("policy/adapter_config.json", "{}")),
    ),
    Case(
        "policy encodes and decodes",
        "an encoder-decoder as policy",
        train(),
        ("a model of type 't5', which is no decoder-only language model", "as Llama"),
        project(json_fields("policy/config.json", model_type="t5")),
    ),
    Case(
        "policy of an unknown type",
        "a policy of a type that transformers does not know",
        train(),
        ("policy/config.json has model_type 'klingon', which transformers", "pip install"),
        project(json_fields("policy/config.json", model_type="klingon")),
    ),
    Case(
        "policy cut short",
        "a policy whose weights were cut short",
        train(),
        ("policy is damaged (model.safetensors", "copy or download it again"),
        project(cut("policy/model.safetensors")),
    ),
    Case(
        "policy without weights",
        "a policy without weights",
        train(),
        ("policy has no weights: expected model.safetensors",),
        project(gone("policy/model.safetensors")),
    ),
    Case(
        "policy is a score model",
        "a score model as policy",
        train("policy.path=reward"),
        ("reward holds a score model, which cannot write",),
        project(),
    ),
    Case(
        "policy without tokenizer",
        "a policy without a tokenizer",
        train(),
        ("policy has no tokenizer (none of tokenizer.json", "tokenizer.save_pretrained"),
        project(gone("policy/tokenizer.json")),
    ),
    Case(
        "policy without eos",
        "a policy whose tokenizer has no eos",
        train(),
        ("the tokenizer has no end-of-sequence token", "tokenizer.eos_token ="),
        project(family("policy", tokens="no eos")),
    ),
    Case(
        "ends that are no ids",
        "generation settings whose end is no token id",
        train(),
        ("policy is damaged (generation_config.json has eos_token_id 'stop')", "download it again"),
        project(json_fields("policy/generation_config.json", eos_token_id="stop")),
    ),
    Case(
        "policy of an unknown eos",
        "an eos that the tokenizer does not know",
        train("policy.eos_token=<end>"),
        ("eos_token is '<end>', which is no token of the tokenizer; its own is '</s>'",),
        project(),
    ),
    Case(
        "tokenizer above the embedding",
        "a tokenizer larger than the embedding",
        train(),
        ("writes ids up to 319", "has 100 rows (ids 0 … 99)", "resize_token_embeddings(320)"),
        project(json_fields("policy/config.json", vocab_size=100)),
    ),
    Case(
        "policy in float16 on a CPU",
        "float16 on a CPU",
        train("policy.dtype=float16"),
        ("dtype is float16 on the CPU", "dtype=bfloat16"),
        project(),
    ),
    Case(
        "reward without direction",
        "a reward that does not say which way it points",
        train(),
        ("reward.direction: is missing",),
        project(without('direction = "higher_is_better", ')),
    ),
    Case(
        "reward missing",
        "a reward model that is not there",
        train("reward.path=nowhere"),
        ("score model folder nowhere does not exist",),
        project(),
    ),
    Case(
        "reward is a policy",
        "a language model as reward",
        train("reward.path=policy"),
        ("policy is no score model", "(of heads: lm_head.weight)", "score_head.safetensors (crl)"),
        project(),
    ),
    Case(
        "trunk missing",
        "a critic's trunk that is not there",
        train("critic.trunk=nowhere"),
        ("model folder nowhere does not exist",),
        project(),
    ),
    Case(
        "trunk of other tokens",
        "a critic's trunk with another tokenizer",
        train("critic.trunk=other"),
        ("critic.trunk is 'other'", "tokens another id", "critic.trunk = 'policy'"),
        project(family("other", "gpt2")),
    ),
    Case(
        "trunk of another width",
        "a critic's trunk whose config has another hidden size",
        train("critic.trunk=other"),
        ("the weights in other do not have the shapes", "not (320, 32)"),
        project(family("other"), json_fields("other/config.json", hidden_size=32)),
    ),
    Case(
        "trunk of fewer rows",
        "a critic's trunk whose embedding lacks rows of the policy's",
        train("critic.trunk=reward"),
        (
            "the policy's embedding has 384 rows, that of the critic's trunk 320",
            "critic.trunk = 'policy', or save the trunk",
            "trunk.resize_token_embeddings(384)",
        ),
        project(padded),
    ),
    Case(
        "trunk of a shorter context",
        "a prompt over the context of the critic's trunk",
        train("critic.trunk=other"),
        ("1 of 2 prompts have more than 28 tokens", "lower max_new_tokens"),
        project(family("other", context=32), written("prompts.txt", "hello\n" + "a " * 40 + "\n")),
    ),
)
SETTINGS = (
    Case(
        "training settings unknown",
        "an unknown key of a training config",
        train("align.iteration=3"),
        ("align.iteration: unknown key; did you mean 'iterations'?",),
        project(),
    ),
    Case(
        "config of another command",
        "the config of another command",
        ("llm", "sft", "train.toml", "--out", "run"),
        ("train.toml is a config of `crl llm train`: this command knows no policy, reward",),
        project(),
    ),
    Case(
        "critic-free without groups",
        "critic-free advantages of single responses",
        train("align.ppo.advantage=leave_one_out"),
        ("'leave_one_out' compares responses to the same prompt", "set responses_per_prompt to 2"),
        project(),
    ),
    Case(
        "group constraint without groups",
        "a constraint per prompt on single responses",
        train("align.constraint.per=group"),
        ("constraint.per = 'group' bounds each prompt's mean", "set it to 2 or more", "'excess'"),
        project(),
    ),
    Case(
        "corrected responses",
        "a correction for cut episodes where none are cut",
        train("align.constraint.corrected=true"),
        ("constraint.corrected counts episodes that a window has cut", "leave it out"),
        project(),
    ),
    Case(
        "negative limit of responses",
        "a negative limit on a share of responses",
        train("align.constraint.transform=indicator", "align.limit=-2"),
        ("is -2, but P(C > 0) is never negative", "constraint.transform=identity"),
        project(),
    ),
    Case(
        "groups that do not divide",
        "responses that do not divide into groups",
        train("align.responses_per_prompt=4"),
        ("2 per iteration, which is no multiple of responses_per_prompt = 4",),
        project(),
    ),
    Case(
        "shared trunk without adapter",
        "a shared trunk without adapters",
        train("critic.trunk=shared"),
        ("critic.trunk = 'shared' is an adapter beside the policy's: set policy.lora too",),
        project(),
    ),
    Case(
        "adapters of no layer",
        "adapters beside layers that the model does not have",
        train('policy.lora.targets=["q_proj","c_attn"]'),
        ("lora.targets is ('q_proj', 'c_attn'), but 'c_attn' fits no linear layer", "q_proj, up"),
        project(),
    ),
    Case(
        "adapters of no layer of the critic",
        "a critic's adapters beside layers that its trunk does not have",
        train("critic.lora.targets=lm_head"),
        ("but 'lm_head' fits no linear layer of LlamaModel; give 'all-linear' or names among",),
        project(),
    ),
    Case(
        "reward of a shorter context",
        "a reward model that sees fewer tokens than prompt and response have",
        train("align.max_new_tokens=12"),
        (
            "reward (reward) sees 16 tokens",
            "a response up to 12, its end 1",
            "leave no room; lower",
        ),
        project(json_fields("reward/config.json", max_position_embeddings=16)),
    ),
    Case(
        "held-out prompts beyond a cost",
        "a held-out prompt that a cost model cannot see with its response",
        train("evaluation.prompts=[{path='held_out.txt'}]", "align.max_new_tokens=8"),
        ("costs.harm (cost) sees 64 tokens", 'costs.harm.too_long = "cut_prompt"'),
        project(
            json_fields("cost/config.json", max_position_embeddings=64),
            written("held_out.txt", "hello\n" + "a " * 40 + "\n"),
        ),
    ),
    Case(
        "training where nothing can be made",
        "an output folder of a training where the system lets nobody make one",
        (*TRAINED, "--out", "/proc/run"),
        ("/proc/run cannot be made or written into", "choose another --out"),
        project(gone("policy/model.safetensors")),
    ),
    Case(
        "adapters without peft",
        "adapters without peft",
        train("policy.lora.rank=2"),
        ("lora needs the package peft", "pip install"),
        project(),
        missing=("peft",),
    ),
    Case(
        "zero without deepspeed",
        "a ZeRO stage without its engine",
        train("distributed.zero=2"),
        ("distributed.zero and distributed.offload_optimizer are DeepSpeed's", "engine="),
        project(),
    ),
    Case(
        "deepspeed not installed",
        "DeepSpeed that is not installed",
        train("distributed.engine=deepspeed"),
        ("needs DeepSpeed, which cannot be imported", "pip install"),
        project(),
        missing=("deepspeed",),
    ),
    Case(
        "limit of no score",
        "a limit for a cost that there is not",
        train("align.limit.harms=1"),
        ("align.limit names 'harms', but the costs are harm", "did you mean align.limit.harm?"),
        project(),
    ),
    Case(
        "limits miscounted",
        "more limits than costs",
        train("align.limit=[1,2]"),
        ("align.limit has 2 entries for the costs ('harm',)", "give one number"),
        project(),
    ),
    Case(
        "demonstrations missing",
        "a PTX term without demonstrations",
        train("align.ptx_coefficient=1"),
        ("align.ptx_coefficient > 0 needs demonstrations = [{path = …}]",),
        project(),
    ),
    Case(
        "no device of this name",
        "a device that there is not",
        ("llm", "chat", "policy", "--device", "tpu"),
        ("device is 'tpu', expected auto, cpu, cuda, cuda:0",),
        project(),
    ),
)
DATA = (
    Case(
        "no sources of prompts",
        "no sources of prompts",
        train("prompts=[]"),
        ("prompts: found [], expected at least one entry",),
        project(),
    ),
    Case(
        "training prompts missing",
        "a file of prompts that is not there",
        train("prompts=[{path='nowhere.txt'}]"),
        ("nowhere.txt: cannot be read (No such file or directory)",),
        project(),
    ),
    Case(
        "training prompts empty",
        "an empty file of prompts",
        train(),
        ("prompts.txt:1: the file holds no rows; expected one prompt per line",),
        project(written("prompts.txt", "")),
    ),
    Case(
        "training prompts too long",
        "prompts over the context",
        train(),
        ("1 of 2 prompts have more than 508 tokens", "prompt 0 has 1201", "over_length = 'drop'"),
        project(written("prompts.txt", "a " * 600 + "\nhello\n")),
    ),
    Case(
        "response over the context",
        "a response longer than the context",
        train("align.max_new_tokens=600"),
        ("max_new_tokens is 600, but the model sees 512 tokens in all",),
        project(),
    ),
    Case(
        "demonstrations without answers",
        "preferences as demonstrations",
        train("align.ptx_coefficient=1", "demonstrations=[{path='pairs.jsonl'}]"),
        ("pairs.jsonl: holds rows of pku, but demonstrations are rows of alpaca, messages",),
        project(),
    ),
    Case(
        "weights for some sources",
        "a mixture with a weight for one source only",
        train("prompts=[{path='prompts.txt',weight=1},{path='held_out.txt'}]"),
        ("held_out.txt has no weight, but other sources of the mixture have one",),
        project(),
    ),
    Case(
        "quarantine of something else",
        "a quarantine file of a source that holds something else",
        train("prompts=[{path='pairs.jsonl',max_bad=0.5,quarantine='prompts.txt'}]"),
        ("prompts.txt: exists already and holds something else", "nothing is overwritten"),
        project(written("pairs.jsonl", lines(pair(), pair("hello", response_0=3)))),
    ),
)
PLAN = (
    Case(
        "plan of a model that is missing",
        "a plan of a model that is not there",
        plan("policy.path=nowhere"),
        ("model folder nowhere does not exist",),
        project(),
    ),
    Case(
        "plan of no memory",
        "a plan for less than no memory",
        plan("--memory", "-1"),
        ("--memory is -1 GiB, expected more than 0",),
        project(),
    ),
    Case(
        "plan of a reward of a shorter context",
        "a plan of a reward model that sees too few tokens",
        plan("align.max_new_tokens=16"),
        ("reward (reward) sees 16 tokens",),
        project(json_fields("reward/config.json", max_position_embeddings=16)),
    ),
    Case(
        "plan over the context",
        "a plan for prompts over the context",
        plan("--prompt-tokens", "5000"),
        ("--prompt-tokens is 5000, but the policy's context leaves room for 508",),
        project(),
    ),
    Case(
        "plan of idle ranks",
        "a plan of more ranks than responses",
        plan("--ranks", "8"),
        ("align.prompts is 2, fewer than one for each of 8 ranks",),
        project(),
    ),
)

DUAL = (
    Case(
        "price of nothing",
        "a price of no cost",
        ("llm", "dual", "--model", "policy", "--prompts", "prompts.txt", "--reward", "reward"),
        ("--cost missing", "or the config of the training run"),
        project(),
    ),
    Case(
        "price without a KL term",
        "a price without a KL term",
        ("llm", "dual", "train.toml", "align.ppo.kl_coefficient=0"),
        ("align.ppo.kl_coefficient is 0", "set it as the training run will"),
        project(),
    ),
    Case(
        "price of standardised streams",
        "a price where λ is none",
        ("llm", "dual", "train.toml", "align.ppo.normalize=streams"),
        ("ppo.normalize='streams'", "is no price; use align.ppo.normalize=mixed"),
        project(),
    ),
    Case(
        "price of a tail",
        "a price of what is no mean",
        ("llm", "dual", "train.toml", "align.constraint.transform=cvar"),
        ("transform='cvar'", "use identity, probability, indicator or excess"),
        project(),
    ),
    Case(
        "price of one prompt",
        "a price from one prompt",
        ("llm", "dual", "train.toml", "--samples", "4"),
        ("found 1 prompt; the interval is over prompts, give at least 2",),
        project(written("prompts.txt", "hello\n")),
    ),
    Case(
        "price of the impossible",
        "a price of a limit that no response keeps",
        ("llm", "dual", "train.toml", "--samples", "4", "costs.harm.limit=-90", IDENTITY),
        ("no reweighting of the samples meets the limit", "the limit -90)", "raise the limit"),
        project(),
    ),
)


def half_on_cpu():
    import torch

    load_causal_lm(ModelSource(path="policy", attention="flash_attention_2"), torch.device("cpu"))


PYTHON = (
    Case(
        "flash attention on a CPU",
        "flash attention on a CPU",
        half_on_cpu,
        ("needs a GPU and bfloat16 or float16, found cpu and float32; use attention=sdpa",),
        project(),
    ),
)
CASES = (*MODELS, *SETTINGS, *DATA, *PLAN, *DUAL, *PYTHON)
