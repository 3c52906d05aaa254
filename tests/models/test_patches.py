"""Patch embeddings as a matrix product: what torch's own convolution gives, in every tower."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.models.test_families import examples, family, photos  # noqa: F401  # fixtures
from vlmexp.models.patches import cuts_patches, embed_patches_by_product, note_slow_convolutions

CUTTING = [  # a convolution, and the shape of what it sees
    (nn.Conv3d(3, 8, (2, 14, 14), (2, 14, 14), bias=False), (5, 3, 2, 14, 14)),  # one patch each, as Qwen's
    (nn.Conv2d(3, 8, 14, 14), (2, 3, 56, 70)),
    (nn.Conv2d(3, 8, (7, 14), (7, 14), padding="valid"), (2, 3, 30, 45)),  # with a rest that is in no patch
    (nn.Conv3d(3, 8, 4, 4), (2, 3, 5, 9, 8)),
    (nn.Conv2d(3, 8, 4, 4), (3, 9, 8)),  # a single image
]
OTHERS = [
    nn.Conv2d(3, 8, 4, 2), nn.Conv2d(3, 8, 4, 4, padding=1), nn.Conv2d(4, 8, 4, 4, groups=2),
    nn.Conv2d(3, 8, 4, 4, dilation=2), nn.Conv1d(3, 8, 4, 4), nn.Linear(3, 8),
]  # fmt: skip


def passed(conv: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of pixels, weight and bias for a fixed one of the output."""
    pixels = pixels.clone().requires_grad_()
    output = conv(pixels)
    weights = list(conv.parameters())
    gradient = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return [output.detach(), *torch.autograd.grad(output, [pixels, *weights], gradient)]


@pytest.mark.parametrize(("conv", "shape"), CUTTING)
def test_a_product_is_the_convolution(conv, shape):
    torch.manual_seed(0)
    pixels, plain = torch.randn(shape), copy.deepcopy(conv)
    embed_patches_by_product(conv)
    twin = copy.deepcopy(conv)
    with torch.no_grad():
        next(twin.parameters()).zero_()  # a copy's weights are its own
    for mine, theirs in zip(passed(conv, pixels), passed(plain, pixels), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.equal(twin(pixels), conv(pixels))
    assert conv.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("module", OTHERS)
def test_other_layers_are_left_alone(module):
    embed_patches_by_product(module)
    assert not cuts_patches(module)
    assert "forward" not in vars(module)


def test_every_tower_embeds_by_a_product(family, examples):  # noqa: F811
    model, batch = family.model(), family.collator()(examples)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)]
    assert convolutions
    assert all("forward" in vars(module) for module in convolutions)
    results = []
    for _ in range(2):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        results.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
        for module in convolutions:
            del module.forward
        convolutions = []
    (one, gradient), (other, theirs) = results
    assert one == pytest.approx(other, rel=1e-6)
    assert torch.linalg.vector_norm(gradient - theirs) <= 1e-5 * torch.linalg.vector_norm(theirs)


def test_a_slow_release_is_named_where_it_matters():
    overlapping = nn.Sequential(nn.Conv3d(3, 8, 4, 2))
    embedding = nn.Sequential(nn.Conv3d(3, 8, 4, 4))
    embed_patches_by_product(embedding)
    for model, version, on_gpu, expected in (
        (overlapping, "2.9.1+cu128", True, 1), (overlapping, "2.9.1", False, 0), (overlapping, "2.10.0", True, 0),
        (embedding, "2.9.0", True, 0),
    ):  # fmt: skip
        said: list[str] = []
        note_slow_convolutions(model, version, on_gpu, said.append)
        assert len(said) == expected
        assert all("2.9.1+cu128" in text and "Conv3d" in text for text in said)
