"""VideoLLaMA3 on stock transformers: frames of any size, each behind its time in seconds, a comma between them.

Its own pruner of frames that hardly change stays off: dropping does that here, for all families alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from data.frames import Chunk
from model_adapters.base import VisualTokens
from model_adapters.frame_by_frame import FrameByFrameAdapter
from model_adapters.preprocess import PixelSpec, colours, merged, patched, patchify, resize, video_settings
from model_adapters.stock import joined, shared_out


class VideoLlama3Adapter(FrameByFrameAdapter):
    """Any checkpoint whose config says `model_type: video_llama_3`."""

    model_class = "VideoLlama3ForConditionalGeneration"
    special_tokens = ("<|video_pad|>",)
    video_part = "<|video_pad|>"

    @classmethod
    def read_pixels(cls, folder: Path) -> PixelSpec:
        # The processor shares its area among a video's frames; a stream gets what each frame of its longest video would.
        own = video_settings(folder)
        least, area = own["size"]["shortest_edge"], own["size"]["longest_edge"]
        most = max(least, area // own["max_frames"])
        patch, merge, slot = (int(own[name]) for name in ("patch_size", "merge_size", "temporal_patch_size"))
        return PixelSpec(patch, merge, slot, least, most, *colours(own))

    def stamp(self, seconds: float, first: bool) -> str:
        return f"{'' if first else ','}Time {seconds:.1f}s:"

    def picture(self, chunk: Chunk) -> torch.Tensor:
        return resize(torch.from_numpy(chunk.frames).to(self.device), self.spec)

    def pixels(self, picture: torch.Tensor) -> torch.Tensor:
        return patchify(picture, self.spec, self.model.dtype)[0]

    @torch.inference_mode()
    def embed_many(self, pictures: Sequence[torch.Tensor]) -> list[VisualTokens]:
        patches, grids = patched(pictures, self.spec, self.model.dtype)
        merge = torch.tensor([self.spec.merge_size] * len(grids), device=grids.device)
        out = self.model.get_video_features(patches, grids, video_merge_sizes=merge)
        return shared_out(joined(out.pooler_output), merged(grids, self.spec.merge_size))
