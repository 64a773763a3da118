"""A supervised fit on disk: start, resume, finish.

    provenance.json  config.toml  data.json  metrics.jsonl  accuracy.json  model/

`model/` is what transformers (`crl llm sft`) or `ScoreModel.from_pretrained` (`crl llm score`)
loads, with its tokenizer; it is written last, so a folder with it is finished. Until then `.model/`
holds the fit's checkpoints. Absent: several ranks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

import torch

from constrained_rl.checkpoint import write_text
from constrained_rl.devices import choose_device, device_here
from constrained_rl.errors import InputError
from constrained_rl.provenance import write_provenance
from constrained_rl.run import refuse_used
from constrained_rl.settings import read_toml, require_run, to_toml, validate
from llm_env.fitting.config import ScoreRunConfig, SFTRunConfig
from llm_env.fitting.progress import fit_progress, plain_dropped
from llm_env.fitting.score import prepare_score
from llm_env.fitting.sft import prepare_sft
from llm_env.fitting.work import Work
from llm_env.stages import FIT, stage
from llm_env.template_dates import dated, today

AnyConfig: TypeAlias = SFTRunConfig | ScoreRunConfig
CONFIGS: dict[str, type[SFTRunConfig] | type[ScoreRunConfig]] = {
    "sft": SFTRunConfig,
    "score": ScoreRunConfig,
}


def start(config: AnyConfig, folder: Path) -> Path:
    """Create a folder, fit in it to the end, and return it."""
    refuse_used(folder)
    config = dated(config, today())
    with plain_dropped():
        work = prepare(config)  # whatever is wrong with data and model shows before a folder exists
    folder.mkdir(parents=True, exist_ok=True)
    write_provenance(folder)
    write_text(folder / "data.json", json.dumps(work.about, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "config.toml", to_toml(config))
    finish(work, config, folder)
    return folder


def resume(folder: Path) -> bool:
    """Continue a fit from its last checkpoint; False when it was finished already."""
    require_run(folder)
    path = folder / "config.toml"
    tree = read_toml(path)
    if (folder / "model").is_dir():
        return False
    if tree.get("task") not in CONFIGS:
        raise InputError(f"{path}: task is {tree.get('task')!r}, expected sft or score; restore it")
    config = validate(CONFIGS[tree["task"]], tree, str(path))
    config = config.model_copy(update={"device": device_here(config.device)})
    with plain_dropped():
        work = prepare(config)
    finish(work, config, folder)
    return True


def prepare(config: AnyConfig) -> Work:
    """Data, tokenizer and model, checked in this order."""
    torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    match config:
        case SFTRunConfig():
            return prepare_sft(config, device)
        case ScoreRunConfig():
            return prepare_score(config, device)


def finish(work: Work, config: AnyConfig, folder: Path) -> None:
    """Fit from wherever the folder stands, measure, and write the model."""
    generator = torch.Generator().manual_seed(config.seed)
    with plain_dropped(), stage(folder / "model") as hidden:
        with fit_progress(folder / "metrics.jsonl", work.title) as progress:
            work.train(generator, progress, hidden / FIT)
        found = work.measure()
        if found is not None:
            write_text(folder / "accuracy.json", json.dumps(found, indent=2) + "\n")
        work.save(hidden)
