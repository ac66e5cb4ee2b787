"""What a model needs in memory, told from its config and its weights' headers before it is loaded, and what is free."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from data.errors import AdapterError, reason_of
from model_adapters.loading import Checkpoint
from model_adapters.weights import WeightTable

GIB = 1 << 30
CGROUP = Path("/sys/fs/cgroup")
MOST_LAYERS = 10_000
NO_SENSE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""What files that make no sense end in, within libraries that read them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """Bytes that a model takes and bytes that are free where it goes. dtype: of weights and KV; None: as stored, mixed.

    kv_bytes_per_token: keys and values of all layers. where: the device, or `all devices` for a split.
    """

    name: str
    family: str
    num_parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    dtype: torch.dtype | None
    where: str
    free_bytes: int

    def check(self, kv_bytes: int = 0) -> None:
        """Raises AdapterError where the weights alone cannot fit; warns where they do not leave `kv_bytes` for chunks."""
        kind = "the stored types" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        free = f"{gib(self.free_bytes)} are free on {self.where}"
        if self.weight_bytes > self.free_bytes:
            raise AdapterError(
                f"{self.name} needs {gib(self.weight_bytes)} for its {self.num_parameters / 1e9:.1f} billion weights in {kind}"
                f" and {free}; take a smaller model, dtype bfloat16, or device map auto"
            )
        if self.weight_bytes + kv_bytes > self.free_bytes:
            log.warning(
                "%s needs %s for its weights in %s, which leaves less than the %s set aside for chunks: %s; lower gpu_bytes",
                *(self.name, gib(self.weight_bytes), kind, gib(kv_bytes), free),
            )


def gib(num_bytes: float) -> str:
    """Bytes as a person reads them."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / (1 << 20):.1f} MiB"


def estimate(
    checkpoint: Checkpoint, dtype: torch.dtype | None, placement: str | Mapping[str, Any], weights: WeightTable | None = None
) -> Budget:
    """What `checkpoint` needs in `dtype` (None: as stored) and what is free at `placement`, a device or a device map.

    weights: their headers, where they are on disk; without them parameters are counted on an empty model of the config's
    shape, as they are where several may be packed into one number; such take at least four bits each. Raises AdapterError
    where the config describes no model.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.for_model(**checkpoint.config)
        # Of a whole Omni checkpoint the thinker alone is loaded.
        config = getattr(config, "thinker_config", config)
        text = config.get_text_config(decoder=True)
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        for part in (text, getattr(config, "vision_config", text)):
            _check_depth(part)
        numbers = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim
        stored = config.dtype or text.dtype or torch.float32
        method = (getattr(config, "quantization_config", None) or {}).get("quant_method")
        num_parameters = weights.total_parameters if weights and method is None else _count(config)
    except (*NO_SENSE, StrictDataclassError) as error:
        raise AdapterError(
            f"the config.json of {checkpoint.name} describes no model that can be loaded: {reason_of(error)}"
        ) from error
    # Quantised weights stay as they are stored, whatever else is loaded in; but FP8 is widened where there is no GPU.
    packed = method is not None and (method != "fp8" or torch.cuda.is_available())
    if weights and (packed or (dtype is None and method is None)):
        weight_bytes = weights.num_bytes
    else:
        weight_bytes = num_parameters // 2 if packed else num_parameters * (dtype or stored).itemsize
    where, free_bytes = _free(placement)
    return Budget(
        checkpoint.name,
        checkpoint.family,
        num_parameters,
        weight_bytes,
        numbers * (dtype or stored).itemsize,
        None if packed else dtype,
        where,
        free_bytes,
    )


def _check_depth(config: Any) -> None:
    """ValueError for a number of layers that no model has."""
    num = getattr(config, "num_hidden_layers", None)
    num = getattr(config, "depth", None) if num is None else num
    if num is not None and not 1 <= num <= MOST_LAYERS:
        raise ValueError(f"{num:,} layers")


def _count(config: Any) -> int:
    """Parameters of a model of this shape, none of which is created."""
    from transformers import AutoModelForMultimodalLM

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForMultimodalLM.from_config(config).parameters())


def _free(placement: str | Mapping[str, Any]) -> tuple[str, int]:
    """The name of the place and the bytes that are free in it."""
    gpus = range(torch.cuda.device_count())
    if not isinstance(placement, str) or (placement not in ("cpu", "mps") and not placement.startswith("cuda")):
        return ("all devices" if gpus else "cpu"), free_ram() + sum(torch.cuda.mem_get_info(i)[0] for i in gpus)
    if placement in ("cpu", "mps"):
        return placement, free_ram()
    return placement, torch.cuda.mem_get_info(torch.device(placement))[0]


def free_ram() -> int:
    """Bytes of RAM that can still be taken: the machine's, or less where a control group sets a limit."""
    free = psutil.virtual_memory().available
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        # No control group of the second version, or one without a limit ("max").
        return free
    return min(free, limit - used + int(stat.get("inactive_file", 0)))
