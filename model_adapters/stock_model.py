"""A stock model and its tokenizer from a folder: what cannot be served is refused before weights are read, and what is wrong
with the weights is told in one line instead of transformers' table."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from jinja2 import TemplateError
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from data.errors import AdapterError, reason_of
from model_adapters import attention
from model_adapters.weights import AGAIN

log = logging.getLogger(__name__)


def load_model(
    name: str,
    folder: Path,
    model_class: str,
    left_out: tuple[str, ...],
    attn_implementation: str | None,
    options: Mapping[str, Any],
) -> Any:
    """The model, on its devices. left_out: how the names of weights begin that are not missed. Raises AdapterError.

    attn_implementation: as for `StockAdapter.load`. options: for `from_pretrained`.
    """
    attention.register()
    transformers_logging.disable_progress_bar()
    kind: Any = getattr(transformers, model_class)
    config = kind.config_class.from_pretrained(folder, local_files_only=True)
    text = config.get_text_config()
    refuse_what_cannot_be_cut(name, text)
    plain_angles(name, text)
    with without_table():
        model, found = kind.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            attn_implementation=attention.of_the_text(name, attn_implementation),
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    foreign = sorted(key for key in found["unexpected_keys"] if not key.startswith(left_out))
    tell_what_is_wrong(name, sorted(found["missing_keys"]), sorted(key for key, *_ in found["mismatched_keys"]), foreign)
    return model


def tell_what_is_wrong(name: str, lost: Sequence[str], mismatched: Sequence[str], foreign: Sequence[str]) -> None:
    """Raises AdapterError where weights are missing or of another shape; tells of those that nothing asks for."""
    if lost:
        what = f"holds {len(foreign)} of another model; its config.json and its weights do not belong together"
        raise AdapterError(
            f"{name} lacks {len(lost)} of its weights, {lost[0]} among them" + (f", and {what}" if foreign else f"; {AGAIN}")
        )
    if mismatched:
        raise AdapterError(
            f"{name} has {len(mismatched)} weights of another shape than its config.json says, {mismatched[0]} among them:"
            f" the two do not belong together; {AGAIN}"
        )
    if foreign:
        log.warning(
            "%s holds %d weights that its config.json has no place for, %s among them; they are left out",
            *(name, len(foreign), foreign[0]),
        )


@contextmanager
def without_table() -> Iterator[None]:
    """transformers' table of weights that do not fit stays unsaid meanwhile."""
    said = logging.getLogger("transformers.modeling_utils")

    def no_table(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    said.addFilter(no_table)
    try:
        yield
    finally:
        said.removeFilter(no_table)


def load_tokenizer(name: str, folder: Path) -> Any:
    """The tokenizer with the checkpoint's chat template. Raises AdapterError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        template = folder / "chat_template.json"
        if template.is_file():
            tokenizer.chat_template = json.loads(template.read_text())["chat_template"]
        tokenizer("a word")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, TemplateError) as error:
        raise AdapterError(
            f"the tokenizer or the chat template of {name} cannot be read ({reason_of(error)}); {AGAIN}"
        ) from error
    return tokenizer


def refuse_what_cannot_be_cut(name: str, text: Any) -> None:
    """Raise AdapterError for a text model whose state is no KV per token that can be cut into chunks and moved."""
    told = getattr(text, "layer_types", None) or []
    kinds = sorted(set(told) - {"full_attention"})
    # A window that is set may be that of no layer: where each layer's kind is told, that says so.
    window = getattr(text, "sliding_window", None) if not told and getattr(text, "use_sliding_window", True) else None
    if kinds or window:
        raise AdapterError(
            f"{name} has layers of {kinds[0] if kinds else 'sliding_attention'} in its language model: what they remember"
            " cannot be cut into chunks; take a model with full attention in every layer"
        )
    if rope_type(text) == "longrope":
        raise AdapterError(
            f"{name} turns its keys by angles that depend on the context's length (rope_type longrope): stored chunks cannot be"
            " moved exactly; use the checkpoint with rope_type default, linear, yarn or llama3"
        )


def rope_type(text: Any) -> str:
    """The kind of rotary angles that a text model's config asks for."""
    return (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")


def plain_angles(name: str, text: Any) -> None:
    """`dynamic` angles (InternVL3) are the plain ones up to the trained length. Beyond it they would change with every token,
    and a stored chunk could not be moved exactly: they stay the plain ones, which is told."""
    if rope_type(text) == "dynamic":
        log.warning(
            "%s has rope_type dynamic: beyond %s positions in one context its angles stay what they are up to there",
            *(name, f"{text.max_position_embeddings:,}"),
        )
        text.rope_parameters = {**text.rope_parameters, "rope_type": "default"}
