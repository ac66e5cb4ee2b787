"""From rules to the engine that keeps them."""

from __future__ import annotations

from model_adapters.base import ChunkKV, ModelAdapter
from vstream.commentary.base import Commentator, NarrationRules
from vstream.commentary.continuous import ContinuousCommentator
from vstream.commentary.prompted import PromptedCommentator
from vstream.config import SessionConfig
from vstream.prompts import Prompts
from vstream.turns import Turns


def engine_of(rules: NarrationRules, prompts: Prompts) -> str:
    """The engine that `rules.engine` names; "auto": the one that the model was trained for."""
    if rules.engine != "auto":
        return rules.engine
    return "continuous" if prompts.pause else "prompted"


def create_commentator(
    adapter: ModelAdapter, config: SessionConfig, prompts: Prompts, rules: NarrationRules, sink: ChunkKV, turns: Turns
) -> Commentator:
    """The engine that the rules ask for. sink: what stands before every stream, as ingest stored it."""
    if engine_of(rules, prompts) == "continuous":
        return ContinuousCommentator(adapter, prompts, rules, sink, turns)
    return PromptedCommentator(adapter, config, prompts, rules, sink, turns)
