"""Differential token dropping, before the language model: prefill, KV and index shrink with what does not change.

Pixel level compares the resized pictures before the vision tower, so that an unchanged chunk never reaches it. Feature
level compares merged embeddings. Idea: TimeChat-Online (arXiv 2504.17343); the last-kept reference is ours.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F

from data.change import ChangeDetector
from memory.reference import Reference
from model_adapters.base import VisualTokens
from vstream.config import SessionConfig

PIXEL_THRESHOLD = 0.03
"""Mean absolute difference in [0, 1]; encoder noise stays below a third of it, a passing edge above it."""
FEATURE_THRESHOLD = 0.1
"""1 - cosine of merged embeddings."""
SCENE_CUT = 0.75
"""A chunk in which this share of cells changed is a new scene, and is kept whole."""
CALIBRATION_SLOTS = 32
"""Temporal slots whose changes are collected before a target drop ratio is turned into a threshold."""

Embed = Callable[[], VisualTokens]
Kept = tuple[torch.Tensor, VisualTokens | None]
"""A bool mask [N] over a chunk's merged tokens, and the tokens if the tower ran."""


class TokenDrop(ABC):
    """Decides, chunk by chunk, which visual tokens are kept. Holds the reference of one stream.

    needs_tokens: whether it looks at the tokens before it decides, so that the tower runs on every chunk.
    """

    needs_tokens = True

    @abstractmethod
    def decide(self, picture: torch.Tensor, visual: VisualTokens | None) -> torch.Tensor:
        """The mask of the next chunk: bool [N] on the CPU. picture: uint8 [T, 3, h, w]; visual: where it `needs_tokens`."""

    @abstractmethod
    def leave(self) -> Reference:
        """What it takes to go on where this one is, see `take_up`."""

    @abstractmethod
    def take_up(self, left: Reference) -> None:
        """Go on where another one with the same settings was left."""

    @abstractmethod
    def clear(self) -> None:
        """Forget what the next chunk would be compared with: it is kept whole. A threshold that was calibrated stays."""

    def keep(self, picture: torch.Tensor, embed: Embed) -> Kept:
        """Decide on the next chunk; `embed` runs the tower, and is called only if needed."""
        visual = embed() if self.needs_tokens else None
        kept = self.decide(picture, visual)
        return kept, embed() if visual is None and kept.any() else visual

    def fork(self) -> TokenDrop:
        """An independent copy: what it decides leaves no trace in this one."""
        return copy.deepcopy(self)


class KeepAll(TokenDrop):
    """Drops nothing: the spec and the baseline."""

    def decide(self, picture: torch.Tensor, visual: VisualTokens | None) -> torch.Tensor:
        assert visual is not None
        return torch.ones(len(visual.embeds), dtype=torch.bool)

    def leave(self) -> Reference:
        return Reference()

    def take_up(self, left: Reference) -> None:
        pass

    def clear(self) -> None:
        pass


class Threshold:
    """A fixed threshold, or one that is calibrated to a target drop ratio on the stream's first chunks and then frozen."""

    def __init__(self, start: float, target: float | None) -> None:
        self.value = start
        self.target = target
        self._seen: list[torch.Tensor] = []

    def observe(self, change: torch.Tensor) -> None:
        """Take the changes of one slot's cells into the calibration, while it runs."""
        if self.target is None:
            return
        self._seen.append(change.flatten().cpu())
        if len(self._seen) == CALIBRATION_SLOTS:
            self.value = float(torch.cat(self._seen).quantile(self.target))
            self.target, self._seen = None, []

    def leave(self) -> Reference:
        seen = torch.cat(self._seen) if self._seen else torch.zeros(0)
        about = {"threshold": self.value, "target": self.target, "seen": [len(one) for one in self._seen]}
        return Reference({"seen": seen}, about)

    def take_up(self, left: Reference) -> None:
        self.value, self.target = left.about["threshold"], left.about["target"]
        self._seen = list(left.tensors["seen"].split(left.about["seen"])) if left.about["seen"] else []


class Compared(TokenDrop):
    """Compares with a reference: what both levels leave, and take up. `held` is the reference."""

    threshold: Threshold
    held: torch.Tensor | None
    num_chunks = 0

    def leave(self) -> Reference:
        left = self.threshold.leave()
        held = {} if self.held is None else {"held": self.held}
        return Reference({**left.tensors, **held}, {**left.about, "num_chunks": self.num_chunks})

    def take_up(self, left: Reference) -> None:
        self.threshold.take_up(left)
        self.held, self.num_chunks = left.tensors.get("held"), left.about["num_chunks"]

    def clear(self) -> None:
        self.held, self.num_chunks = None, 0


class PixelDrop(Compared):
    """Drops cells whose pixels did not change, slot by slot, before the vision tower."""

    needs_tokens = False

    def __init__(self, cell: float, frames_per_slot: int, threshold: Threshold, reference: str, key_every: int) -> None:
        self.frames_per_slot = frames_per_slot
        self.threshold = threshold
        self.key_every = key_every
        self.detector = ChangeDetector(cell, threshold.value, reference)

    @property
    def held(self) -> torch.Tensor | None:
        return self.detector.held

    @held.setter
    def held(self, picture: torch.Tensor | None) -> None:
        self.detector.held = picture

    def decide(self, picture: torch.Tensor, visual: VisualTokens | None) -> torch.Tensor:
        whole = self.num_chunks % self.key_every == 0
        masks = []
        for slot in picture.split(self.frames_per_slot):
            change = self.detector.change(slot)
            if self.num_chunks:
                self.threshold.observe(change)
            kept = change > self.threshold.value
            if whole or kept.float().mean() >= SCENE_CUT:
                kept = torch.ones_like(kept)
            self.detector.update(slot, kept)
            masks.append(kept.flatten())
        self.num_chunks += 1
        return torch.cat(masks).cpu()


class FeatureDrop(Compared):
    """Drops merged tokens whose embedding did not turn. One slot's tokens are compared with the same cells' reference."""

    def __init__(self, threshold: Threshold, reference: str, key_every: int) -> None:
        self.threshold = threshold
        self.reference = reference
        self.key_every = key_every
        self.held: torch.Tensor | None = None

    def decide(self, picture: torch.Tensor, visual: VisualTokens | None) -> torch.Tensor:
        assert visual is not None
        whole = self.num_chunks % self.key_every == 0
        masks = []
        for tokens in visual.embeds.float().split(visual.grid[1] * visual.grid[2]):
            change = self._change(tokens)
            if self.num_chunks:
                self.threshold.observe(change)
            kept = change > self.threshold.value
            if whole or kept.float().mean() >= SCENE_CUT:
                kept = torch.ones_like(kept)
            fresh = self.reference == "previous" or self.held is None or self.held.shape != tokens.shape
            self.held = tokens if fresh else torch.where(kept[:, None], tokens, self.held)  # type: ignore[arg-type]
            masks.append(kept)
        self.num_chunks += 1
        return torch.cat(masks).cpu()

    def _change(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.held is None or self.held.shape != tokens.shape:
            return torch.full((len(tokens),), 2.0, device=tokens.device)
        return 1 - F.cosine_similarity(tokens, self.held, dim=-1)


def create_token_drop(config: SessionConfig, cell: float, frames_per_slot: int) -> TokenDrop:
    """The policy that `config.drop` names. cell: side of a merged token in pixels."""
    if config.drop == "off":
        return KeepAll()
    default = PIXEL_THRESHOLD if config.drop == "pixel" else FEATURE_THRESHOLD
    threshold = Threshold(default if config.drop_threshold is None else config.drop_threshold, config.drop_target)
    if config.drop == "pixel":
        return PixelDrop(cell, frames_per_slot, threshold, config.drop_reference, config.key_every)
    return FeatureDrop(threshold, config.drop_reference, config.key_every)
