"""Yes or no: ask the model on a fork of the live KV, and throw the fork away.

Untrained models that are asked every few seconds do better at this than systems trained to speak up (StreamingBench's proactive
output, arXiv 2411.03628). Several questions about one moment cost one forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model_adapters.base import KVContext, ModelAdapter, TokenRun
from vstream.triggers.base import Decision, LiveChunk, Trigger

THRESHOLD = 0.5


class YesNo(Trigger):
    """Fires where "yes" is likelier than `threshold`, yes and no together being all."""

    def __init__(
        self,
        adapter: ModelAdapter,
        question: str,
        threshold: float = THRESHOLD,
        yes: Sequence[str] = ("yes", "Yes"),
        no: Sequence[str] = ("no", "No"),
    ) -> None:
        self.adapter = adapter
        self.run = adapter.question_run(question)
        self.threshold = threshold
        self.yes, self.no = yes, no

    def look(self, moment: LiveChunk) -> Decision:
        (score,) = yes_probabilities(self.adapter, moment.live, [self.run], self.yes, self.no)
        words = f"the model says {'yes' if score >= self.threshold else 'no'} ({score:.2f})"
        return Decision(moment.at_seconds, score >= self.threshold, score, self.threshold, words)


def yes_probabilities(
    adapter: ModelAdapter, context: KVContext, runs: Sequence[TokenRun], yes: Sequence[str], no: Sequence[str]
) -> list[float]:
    """P(yes | yes or no) for each question's run, asked behind `context`, which stays as it is.

    yes, no: spellings, added up.
    """
    found = adapter.openings(context, runs, [*yes, *no])
    # Two spellings may begin with the same token, which must then not be counted twice.
    sides = [sorted({adapter.opening_id(word): i for i, word in enumerate(words)}.values()) for words in (yes, no)]
    ayes = found[:, sides[0]].logsumexp(1)
    noes = found[:, [len(yes) + i for i in sides[1]]].logsumexp(1)
    return torch.sigmoid(ayes - noes).tolist()
