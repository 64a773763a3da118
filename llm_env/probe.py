"""Is a model what training and decoding take it for? Asked of a few tokens when it is loaded.

Causal, blind to padding on the left, and decoded token by token with the log-probabilities of a
forward of the whole. Absent: what longer texts would show, as an error in a sliding window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from constrained_rl.errors import InputError, NonFiniteError, short
from llm_env.generation import generate
from llm_env.policy import forward_parameters, position_argument, response_logp
from llm_env.tokens import join, position_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def probe(model: PreTrainedModel, folder: str) -> None:
    """`InputError` unless the model is what training and decoding take it for.

    One forward of [1, 2, 3], [1, 2, 0] and [padding, 1, 2]: the first two share their prediction
    after (1, 2), and the third makes it one place to the right. Then two tokens are decoded after
    two of these prompts: their log-probabilities are those of a forward of the whole.
    """
    cause: Exception | None = None
    try:
        wrong = _faults(model, folder)
    except (InputError, NonFiniteError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a family's own code makes of a cache or a mask
        cause = error
        wrong = [f"reading and decoding raise {type(error).__name__}: {short(str(error))}"]
    if wrong:
        raise InputError(
            f"{folder} holds a {type(model).__name__}, in which {' and '.join(wrong)}; expected a "
            "decoder-only transformer, as Llama, Qwen or Gemma"
        ) from cause


def _faults(model: PreTrainedModel, folder: str) -> list[str]:
    """What the probe finds wrong, in words."""
    ids = torch.tensor([[1, 2, 3], [1, 2, 0], [0, 1, 2]], device=model.device)
    attention = torch.ones_like(ids, dtype=torch.bool)
    attention[2, 0] = False
    positions = position_argument(forward_parameters(model), position_ids(attention))
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False, **positions).logits
    logp = logits.float().log_softmax(-1)
    if not bool(logp.isfinite().all()):
        raise InputError(
            f"the predictions of the model in {folder} are no finite numbers in {model.dtype}; its "
            "weights are damaged, or need dtype=float32 or bfloat16"
        )
    whole, seen = logp[0, 1], _distance(logp[0, 2], logp[1, 2])
    rounding = 4 * torch.finfo(model.dtype).eps * float(logits.abs().max())
    wrong = []
    if _distance(logp[1, 1], whole) > 0.001 * seen + rounding:
        wrong.append("a later token moves an earlier prediction")
    if _distance(logp[2, 2], whole) > 0.05 * seen + rounding:
        wrong.append("padding on the left moves a prediction")
    if not wrong and not _decodes(model, ids[1:], attention[1:]):
        wrong.append("decoding token by token differs from reading the whole")
    return wrong


def _decodes(model: PreTrainedModel, ids: Tensor, attention: Tensor) -> bool:
    """Whether decoded tokens have the log-probabilities that a forward gives them."""
    found = generate(
        model,
        ids,
        attention,
        max_new_tokens=2,
        eos_id=-1,
        generator=torch.Generator(),
        greedy=True,
    )
    rows = join(ids, attention, found.response, found.mask)
    rounding = 0.001 if torch.finfo(model.dtype).bits >= 32 else 0.25
    return _distance(response_logp(model, rows), found.logp) <= rounding


def _distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())
