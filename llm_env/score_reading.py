"""How a score model on disk reads a prompt and a response: its own tokens, prompt format and end.

    prompt in the model's own format, response, its end        scored at the last token

Rows are those of its training (score_rows.py). To one of our models, a policy with the same tokens
hands over the response's ids as they were generated; any other response is decoded and tokenized
anew. Prompts are always rendered in the model's own format from what was handed in. Every response
is read with the end that the model was trained to see, whether or not the policy produced it, and
without control tokens that were sampled in its middle, so that both ways, judges and a scoring
service agree.
Absent: scores of every token; statistics of scores (score_normalizer.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn

from constrained_rl.errors import InputError
from llm_env.origins import format_of_before
from llm_env.prompts import Prompt, says_format, set_prompt_format
from llm_env.score_rows import Rows
from llm_env.scoring import ScoreModel
from llm_env.template_dates import fix_date
from llm_env.tokens import TokenRows, pad

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TooLong: TypeAlias = Literal["error", "cut_prompt"]


@dataclass(frozen=True)
class Reader:
    """A score model, and how texts become what it was trained on."""

    model: ScoreModel
    rows: Rows
    batch_size: int
    device: torch.device  # where it scores; the weights may live elsewhere in between
    too_long: TooLong = "error"
    name: str = "score model"

    def texts(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """Scores [B, S] of texts."""
        return self._score(self.rows.pairs(prompts, responses))

    def tokens(self, prompts: Sequence[Prompt], rows: TokenRows) -> Tensor:
        """Scores [B, S] of generated rows whose ids are this model's own."""
        ids, mask = rows.response_ids.cpu(), rows.response_mask.cpu().bool()
        answers = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
        return self._score(self.rows.generated(prompts, answers))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own, in its prompt format."""
        return self.rows.tokenizer

    @property
    def end(self) -> tuple[int, ...]:
        """Tokens behind every response; () where a whole text has its end in it."""
        return self.rows.end

    def shares_tokens(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether a policy's response ids can be read as they are."""
        return not self.rows.whole and same_tokens(tokenizer, self.tokenizer)

    def readable(self, texts: Sequence[str]) -> float:
        """Share of the words of texts that survive tokenization: 0 … 1."""
        kept = total = 0
        for text in texts:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            back = self.tokenizer.decode(ids, skip_special_tokens=True).casefold().split()
            words = text.casefold().split()
            total += len(words)
            kept += sum(word in back for word in words)
        return kept / max(total, 1)

    @torch.no_grad()
    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        """End scores [B, S] float32 on the CPU; batches hold similar lengths."""
        rows = [self._row(index, *pair) for index, pair in enumerate(pairs)]
        scores = torch.empty(len(rows), self.model.heads)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        with visiting(self.model, self.device):
            for start in range(0, len(rows), self.batch_size):
                index = order[start : start + self.batch_size]
                batch = pad([rows[i] for i in index], self.end_id, left=False)
                scores[index] = self.model.end_score(*batch).cpu()
        return scores

    @property
    def end_id(self) -> int:
        """A token to pad with: any will do, it is masked."""
        found: int = self.tokenizer.eos_token_id
        return found

    def _row(self, index: int, prompt: list[int], answer: list[int]) -> list[int]:
        """Ids of one row, within the context."""
        context, row = self.rows.context, [*prompt, *answer]
        if context is None or len(row) <= context:
            return row
        room = context - len(answer)
        if self.too_long == "cut_prompt" and room > 0:
            return [*prompt[-room:], *answer]
        raise InputError(
            f"{self.name} sees {context} tokens, but row {index} of this batch has {len(row)}: "
            f"{len(prompt)} of the prompt, {len(answer)} of the response and of its "
            'end. Shorten max_new_tokens or the prompts, or set too_long = "cut_prompt" to drop '
            "the beginning of such prompts"
        )


def same_tokens(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether ids of responses mean the same to both: one vocabulary, one end.

    Prompt formats may differ: prompts are rendered anew. Classes say nothing: two families share
    one class, and one family's releases add tokens.
    """
    if first.eos_token_id != second.eos_token_id:
        return False
    return dict(first.get_vocab()) == dict(second.get_vocab())


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer was saved in a folder."""
    return any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json"))


def load_tokenizer_of(folder: Path, day: date | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer in a score model's folder, with the format and the date of its prompts.

    Args:
        folder: where it is.
        day: what its template writes, if it writes the date; default: as the folder says, or today.

    Raises:
        InputError: there is none, it cannot be read, or it has no eos.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        raise InputError(
            f"score model {folder} has no tokenizer (tokenizer_config.json); save the one that it "
            "was trained with beside it: tokenizer.save_pretrained(that folder). If that is the "
            'policy\'s, say so: tokenizer = "policy"'
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
    except Exception as error:  # whatever the tokenizer's format raises
        raise InputError(
            f"the tokenizer in {folder} cannot be loaded ({type(error).__name__}: {error}); save "
            "it again with save_pretrained"
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer in {folder} has no end-of-sequence token; set the one that the score "
            "model was trained with and save it: tokenizer.eos_token = '</s>'"
        )
    fix_date(tokenizer, folder, day)
    if not says_format(tokenizer) and (before := format_of_before(folder)) is not None:
        set_prompt_format(tokenizer, before)
    return tokenizer


@contextmanager
def visiting(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Hold a module's weights on `device` for a while; they go home without being copied back."""
    weights = list(itertools.chain(module.parameters(), module.buffers()))
    home = [weight.data for weight in weights]
    try:
        for weight in weights:
            weight.data = weight.data.to(device, non_blocking=True)
        yield
    finally:
        for weight, data in zip(weights, home, strict=True):
            weight.data = data
