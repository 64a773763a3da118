"""Which date do chat templates write that write one, as those of Llama 3.2, Mistral and Granite do?

A prompt that is another text every day makes another run of one that is resumed, and another number
of one score. So a model keeps one date: the day on which its template was first used here, which is
said, kept with its tokenizer, also on disk, and written into the config of a run that begins.
Templates read the clock by `strftime_now("…")` alone, also for a `date_string`; each such call is
replaced by what it gives on that day. One whose format is not written out cannot be, which is said.
"""

from __future__ import annotations

import datetime
import re
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from constrained_rl.errors import Notice
from constrained_rl.settings import read_toml
from llm_env.score_files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Config = TypeVar("Config", bound=BaseModel)
CLOCK = "strftime_now"
CALL = re.compile(CLOCK + r"""\(\s*(?:format\s*=\s*)?(["'])(.*?)\1\s*\)""")
KEY = "template_date"
"""of a tokenizer's settings and of a model's section in a config"""


class DateNotice(Notice):
    """A chat template writes a date."""


def fix_date(
    tokenizer: PreTrainedTokenizerBase, folder: str | Path, day: datetime.date | None = None
) -> None:
    """Give a template that reads the clock one date for good, and say so where it is new.

    Args:
        tokenizer: of a model that was just read.
        folder: where from.
        day: what a config says; default: what the folder says, or else today.
    """
    template = str(tokenizer.chat_template)
    if CLOCK not in template or tokenizer.init_kwargs.get("prompt_format") in ("plain", "beaver"):
        return
    told: str | None = tokenizer.init_kwargs.get(KEY)
    chosen = told or today().isoformat() if day is None else day.isoformat()
    tokenizer.init_kwargs[KEY] = chosen  # what save_pretrained writes
    if f"{CLOCK}(" in _with_date(template, chosen):
        warnings.warn(
            f"the chat template of {folder} reads the clock ({CLOCK}) in a format that it "
            "computes: prompts are others on another day, in a run that is resumed too; write the "
            "date into the template",
            DateNotice,
            stacklevel=3,
        )
    elif told != chosen:
        warnings.warn(
            f"the chat template of {folder} writes the date ({CLOCK}); its prompts say {chosen} on "
            "every day, when a run is resumed and in the folders that it leaves too. Another one: "
            f"{KEY} = {chosen}",
            DateNotice,
            stacklevel=3,
        )


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """A tokenizer's chat template, with the date that is kept with it, if there is one."""
    return _with_date(tokenizer.get_chat_template(), tokenizer.init_kwargs.get(KEY))


@cache
def _with_date(template: str, day: str | None) -> str:
    """A template whose calls for the date are what they give on a day; None: by the clock."""
    if day is None:
        return template
    written = datetime.datetime.fromisoformat(day).strftime
    return CALL.sub(lambda call: repr(written(call[2])), template)


def dated(config: Config, day: datetime.date) -> Config:
    """The config with this date for every model whose template reads the clock and has none yet."""
    found = {name: _dated(value, day) for name, value in config}
    if KEY in found and found[KEY] is None:
        places = [found.get(name) for name in ("path", "score_model", "tokenizer")]
        if any(_reads_clock(Path(place)) for place in places if isinstance(place, str)):
            found[KEY] = day
    changed = {name: value for name, value in found.items() if value is not dict(config)[name]}
    return config.model_copy(update=changed) if changed else config


def day_of(folder: Path) -> datetime.date:
    """The day that the config in a folder gives to a model of its; today where it gives none."""
    path = folder / "config.toml"
    told = _first_day(read_toml(path)) if path.is_file() else None
    return today() if told is None else datetime.date.fromisoformat(told)


def today() -> datetime.date:
    """The day by the machine's clock."""
    return datetime.datetime.now().date()


def _dated(value: Any, day: datetime.date) -> Any:  # noqa: ANN401 — any value of a config
    if isinstance(value, BaseModel):
        return dated(value, day)
    if isinstance(value, dict):
        found = {key: _dated(part, day) for key, part in value.items()}
        return found if any(found[key] is not value[key] for key in value) else value
    return value


def _first_day(tree: Mapping[str, Any]) -> str | None:
    days = [_first_day(part) for part in tree.values() if isinstance(part, Mapping)]
    return next((day for day in (tree.get(KEY), *days) if day is not None), None)


def _reads_clock(folder: Path) -> bool:
    """Whether a folder's template asks for the date, and nothing in it says which."""
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and KEY in read_json(settings):
        return False
    files = [path for path in folder.glob("*") if path.name.startswith("chat_template.")]
    texts = [path.read_text(encoding="utf-8") for path in (settings, *files) if path.is_file()]
    return any(CLOCK in text for text in texts)
