"""What a family's own processor makes of a clip and a question, written without the adapter's layout: the input of the stock
forward that an adapter is held against. One class per way to write a prompt, one row per family."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from data.errors import AdapterError
from data.frames import Chunk
from model_adapters.stock import StockAdapter, without_thought


class Reference(ABC):
    """folder: where the checkpoint's own processor configuration lies."""

    def __init__(self, adapter: StockAdapter, folder: Path) -> None:
        self.adapter = adapter
        self.folder = folder
        self.tokenizer = adapter.tokenizer
        self.config = adapter.model.config
        self.images = self.make_images(folder)

    @abstractmethod
    def make_images(self, folder: Path) -> Any:
        """The family's image processor; of the kind that works on PIL pictures, since that needs no torchvision."""

    @abstractmethod
    def pixels(self, chunk: Chunk) -> torch.Tensor:
        """What the family's image processor makes of a chunk's frames, in the shape of `StockAdapter.pixels`."""

    @abstractmethod
    def inputs(self, chunks: Sequence[Chunk], question: str) -> dict[str, Any]:
        """Arguments of the stock model's forward and `generate`: the whole clip and the question in one prompt."""

    def prompt(self, question: str, content: Sequence[dict[str, str]] = ({"type": "video"},)) -> str:
        """The chat template around a video and a question, behind which the answer begins."""
        message = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        return without_thought(self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))


def pil(frame: Any) -> Image.Image:
    """frame: uint8 [3, H, W]"""
    return Image.fromarray(frame.transpose(1, 2, 0))


class QwenReference(Reference):
    """Qwen2-VL (arXiv 2409.12191): every second of the clip is a video of its own, behind the words that tell its time."""

    processor: tuple[str, str] = ("qwen2_vl.processing_qwen2_vl", "Qwen2VLProcessor")
    """Module and class whose `replace_video_token` writes the placeholders of a video."""

    def make_images(self, folder: Path) -> Any:
        # Not by the name in the folder: a checkpoint that shares the weights may give its processor one of its own.
        return Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)

    def pixels(self, chunk: Chunk) -> torch.Tensor:
        per_slot = self.images.temporal_patch_size
        frames = [*chunk.frames, *[chunk.frames[-1]] * (-len(chunk.frames) % per_slot)]
        slots = []
        for first in range(0, len(frames), per_slot):
            # A still becomes a slot of equal frames: from each frame's patches its own moment is taken.
            stills = [self.images(pil(f), return_tensors="pt") for f in frames[first : first + per_slot]]
            values = [still["pixel_values"].unflatten(1, (3, per_slot, -1)) for still in stills]
            slots.append(torch.stack([value[:, :, k] for k, value in enumerate(values)], 2).flatten(1))
        return torch.cat(slots)

    def grid(self, chunk: Chunk) -> torch.Tensor:
        """[1, 3]: slots, patch rows, patch columns."""
        still = self.images(pil(chunk.frames[0]), return_tensors="pt")["image_grid_thw"]
        still[0, 0] = -(-len(chunk.frames) // self.images.temporal_patch_size)
        return still

    def placeholders(self, grid: torch.Tensor, pts_seconds: Sequence[float]) -> str:
        """What the family's processor writes for one video."""
        module, name = self.processor
        processor = getattr(importlib.import_module(f"transformers.models.{module}"), name)
        stand_in = SimpleNamespace(
            video_token=self.adapter.special_tokens[0],
            vision_start_token=self.adapter.special_tokens[1],
            vision_end_token=self.adapter.special_tokens[2],
            video_processor=self.images,
            _calculate_timestamps=lambda *args: processor._calculate_timestamps(None, *args),
        )
        metadata = SimpleNamespace(fps=1000.0, frames_indices=[round(1000 * seconds) for seconds in pts_seconds])
        inputs = {"video_grid_thw": grid, "video_metadata": [metadata]}
        try:
            return processor.replace_video_token(stand_in, inputs, 0, load_audio_from_video=False)
        except NotImplementedError as error:
            raise AdapterError(
                f"the {name} of transformers {transformers.__version__} cannot be asked for a video's tokens; take a newer one"
            ) from error

    def text(self, chunks: Sequence[Chunk], grid: torch.Tensor, question: str) -> str:
        content = []
        for chunk in chunks:
            content.append({"type": "text", "text": f"Time={chunk.start_seconds:.1f}-{chunk.end_seconds:.1f}s"})
            content.append({"type": "video"})
        placeholders = self.placeholders(grid[:1], chunks[0].pts_seconds)
        return self.prompt(question, content).replace(self.adapter.special_tokens[0], placeholders)

    def grids(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        return torch.cat([self.grid(chunk) for chunk in chunks])

    def inputs(self, chunks: Sequence[Chunk], question: str) -> dict[str, Any]:
        grid = self.grids(chunks)
        ids = self.tokenizer(self.text(chunks, grid, question), add_special_tokens=False, return_tensors="pt")["input_ids"]
        values = torch.cat([self.pixels(chunk) for chunk in chunks]).to(self.adapter.info.dtype)
        kinds = (ids == self.adapter.video_id).int() * 2
        tensors = {"input_ids": ids, "pixel_values_videos": values, "video_grid_thw": grid, "mm_token_type_ids": kinds}
        return {name: value.to(self.adapter.device) for name, value in tensors.items()}


class WholeVideoReference(QwenReference):
    """The whole clip is one video."""

    def grids(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        grids = super().grids(chunks)
        return torch.cat([grids[:, :1].sum(0), grids[0, 1:]])[None]

    def whole(self) -> str:
        """The piece of the rendered prompt that the placeholders replace."""
        return self.adapter.special_tokens[0]

    def text(self, chunks: Sequence[Chunk], grid: torch.Tensor, question: str) -> str:
        pts = [seconds for chunk in chunks for seconds in chunk.pts_seconds]
        return self.prompt(question).replace(self.whole(), self.placeholders(grid, pts))


class Qwen3VLReference(WholeVideoReference):
    """Qwen3-VL: time stamps in words within the video; without the outer pair of vision tokens that transformers 5 leaves."""

    processor = ("qwen3_vl.processing_qwen3_vl", "Qwen3VLProcessor")

    def whole(self) -> str:
        return self.adapter.video_part


class Qwen25VLReference(WholeVideoReference):
    """Qwen2.5-VL (arXiv 2502.13923): seconds per slot beside the grid."""

    processor = ("qwen2_5_vl.processing_qwen2_5_vl", "Qwen2_5_VLProcessor")

    def inputs(self, chunks: Sequence[Chunk], question: str) -> dict[str, Any]:
        return super().inputs(chunks, question) | {"second_per_grid_ts": [self.seconds_per_slot(chunks)]}

    def seconds_per_slot(self, chunks: Sequence[Chunk]) -> float:
        pts = [seconds for chunk in chunks for seconds in chunk.pts_seconds]
        return (pts[1] - pts[0]) * self.images.temporal_patch_size


class OmniReference(Qwen25VLReference):
    """The Omni thinkers; the two write a silent video alike."""

    processor = ("qwen2_5_omni.processing_qwen2_5_omni", "Qwen2_5OmniProcessor")

    def inputs(self, chunks: Sequence[Chunk], question: str) -> dict[str, Any]:
        inputs = QwenReference.inputs(self, chunks, question)
        del inputs["mm_token_type_ids"]
        seconds = torch.tensor([self.seconds_per_slot(chunks)], device=self.adapter.device)
        return inputs | {"attention_mask": torch.ones_like(inputs["input_ids"]), "video_second_per_grid": seconds}


REFERENCES: dict[str, tuple[str, str]] = {
    "qwen3_vl": ("model_adapters.references", "Qwen3VLReference"),
    "qwen3_vl_moe": ("model_adapters.references", "Qwen3VLReference"),
    "qwen2_5_vl": ("model_adapters.references", "Qwen25VLReference"),
    "qwen2_vl": ("model_adapters.references", "QwenReference"),
    "qwen2_5_omni_thinker": ("model_adapters.references", "OmniReference"),
    "qwen3_omni_moe_thinker": ("model_adapters.references", "OmniReference"),
    "llava_onevision": ("model_adapters.references_frames", "LlavaOnevisionReference"),
    "internvl": ("model_adapters.references_frames", "InternVLReference"),
    "smolvlm": ("model_adapters.references_frames", "SmolVLMReference"),
    "video_llama_3": ("model_adapters.references_frames", "VideoLlama3Reference"),
}
"""Module and class by the `model_type` of the loaded model."""


def create_reference(adapter: StockAdapter, folder: Path) -> Reference:
    """The reference of an adapter's family. Raises AdapterError where there is none."""
    family = adapter.info.family
    if family not in REFERENCES:
        raise AdapterError(f"there is nothing yet to check the family {family!r} against; known: {', '.join(REFERENCES)}")
    module, name = REFERENCES[family]
    return getattr(importlib.import_module(module), name)(adapter, folder)
