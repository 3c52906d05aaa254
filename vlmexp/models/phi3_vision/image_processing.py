"""The HD transform: an image as a grid of tiles at high resolution, and once more as one small tile."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import to_pil_image
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import ImagesKwargs

Size = tuple[int, int]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Phi3VImagesKwargs(ImagesKwargs, total=False):
    """Options of a call; `num_crops` is the largest number of tiles an image is cut into."""

    num_crops: int


class Phi3VImageProcessor(BaseImageProcessor):
    """Images to tiles, bit for bit as the original does it on Pillow images.

    Args:
        num_crops: the largest number of tiles in the grid, the small one not counted.
        image_mean: mean of the RGB channels, of values from 0 to 1.
        image_std: their standard deviation.
        num_img_tokens: image tokens of one tile, without separators: a square number.
        tile_size: side of a tile in pixels.
        do_convert_rgb: accepted for the sake of saved configurations; images always become RGB.
    """

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012
    valid_kwargs = Phi3VImagesKwargs

    def __init__(
        self,
        num_crops: int = 16,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        num_img_tokens: int = 144,
        tile_size: int = 336,
        do_convert_rgb: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("auto_map", None)  # names modules of remote code
        super().__init__(**kwargs)
        self.num_crops = num_crops
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.num_img_tokens = num_img_tokens
        self.tile_size = tile_size
        self.do_convert_rgb = do_convert_rgb

    def preprocess(self, images: Any, num_crops: int | None = None, return_tensors: str | None = "pt") -> BatchFeature:
        """Tiles of all images, flattened in order.

        Returns:
            pixel_values    [images, 1 + num_crops, 3, tile_size, tile_size]  the small tile, the grid row by row, zeros
            image_sizes     [images, 2]  height and width of the grid in pixels
            num_img_tokens  [images]     image tokens that each image takes in the text
        """
        limit = self.num_crops if num_crops is None else num_crops
        flat: Any = make_flat_list_of_images(self.fetch_images(images))
        grids = [self._grid(image, limit) for image in flat]
        sizes = [(grid.shape[1], grid.shape[2]) for grid in grids]
        data = {
            "pixel_values": torch.stack([self._tiles(grid, limit) for grid in grids]),
            "image_sizes": torch.tensor(sizes),
            "num_img_tokens": [self.image_token_count(*size) for size in sizes],
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def image_token_count(self, height: int, width: int) -> int:
        """Image tokens of a grid of `height` by `width` pixels, separators included.

        A separator ends every row of tokens, in the grid and in the small tile, and one more stands between the two.
        """
        rows, columns, side = height // self.tile_size, width // self.tile_size, math.isqrt(self.num_img_tokens)
        return (rows * columns + 1) * side * side + (rows + 1) * side + 1

    def get_number_of_image_tokens(self, height: int, width: int, num_crops: int | None = None) -> int:
        """Image tokens of an image of `height` by `width` pixels, without looking at its pixels."""
        _, (grid_width, grid_height) = grid_size(width, height, num_crops or self.num_crops, self.tile_size)
        return self.image_token_count(grid_height, grid_width)

    def _grid(self, image: Any, num_crops: int) -> torch.Tensor:
        """[3, height, width]: the normalised image, resized and padded with white to whole tiles."""
        picture = image if isinstance(image, Image.Image) else to_pil_image(image)
        pixels = np.array(hd_transform(picture.convert("RGB"), num_crops, self.tile_size))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.image_mean, self.image_std))
        return (torch.from_numpy(pixels).permute(2, 0, 1).float().div(255) - mean) / std

    def _tiles(self, grid: torch.Tensor, num_crops: int) -> torch.Tensor:
        """[1 + num_crops, 3, tile_size, tile_size]: the small tile, the grid's tiles row by row, zeros."""
        side = self.tile_size
        small = functional.interpolate(grid[None], size=(side, side), mode="bicubic")
        tiles = grid.unflatten(2, (-1, side)).unflatten(1, (-1, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)
        padding = grid.new_zeros(num_crops - len(tiles), 3, side, side)
        return torch.cat([small, tiles, padding])


def hd_transform(image: Image.Image, num_crops: int, tile: int) -> Image.Image:
    """Resize an RGB image and centre it on a white canvas of whole tiles."""
    upright = image.width < image.height
    # Pillow resizes along one axis after the other and rounds in between, so a tall image has to be laid on its side
    # to get the original's pixels.
    flat = image.transpose(Image.Transpose.TRANSPOSE) if upright else image
    size, canvas_size = grid_size(flat.width, flat.height, num_crops, tile)
    canvas = Image.new("RGB", canvas_size, (255, 255, 255))
    canvas.paste(flat.resize(size, Image.Resampling.BILINEAR), (0, (canvas_size[1] - size[1]) // 2))
    return canvas.transpose(Image.Transpose.TRANSPOSE) if upright else canvas


def grid_size(width: int, height: int, num_crops: int, tile: int) -> tuple[Size, Size]:
    """(width, height) in pixels that an image is resized to, and that of the tiles around it.

    The longer side gets as many tiles as the aspect ratio and `num_crops` allow; a small image is enlarged too.
    """
    if width < height:
        size, canvas = grid_size(height, width, num_crops, tile)
        return (size[1], size[0]), (canvas[1], canvas[0])
    ratio = width / height
    columns = 1
    while (columns + 1) * math.ceil((columns + 1) / ratio) <= num_crops:
        columns += 1
    resized = max(1, int(columns * tile / ratio))
    return (columns * tile, resized), (columns * tile, math.ceil(resized / tile) * tile)
