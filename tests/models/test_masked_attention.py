from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from vlmexp.models.masked_attention import NAME, masked_attention, taking_masks


def states(heads: int, tokens: int, size: int) -> torch.Tensor:
    return torch.randn(2, heads, tokens, size, generator=torch.Generator().manual_seed(tokens + heads))


@pytest.mark.parametrize(("heads", "shared_by"), [(4, 1), (6, 3), (4, 4)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_is_sdpa_with_a_mask(heads, shared_by, scaling):
    query, key, value = states(heads, 3, 8), states(heads // shared_by, 7, 8), states(heads // shared_by, 7, 6)
    seen = torch.rand(2, 1, 3, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    seen[..., 0] = True
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    repeated = (part.repeat_interleave(shared_by, dim=1) for part in (key, value))
    right = scaled_dot_product_attention(query, *repeated, attn_mask=seen, scale=scaling).transpose(1, 2)
    found, _ = masked_attention(None, query, key, value, mask, scaling=scaling, dropout=0.0)
    torch.testing.assert_close(found, right, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_what_it_does_not_have_is_refused(name):
    with pytest.raises(ValueError, match=f"cannot have attention with {name}"):
        masked_attention(None, *[states(2, 3, 8)] * 3, torch.zeros(2, 1, 3, 3), **{name: torch.ones(1)})


def test_each_part_has_its_own_attention_again_afterwards():
    names = ["flash_attention_2", "eager", "sdpa", "flex_attention"]
    configs = [SimpleNamespace(_attn_implementation=name, _attn_implementation_internal=name) for name in names]
    parts = [SimpleNamespace(config=config) for config in configs]
    with taking_masks(SimpleNamespace(modules=lambda: [*parts, SimpleNamespace()])):
        assert [c._attn_implementation_internal for c in configs] == [NAME, "eager", NAME, NAME]
    assert [c._attn_implementation_internal for c in configs] == names
