"""The embedded world: a fictional village's dialogues with known answers. No training in it.

`sample_prompts` and `demonstrate` make data, `judge` knows what a response is worth,
`AnnotatorPool` makes noisy preferences of it, `agreement` and `approval` say how good those are,
`build_tokenizer` turns words into ids.
"""

from llm_env.world.annotators import Annotator, AnnotatorPool
from llm_env.world.gold import Gold, judge
from llm_env.world.grammar import demonstrate, sample_prompts
from llm_env.world.knowledge import Kind, Prompt, find_prompt
from llm_env.world.quality import agreement, approval
from llm_env.world.tokenizer import build_tokenizer

__all__ = [
    "Annotator",
    "AnnotatorPool",
    "Gold",
    "Kind",
    "Prompt",
    "agreement",
    "approval",
    "build_tokenizer",
    "demonstrate",
    "find_prompt",
    "judge",
    "sample_prompts",
]
