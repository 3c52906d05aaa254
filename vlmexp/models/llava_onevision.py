"""Videos of different lengths in one batch, for LLaVA-OneVision.

Its class in transformers takes one tensor [videos, frames, ...] and makes features of every frame. Importing this
module lets it leave out frames of nothing but zeros, with which shorter videos are padded (no picture is such a frame
once it is normalised). Videos of equal length are what they were.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlavaOnevisionModel

_features_of_all_frames = LlavaOnevisionModel.get_video_features


def _features_of_real_frames(self: LlavaOnevisionModel, pixel_values_videos: torch.Tensor, **options: Any) -> Any:
    outputs = _features_of_all_frames(self, pixel_values_videos, **options)
    features = outputs.pooler_output  # [videos, frames * tokens + 1, width]: a line break ends each video
    real = pixel_values_videos.flatten(2).any(2)  # [videos, frames]
    real = real.repeat_interleave((features.shape[1] - 1) // real.shape[1], dim=1)
    ends = real.new_ones(len(real), 1)
    outputs.pooler_output = features[torch.cat([real, ends], dim=1)][None]
    return outputs


LlavaOnevisionModel.get_video_features = _features_of_real_frames  # type: ignore[method-assign]
