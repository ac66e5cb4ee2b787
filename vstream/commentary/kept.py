"""How a stream was commented on last: in the notes of its stored memory, for when the stream goes on."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict

from data.errors import ConfigError, MemoryBankError
from memory.notes import Note, Notes
from vstream.commentary.base import NarrationRules

logger = logging.getLogger(__name__)

KIND = "narration"


class KeptNarration:
    """The rules of one stored memory. Where it cannot be written, that is logged and the stream goes on."""

    def __init__(self, notes: Notes, write: bool) -> None:
        self.notes = notes
        self.write = write

    def load(self) -> NarrationRules | None:
        """The rules that were given last; None if none were. MemoryBankError if the notes cannot be read."""
        for note in self.notes.of(KIND):
            try:
                return NarrationRules(**json.loads(note.content))
            except (TypeError, ValueError, ConfigError) as error:
                logger.warning("how %s was commented on cannot be read: %s", self.notes.manifest.folder, error)
        return None

    def save(self, rules: NarrationRules) -> None:
        if not self.write:
            return
        try:
            self.notes.put([Note(KIND, 0, json.dumps(asdict(rules)))], most=1)
        except MemoryBankError as error:
            logger.warning("%s; the commentary goes on, but its settings are not remembered", error)
