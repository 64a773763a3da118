"""Score models on disk: ours, the released Beaver checkpoints', and sequence classifiers'.

    crl              score_head.safetensors beside the trunk        ScoreModel.save_pretrained
    beaver           {trunk}.*, score_head.{weight,bias}, normalizer.{mean,var,count}
                     LlamaForScore, GPT2ForScore, … (PKU-Alignment/safe-rlhf)
    classification   {trunk}.*, score.weight or classifier.weight, a bias or none
                     AutoModelForSequenceClassification, num_labels ≥ 1

What a Beaver config says of direction is not believed: the released v1.0 cost model calls itself
`score_type: "reward"`. Its legacy key `bias` is ignored; whether the head has one is `score_bias`,
or else whether the tensor is there. Scores of a classifier are its logits.
Absent: encoders (a score is read at the last token, so the trunk must read from left to right),
quantised weights, downloads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from constrained_rl.errors import InputError
from llm_env.score_files import load_backbone, read_json, read_tensors, tensor_places
from llm_env.score_normalizer import KINDS, NormalizerKind, ScoreNormalizer
from llm_env.score_rows import NOTE, Format, ReadAs, noted
from llm_env.scoring import HEAD_FILE, ScoreModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Role: TypeAlias = Literal["reward", "cost"]
BEAVER_HEAD = "score_head.weight"
CLASSIFIER_HEADS = ("score.weight", "classifier.weight")
STATISTICS = ("mean", "var", "count")
SHARD = "5GB"
"""largest file that is written"""


def detect_format(directory: str | Path) -> Format:
    """Which of the three formats a folder holds, by its files.

    Raises:
        InputError: none of them; the message lists what was found.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise InputError(f"score model folder {folder} does not exist; give one with config.json")
    if (folder / HEAD_FILE).is_file():
        return "crl"
    places = tensor_places(folder)
    if BEAVER_HEAD in places:
        return "beaver"
    if any(name in places for name in CLASSIFIER_HEADS):
        return "classification"
    files = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    heads = [name for name in places if name.count(".") <= 1]
    tensors = f"{len(places)} tensors" + (f" (of heads: {', '.join(heads[:5])})" if heads else "")
    raise InputError(
        f"{folder} is no score model. Found the files {files} with {tensors}; expected "
        f"{HEAD_FILE} (crl), a tensor {BEAVER_HEAD} (beaver), or {' or '.join(CLASSIFIER_HEADS)} "
        "(classification)"
    )


def folder_read_as(directory: str | Path, form: Format) -> ReadAs | None:
    """What decides how a model on disk reads; None: one of ours, written before folders noted it.

    Raises:
        InputError: the folder notes something unknown.
    """
    return noted(read_json(Path(directory) / "config.json")) if form == "crl" else ReadAs(form)


def load_score_model(
    directory: str | Path,
    form: Format | Literal["auto"] = "auto",
    dtype: torch.dtype | None = None,
    role: Role | None = None,
) -> ScoreModel:
    """Load a score model on the CPU.

    Args:
        directory: its folder.
        form: its format; default: what its files say.
        dtype: of the trunk; default: as saved. The head is float32.
        role: what it is used as; decides how statistics are applied where the config asks for it
            (a cost keeps its zero), in place of the config's `score_type`.

    Raises:
        InputError: a file is missing or damaged, or head, trunk and config do not fit.
    """
    folder = Path(directory)
    found = detect_format(folder) if form == "auto" else form
    if found == "crl":
        return ScoreModel.from_pretrained(folder, dtype)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is no score model: config.json is missing")
    places = tensor_places(folder)
    if found == "beaver":
        return _load_beaver(folder, places, dtype, role)
    return _load_classifier(folder, places, dtype)


def save_beaver(
    model: ScoreModel,
    directory: str | Path,
    score_type: Literal["reward", "cost", "critic"],
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_shard_size: str = SHARD,
) -> None:
    """Write a score model as the released Beaver models are: keys, config fields, shards.

    All weights take the trunk's precision where that loses nothing. What was loaded from this
    format comes out with the same tensors.
    """
    from huggingface_hub import save_torch_state_dict

    if model.kind is not None and score_type not in (model.kind, "critic"):
        raise InputError(
            f"the model was trained as a {model.kind}, but score_type is {score_type!r}; say "
            f"score_type={model.kind!r}"
        )
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    prefix = model.backbone.base_model_prefix
    state = {f"{prefix}.{k}": v for k, v in model.backbone.state_dict().items()}
    precision = model.backbone.dtype
    head = {f"score_head.{k}": v for k, v in model.head.state_dict().items()}
    state |= {name: _shortened(value, precision) for name, value in head.items()}
    normalizer = model.normalizer or _unused(score_type, model.heads)
    state |= {f"normalizer.{k}": v for k, v in normalizer.state_dict().items()}
    save_torch_state_dict(
        {name: value.detach().cpu().contiguous() for name, value in state.items()},
        folder,
        max_shard_size=max_shard_size,
        metadata={"format": "pt"},
    )
    config = _beaver_config(model, normalizer, score_type)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _load_beaver(
    folder: Path, places: Mapping[str, Path], dtype: torch.dtype | None, role: Role | None
) -> ScoreModel:
    """A released Beaver checkpoint, or one that its trainer wrote."""
    config = read_json(folder / "config.json")
    wanted = [BEAVER_HEAD]
    if config.get("score_bias", "score_head.bias" in places):
        wanted.append("score_head.bias")
    statistics = [f"normalizer.{name}" for name in STATISTICS]
    wanted += [name for name in statistics if name in places]
    tensors = _require(folder, places, wanted)
    weight, bias = tensors[BEAVER_HEAD], tensors.get("score_head.bias")
    if "score_dim" in config and config["score_dim"] != len(weight):
        raise InputError(
            f"{folder}: config.json says score_dim = {config['score_dim']}, but {BEAVER_HEAD} has "
            f"{len(weight)} rows; head and config belong to different models"
        )
    model = ScoreModel(
        load_backbone(folder, dtype),
        len(weight),
        bias=bias is not None,
        normalizer=_normalizer(folder, config, tensors, role),
    )
    model.kind = "cost" if config.get("score_type") == "cost" else None  # see score_kinds.py
    model.load_head(weight, bias, str(folder))
    model.read_as = ReadAs("beaver")
    return model


def _normalizer(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], role: Role | None
) -> ScoreNormalizer | None:
    """Statistics from the tensors, or else from the config; None where neither has any."""
    heads = len(tensors[BEAVER_HEAD])
    active = bool(config.get("do_normalize", False))
    called = str(config.get("score_type", ""))
    if active and role is None and called not in KINDS:
        raise InputError(
            f"{folder}: config.json asks for normalized scores, but score_type is {called!r}, "
            f"expected one of {', '.join(KINDS)}; pass role='reward' or role='cost'"
        )
    kind: NormalizerKind = KINDS[role or called] if (role or called in KINDS) else "identity"
    found = [tensors.get(f"normalizer.{name}") for name in STATISTICS]
    mean, var, count = found
    if mean is None and config.get("mean") is not None:
        mean = torch.tensor(config["mean"], dtype=torch.float32)
    if var is None and config.get("var") is not None:
        var = torch.tensor(config["var"], dtype=torch.float32)
    if mean is None or var is None:
        if active:
            raise InputError(
                f"{folder}: config.json says do_normalize, but neither it nor the weights hold "
                "mean and var; set do_normalize to false to read the scores as they are"
            )
        return None
    for name, value in (("mean", mean), ("var", var)):
        if value.shape != (heads,):
            raise InputError(
                f"{folder}: normalizer.{name} has shape {tuple(value.shape)}, expected one number "
                f"for each of {heads} scores"
            )
    count = torch.ones(1, dtype=torch.long) if count is None else count
    return ScoreNormalizer(kind, active, mean, var, count)


def _load_classifier(
    folder: Path, places: Mapping[str, Path], dtype: torch.dtype | None
) -> ScoreModel:
    """A sequence classifier of a decoder: its logits at the last token."""
    name = next((name for name in CLASSIFIER_HEADS if name in places), CLASSIFIER_HEADS[0])
    constant = name.replace("weight", "bias")
    tensors = _require(folder, places, [name, *([constant] if constant in places else [])])
    weight, bias = tensors[name], tensors.get(constant)
    labels = read_json(folder / "config.json").get("id2label") or {}
    named = [str(label) for _, label in sorted(labels.items(), key=lambda item: int(item[0]))]
    if named and len(named) != len(weight):
        raise InputError(
            f"{folder}: config.json names {len(named)} labels, but {name} has {len(weight)} rows; "
            "head and config belong to different models"
        )
    told = bool(named) and not all(label.startswith("LABEL_") for label in named)
    backbone = load_backbone(folder, dtype)
    _require_causal(backbone, folder)
    model = ScoreModel(backbone, named if told else len(weight), bias=bias is not None)
    model.load_head(weight, bias, str(folder))
    model.read_as = ReadAs("classification")
    return model


def _require(folder: Path, places: Mapping[str, Path], names: list[str]) -> dict[str, Tensor]:
    """Tensors that must be there."""
    lost = [name for name in names if name not in places]
    if lost:
        raise InputError(
            f"{folder} has no tensor {' and no '.join(lost)} among its {len(places)}; it is of "
            'another format (`format = "auto"` finds out), or its config.json is another model\'s'
        )
    return read_tensors(places, names)


@torch.no_grad()
def _require_causal(backbone: PreTrainedModel, folder: Path) -> None:
    """Refuse encoders: there the first token sees the last, and the class is read elsewhere."""
    ids = torch.tensor([[3, 4, 5, 6], [3, 4, 5, 7]], device=backbone.device)
    first = backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    if not torch.allclose(first[0], first[1], atol=1e-3, rtol=1e-3):
        raise InputError(
            f"{folder} holds an encoder ({type(backbone).__name__} reads both ways); a score is "
            "read at the last token, which needs a decoder. Let a service of yours answer with its "
            "scores (url = …; score_service.py says how), or pass them as a function on texts"
        )


def _beaver_config(
    model: ScoreModel, normalizer: ScoreNormalizer, score_type: str
) -> dict[str, object]:
    """The trunk's config and the fields that the format adds."""
    trunk = json.loads(model.backbone.config.to_json_string(use_diff=False))
    trunk.pop(NOTE, None)  # the format says it
    trunk.setdefault("normalizer_type", None)
    trunk.setdefault("momentum", None)
    return {
        **trunk,
        "architectures": [type(model.backbone).__name__.removesuffix("Model") + "ForScore"],
        "score_dim": model.heads,
        "score_bias": model.head.bias is not None,
        "score_type": score_type,
        "do_normalize": normalizer.active,
        "mean": normalizer.mean.tolist(),
        "var": normalizer.var.tolist(),
    }


def _unused(score_type: str, heads: int) -> ScoreNormalizer:
    """Statistics of a model that has none: they change nothing and count nothing."""
    mean, var = torch.zeros(heads), torch.ones(heads)
    return ScoreNormalizer(KINDS[score_type], False, mean, var, torch.zeros(1, dtype=torch.long))


def _shortened(value: Tensor, dtype: torch.dtype) -> Tensor:
    """In another precision, where that loses nothing."""
    short = value.to(dtype)
    return short if torch.equal(short.to(value.dtype), value) else value
