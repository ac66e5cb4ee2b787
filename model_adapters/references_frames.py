"""References of the families that see every frame alone. Where their processors say something that a stream cannot (the
number of a frame, the length of the video), the time stamps of `frame_by_frame` stand instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL.Image import Resampling
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm as smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.video_llama_3.image_processing_pil_video_llama_3 import VideoLlama3ImageProcessorPil
from transformers.models.video_llama_3.processing_video_llama_3 import VideoLlama3Processor

from data.frames import Chunk
from model_adapters import internvl
from model_adapters.preprocess import video_settings
from model_adapters.references import Reference, pil


class FrameReference(Reference):
    """Every frame behind its time, all frames one video to the stock model."""

    def frame_pixels(self, image: Any) -> torch.Tensor:
        """[3, side, side] of one PIL picture, by the family's image processor."""
        raise NotImplementedError

    def video(self, pts_seconds: Sequence[float]) -> str:
        """What stands in the prompt for frames at these times."""
        raise NotImplementedError

    def pixel_inputs(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the stock forward calls pixels [T, 3, side, side]."""
        return {"pixel_values": pixels}

    def pixels(self, chunk: Chunk) -> torch.Tensor:
        return torch.stack([torch.as_tensor(self.frame_pixels(pil(frame))) for frame in chunk.frames])

    def inputs(self, chunks: Sequence[Chunk], question: str) -> dict[str, Any]:
        pts = [seconds for chunk in chunks for seconds in chunk.pts_seconds]
        text = self.prompt(question).replace("<video>", self.video(pts))
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        pixels = torch.cat([self.pixels(chunk) for chunk in chunks]).to(self.adapter.info.dtype)
        tensors = {"input_ids": ids, **self.pixel_inputs(pixels)}
        return {name: value.to(self.adapter.device) for name, value in tensors.items()}


class LlavaOnevisionReference(FrameReference):
    """LLaVA-OneVision (arXiv 2408.03326): the newline token stands behind the whole video."""

    def make_images(self, folder: Path) -> Any:
        own = video_settings(folder)
        size, side = own["size"], own["size"]["height"]
        pins = [[side, side]]
        return LlavaOnevisionImageProcessorPil(
            size=size, image_grid_pinpoints=pins, image_mean=own["image_mean"], image_std=own["image_std"]
        )

    def frame_pixels(self, image: Any) -> torch.Tensor:
        # The whole picture comes first, then its pieces.
        return self.images(image, return_tensors="pt")["pixel_values"][0][0]

    def video(self, pts_seconds: Sequence[float]) -> str:
        vision = self.config.vision_config
        size = -(-(vision.image_size // vision.patch_size) // 2)
        return "".join(f"Time {t:.1f}s:" + "<video>" * size**2 for t in pts_seconds) + "<video>"

    def pixel_inputs(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixel_values_videos": pixels[None]}


class InternVLReference(FrameReference):
    """InternVL3 (arXiv 2504.10479)."""

    def make_images(self, folder: Path) -> Any:
        own = internvl.frame_settings(folder, self.config)
        return GotOcr2ImageProcessorPil(size=own["size"], image_mean=own["image_mean"], image_std=own["image_std"])

    def frame_pixels(self, image: Any) -> torch.Tensor:
        return self.images(image, return_tensors="pt", crop_to_patches=False)["pixel_values"][0]

    def video(self, pts_seconds: Sequence[float]) -> str:
        own: Any = SimpleNamespace(
            start_image_token="<img>",
            end_image_token="</img>",
            image_token="<IMG_CONTEXT>",
            image_seq_length=self.config.image_seq_length,
        )
        text = InternVLProcessor.replace_video_token(own, {"pixel_values_videos": [torch.zeros(len(pts_seconds), 1)]}, 0)
        for number, seconds in enumerate(pts_seconds, 1):
            text = text.replace(f"Frame{number}: ", f"Frame at {seconds:.1f}s: ")
        return text


class SmolVLMReference(FrameReference):
    """SmolVLM2 (arXiv 2504.05299); its introduction without the number of frames and the length of the video."""

    def make_images(self, folder: Path) -> Any:
        own = video_settings(folder)
        sampling = own.get("video_sampling") or {}
        return SmolVLMImageProcessorPil(
            size=sampling.get("video_size") or own["size"],
            max_image_size=own["max_image_size"],
            do_image_splitting=False,
            resample=Resampling.BICUBIC,
            image_mean=own["image_mean"],
            image_std=own["image_std"],
        )

    def frame_pixels(self, image: Any) -> torch.Tensor:
        return self.images(image, return_tensors="pt")["pixel_values"][0][0]

    def video(self, pts_seconds: Sequence[float]) -> str:
        vision = self.config.vision_config
        picture = smolvlm.get_image_prompt_string(
            0,
            0,
            (vision.image_size // vision.patch_size // self.config.scale_factor) ** 2,
            fake_token_around_image="<fake_token_around_image>",
            image_token="<image>",
            global_image_token="<global-img>",
        )
        stamps = [f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}" for seconds in pts_seconds]
        frames = "".join(smolvlm.FRAME_TIMESTAMP_MESSAGE.format(timestamp=stamp) + picture for stamp in stamps)
        intro = smolvlm.DEFAULT_VIDEO_INTRO.replace("{frame_count} ", "").replace("a {video_duration} [H:MM:SS] ", "a ")
        return intro + frames + smolvlm.DEFAULT_MEDIA_OUTTRO

    def pixel_inputs(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixel_values": pixels[None]}


class VideoLlama3Reference(Reference):
    """VideoLLaMA3 (arXiv 2501.13106) without its own pruning of frames, and every frame as large as in its longest video."""

    def make_images(self, folder: Path) -> Any:
        own = video_settings(folder)
        least, most = own["size"]["shortest_edge"], own["size"]["longest_edge"] // own["max_frames"]
        names = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
        size = {"shortest_edge": least, "longest_edge": max(least, most)}
        return VideoLlama3ImageProcessorPil(size=size, **{name: own[name] for name in names})

    def pixels(self, chunk: Chunk) -> torch.Tensor:
        return torch.cat([self.images(pil(frame), return_tensors="pt")["pixel_values"] for frame in chunk.frames])

    def inputs(self, chunks: Sequence[Chunk], question: str) -> dict[str, Any]:
        pts = [seconds for chunk in chunks for seconds in chunk.pts_seconds]
        grid = self.images(pil(chunks[0].frames[0]), return_tensors="pt")["image_grid_thw"]
        grid[0, 0] = len(pts)
        merge = torch.tensor([self.images.merge_size])
        given = {
            "video_grid_thw": grid,
            "video_merge_sizes": merge,
            "video_compression_mask": torch.ones(int(grid.prod() // merge**2), dtype=torch.bool),
            "video_metadata": [SimpleNamespace(fps=1.0, timestamps=pts)],
        }
        own: Any = SimpleNamespace(video_token="<|video_pad|>")
        video = VideoLlama3Processor.replace_video_token(own, given, 0)
        text = self.prompt(question).replace("<|video_pad|>", video)
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        pixels = torch.cat([self.pixels(chunk) for chunk in chunks]).to(self.adapter.info.dtype)
        tensors = {"input_ids": ids, "pixel_values_videos": pixels, "video_grid_thw": grid, "video_merge_sizes": merge}
        return {name: value.to(self.adapter.device) for name, value in tensors.items()}
