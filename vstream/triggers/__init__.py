"""When to look closer and when to speak: small policies over one stream, each in a file of its own with its source."""

from vstream.triggers.base import Always, Decision, LiveChunk, Never, Trigger
from vstream.triggers.compose import AnyOf, Gated, create_gate
from vstream.triggers.novelty import Novelty
from vstream.triggers.paced import Paced
from vstream.triggers.perplexity import Perplexity
from vstream.triggers.poll import Poll
from vstream.triggers.scene_tiling import SceneTiling
from vstream.triggers.silence import SilenceToken
from vstream.triggers.similarity import QueryJump
from vstream.triggers.yes_no import YesNo

__all__ = [
    "Always",
    "AnyOf",
    "Decision",
    "Gated",
    "LiveChunk",
    "Never",
    "Novelty",
    "Paced",
    "Perplexity",
    "Poll",
    "QueryJump",
    "SceneTiling",
    "SilenceToken",
    "Trigger",
    "YesNo",
    "create_gate",
]
