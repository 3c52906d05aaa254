"""Attention over packed rows is that of a dense mask, in every form in which it is computed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from vlmexp.models import packed_attention
from vlmexp.models.packed_attention import Layout, Segment, layout_of, teach_attention

PLAIN = [Segment(0, 3), Segment(3, 6), Segment(6, 7), Segment(7, 12)]
SHARED = [
    Segment(0, 4), Segment(4, 6, (0, 4)), Segment(6, 9, (0, 4)), Segment(9, 10, (0, 4)),
    Segment(10, 14), Segment(14, 19, (10, 14)), Segment(19, 20, (10, 14)), Segment(20, 23),
]  # fmt: skip
LAYOUTS = {"plain": PLAIN, "shared": SHARED, "one": [Segment(0, 5)]}
MODULE = SimpleNamespace(num_key_value_groups=2, is_causal=True, training=True)


def dense(segments: list[Segment], window: int | None) -> torch.Tensor:
    """[tokens, tokens] which keys a token sees, by going through all pairs."""
    tokens = segments[-1].end
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for segment in segments:
        first, end = segment.prefix or (0, 0)
        row = [*range(first, end), *range(segment.start, segment.end)]  # as it would stand alone
        for query in range(segment.start, segment.end):
            for key in row:
                distance = row.index(query) - row.index(key)
                seen[query, key] = distance >= 0 and (window is None or distance < window)
    return seen


def states(tokens: int, rows: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, heads, tokens // rows, 8, generator=generator).requires_grad_() for heads in (4, 2, 2)]


def with_gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weight = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return [output, *torch.autograd.grad((output * weight).sum(), inputs)]


def expected(segments: list[Segment], window: int | None) -> list[torch.Tensor]:
    inputs = states(segments[-1].end)
    query, key, value = inputs
    doubled = (part.repeat_interleave(2, dim=1) for part in (key, value))
    output = scaled_dot_product_attention(query, *doubled, attn_mask=dense(segments, window)).transpose(1, 2)
    return with_gradients(output, inputs)


def lower_right(q, k, v, starts, key_starts, most, most_keys, scale=None, window_size=(-1, -1), enable_gqa=False):
    """torch's varlen attention, said in plain words; [tokens, heads, size] each."""
    outputs = []
    for a, b, c, d in zip(starts[:-1], starts[1:], key_starts[:-1], key_starts[1:], strict=True):
        assert 0 < b - a <= most
        assert b - a <= d - c <= most_keys
        distance = torch.arange(d - c - (b - a), d - c)[:, None] - torch.arange(d - c)
        assert window_size[1] == 0
        seen = (distance >= 0) & ((distance <= window_size[0]) if window_size[0] >= 0 else True)
        part = [part[None].transpose(1, 2) for part in (q[a:b], k[c:d], v[c:d])]
        outputs.append(scaled_dot_product_attention(*part, attn_mask=seen, enable_gqa=enable_gqa)[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("form", ["pieces", "varlen", "flash", "copied"])
def test_it_is_that_of_a_dense_mask(name, window, form, monkeypatch):
    teach_attention()
    segments = LAYOUTS[name]
    inputs, layout = states(segments[-1].end), Layout(segments)
    sight = layout.sight(torch.device("cpu"))
    if form == "flash":  # as transformers calls it, [1, heads, tokens, size] in and [1, tokens, heads, size] out

        def flash(module, q, k, v, mask, sliding_window, **options):
            assert mask is None
            seen = (-1, 0) if sliding_window is None else (sliding_window - 1, 0)
            lengths = (options[name] for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"))
            flat = (part[0].transpose(0, 1) for part in (q, k, v))
            return lower_right(*flat, *lengths, window_size=seen, enable_gqa=True)[None], None

        output = packed_attention._flash(flash, MODULE, *inputs, layout, window, {})
    else:
        if form == "varlen":
            monkeypatch.setattr(packed_attention, "_varlen_runs", lambda *_: True)
            monkeypatch.setattr(packed_attention, "_varlen_function", lambda: lower_right)
        if form == "copied":  # as a tensor that has gone to another device
            sight = sight.clone()
            assert layout_of(sight) is not layout
        output, _ = AttentionInterface()["sdpa"](MODULE, *inputs, sight, sliding_window=window)
    for found, right in zip(with_gradients(output, inputs), expected(segments, window), strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_block_mask_sees_the_same(name, window):
    segments = LAYOUTS[name]

    def flex(module, query, key, value, mask):
        return flex_attention(query, key, value, block_mask=mask, enable_gqa=True).transpose(1, 2), None

    inputs = [part.detach() for part in states(segments[-1].end)]
    output = packed_attention._flex(flex, MODULE, *inputs, Layout(segments), window, {})
    torch.testing.assert_close(output, expected(segments, window)[0].detach(), rtol=0, atol=1e-5)


def test_no_piece_sees_all_tokens():
    """Work grows with the segments: 200 questions behind a prefix, and 300 rows of their own."""
    questions = [Segment(50 + 5 * n, 55 + 5 * n, (0, 50)) for n in range(200)]
    pieces = Layout([Segment(0, 50), *questions, *(Segment(1050 + n, 1051 + n) for n in range(300))]).pieces
    assert [piece.lengths for piece in pieces] == [(50,), *[(5,) * 10] * 20, (1,) * 300]
    assert max(piece.mask(None, torch.device("cpu")).numel() for piece in pieces[1:-1]) == 50 * (50 + 50)


def test_rows_beside_each_other_are_taken_too():
    teach_attention()
    segments = [Segment(0, 3), Segment(3, 6), Segment(6, 8), Segment(8, 12)]
    inputs = states(12, rows=2)
    output, _ = AttentionInterface()["sdpa"](MODULE, *inputs, Layout(segments).sight(torch.device("cpu"), rows=2))
    flat = [part.transpose(0, 1).flatten(1, 2)[None] for part in inputs]
    doubled = (part.repeat_interleave(2, dim=1) for part in flat[1:])
    right = scaled_dot_product_attention(flat[0], *doubled, attn_mask=dense(segments, None))
    torch.testing.assert_close(output.flatten(0, 1), right[0].transpose(0, 1), rtol=0, atol=1e-5)


def test_what_it_cannot_compute_is_refused_and_other_masks_are_not_touched():
    teach_attention()
    sdpa, inputs = AttentionInterface()["sdpa"], states(12)
    sight = Layout(PLAIN).sight(torch.device("cpu"))
    with pytest.raises(ValueError, match="need causal attention"):
        sdpa(SimpleNamespace(num_key_value_groups=2, is_causal=False), *inputs, sight)
    with pytest.raises(ValueError, match="need causal attention"):
        sdpa(MODULE, *inputs, sight, is_causal=False)
    for name in ("softcap", "s_aux", "position_bias"):
        with pytest.raises(ValueError, match=f"cannot have attention with {name}"):
            sdpa(MODULE, *inputs, sight, **{name: torch.ones(1)})
    with pytest.raises(ValueError, match="no keys of before"):
        sdpa(MODULE, inputs[0][:, :, -1:], *inputs[1:], sight)
    seen = dense(PLAIN, None)[None, None]
    for mask in (seen, torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)):
        output, _ = sdpa(MODULE, *inputs, mask)
        torch.testing.assert_close(output, expected(PLAIN, None)[0], rtol=0, atol=1e-5)
