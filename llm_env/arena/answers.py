"""What does a model answer, and how likely was that under it and under the reference?

    KL(π ‖ π_ref) = E_{y ~ π} Σ_t log π(y_t) − log π_ref(y_t)       in nats per answer, k1 estimate

A row holds the tokens and not only the text, so that scores and log-probabilities can be computed
again exactly. A model is loaded only where something of it is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from constrained_rl.errors import InputError
from llm_env.arena.cache import Row, digest, folder_state, keep_rows
from llm_env.arena.questions import Question, Reader
from llm_env.generation import generate
from llm_env.models import ModelSource, check_weights, load_causal_lm, load_tokenizer, read_config
from llm_env.policy import prompt_room, response_logp
from llm_env.response_ends import Reading, end_ids
from llm_env.tokens import TokenRows, decode_responses, encode_prompts, join, pad

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Mode = Literal["greedy", "sampled"]


@dataclass(frozen=True)
class Decoding:
    """How answers are generated."""

    max_new_tokens: int
    temperature: float
    batch: int
    seed: int


@dataclass(frozen=True)
class Answering:
    """A model that answers; its weights are read when they are first needed."""

    name: str
    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    device: torch.device

    @cached_property
    def model(self) -> PreTrainedModel:
        """The weights, in eval mode."""
        return load_causal_lm(self.source, self.device)

    @cached_property
    def state(self) -> list[object]:
        """What decides the answers."""
        return [self.source.model_dump(mode="json"), folder_state(self.source.path)]

    @cached_property
    def vocabulary(self) -> str:
        """Equal for two tokenizers that give the same ids."""
        rules = self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else ""
        words = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        return digest(rules, words, self.tokenizer.chat_template)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Its shape, without its weights."""
        return read_config(self.source)

    def reader(self, max_new_tokens: int) -> Reader:
        """What fits this model."""
        return Reader(self.tokenizer, prompt_room(self.config, max_new_tokens))

    def unload(self) -> None:
        """Free the weights."""
        self.__dict__.pop("model", None)


def open_model(name: str, source: ModelSource, device: torch.device) -> Answering:
    """A model's tokenizer and folder, checked before anything expensive starts."""
    try:
        check_weights(source)
        tokenizer = load_tokenizer(source)
    except InputError as error:
        raise InputError(f"model {name} ({source.path}): {error}") from error
    return Answering(name, source, tokenizer, device)


@torch.no_grad()
def answer(
    model: Answering, questions: Sequence[Question], mode: Mode, decoding: Decoding, folder: Path
) -> tuple[list[Row], str]:
    """Rows with tokens, text, log-probability and stop reason; and the digest they hang on."""
    # how many are decoded at once decides which random number belongs to which answer
    settings = [decoding.max_new_tokens]
    if mode == "sampled":
        settings += [decoding.temperature, decoding.batch, decoding.seed]  # type: ignore[list-item]
    settings += end_ids(model.tokenizer)[1:]  # all but eos, which the folder's state tells
    prompts = [question.prompt for question in questions]
    key = digest(model.state, prompts, mode, settings)

    def make(rows: slice) -> list[Row]:
        ids, attention = encode_prompts(
            model.tokenizer, prompts[rows], model.reader(decoding.max_new_tokens).room
        )
        found = generate(
            model.model,
            ids,
            attention,
            max_new_tokens=decoding.max_new_tokens,
            eos_id=end_ids(model.tokenizer, model.model),
            generator=_generator(model.model.device, decoding.seed, rows.start),
            temperature=decoding.temperature,
            greedy=mode == "greedy",
        )
        read = Reading.by(model.tokenizer)(found.response, found.mask, found.finished)
        texts = decode_responses(model.tokenizer, *read)
        return [
            {
                "prompt": prompts[rows.start + i],
                "response": texts[i],
                "stop_reason": "eos" if ended else "length",
                "logp": float(found.logp[i].sum()),
                "tokens": found.response[i][found.mask[i]].tolist(),
            }
            for i, ended in enumerate(found.finished.tolist())
        ]

    path = folder / f"{_file_name(model.name)}-{mode}-{key}.jsonl"
    return keep_rows(path, len(prompts), decoding.batch, make), key


def require_comparable(reference: Answering, model: Answering) -> None:
    """`InputError` unless the reference knows every token that the model can write."""
    if reference.vocabulary != model.vocabulary:
        raise InputError(
            f"KL of {model.name} to {reference.name} is undefined: their tokenizers differ; drop "
            "--reference, or compare models of one family"
        )
    rows = [x.config.get_text_config(decoder=True).vocab_size for x in (model, reference)]
    if rows[1] < rows[0]:
        raise InputError(
            f"KL of {model.name} to {reference.name} is undefined: the embedding of "
            f"{model.name} has {rows[0]} rows, that of {reference.name} {rows[1]}, so that it "
            f"could write ids which the reference cannot read; drop --reference, or save the "
            f"reference with as many rows: model.resize_token_embeddings({rows[0]})"
        )


@torch.no_grad()
def reference_logp(
    reference: Answering, model: Answering, rows: Sequence[Row], key: str, batch: int, folder: Path
) -> list[float]:
    """Log π_ref of each answer; the two models are comparable."""
    if reference is model:
        return [row["logp"] for row in rows]

    def make(part: slice) -> list[Row]:
        tokens = token_rows(reference.tokenizer, rows[part]).to(reference.model.device)
        logp = response_logp(reference.model, tokens)
        sums = (logp * tokens.response_mask).sum(1)
        return [{"reference_logp": float(value)} for value in sums]

    name = f"{_file_name(model.name)}-{digest(reference.state, key)}.jsonl"
    found = keep_rows(folder / name, len(rows), batch, make)
    return [row["reference_logp"] for row in found]


def token_rows(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> TokenRows:
    """Prompts and answers as the model that gave them met them."""
    ids, attention = encode_prompts(tokenizer, [row["prompt"] for row in rows], 2**62)
    answers = pad([row["tokens"] for row in rows], tokenizer.pad_token_id, left=False)
    return join(ids, attention, *answers)


def read_rows(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> TokenRows:
    """The same as scores read them."""
    found = token_rows(tokenizer, rows)
    ended = torch.tensor([row["stop_reason"] == "eos" for row in rows])
    read = Reading.by(tokenizer)(found.response_ids, found.response_mask, ended)
    width = found.prompt_width
    return join(found.ids[:, :width], found.attention[:, :width], *read)


def _generator(device: torch.device, seed: int, start: int) -> torch.Generator:
    """One stream per batch, so that a batch is the same whether or not those before it ran."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + start)


def _file_name(name: str) -> str:
    return name.replace("/", "_")
