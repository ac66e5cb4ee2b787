"""Text runs put together, for one forward instead of several."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model_adapters.base import TokenRun


def one_after_the_other(first: TokenRun, second: TokenRun) -> TokenRun:
    """Two text runs as one."""
    return TokenRun(
        torch.cat([first.embeds, second.embeds]),
        torch.cat([first.position_ids, second.position_ids + first.span], dim=1),
        first.span + second.span,
        torch.cat([first.visual_mask, second.visual_mask]),
    )


def side_by_side(runs: Sequence[TokenRun], num_before: int) -> tuple[TokenRun, torch.Tensor]:
    """Text runs as one run in which each begins at position 0, and the mask [1, 1, S, num_before + S] that keeps them apart."""
    joined = TokenRun(
        torch.cat([run.embeds for run in runs]),
        torch.cat([run.position_ids for run in runs], dim=1),
        max(run.span for run in runs),
        torch.cat([run.visual_mask for run in runs]),
    )
    owner = torch.repeat_interleave(torch.tensor([run.num_tokens for run in runs])).to(joined.embeds.device)
    own = (owner[:, None] == owner[None]).tril()
    return joined, torch.cat([own.new_ones(len(own), num_before), own], dim=1)[None, None]
