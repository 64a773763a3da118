"""A folder of rounds: its models and prompts, and the random streams of its stages.

    start/                                        SFT model of the embedded world
    rounds/<k>/{red_team, pairs, preferences, reward_model, cost_model, policy}/
    unified/{reward_model, cost_model}/           refit once more; no policy was trained on them
    evaluation/                                   every model's responses to the same prompts

Model 0 is the start model, model k the policy of round k. Absent: several processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from constrained_rl.devices import choose_device, device_here
from constrained_rl.errors import InputError
from llm_env.data.digests import prompt_digest
from llm_env.data_sources import read_demonstrations, read_prompts
from llm_env.models import ModelSource, load_causal_lm, load_tokenizer
from llm_env.prompts import Prompt
from llm_env.rounds.config import RoundsConfig
from llm_env.scoring import ScoreModel
from llm_env.stages import stream
from llm_env.world import build_tokenizer, demonstrate, sample_prompts
from llm_env.world.knowledge import KINDS, all_prompts
from llm_env.world.knowledge import Prompt as WorldPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DRAWN = 4000
"""prompts of the embedded world that are drawn, with its shares of kinds, to be trained on"""


@dataclass(frozen=True)
class Space:
    """A folder of rounds with its config."""

    folder: Path
    config: RoundsConfig

    def rng(self, purpose: str) -> np.random.Generator:
        """Random stream of one purpose."""
        return stream(self.config.seed, purpose)

    def seed(self, purpose: str) -> int:
        """Integer seed of one purpose."""
        return int(self.rng(purpose).integers(2**31))

    def generator(self, purpose: str) -> torch.Generator:
        """Torch generator of one purpose."""
        return torch.Generator().manual_seed(self.seed(purpose))

    @property
    def embedded(self) -> bool:
        """Whether this is the embedded world, which knows gold scores."""
        return self.config.policy is None

    @cached_property
    def device(self) -> torch.device:
        """Where models live."""
        return choose_device(device_here(self.config.device))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the policy and of the score models."""
        if self.config.policy is None:
            return build_tokenizer()
        return load_tokenizer(self.config.policy)

    def round(self, number: int) -> Path:
        """Folder of one round."""
        return self.folder / "rounds" / str(number)

    def model_folder(self, number: int) -> Path:
        """Where model `number` is saved."""
        if number:
            return self.round(number) / "policy"
        return (
            self.folder / "start" if self.config.policy is None else Path(self.config.policy.path)
        )

    def model(self, number: int) -> PreTrainedModel:
        """Model `number`, in eval mode."""
        source = self.config.policy or ModelSource(path="")
        path = str(self.model_folder(number))
        return load_causal_lm(source.model_copy(update={"path": path}), self.device)

    def score_model(self, folder: Path, kind: str) -> ScoreModel:
        """The reward or cost model of a round, or the unified one."""
        return ScoreModel.from_pretrained(folder / f"{kind}_model").to(self.device)

    @cached_property
    def world_split(self) -> tuple[list[WorldPrompt], list[WorldPrompt]]:
        """The embedded world's prompts that may be trained on, and those of the evaluation."""
        rng, share = self.rng("world/split"), self.config.world.test_share
        train: list[WorldPrompt] = []
        test: list[WorldPrompt] = []
        for kind in KINDS:
            known = [prompt for prompt in all_prompts().values() if prompt.kind == kind]
            order = rng.permutation(len(known))
            cut = max(1, round(share * len(known)))
            test += [known[i] for i in order[:cut]]
            train += [known[i] for i in order[cut:]]
        return train, test

    @cached_property
    def prompts(self) -> Sequence[Prompt]:
        """What pairs and RL draw from."""
        if not self.embedded:
            return read_prompts(self.config.prompts)
        drawn = sample_prompts(DRAWN, self.rng("prompts"), self.world_split[0])
        return [prompt.text for prompt in drawn]

    @cached_property
    def demonstrations(self) -> Sequence[tuple[Prompt, str]]:
        """(prompt, response) pairs of the start model's SFT and of the PTX term."""
        if not self.embedded:
            return read_demonstrations(self.config.demonstrations)
        rng = self.rng("start/demonstrations")
        prompts = sample_prompts(self.config.world.demonstrations, rng, self.world_split[0])
        return [(prompt.text, demonstrate(prompt, rng)) for prompt in prompts]

    @cached_property
    def evaluation_prompts(self) -> list[Prompt]:
        """Distinct prompts of the report, none of which is trained on, whatever its spaces.

        Raises:
            InputError: `prompts` or `demonstrations` hold some of them.
        """
        count, rng = self.config.data.evaluation, self.rng("prompts/evaluation")
        if self.embedded:
            found: list[Prompt] = [prompt.text for prompt in self.world_split[1]]
        else:
            found = read_prompts(self.config.evaluation_prompts)
            trained = {prompt_digest(prompt) for prompt in self.prompts}
            if self.config.align.ptx_coefficient > 0:
                trained |= {prompt_digest(prompt) for prompt, _ in self.demonstrations}
            shared = [prompt for prompt in found if prompt_digest(prompt) in trained]
            if shared:
                raise InputError(
                    f"{len(shared)} of {len(found)} evaluation_prompts are trained on as well, "
                    f"e.g. {shared[0]!r:.80}; take them out of prompts and demonstrations, or of "
                    "evaluation_prompts"
                )
        return [found[i] for i in rng.permutation(len(found))[:count]]
