"""A word-level tokenizer that knows exactly the words of the embedded world.

Texts are words separated by single spaces, so that encoding and decoding are inverse to each
other. Deliberately absent: sub-words, normalisation, and templates; whoever trains concatenates
the ids of prompt, response and `<eos>`.
"""

from typing import TYPE_CHECKING

from llm_env.world.knowledge import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
"""Special tokens; their ids are their positions, the words follow in alphabetical order."""


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Build the tokenizer; it pads on the left, as generation needs, and adds no special token."""
    from tokenizers import Tokenizer  # heavy, and only language models need it
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate((*SPECIAL, *vocabulary()))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
