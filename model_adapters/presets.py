"""How the checkpoints of published streaming systems want to be run. One row each; what the user asks for goes first.

The checkpoints load as what they are, by the `model_type` of their config: TimeChat-Online and StreamingVLM as Qwen2.5-VL,
LiveCC as Qwen2-VL, ReKV's as LLaVA-OneVision. What could not be found out is left out. Where a rate is low, a chunk is made
long enough to fill one temporal slot of the model.

What is a system's own and is not weights is not here. Flash-VStream-Qwen calls itself `flash_vstream_qwen2_vl`: Qwen2-VL with a
memory inside the vision tower (clusters of features and the frames nearest to the largest ones), which has no parameters; its
weights run as Qwen2-VL with this project's memory instead (`loading.SAME_WEIGHTS`). StreamingVLM's eviction is the continuous
commentary; its config was not at hand. TimeChat-Online's dropping is the feature level with this preset's threshold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Preset:
    """What a system was trained or published with.

    pattern: of the last part of a hub id or folder, without regard to case. settings: fields of SessionConfig. max_pixels:
    area of a frame. prompt: what it is used to be asked. silence: what it says when it has nothing to say.
    """

    system: str
    pattern: str
    settings: Mapping[str, object] = field(default_factory=dict)
    max_pixels: int | None = None
    prompt: str | None = None
    silence: str | None = None


PRESETS = (
    # arXiv 2504.17343 and the evaluation scripts of yaolinli/TimeChat-Online: feature level, threshold 0.5, against the frame
    # before, 448 x 448 pixels, 1 frame per second for videos of up to five minutes.
    Preset(
        system="TimeChat-Online",
        pattern=r"timechat-?online",
        settings={"fps": 1.0, "chunk_seconds": 2.0, "drop": "feature", "drop_threshold": 0.5, "drop_reference": "previous"},
        max_pixels=448 * 448,
    ),
    # arXiv 2510.09608 and its inference script: steps of one second at 2 frames per second, the last 16 s in view, no dropping;
    # turns without anything to say end in " ...".
    Preset(
        system="StreamingVLM",
        pattern=r"streaming-?vlm",
        settings={"fps": 2.0, "chunk_seconds": 1.0, "window_seconds": 16.0, "drop": "off"},
        prompt="Commentate on this match",
        silence=" ...",
    ),
    # arXiv 2504.16030 and demo/infer.py of showlab/livecc: 2 frames per second, one second per turn, no dropping.
    Preset(
        system="LiveCC",
        pattern=r"livecc",
        settings={"fps": 2.0, "chunk_seconds": 1.0, "drop": "off"},
        max_pixels=384 * 28 * 28,
        prompt="Please describe the video.",
        silence=" ...",
    ),
    # arXiv 2506.23825 and cli_server_2gpu.py of IVGSZ/Flash-VStream: half a frame per second, four times 224 x 224 pixels.
    Preset(
        system="Flash-VStream",
        pattern=r"flash-?vstream",
        settings={"fps": 0.5, "chunk_seconds": 4.0, "drop": "off"},
        max_pixels=4 * 224 * 224,
    ),
    # arXiv 2503.00540: half a frame per second, one frame (196 tokens) per block, the last 15,000 tokens in view, 64 blocks
    # brought back. Retrieval itself stays ours; --retrieval per_layer is the published one.
    Preset(
        system="ReKV",
        pattern=r"llava-?onevision",
        settings={"fps": 0.5, "chunk_seconds": 2.0, "window_seconds": 150.0, "top_k": 64, "drop": "off"},
    ),
)


def preset_for(name_or_path: str) -> Preset | None:
    """The preset of the checkpoint with this name, if it is one of a published system."""
    last = re.split(r"[/\\]", name_or_path.rstrip("/\\"))[-1]
    return next((preset for preset in PRESETS if re.search(preset.pattern, last, re.IGNORECASE)), None)
