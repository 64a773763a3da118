"""Peak memory of training, measured and planned, for the ways to hold the six models of Safe RLHF.

Usage: `python benchmarks/memory.py`. Random Llamas of 58 M parameters are written to a temporary
folder; every case trains two iterations in a process of its own. Measured is the peak of resident
memory above what it was when all was imported and warm (Linux: VmHWM), and for tiny models, which
drown in that, the peak of live tensors. Planned is what `crl llm plan` says of the same config.
glibc gives freed blocks back at once here (MALLOC_MMAP_THRESHOLD_), as a GPU's allocator reuses
them; otherwise its fragments are measured too. Results go to results/memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from constrained_rl.assembly import choose_device
from constrained_rl.checkpoint import write_text
from constrained_rl.config import PPOConfig
from constrained_rl.engines import Optimization, TorchEngine
from constrained_rl.learner import Learner, ValueObjective
from constrained_rl.ppo import Parts, train
from constrained_rl.protocols import Metrics
from constrained_rl.provenance import provenance
from constrained_rl.rollout import Batch
from constrained_rl.settings import merge, validate
from llm_env.plan.ledger import Ledger
from llm_env.plan.plan import Machine, make_plan
from llm_env.scoring import ScoreModel, TokenCritic
from llm_env.training.build import build
from llm_env.training.config import TrainConfig
from llm_env.world.words import word_tokenizer

OUT = Path(__file__).parent / "results" / "memory.json"
