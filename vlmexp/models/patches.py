"""Patch embeddings as one matrix product.

A vision tower cuts an image into patches by a convolution whose stride is its kernel. Each number of the image then
meets the weights once, so that it is a linear layer on the patches; as a convolution it is many times slower on CPUs
and, in some releases of torch, on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

SLOW_CONV3D = "2.9."  # torch's releases whose Conv3d takes ten to twenty times as long on GPUs as those before


def embed_patches_by_product(model: nn.Module) -> None:
    """Compute every convolution of the model that only cuts out patches as a matrix product.

    Modules, parameters and their names stay what they are; only how the result is computed changes.
    """
    convolutions: list[Any] = [module for module in model.modules() if cuts_patches(module)]
    for module in convolutions:
        if "forward" not in vars(module):
            module.forward = MethodType(_product, module)


def cuts_patches(module: nn.Module) -> bool:
    """Whether a module is a convolution in two or three dimensions whose windows neither overlap nor leave gaps."""
    if not isinstance(module, nn.Conv2d | nn.Conv3d):
        return False
    is_own = type(module).forward in (nn.Conv2d.forward, nn.Conv3d.forward)
    is_padded = module.padding != "valid" and any(side != 0 for side in module.padding)
    is_dilated = any(step != 1 for step in module.dilation)
    return is_own and module.stride == module.kernel_size and not is_padded and not is_dilated and module.groups == 1


def note_slow_convolutions(model: nn.Module, version: str, on_gpu: bool, note: Callable[[str], None]) -> None:
    """Say so where a release of torch with a slow Conv3d meets one that is not computed as a product."""
    convolutions = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv3d)]
    left = [name for name, module in convolutions if getattr(module.forward, "__func__", None) is not _product]
    if left and on_gpu and version.startswith(SLOW_CONV3D):
        note(
            f"torch {version} computes a Conv3d on a GPU ten to twenty times slower than other releases, and the model "
            f"has one ({left[0]}): another release of torch is faster."
        )


def _product(conv: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What the convolution makes of [images, channels, *sides]: [images, features, *patches a side]."""
    kernel, dims = conv.kernel_size, len(conv.kernel_size)
    if pixels.ndim != dims + 2:  # a single image
        return _product(conv, pixels[None])[0]
    images, channels, *sides = pixels.shape
    places = [side // size for side, size in zip(sides, kernel, strict=True)]
    if any(side % size for side, size in zip(sides, kernel, strict=True)):  # what is no whole patch is not seen
        whole = (slice(0, place * size) for place, size in zip(places, kernel, strict=True))
        pixels = pixels[(slice(None), slice(None), *whole)]
    weight = conv.weight.reshape(conv.out_channels, -1)
    if prod(places) == 1:
        patches = pixels.reshape(images, -1)
        return linear(patches, weight, conv.bias).view(images, conv.out_channels, *places)
    # [images, channels, places, size, places, size, ...] to [images, places, ..., channels, size, ...]
    split = pixels.reshape(images, channels, *(n for pair in zip(places, kernel, strict=True) for n in pair))
    order = (0, *range(2, 2 + 2 * dims, 2), 1, *range(3, 3 + 2 * dims, 2))
    patches = split.permute(order).reshape(images, prod(places), -1)
    return linear(patches, weight, conv.bias).transpose(1, 2).unflatten(2, places)
