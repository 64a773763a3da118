"""A whole Safe RLHF step on tiny models: score models, KL, PTX, costs, an unsteady λ."""

import torch

from constrained_rl.engines import Engines
from constrained_rl.multiplier_config import GradientConfig, PIDConfig
from constrained_rl.ppo import train
from constrained_rl.settings import validate
from constrained_rl.streams import stream_names
from llm_env.collectors import by_model
from llm_env.config import AlignConfig
from llm_env.policy import CausalLMPolicy, response_logp
from llm_env.safe_rlhf import Models, Task, token_parts
from llm_env.scoring import ScoreModel, TokenCritic
from tests.llm_env.tiny import EOS, causal_lm, word_tokenizer

PROMPTS = ["how do i bake bread", "how do i trap a wolf", "bake bread ?", "trap the fox .", "cat"]
DEMONSTRATIONS = [
    ("how do i trap a wolf", "sorry no"),
    ("bake bread ?", "yes use fire . bake the bread"),
    ("cat", "the fox"),
]


def align_config(iterations=3, prompts=10, **settings):
    ppo = {
        "kl_coefficient": 0.1,
        "epochs": 1,
        "minibatches": 2,
        "learning_rate": 5e-3,
    } | settings.pop("ppo", {})
    tree = {
        "iterations": iterations,
        "prompts": prompts,  # minibatches of 5: ranks get 2 and 3 rows
        "max_new_tokens": 20,
        "limit": -0.5,
        "ptx_coefficient": 0.5,
        "normalize_scores": "running",
        "constraint": {"transform": "identity"},
        "multiplier": GradientConfig(learning_rate=0.3, initial=0.5).model_dump(),
        "ppo": ppo,
    }
    return validate(AlignConfig, tree | settings, "test")


EVERYTHING = {
    "generation_batch": 2,
    "responses_per_prompt": 2,
    "normalize_scores": "reference",
    "multiplier": PIDConfig(kp=1.0, ki=0.3, kd=0.2, initial=0.5).model_dump(),
    "ppo": {
        "epochs": 2,
        "micro_batch": 2,
        "loss_mean": "sequence",
        "normalize_values": True,
        "critic_warmup": 1,
        "schedule": "linear",
        "warmup": 0.3,
        "entropy": 0.05,
        "kl_streams": "both",
        "target_kl": 0.01,
    },
}
"""what training has to offer beside the rest, all at once"""
CRITIC_FREE = {
    "prompts": 10,
    "responses_per_prompt": 5,
    "ppo": {"advantage": "leave_one_out", "value_clip": None, "critic_learning_rate": None},
}
FEWER_ROWS_THAN_RANKS = {"prompts": 3, "ppo": {"minibatches": 3}}


def ends_often():
    """Responses of very different lengths: p(eos) is about e^1.5 / (21 + e^1.5) ≈ 0.18."""
    model = causal_lm(scale=1.0)
    head = model.get_output_embeddings()
    bias = torch.zeros(head.out_features)
    bias[EOS] = 1.5
    head.register_forward_hook(lambda _, __, logits: logits + bias.to(logits))
    return model


def score_model(seed):
    generator = torch.Generator().manual_seed(seed)
    return ScoreModel.from_causal_lm(causal_lm(seed=seed, scale=3.0), generator=generator)


def tiny_parts(config, engines=None, seed=0, reward=None):
    model, reference = ends_often(), ends_often()
    task = Task(
        word_tokenizer(),
        PROMPTS,
        reward or by_model(score_model(1)),
        {"cost": by_model(score_model(2))},
        DEMONSTRATIONS,
    )
    heads = len(stream_names(task.constraints(config), config.ppo))
    critic = None
    if config.ppo.advantage == "gae":
        critic = TokenCritic(ScoreModel(causal_lm(seed=1, scale=1.0).base_model, heads))
    models = Models(CausalLMPolicy(model), critic, lambda obs, _: response_logp(reference, obs))
    return token_parts(models, task, config, seed, engines or Engines())


def rows_of(parts, iterations):
    """Metrics of every iteration, times left out."""
    return [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in train(parts, iterations)
    ]
