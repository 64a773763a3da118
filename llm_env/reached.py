"""Which weights does text reach?

A model that was published with an image encoder holds weights that no text comes to. They would
cost optimizer states and gradients of zero, and end a job of several ranks, which waits for the
gradient of every weight that learns. They are frozen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from llm_env.policy import context_length, forward_parameters, position_argument
from llm_env.tokens import position_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel


LENGTH = 256
"""tokens of the text that is tried"""


def freeze_unreached(model: PreTrainedModel) -> None:
    """Freeze those of a model's trainable weights that a forward of text does not use.

    The model is a causal LM or the trunk of one. Nothing is differentiated: the graph of one
    forward tells which weights are in it. Its text is as long as `LENGTH`: there are layers that
    sum up so many tokens before they do anything (DeepSeek-V4).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained or model.device.type == "meta":  # a plan's outline cannot be run
        return
    length = min(LENGTH, context_length(model.config) or LENGTH)
    ids = 1 + torch.arange(length, device=model.device).unsqueeze(0) % 3
    attention = torch.ones_like(ids, dtype=torch.bool)
    accepted = forward_parameters(model)
    arguments = position_argument(accepted, position_ids(attention))
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = 1

    def output() -> Tensor:  # logits, or a trunk's hidden states
        found = model(input_ids=ids, attention_mask=attention, use_cache=False, **arguments)
        tensor: Tensor = found[0]
        return tensor

    with torch.enable_grad():
        nodes = _behind(output())
    for parameter in trained:
        parameter.requires_grad_(get_gradient_edge(parameter).node in nodes)
    # what some families keep of their last forward (RecurrentGemma) has no graph then
    with torch.no_grad():
        output()


def _behind(tensor: Tensor) -> set[Node]:
    """All nodes of the graph that made a tensor."""
    found: set[Node] = set()
    waiting = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return found
