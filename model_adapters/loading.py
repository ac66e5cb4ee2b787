"""From a name to a folder that is safe to load: the hub, pinned revisions, offline, safetensors only, no code of its own."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import AdapterError
from model_adapters.weights import INDEX, SINGLE, WeightTable, read_weights, refuse_other_layouts, shard_names

EMBEDDED = "embedded"
"""The name of the model that ships with the project."""
SAME_WEIGHTS = {"flash_vstream_qwen2_vl": "qwen2_vl"}
"""Model types of published systems whose own part has no weights, so that they are checkpoints of a known family."""
SPEECH = ("talker.", "token2wav.", "code2wav.")
"""How the names of weights begin that make an Omni checkpoint speak; they are not loaded."""
SIDE_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
"""Everything of a hub checkpoint but its weights: small, and enough to tell whether the weights are worth fetching."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a config and side files. name: what the user called it. revision: the commit it was fetched at, if any."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    revision: str | None = None

    @property
    def family(self) -> str:
        return self.config["model_type"]

    def weights(self) -> WeightTable:
        """The weights on disk, fetched from the hub first where the checkpoint came from there. Raises AdapterError."""
        if self.revision is not None:
            # Named one by one: some checkpoints hold their weights a second time in another layout.
            index = self.folder / INDEX
            fetched(self.name, self.revision, tuple(shard_names(self.name, index)) if index.is_file() else (SINGLE,))
        return read_weights(self.name, self.folder, SPEECH)


def find_checkpoint(name_or_path: str, families: Mapping[str, Any], revision: str | None = None) -> Checkpoint:
    """The checkpoint behind `embedded`, a folder, or a hub id, of which only the small files are fetched.

    families: the model types that are known here. revision: branch, tag or commit of a hub id; default: its main branch.
    Raises AdapterError with one line.
    """
    try:
        folder, commit = _folder(name_or_path, revision)
        config_file = folder / "config.json"
        has_config = config_file.is_file()
    except OSError as error:
        raise AdapterError(f"{name_or_path} cannot be read: {error.strerror}; give another folder, or a hub id") from error
    if not has_config:
        refuse_other_layouts(name_or_path, folder)
        raise AdapterError(f"{name_or_path} has no config.json; give a checkpoint folder, a hub id, or `{EMBEDDED}`")
    try:
        config = json.loads(config_file.read_text())
        family, own_code = str(config.get("model_type")), config.get("auto_map")
    except (ValueError, OSError, AttributeError, RecursionError) as error:
        raise AdapterError(
            f"the config.json of {name_or_path} cannot be read ({error}); download the checkpoint again"
        ) from error
    if family in SAME_WEIGHTS:
        log.warning("%s is a %s; its weights are a %s and run as that", name_or_path, family, SAME_WEIGHTS[family])
        family = SAME_WEIGHTS[family]
        config = {**config, "model_type": family}
    if family not in families:
        code = "; it brings code of its own (auto_map), and that is never run" if own_code else ""
        raise AdapterError(
            f"{name_or_path} is of the family {family!r}, which is not known here{code}; known: {', '.join(families)}"
        )
    if own_code:
        log.warning("%s names code of its own (auto_map); it is not run, the checkpoint is loaded as %s", name_or_path, family)
    return Checkpoint(name_or_path, folder, config, commit)


def _folder(name_or_path: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder, and for a hub id the revision that it was fetched at."""
    path = Path(__file__).parent / "tiny" / "checkpoint" if name_or_path == EMBEDDED else Path(os.path.expanduser(name_or_path))
    if path.is_dir():
        if revision is not None:
            raise AdapterError(f"{name_or_path} is a local folder and has no revision {revision!r}; leave the revision out")
        return path, None
    if path.exists() or name_or_path.count("/") != 1 or name_or_path.startswith((".", "/", "~")):
        raise AdapterError(
            f"{name_or_path} is not a model folder; give a checkpoint folder, a hub id like Qwen/Qwen3-VL-4B-Instruct,"
            f" or `{EMBEDDED}`"
        )
    folder = fetched(name_or_path, revision, SIDE_FILES)
    # The folder of a snapshot is named after its commit: what is fetched later comes from the same one.
    return folder, folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else revision or "main"


def fetched(hub_id: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """The local snapshot of a hub checkpoint with the files of these patterns. Raises AdapterError with what to do."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise AdapterError(f"{hub_id} wants its licence accepted on the hub; do so, then `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise AdapterError(f"{hub_id} has no revision {revision!r} on the hub; check the name of the revision") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise AdapterError(f"{hub_id} is neither a local folder nor on the hub; check the name") from error
    except (HTTPError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        if constants.is_offline_mode():
            raise AdapterError(
                f"{hub_id}{at} is no folder and not in the local cache, and HF_HUB_OFFLINE is set; unset it, or give a folder"
            ) from error
        raise AdapterError(
            f"{hub_id}{at} is no local folder and cannot be fetched from the hub; check the name and the network"
        ) from error
