"""The words with which the engine asks a model by itself: one preset per kind of model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from data.questions import COMMENT_QUESTION, SILENCE
from model_adapters.registry import preset_for


@dataclass(frozen=True)
class Prompts:
    """What is asked, and how the answers are to be read.

    watch: a yes/no question about {condition}. begins_only: whether "yes" is meant for the moment in which it begins, and not
    for as long as it lasts. confirm, confirmed: a second question after a "yes", and the answer about {subject} that confirms
    it; empty: the same question again. confirm_looks: moments within which that may happen.
    comment: what asks for a comment; may hold {background}. silence: the answer that means there is nothing to say.
    takes_talk: whether the model can read its own earlier comments. words_per_second: how much it may say.
    opening, pause: of checkpoints that were trained to comment step by step: what they are asked once, before everything, and
    what ends each of their steps, and is all of a step without words; empty for every other model.
    """

    watch: str
    yes: tuple[str, ...]
    no: tuple[str, ...]
    begins_only: bool
    confirm: str
    confirmed: str
    confirm_looks: int
    comment: str
    silence: str
    takes_talk: bool
    words_per_second: float
    opening: str = ""
    pause: str = ""


PRESETS: dict[str, Prompts] = {
    "embedded": Prompts(
        watch="tell me when {condition}",
        yes=("yes",),
        no=("no",),
        begins_only=True,
        confirm="what is on screen now ?",
        confirmed="{subject}",
        confirm_looks=2,
        comment=COMMENT_QUESTION,
        silence=SILENCE,
        takes_talk=False,
        words_per_second=10.0,
    ),
    "general": Prompts(
        watch=(
            "You are watching a live video and have just seen its newest seconds. Is this the case in them: {condition}?"
            " Answer with one word, yes or no."
        ),
        yes=("yes", "Yes"),
        no=("no", "No"),
        begins_only=False,
        confirm="",
        confirmed="",
        confirm_looks=1,
        comment=(
            "You comment on a live video for people who listen. {background}Say in one short sentence what is new in its newest"
            " seconds. Do not repeat yourself. If nothing is new, answer with the one word silence."
        ),
        silence="silence",
        takes_talk=True,
        words_per_second=3.0,
    ),
}


def prompts_for(model: str, preset: str) -> Prompts:
    """The preset of that name; "auto": the one that fits the model of that name, with what its publishers ask it."""
    if preset != "auto":
        return PRESETS[preset]
    published = preset_for(model)
    if published is None:
        return PRESETS.get(model, PRESETS["general"])
    return replace(PRESETS["general"], opening=published.prompt or "", pause=published.silence or "")
