"""Commentary: words about a stream that nobody asked for, from a context of their own."""

from vstream.commentary.base import ENGINES, STYLES, Commentator, NarrationRules, Utterance
from vstream.commentary.continuous import ContinuousCommentator
from vstream.commentary.create import create_commentator, engine_of
from vstream.commentary.kept import KeptNarration
from vstream.commentary.prompted import PromptedCommentator

__all__ = [
    "ENGINES",
    "STYLES",
    "Commentator",
    "ContinuousCommentator",
    "KeptNarration",
    "NarrationRules",
    "PromptedCommentator",
    "Utterance",
    "create_commentator",
    "engine_of",
]
