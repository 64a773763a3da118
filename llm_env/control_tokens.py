"""Texts in which control tokens are text: an answer that spells `</s>` ends nothing.

A tokenizer reads the six characters `</s>` as its end token, whoever wrote them. What a person or a
model said is therefore read by a copy of the tokenizer in which control tokens have names of one
private character: the ids are the same, and nothing that anybody writes spells them. Where only a
format may write control tokens, the format's are renamed with them and the others stay letters, so
the whole is still tokenized as one text, merges across the borders included.

Absent: added tokens that are no control tokens (`<think>` of some families): they are content,
which decoding keeps, and stay tokens.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

MARKS, NAMES = 0xF0000, 0x100000
"""private planes of Unicode: stand-ins for spelled control tokens, and names of the real ones"""


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Ids of the tokens that decoding leaves out, by what they look like."""
    if not tokenizer.is_fast:
        return dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    special = set(tokenizer.all_special_ids)
    return {
        token.content: index
        for index, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special or index in special
    }


def encode_said(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of what somebody said, without bos and eos: no id is that of a control token.

    Texts that spell none have the ids that the tokenizer itself gives them.
    """
    rows: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    control = set(control_tokens(tokenizer).values())
    for place, row in enumerate(rows):
        if not control.isdisjoint(row):
            rows[place] = _literal(tokenizer, texts[place])
    return rows


def decode_said(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of ids, control tokens left out, spaces as they were."""
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def without_end(ids: Sequence[int], ends: Set[int]) -> list[int]:
    """Ids up to the tokens at their end that only end them."""
    kept = len(ids)
    while kept and ids[kept - 1] in ends:
        kept -= 1
    return list(ids[:kept])


@dataclass(frozen=True)
class Marked:
    """A text in which stand-ins hold the places of spelled control tokens."""

    text: str
    spelled: Mapping[str, str]  # stand-in and what was spelled

    @property
    def plain(self) -> str:
        """The text itself."""
        return unmarked(self.text, self.spelled)


@dataclass(frozen=True)
class StandIns:
    """Finds the control tokens of one tokenizer in texts."""

    tokens: tuple[str, ...]
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> StandIns:
        """Those of a tokenizer."""
        tokens = tuple(control_tokens(tokenizer))
        return cls(tokens, _pattern(tokens))

    def spelled(self, said: Sequence[str]) -> dict[str, str]:
        """Control tokens that texts spell, by the character that can stand for each."""
        found = {token for text in said for token in self.pattern.findall(text)}
        return {
            chr(MARKS + place): token
            for place, token in enumerate(self.tokens if found else ())
            if token in found
        }


def marked(text: str, spelled: Mapping[str, str]) -> str:
    """A text with stand-ins where it spells control tokens, the longest first."""
    by_token = {token: mark for mark, token in spelled.items()}
    return _pattern(by_token).sub(lambda found: by_token[found[0]], text)


def unmarked(text: str, spelled: Mapping[str, str]) -> str:
    """A text with stand-ins as it was."""
    return text.translate({ord(mark): token for mark, token in spelled.items()})


def encode_marked(tokenizer: PreTrainedTokenizerBase, text: Marked) -> list[int]:
    """Token ids of one text in which marked control tokens are letters and the others tokens."""
    if not tokenizer.is_fast:
        return _in_pieces(tokenizer, text)
    renamed = _renamed(tokenizer)
    found = tokenizer(text.text, add_special_tokens=False, return_offsets_mapping=True)
    by_id = {index: token for token, index in control_tokens(tokenizer).items()}
    pieces, place = [], 0
    for index, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
        token, written = by_id.get(index), text.text[start:end]  # with spaces that it takes along
        # an unknown letter, too, has the id of a control token
        if token is not None and written.strip() == token:
            pieces += [text.text[place:start], written.replace(token, renamed.names[token])]
            place = end
    own = "".join([*pieces, text.text[place:]])
    return _plain_ids(renamed.tokenizer, unmarked(own, text.spelled))


def _literal(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    if not tokenizer.is_fast:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not set(tokenizer.all_special_ids).isdisjoint(ids):
            ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids
    return _plain_ids(_renamed(tokenizer).tokenizer, text)


def _plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _in_pieces(tokenizer: PreTrainedTokenizerBase, text: Marked) -> list[int]:
    """What a tokenizer written in Python can do: no merge crosses a spelled control token."""
    ids: list[int] = []
    for piece in re.split(f"([{''.join(text.spelled)}])", text.text):
        if piece in text.spelled:
            ids += _literal(tokenizer, text.spelled[piece])
        elif piece:
            ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids


@dataclass(frozen=True)
class _Renamed:
    """A tokenizer's copy in which control tokens have other names."""

    names: Mapping[str, str]  # private character of each control token
    tokenizer: Tokenizer


_copies: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, _Renamed] = weakref.WeakKeyDictionary()


def _renamed(tokenizer: PreTrainedTokenizerBase) -> _Renamed:
    """The copy of a tokenizer, made when it is first needed (a second for a large vocabulary)."""
    names = {token: chr(NAMES + place) for place, token in enumerate(control_tokens(tokenizer))}
    found = _copies.get(tokenizer)
    if found is None or found.names != names:
        found = _Renamed(names, _rename(tokenizer, names))
        _copies[tokenizer] = found
    return found


def _rename(tokenizer: PreTrainedTokenizerBase, names: Mapping[str, str]) -> Tokenizer:
    from tokenizers import Tokenizer

    tree: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in tree["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = tree["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
    else:  # of SentencePiece: pieces with their log-probabilities
        model["vocab"] = [[names.get(piece, piece), logp] for piece, logp in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:  # none may spell a name that is gone
        model["merges"] = [m for m in model["merges"] if "".join(m) not in names]
    tree.update(truncation=None, padding=None)
    copy: Tokenizer = Tokenizer.from_str(json.dumps(tree))
    ids = control_tokens(tokenizer)
    assert all(copy.token_to_id(name) == ids[token] for token, name in names.items())
    return copy


def _pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
