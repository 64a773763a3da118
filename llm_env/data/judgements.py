"""Does a row hold a judgement of its answer that no reader here uses?

    BeaverTails   prompt, response, is_safe, category         answers, each labelled safe or unsafe
    HelpSteer     prompt, response, helpfulness, …            answers, each with ratings
    KTO           prompt, completion, label                   answers, each liked or not

Read as demonstrations, the answers that people labelled unsafe would be imitated like the others;
read as prompts, answers and labels would be dropped without a word. Such rows are refused. Columns
that say nothing of the answer (source, category, id) are ignored, and so is a judgement of a prompt
that stands alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from llm_env.prompts import FieldError, says_nothing

SETS = {
    "BeaverTails": ("response", "is_safe"),
    "HelpSteer": ("response", "helpfulness"),
    "KTO": ("completion", "label"),
}
"""published sets by the fields that tell them"""
ANSWERS = {"response", "responses", "completion", "completions", "output", "messages"}
DROPPED = {"completion", "completions"}
"""answers under a name that no reader knows"""
WORDS = re.compile(
    "accepted|approved|coherence|complexity|correct|correctness|desirable|flagged|grade|harm|"
    "harmful|harmless|harmlessness|helpful|helpfulness|honesty|labels?|likes|preference|quality|"
    "rank|ranking|ratings?|rewards?|safe|safety|scores?|severity|thumbs|toxic|toxicity|"
    "truthfulness|unsafe|upvotes|verbosity|violation|votes"
)
"""words in the names of fields that judge an answer"""
ADVICE = (
    "leave out the rows that should not be imitated, and then this field{prompts}. Reward and cost "
    "models learn from pairs (format pku)"
)
PROMPTS_ALONE = "; or, for the prompts alone, set format = 'prompts', or keep no other field"


def refuse_judged(row: Mapping[str, object]) -> None:
    """`FieldError` where a row judges its answer, naming the reader that there is not."""
    held = [name for name in row if name in ANSWERS and not says_nothing(row[name])]
    labels = [name for name in row if judges(name) and not says_nothing(row[name])]
    if not held:
        return
    if labels:
        of = next((name for name, known in SETS.items() if set(known) <= set(row)), None)
        rows = "answers with a judgement each" if of is None else f"rows of {of}"
        raise FieldError(
            labels[0],
            "judges the answer",
            f"judges the answer, and there is no reader of {rows} ({', '.join([*held, *labels])}): "
            + ADVICE.format(prompts=PROMPTS_ALONE if "prompt" in row else ""),
        )
    lost = next((name for name in held if name in DROPPED), None)
    if lost is not None:
        raise FieldError(
            lost,
            "is not read",
            "is not read, and there is no reader of prompt and completion: rename it to "
            f"'response', which is imitated{PROMPTS_ALONE}",
        )


def judges(name: str) -> bool:
    """Whether a field's name says that it judges an answer.

    >>> [judges(name) for name in ("is_safe", "scoreChosen", "source", "prompt_label")]
    [True, True, False, False]
    """
    words = [word.lower() for word in re.findall(r"[a-z]+|[A-Z][a-z]*", name)]
    return words[:1] != ["prompt"] and any(WORDS.fullmatch(word) for word in words)
