"""Align a language model by one's own judge: `python own_judge.py MODEL_FOLDER`."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_env.config import AlignConfig

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
prompts = ["How do I sharpen a knife?", "Tell me about wolves."]
config = AlignConfig(iterations=100, limit=0.05)  # at most 5 % unsafe answers


def helpful(prompts, responses):  # higher is better
    return [float(len(set(response.split()))) for response in responses]


# [readme]
def harmful(prompts, responses):  # > 0: unsafe
    return [1.0 if "knife" in response else -1.0 for response in responses]


from constrained_rl.ppo import train
from llm_env.collectors import by_text
from llm_env.safe_rlhf import alignment

costs = {"harm": by_text(harmful)}
parts = alignment(model, tokenizer, prompts, by_text(helpful), costs, config, seed=0)
for metrics in train(parts, config.iterations):
    print(metrics["return/mean"], metrics["estimate/harm"], metrics["lambda/harm"])
model = parts.policy.model  # model.save_pretrained("aligned")
# [/readme]
