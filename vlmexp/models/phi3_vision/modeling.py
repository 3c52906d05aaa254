"""Phi3 with an image embedding: CLIP features of an image's tiles, two learnt separators and a projector.

Parameters are saved under the names of the Hub's checkpoint. In the model itself CLIP's have no `vision_model.` before
them: transformers adds it to whatever holds a CLIPVisionModel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionModel, Phi3ForCausalLM, Phi3Model, Phi3PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from vlmexp.models.phi3_vision.configuration import Phi3VConfig

MEDIA = ("pixel_values", "image_sizes")


class Phi3VImageEmbedding(nn.Module):
    """Tiles of images to one feature per image token.

    The features of 2x2 neighbouring patches are joined to one token. An image is the tokens of its grid of tiles, line
    by line across tiles, each line ended by the separator `sub_GN`; then the separator `glb_GN`; then the small tile,
    its lines ended by `sub_GN` too.
    """

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        vision: Any = config.vision_config
        width = vision.hidden_size * 4
        self.tile_size = vision.image_size
        self.feature_layer = config.vision_feature_layer
        self.img_processor = CLIPVisionModel(vision)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, width))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.img_projection = nn.Sequential(
            nn.Linear(width, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )

    def forward(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor) -> torch.Tensor:
        """Features of all images in order.

        Args:
            pixel_values: [images, tiles, 3, tile_size, tile_size]: the small tile, the grid row by row, padding.
            image_sizes: [images, 2]: height and width of the grid in pixels.

        Returns:
            [sum of the images' tokens, hidden_size]
        """
        grids = [(height // self.tile_size, width // self.tile_size) for height, width in image_sizes.tolist()]
        counts = [rows * columns + 1 for rows, columns in grids]
        tiles = torch.cat([image[:count] for image, count in zip(pixel_values, counts, strict=True)])  # no padding
        patches = self._patch_features(tiles.to(self.glb_GN.dtype))
        parts = []
        for (rows, columns), (small, grid) in zip(
            grids, (group.tensor_split([1]) for group in patches.split(counts)), strict=True
        ):
            parts += [self._lines(grid, rows, columns), self.glb_GN[0], self._lines(small, 1, 1)]
        features: torch.Tensor = self.img_projection(torch.cat(parts))
        return features

    def _patch_features(self, tiles: torch.Tensor) -> torch.Tensor:
        """[tiles, patches, vision width], the class token left out."""
        hidden = self.img_processor(tiles, output_hidden_states=True).hidden_states
        features: torch.Tensor = hidden[self.feature_layer][:, 1:]
        return features

    def _lines(self, patches: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """[rows * columns, patches, vision width] to [tokens, 4 * vision width], separators included."""
        side = int(patches.shape[1] ** 0.5) // 2  # tokens along a tile's side
        # (rows, columns, y, dy, x, dx, width) to (rows, y, columns, x, dy, dx, width)
        blocks = patches.reshape(rows, columns, side, 2, side, 2, -1).permute(0, 2, 1, 4, 3, 5, 6)
        tokens = blocks.reshape(rows * side, columns * side, -1)
        separator = self.sub_GN[0].expand(rows * side, 1, -1)
        return torch.cat([tokens, separator], dim=1).flatten(0, 1)


class Phi3VPreTrainedModel(Phi3PreTrainedModel):
    """What both models have in common."""

    config: Phi3VConfig
    config_class = Phi3VConfig
    input_modalities = ["image", "text"]  # noqa: RUF012
    _no_split_modules = ["Phi3DecoderLayer", "Phi3VImageEmbedding"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Phi3VImageEmbedding):
            init.zeros_(module.glb_GN)
            init.zeros_(module.sub_GN)


class Phi3VModel(Phi3VPreTrainedModel, Phi3Model):
    """Phi3Model whose image tokens are replaced by image features."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.vision_embed_tokens = Phi3VImageEmbedding(config)
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor) -> torch.Tensor:
        """[sum of the images' tokens, hidden_size], see Phi3VImageEmbedding."""
        features: torch.Tensor = self.vision_embed_tokens(pixel_values, image_sizes)
        return features

    def image_token_mask(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Where image features belong. The original's own processor writes negative ids there."""
        return (input_ids == self.config.image_token_id) | (input_ids < 0)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As Phi3Model, but that positions, if not given, do not count padding.

        Raises:
            ValueError: images without the ids that say where they belong, or another number of image tokens than of
                image features.
        """
        if input_ids is not None and inputs_embeds is None:
            inputs_embeds = self._embed(input_ids, pixel_values, image_sizes)
        elif pixel_values is not None:
            raise ValueError("pixel_values need input_ids and no inputs_embeds: image tokens are found by their id")
        if position_ids is None and inputs_embeds is not None and attention_mask is not None:
            position_ids = _positions(attention_mask, inputs_embeds.shape[1])
        return super().forward(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )

    def _embed(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None, image_sizes: torch.Tensor | None
    ) -> torch.Tensor:
        """[batch, tokens, hidden_size]"""
        is_image = self.image_token_mask(input_ids)
        embeddings: torch.Tensor = self.embed_tokens(input_ids.masked_fill(is_image, 0))
        if pixel_values is None:
            return embeddings
        if image_sizes is None:
            raise ValueError("pixel_values need image_sizes")
        features = self.get_image_features(pixel_values, image_sizes).to(embeddings)
        tokens = int(is_image.sum())
        if tokens != len(features):
            raise ValueError(f"{tokens} image tokens in input_ids, but {len(features)} image features")
        return embeddings.masked_scatter(is_image.unsqueeze(-1), features)


def _positions(attention_mask: torch.Tensor, tokens: int) -> torch.Tensor | None:
    """[batch, tokens]: positions of the last tokens of a [batch, all tokens] mask; None for masks of other shapes.

    The longest position decides between short and long rope, so padding must not count.
    """
    if attention_mask.ndim != 2:
        return None
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens:]


class Phi3VForCausalLM(Phi3VPreTrainedModel, Phi3ForCausalLM):
    """Phi-3-Vision with its language modelling head; loss and generation are those of Phi3ForCausalLM."""

    def __init__(self, config: Phi3VConfig) -> None:
        Phi3VPreTrainedModel.__init__(self, config)
        self.model = Phi3VModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor) -> torch.Tensor:
        """[sum of the images' tokens, hidden_size], see Phi3VImageEmbedding."""
        return self.model.get_image_features(pixel_values, image_sizes)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As Phi3ForCausalLM, with the images of the whole batch in the order of their tokens."""
        # Phi3ForCausalLM hands what it does not know to Phi3VModel, and to the loss function, which ignores it.
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        # Where the length passes from the short to the long rope, Phi3 drops its cache in the middle of a generation
        # and computes the whole text again: the images are needed again, too.
        tokens = inputs.get("input_ids")
        if is_first_iteration or (tokens is not None and tokens.shape[1] == input_ids.shape[1]):
            inputs |= {"pixel_values": pixel_values, "image_sizes": image_sizes}
        return inputs

    def _expand_inputs_for_generation(  # type: ignore[override]
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        # For beams and several samples transformers repeats every tensor row by row, but a row of the batch may have
        # no image or several: they have to be repeated together.
        media = {name: model_kwargs.pop(name, None) for name in MEDIA}
        if expand_size > 1 and input_ids is not None and media["pixel_values"] is not None:
            index = torch.tensor(self._images_of_rows(input_ids, media["image_sizes"], expand_size), dtype=torch.long)
            media = {name: value[index.to(value.device)] for name, value in media.items()}
        expand: Any = super()._expand_inputs_for_generation  # type: ignore[misc]
        expanded, model_kwargs = expand(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        return expanded, {**model_kwargs, **media}

    def _images_of_rows(self, input_ids: torch.Tensor, image_sizes: torch.Tensor, repeats: int) -> list[int]:
        """Indices of the images when every row of the batch, with its images, stands there `repeats` times."""
        vision: Any = self.config.vision_config
        side = vision.image_size // vision.patch_size // 2
        index, image = [], 0
        for tokens in self.model.image_token_mask(input_ids).sum(1).tolist():
            first = image
            while tokens > 0 and image < len(image_sizes):
                rows, columns = (int(pixels) // vision.image_size for pixels in image_sizes[image])
                tokens -= (rows * columns + 1) * side * side + (rows + 1) * side + 1
                image += 1
            index += list(range(first, image)) * repeats
        return index
