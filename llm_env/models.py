"""Which causal language model, and how it is held: weights, precision, attention, adapters.

What a folder lacks is said before its weights are read. A loaded model is in eval mode, proven
causal and blind to padding. Absent: downloads (a path is a folder), quantisation, code that a
folder brings along.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from constrained_rl.errors import InputError
from constrained_rl.sections import Count, Positive, Section
from llm_env.origins import SCORE_HEAD, format_of_before
from llm_env.probe import probe
from llm_env.prompts import PromptFormat, prompt_format, says_format, set_prompt_format
from llm_env.reached import freeze_unreached
from llm_env.recompute import recompute_activations
from llm_env.response_ends import keep_end_ids
from llm_env.score_files import damaged, load_whole, quiet_transformers, read_json, tensor_places
from llm_env.template_dates import fix_date
from llm_env.tokens import check_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""one of them is in nearly every model's folder"""
DType = Literal["float32", "bfloat16", "float16"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]


class LoRAConfig(Section):
    """Low-rank adapters on a frozen model (Hu et al. 2022)."""

    rank: Count = 16
    """rank of the update"""
    alpha: Positive = 32.0
    """the update is scaled by alpha / rank"""
    targets: str | tuple[str, ...] = "all-linear"
    """names of the linear layers that get one, a regular expression of their full names, or
    "all-linear". Fused experts and routers of mixture-of-experts models keep their weights"""


class ModelSource(Section):
    """A causal language model on disk."""

    path: str
    """folder that `save_pretrained` wrote: weights, config, tokenizer"""
    dtype: DType = "float32"
    """precision of the weights"""
    attention: Attention = "auto"
    """attention implementation; auto: the fastest that transformers has for the family"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, a third more time"""
    prompt_format: PromptFormat | None = None
    """how prompts become text. template: all by the chat template; plain: strings as they are;
    beaver: as the Safe RLHF models were trained (BEGINNING OF CONVERSATION: USER: … ASSISTANT:);
    auto: as the folder says, else strings as they are and turns by the chat template. Default: as
    the folder says, else template where there is one"""
    template_date: date | None = None
    """the day that a chat template which writes the date is given; default: as the folder says,
    else that on which the run began"""
    eos_token: str | None = None
    """token that ends a response, as "<end_of_turn>" of chat models; default: the tokenizer's. What
    generation_config.json lists ends one too, and what is trained is saved with all of them"""
    lora: LoRAConfig | None = None
    """train adapters and keep the weights; the KL reference is the adapter switched off"""


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer in the model's folder, as its prompts and responses need it.

    Raises:
        InputError: there is none, responses cannot end, or it knows more tokens than the model.
    """
    from transformers import AutoTokenizer

    config = read_config(source)
    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                source.path, local_files_only=True, trust_remote_code=False
            )
    # whatever a tokenizer's own code makes of a damaged file; tokenizers raises Exception itself
    except Exception as error:
        folder = Path(source.path)
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise InputError(
                f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); copy it from "
                "where the model came from, or save it there: tokenizer.save_pretrained(folder)"
            ) from error
        raise damaged(folder, f"no tokenizer can be read: {error}") from error
    if source.eos_token is not None:
        _set_eos(tokenizer, source.eos_token)
    check_tokenizer(tokenizer)
    keep_end_ids(tokenizer, Path(source.path), config)
    _require_rows(tokenizer, config, source.path)
    form = source.prompt_format
    if form not in (None, "auto") or not says_format(tokenizer):
        # said from here on, also in every folder that this tokenizer is saved to
        set_prompt_format(
            tokenizer, form or format_of_before(source.path) or prompt_format(tokenizer)
        )
    fix_date(tokenizer, source.path, source.template_date)
    return tokenizer


def load_causal_lm(source: ModelSource, device: torch.device) -> PreTrainedModel:
    """The model, in eval mode on `device`.

    Raises:
        InputError: the folder holds no decoder-only model or a damaged one, or the settings do not
            fit the model, the device or what is installed.
    """
    from transformers import AutoModelForCausalLM

    read_config(source)
    _check_settings(source, device)
    options = {} if source.attention == "auto" else {"attn_implementation": source.attention}
    model = load_whole(
        AutoModelForCausalLM, Path(source.path), dtype=getattr(torch, source.dtype), **options
    )
    model = model.to(device).eval()
    probe(model, source.path)
    freeze_unreached(model)
    if source.gradient_checkpointing:
        recompute_activations(model)
    return model


def outline(source: ModelSource) -> PreTrainedModel:
    """The model's layers by their names, from config.json alone: no weights, no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), quiet_transformers():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(read_config(source))
    return model


def check_weights(source: ModelSource) -> None:
    """`InputError` unless a language model's weights are all there; only file headers are read.

    For what is loaded late: hours of other work may come before it.
    """
    read_config(source)
    folder = Path(source.path)
    names = tensor_places(folder)
    if not names:
        raise InputError(
            f"{folder} has no weights: expected model.safetensors, or shards with their index; "
            "copy or download it again"
        )
    heads = [name for name in names if name.startswith(("score_head.", "score."))]
    if heads or (folder / SCORE_HEAD).is_file():
        raise InputError(
            f"{folder} holds a score model, which cannot write; give the language model that "
            "answers, and score models as a reward or cost"
        )


def read_config(source: ModelSource) -> PreTrainedConfig:
    """The model's config.json, without its weights; `InputError` unless it is a decoder's."""
    import transformers
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    folder = Path(source.path)
    if not folder.is_dir():
        raise InputError(f"model folder {folder} does not exist; give one that holds config.json")
    if not (folder / "config.json").is_file():
        hint = "give a folder that save_pretrained wrote"
        if (folder / "adapter_config.json").is_file():
            hint = "it is an adapter; merge it into its model and save that"
        raise InputError(f"{folder} is no model: config.json is missing; {hint}")
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in CONFIG_MAPPING_NAMES:
        raise InputError(
            f"{folder}/config.json has model_type {kind!r}, which transformers "
            f"{transformers.__version__} does not know; restore the file, or install a version "
            "that does: pip install --upgrade transformers"
        )
    try:
        with quiet_transformers():
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, f"config.json of model_type {kind!r}: {error}") from error
    if config.is_encoder_decoder or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(
            f"{folder} holds a model of type {kind!r}, which is no decoder-only language model; "
            "give one that AutoModelForCausalLM loads, as Llama, Qwen or Gemma"
        )
    return config


def _check_settings(source: ModelSource, device: torch.device) -> None:
    """Refuse what the device or the installation cannot do."""
    from transformers.utils import is_flash_attn_2_available

    if source.dtype == "float16" and device.type == "cpu":
        raise InputError(
            "dtype is float16 on the CPU, where it is slower than float32 and small gradients "
            "become 0; use dtype=bfloat16 for the same memory, or dtype=float32"
        )
    if source.attention != "flash_attention_2":
        return
    if device.type != "cuda" or source.dtype == "float32":
        raise InputError(
            f"attention is flash_attention_2, which needs a GPU and bfloat16 or float16, found "
            f"{device.type} and {source.dtype}; use attention=sdpa"
        )
    if not is_flash_attn_2_available():
        raise InputError(
            "attention is flash_attention_2, but the package flash-attn is not installed; install "
            "it with: pip install flash-attn --no-build-isolation, or use attention=sdpa"
        )


def _set_eos(tokenizer: PreTrainedTokenizerBase, token: str) -> None:
    """Make `token` end responses; `InputError` unless the tokenizer knows it."""
    if token not in tokenizer.get_vocab():
        raise InputError(
            f"eos_token is {token!r}, which is no token of the tokenizer; its own is "
            f"{tokenizer.eos_token!r}"
        )
    tokenizer.eos_token = token


def _require_rows(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, folder: str
) -> None:
    """`InputError` if the tokenizer can write an id that the model's embedding has no row for."""
    rows = config.get_text_config(decoder=True).vocab_size
    vocabulary = tokenizer.get_vocab()
    token, largest = max(vocabulary.items(), key=lambda item: item[1])
    if largest >= rows:
        raise InputError(
            f"the tokenizer in {folder} writes ids up to {largest} ({token!r}), but the model's "
            f"embedding has {rows} rows (ids 0 … {rows - 1}); save the tokenizer that belongs to "
            f"the model, or resize its embedding: model.resize_token_embeddings({largest + 1})"
        )
