"""Qwen3-VL on stock transformers: time stamps as text before every slot, interleaved M-RoPE, DeepStack features."""

from __future__ import annotations

import torch

from data.frames import Chunk
from model_adapters.base import TokenRun, VisualTokens
from model_adapters.preprocess import patchify, resize
from model_adapters.stock import Layout, StockAdapter


class QwenVisionAdapter(StockAdapter):
    """What all Qwen-VL families share: their vision tokens, and a tower that takes patches and a grid."""

    special_tokens = ("<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    video_part = "<|vision_start|><|video_pad|><|vision_end|>"
    num_axes = 3

    def picture(self, chunk: Chunk) -> torch.Tensor:
        frames = torch.from_numpy(chunk.frames).to(self.device)
        short = -len(frames) % self.frames_per_slot
        if short:
            frames = torch.cat([frames, frames[-1:].expand(short, -1, -1, -1)])
        return resize(frames, self.spec)

    @torch.inference_mode()
    def embed(self, picture: torch.Tensor) -> VisualTokens:
        patches, grid = patchify(picture, self.spec, self.model.dtype)
        out = self.model.model.get_video_features(patches, grid)
        t, rows, columns = grid[0].tolist()
        merge = self.spec.merge_size
        levels = getattr(out, "deepstack_features", None)
        deepstack = torch.stack([torch.cat(tuple(level)) for level in levels]) if levels else None
        return VisualTokens(torch.cat(out.pooler_output), (t, rows // merge, columns // merge), deepstack)


class Qwen3VLAdapter(QwenVisionAdapter):
    """Any checkpoint whose config says `model_type: qwen3_vl`."""

    model_class = "Qwen3VLForConditionalGeneration"

    def chunk_run(self, chunk: Chunk, grid: tuple[int, int, int], keep: torch.Tensor, visual: VisualTokens | None) -> TokenRun:
        slots, rows, columns = grid
        start, end = (self.tokenizer.convert_tokens_to_ids(token) for token in self.special_tokens[1:])
        keep = keep.view(slots, rows * columns).cpu()
        layout = Layout(self.num_axes)
        for slot in range(slots):
            layout.text([*self.ids(f"<{self.slot_seconds(chunk, slot):.1f} seconds>"), start])
            cells = keep[slot].nonzero().flatten()
            positions = torch.stack([torch.zeros_like(cells), cells // columns, cells % columns])
            layout.visual([self.video_id] * len(cells), positions, max(rows, columns))
            layout.text([end])
        return self.laid_out(layout, keep, visual)
