"""Whose memory a folder holds: KV of one model, made with one set of settings, means nothing to another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import MemoryBankError
from model_adapters.base import ModelInfo

FORMAT_VERSION = 2
"""Of the folder as a whole. A newer one is refused; older ones are migrated, see `memory.migrations`."""
READABLE_VERSIONS = (1,)
"""Older ones that are read as they are, such as in a folder that cannot be written."""


@dataclass(frozen=True)
class Identity:
    """name: what the model was loaded by, for people. model, settings: what has to agree, by field."""

    name: str
    model: dict[str, Any]
    settings: dict[str, Any]

    @classmethod
    def of(cls, info: ModelInfo, settings: dict[str, Any]) -> Identity:
        """settings: the fields of the session's configuration that shape what is stored."""
        model = {
            "fingerprint": info.fingerprint,
            "family": info.family,
            "dtype": str(info.dtype).removeprefix("torch."),
            "num_layers": info.num_layers,
            "num_kv_heads": info.num_kv_heads,
            "head_dim": info.head_dim,
            "num_position_axes": info.num_position_axes,
        }
        return cls(info.name, model, settings)

    def to_json(self) -> str:
        return json.dumps({"name": self.name, "model": self.model, "settings": self.settings})

    @classmethod
    def from_json(cls, text: str) -> Identity:
        fields = json.loads(text)
        return cls(fields["name"], fields["model"], fields["settings"])

    def check(self, mine: Identity, folder: Path) -> None:
        """MemoryBankError, in one line, if the memory of this identity cannot be used by `mine`."""
        differing = _differing(self.model, mine.model)
        if differing:
            raise MemoryBankError(
                f"the memory {folder} was made by the model {self.name}, not by {mine.name} ({differing});"
                " open it with the model, processor and dtype it was made with, or choose another folder"
            )
        differing = _differing(self.settings, mine.settings)
        if differing:
            raise MemoryBankError(
                f"the memory {folder} was made with other settings ({differing});"
                " leave these settings out to use those it was made with, or choose another folder"
            )


def _differing(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    names = [name for name in {**theirs, **mine} if theirs.get(name) != mine.get(name)]
    return "; ".join(f"{name} is {theirs.get(name)} there and {mine.get(name)} here" for name in names)
