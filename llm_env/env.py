"""Token generation as a Gymnasium vector environment: a step appends one token to every row.

An episode is a prompt and its response; it terminates with a token that ends a response
(response_ends.py) or with the last one that fits, and is never truncated. Reward and costs score
the finished response on that token. Autoreset is NEXT_STEP: the step after the end ignores its
action and returns a fresh prompt. Observations, rewards and flags are tensors on the device; `info`
holds NumPy arrays, as Gymnasium's own does.

Every step costs a forward pass over the whole text, O(L²) for a response. That is for tests,
teaching and other libraries; the fast path is `TokenCollector`, with the same episodes.
Absent: rendering, a cache of keys and values between steps.

Letters: N sub-environments, L tokens of an observation, K costs, V vocabulary, n finished rows.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from constrained_rl.errors import InputError
from llm_env.collectors import Responses, Score, finite_scores, require_kinds
from llm_env.passes import ShuffledPasses
from llm_env.policy import prompt_room
from llm_env.prompts import Prompt
from llm_env.response_ends import Reading, end_ids, ends_of
from llm_env.tokens import check_tokenizer, encode_prompts, join

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

Array: TypeAlias = NDArray[Any]
Info: TypeAlias = dict[str, Any]
Step: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Info]


class TokenEnv(VectorEnv[Tensor, Tensor | Array, Tensor]):
    """N responses written side by side, one token per step.

    Observations are [N, 2, L] int64: token ids, and the attention mask that is 1 for real tokens.
    Both are padded on the left, so the newest token stands in the last column and position ids are
    cumsum(attention) − 1, as transformers expects. L = longest prompt + `max_new_tokens`.

    `info` of a step: `cost` [N, K] float64, and of finished episodes `prompt`, `response` (text)
    and `stop_reason` ("eos" or "length"), each with its mask `_cost`, `_prompt`, … as in Gymnasium.

    Args:
        num_envs: N.
        tokenizer: of the policy; needs an eos.
        prompts: drawn in shuffled passes, the passes of `TokenCollector` with the same seed.
        reward: score to maximise (`by_text`, `by_model`).
        costs: named scores, higher = worse; the names become `cost_names`.
        max_new_tokens: longest response.
        config: of the language model; bounds prompts by its context and actions by its vocabulary,
            and may list ids that end a response beside eos. By default the tokenizer's vocabulary
            and ends, and prompts of any length.
        device: of observations, rewards and flags.
    """

    def __init__(
        self,
        num_envs: int,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        reward: Score,
        costs: Mapping[str, Score],
        max_new_tokens: int,
        config: PreTrainedConfig | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, count in (("num_envs", num_envs), ("max_new_tokens", max_new_tokens)):
            if count < 1:
                raise InputError(f"{name} is {count}, expected at least 1")
        check_tokenizer(tokenizer)
        require_kinds(reward, costs)
        self.num_envs, self.cost_names = num_envs, tuple(costs)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.device = torch.device(device)
        self._tokenizer, self._prompts, self._new = tokenizer, list(prompts), max_new_tokens
        self._reward, self._costs = reward, dict(costs)
        room = sys.maxsize if config is None else prompt_room(config, max_new_tokens)
        ids, attention = encode_prompts(tokenizer, self._prompts, room)
        self._prompt_ids, self._prompt_attention = ids.to(self.device), attention.to(self.device)
        self._prompt_length = self._prompt_attention.sum(1)
        known = len(tokenizer) if config is None else config.get_text_config().vocab_size
        self._vocabulary = self._checked_vocabulary(known)
        self._reading = Reading.by(tokenizer)
        ends = {*end_ids(tokenizer), *([] if config is None else ends_of(config))}
        self._ends = torch.tensor(sorted(ends), device=self.device)
        self._width = ids.shape[1] + max_new_tokens  # L
        high = np.array([[known - 1], [1]]).repeat(self._width, 1)
        self.single_observation_space = spaces.Box(np.zeros_like(high), high, dtype=np.int64)
        self.single_action_space = spaces.Discrete(known)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.reset(seed=int(self.np_random.integers(2**31)))  # from the system's entropy

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Tensor, Info]:
        """Draw N prompts; a seed starts the shuffled passes anew, without one they go on."""
        super().reset(seed=seed, options=options)
        if seed is not None:
            self._passes = ShuffledPasses(len(self._prompts), seed)
        count, device = self.num_envs, self.device
        self._ids = torch.zeros(count, self._width, dtype=torch.long, device=device)
        self._index = torch.zeros(count, dtype=torch.long, device=device)
        self._length = torch.zeros(count, dtype=torch.long, device=device)
        self._ended = torch.zeros(count, dtype=torch.bool, device=device)
        self._start(torch.arange(count, device=device))
        return self._observe(), {}

    def step(self, actions: Tensor | Array) -> Step:
        """Append one token id per row, actions [N]; rows that ended start a fresh prompt."""
        played = ~self._ended
        token = self._tokens(actions, played)
        longer = torch.cat([self._ids[:, 1:], token.unsqueeze(1)], 1)
        self._ids = torch.where(played.unsqueeze(1), longer, self._ids)
        self._length = self._length + played
        self._start((~played).nonzero().squeeze(1))
        at_end = (token.unsqueeze(1) == self._ends).any(1)
        self._ended = played & (at_end | (self._length == self._new))
        reward = torch.zeros(self.num_envs, device=self.device)
        cost = np.zeros((self.num_envs, len(self._costs)))
        info: Info = {"cost": cost, "_cost": played.numpy(force=True)} if self._costs else {}
        rows = self._ended.nonzero().squeeze(1)
        if len(rows) > 0:
            responses = self._responses(rows, at_end[rows])
            reward[rows] = finite_scores("reward", self._reward, responses).to(reward)
            for k, (name, score) in enumerate(self._costs.items()):
                found = finite_scores(f"cost {name!r}", score, responses)
                cost[rows.numpy(force=True), k] = found.double().numpy(force=True)
            info |= self._finished(rows, responses, at_end[rows])
        return self._observe(), reward, self._ended.clone(), torch.zeros_like(self._ended), info

    def get_state(self) -> dict[str, Array]:
        """Everything the future depends on: rows under way, passes and random state."""
        state: dict[str, object] = {
            "ids": self._ids,
            "index": self._index,
            "length": self._length,
            "ended": self._ended,
            **self._passes.state_dict(),
        }
        arrays: dict[str, Array] = {}
        for name, value in state.items():
            assert isinstance(value, Tensor)
            arrays[name] = value.numpy(force=True).copy()
        return arrays

    def set_state(self, state: dict[str, Array]) -> None:
        """Continue from what `get_state` returned."""
        found = {name: torch.from_numpy(value.copy()) for name, value in state.items()}
        if found["ids"].shape != self._ids.shape:
            raise InputError(
                f"the saved state has token ids of shape {tuple(found['ids'].shape)}, expected "
                f"{tuple(self._ids.shape)}: continue with the prompts, num_envs and max_new_tokens "
                "that it was saved with"
            )
        self._ids, self._index = found["ids"].to(self.device), found["index"].to(self.device)
        self._length, self._ended = found["length"].to(self.device), found["ended"].to(self.device)
        self._passes.load_state_dict(found)

    def _start(self, rows: Tensor) -> None:
        """Put the next prompts into the given rows."""
        self._index[rows] = self._passes.draw(len(rows)).to(self.device)
        self._length[rows] = 0
        self._ids[rows, : self._new] = self._tokenizer.pad_token_id
        self._ids[rows, self._new :] = self._prompt_ids[self._index[rows]]

    def _observe(self) -> Tensor:  # [N, 2, L], fresh
        real = self._prompt_length[self._index] + self._length
        column = torch.arange(self._width, device=self.device)
        attention = column >= self._width - real.unsqueeze(1)
        return torch.stack([self._ids, attention.long()], 1)

    def _responses(self, rows: Tensor, at_end: Tensor) -> Responses:
        """The finished rows as score functions meet them, padding that none of them needs cut."""
        index, length = self._index[rows], self._length[rows].unsqueeze(1)
        column = torch.arange(int(length.max()), device=self.device)
        mask = column < length
        place = (self._width - length + column).clamp_max(self._width - 1)
        response = self._ids[rows].gather(1, place)
        response = torch.where(mask, response, self._tokenizer.eos_token_id)
        read = self._reading(response, mask, at_end)
        width = int(self._prompt_length[index].max())
        prompt_ids, attention = self._prompt_ids[index], self._prompt_attention[index]
        return Responses(
            join(prompt_ids[:, -width:], attention[:, -width:], *read),
            [self._prompts[i] for i in index.tolist()],
            self._tokenizer,
        )

    def _finished(self, rows: Tensor, responses: Responses, at_end: Tensor) -> Info:
        """What `info` tells of finished episodes: object arrays [N] and their masks."""
        columns: dict[str, Sequence[object]] = {
            "prompt": responses.prompts,
            "response": responses.texts,
            "stop_reason": ["eos" if ended else "length" for ended in at_end.tolist()],
        }
        info: Info = {}
        for name, values in columns.items():
            info[name] = np.full(self.num_envs, None, dtype=object)
            for row, value in zip(rows.tolist(), values, strict=True):
                info[name][row] = value  # a prompt of several turns is a list
            info[f"_{name}"] = self._ended.numpy(force=True).copy()
        return info

    def _tokens(self, actions: Tensor | Array, played: Tensor) -> Tensor:  # [N] long
        """Token ids on the device; those of rows that only reset may be anything."""
        token = torch.as_tensor(actions)
        kinds = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        if token.shape != (self.num_envs,) or token.dtype not in kinds:
            raise InputError(
                f"actions have shape {tuple(token.shape)} and dtype {token.dtype}, expected one "
                f"integer token id for each of {self.num_envs} sub-environments"
            )
        token = token.to(self.device, torch.long)
        outside = played & ((token < 0) | (token >= self._vocabulary))
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            raise InputError(
                f"the action of sub-environment {row} is {int(token[row])}, expected a token id "
                f"0 … {self._vocabulary - 1}; if the model has more outputs than the tokenizer has "
                "words, give TokenEnv the model's config"
            )
        return token

    def _checked_vocabulary(self, vocabulary: int) -> int:
        """Refuse a vocabulary without the tokens of the prompts, of eos or of padding."""
        eos, padding = self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
        highest = max(int(self._prompt_ids.max()), eos, padding)
        if highest >= vocabulary:
            raise InputError(
                f"the tokenizer uses token id {highest}, but the model's vocabulary is 0 … "
                f"{vocabulary - 1}; use the model's own tokenizer, or resize its embeddings"
            )
        return vocabulary


class NumpyView(VectorWrapper[Array, Array, Tensor, Tensor | Array, Any]):
    """A `TokenEnv` for libraries that know NumPy only: every tensor as an array on the CPU.

    Gymnasium's `ArrayConversion` cannot be used: it converts `info` too and fails on texts.
    """

    env: TokenEnv

    def __init__(self, env: TokenEnv) -> None:
        super().__init__(env)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Array, Info]:
        """As `TokenEnv.reset`."""
        obs, info = self.env.reset(seed=seed, options=options)
        return obs.numpy(force=True), info

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, Info]:
        """As `TokenEnv.step`."""
        *tensors, info = self.env.step(actions)
        obs, reward, terminated, truncated = (tensor.numpy(force=True) for tensor in tensors)
        return obs, reward, terminated, truncated, info

    def get_state(self) -> dict[str, Array]:
        """As `TokenEnv.get_state`."""
        return self.env.get_state()

    def set_state(self, state: dict[str, Array]) -> None:
        """As `TokenEnv.set_state`."""
        self.env.set_state(state)
