"""Attention over rows that are packed behind each other: each token sees its own row, and no mask is ever made.

    tokens     [row 1 | row 2 | image's prefix | question 1 | question 2 | ...]
    segments      0       1           2              3            4

A segment is causal and alone, or it sees a prefix besides: an earlier segment that others may see, too. What a token
sees is therefore told by three numbers, and these take the place of the 4-D mask that models hand through to their
attention: `sight` [rows, 1, tokens, 3], int32, with the first token of the prefix, the token behind the prefix's last
(equal where there is none), and the first token of the segment. It goes wherever a mask goes, also through gradient
checkpointing. `teach_attention` lets transformers' own attention functions read it; for all other masks they stay as
they are, and an implementation that does not know it fails instead of computing something else.

    sdpa on a CPU     one call for a segment, for neighbours of equal length, or for segments behind one prefix
    sdpa on a GPU     torch's varlen attention, behind prefixes with their keys put before each segment's; where that
                      does not run (float32, dropout, an older torch) as on a CPU
    flash_attention   the varlen function of the same package, likewise
    flex_attention    a block mask
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import accumulate, groupby, pairwise
from typing import Any

import torch
from transformers import AttentionInterface

Attention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
_OTHERS = ("position_bias", "s_aux", "softcap")  # what an attention may have besides, in sdpa or by token


@dataclass(frozen=True)
class Segment:
    """Tokens `start` to `end` (exclusive), which see themselves causally and all of `prefix` (its start and end)."""

    start: int
    end: int
    prefix: tuple[int, int] | None = None


@dataclass(frozen=True)
class Piece:
    """What one call of an attention function computes.

    Attributes:
        lengths: of the segments.
        prefix: which piece is their prefix; None: they have none, and all the same length.
    """

    lengths: tuple[int, ...]
    prefix: int | None = None
    prefix_length: int = 0

    def mask(self, window: int | None, device: torch.device) -> torch.Tensor | None:
        """[1, 1, tokens, keys] which keys a query sees; None: those of its segment up to itself.

        Args:
            window: how many tokens a query sees at most, itself included.
        """
        own = self.lengths if self.prefix is not None else self.lengths[:1]
        if self.prefix is None and (window is None or own[0] <= window):
            return None
        number = torch.repeat_interleave(torch.tensor(own, device=device))
        place = torch.cat([torch.arange(length, device=device) for length in own])
        distance = place[:, None] - place
        seen = (number[:, None] == number) & (distance >= 0)
        if window is not None:
            seen &= distance < window
        before = self.prefix_length + place[:, None] - torch.arange(self.prefix_length, device=device)
        in_prefix = before < window if window is not None else torch.ones_like(before, dtype=torch.bool)
        return torch.cat([in_prefix, seen], dim=1)[None, None]


@dataclass
class Layout:
    """The segments of a batch, and what attention functions need of them, made once for all layers."""

    segments: Sequence[Segment]
    _masks: dict[tuple[int, int | None], torch.Tensor | None] = field(default_factory=dict)
    _blocks: dict[int | None, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pieces = list(_pieces(self.segments))
        self._varlen: tuple[Any, ...] | None = None

    def sight(self, device: torch.device, rows: int = 1) -> torch.Tensor:
        """[rows, 1, tokens, 3] what each token sees; the segments count the tokens of all rows on."""
        table = torch.tensor([(*(s.prefix or (s.start, s.start)), s.start) for s in self.segments], dtype=torch.int32)
        lengths = torch.tensor([s.end - s.start for s in self.segments])
        sight: Any = table.repeat_interleave(lengths, 0).view(rows, 1, -1, 3).to(device)
        sight.packed_layout = self  # so that nothing has to come back from the device
        return sight  # type: ignore[no-any-return]

    def mask(self, number: int, window: int | None, device: torch.device) -> torch.Tensor | None:
        """Of a piece, see there."""
        if (number, window) not in self._masks:
            self._masks[number, window] = self.pieces[number].mask(window, device)
        return self._masks[number, window]

    def varlen(self, device: torch.device) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, int, int]:
        """For functions of sequences of different lengths, in which queries are the last of the keys.

        Returns:
            which keys each segment sees, one segment after another (None: all as they stand); where those of each
            segment begin, queries and keys [segments + 1]; the longest queries and keys.
        """
        if self._varlen is None:
            queries = [s.end - s.start for s in self.segments]
            keys = [s.end - s.start + (s.prefix[1] - s.prefix[0] if s.prefix else 0) for s in self.segments]
            index = None
            if any(s.prefix for s in self.segments):
                index = torch.cat([
                    torch.arange(*bounds) for s in self.segments for bounds in (s.prefix, (s.start, s.end)) if bounds
                ]).to(device)  # fmt: skip
            starts = [torch.tensor([0, *accumulate(n)], dtype=torch.int32, device=device) for n in (queries, keys)]
            self._varlen = index, *starts, max(queries), max(keys)
        return self._varlen

    def blocks(self, window: int | None, device: torch.device) -> Any:
        """The block mask of flex attention."""
        if window not in self._blocks:
            from torch.nn.attention.flex_attention import create_block_mask

            first, end, own = self.sight(device).view(-1, 3).unbind(1)
            # Where a token would stand in a row of its own, which is what a window counts.
            place = torch.arange(len(own), device=device) - own + (end - first)

            def seen(_: Any, __: Any, query: Any, key: Any) -> Any:
                visible = ((key >= first[query]) & (key < end[query])) | ((key >= own[query]) & (key <= query))
                return visible if window is None else visible & (place[query] - place[key] < window)

            self._blocks[window] = create_block_mask(seen, None, None, len(own), len(own), device=device)
        return self._blocks[window]


def layout_of(mask: Any) -> Layout | None:
    """The layout that a mask tells of; None if it is no sight."""
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.int32 or mask.ndim != 4 or mask.shape[-1] != 3:
        return None
    if not hasattr(mask, "packed_layout"):  # a copy of it, whose numbers say the same
        rows = mask.reshape(-1, 3).tolist()
        cuts = [0, *(i for i, (a, b) in enumerate(pairwise(rows), start=1) if a != b), len(rows)]
        found = [(start, end, rows[start]) for start, end in pairwise(cuts)]
        mask.packed_layout = Layout([Segment(s, e, (p, q) if q > p else None) for s, e, (p, q, _) in found])  # type: ignore[attr-defined]
    return mask.packed_layout  # type: ignore[no-any-return,attr-defined]


def _pieces(segments: Sequence[Segment]) -> list[Piece]:
    """Neighbours in one call: without a prefix those of equal length, behind one as many tokens as it has itself.

    Segments behind one prefix are masked from each other, so more of them in a call would compute what nobody sees.
    """
    prefixes = {segment.prefix for segment in segments if segment.prefix}
    pieces, number = list[Piece](), dict[tuple[int, int], int]()

    def kind(segment: Segment) -> tuple[Any, ...]:
        own = (segment.start, segment.end)
        return (own,) if own in prefixes else (segment.prefix, segment.prefix or segment.end - segment.start)

    for _, group in groupby(segments, kind):
        alike = list(group)
        prefix, lengths = alike[0].prefix, [segment.end - segment.start for segment in alike]
        if prefix is None:
            number[alike[0].start, alike[0].end] = len(pieces)
            pieces.append(Piece(tuple(lengths)))
            continue
        most, part = prefix[1] - prefix[0], list[int]()
        for length in lengths:
            if part and sum(part) + length > most:
                pieces.append(Piece(tuple(part), number[prefix], most))
                part = []
            part.append(length)
        pieces.append(Piece(tuple(part), number[prefix], most))
    return pieces


def _by_piece(
    function: Attention, module: Any, query: Any, key: Any, value: Any, layout: Layout, window: int | None, options: Any
) -> torch.Tensor:
    """[1, tokens, heads, size]: a call of an attention function for each piece."""
    sizes = [sum(piece.lengths) for piece in layout.pieces]
    queries, keys, values = (states.split(sizes, dim=2) for states in (query, key, value))
    outputs = []
    for number, piece in enumerate(layout.pieces):
        asked, mask = queries[number], layout.mask(number, window, query.device)
        if piece.prefix is None:
            shape = (len(piece.lengths), piece.lengths[0])
            states = [part.unflatten(2, shape)[0].transpose(0, 1) for part in (asked, keys[number], values[number])]
        else:
            seen = [torch.cat([parts[piece.prefix], parts[number]], dim=2) for parts in (keys, values)]
            states = [asked, *seen]
        output, _ = function(module, *states, mask, **options)
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs)[None]


def _sdpa(
    function: Attention, module: Any, query: Any, key: Any, value: Any, layout: Layout, window: int | None, options: Any
) -> torch.Tensor:
    if not _varlen_runs(query, value, options.get("dropout", 0.0)):
        return _by_piece(function, module, query, key, value, layout, window, options)
    index, starts, key_starts, most, most_keys = layout.varlen(query.device)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # [tokens, heads, size]
    if index is not None:
        k, v = k.index_select(0, index), v.index_select(0, index)
    seen = (-1, 0) if window is None else (window - 1, 0)
    # Queries are the last of the keys: a causal mask of this function is that of the lower right corner.
    output = _varlen_function()(
        q, k, v, starts, key_starts, most, most_keys,
        scale=options.get("scaling"), window_size=seen, enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return output[None]  # type: ignore[no-any-return]


def _flash(
    function: Attention, module: Any, query: Any, key: Any, value: Any, layout: Layout, window: int | None, options: Any
) -> torch.Tensor:
    index, starts, key_starts, most, most_keys = layout.varlen(query.device)
    if index is not None:
        key, value = key.index_select(2, index), value.index_select(2, index)
    lengths = {"cu_seq_lens_q": starts, "cu_seq_lens_k": key_starts, "max_length_q": most, "max_length_k": most_keys}
    options = {**options, **lengths, "sliding_window": window}
    return function(module, query, key, value, None, **options)[0]


def _flex(
    function: Attention, module: Any, query: Any, key: Any, value: Any, layout: Layout, window: int | None, options: Any
) -> torch.Tensor:
    return function(module, query, key, value, layout.blocks(window, query.device), **options)[0]


@cache
def _varlen_function() -> Any:
    """torch's attention over sequences of different lengths, as it is since 2.11; None if there is none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


def _varlen_runs(query: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    """Whether torch's varlen attention takes these states: its kernels are flash attention's."""
    size = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and dropout == 0.0
        and size == value.shape[-1]
        and size <= 256
        and size % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and _varlen_function() is not None
    )


def _reading_sight(
    function: Attention, packed: Callable[..., torch.Tensor], module: Any, query: Any, key: Any, value: Any,
    attention_mask: Any, *args: Any, **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """An attention function that also reads a sight."""
    layout = layout_of(attention_mask)
    if layout is None:
        return function(module, query, key, value, attention_mask, *args, **options)
    is_causal = options.get("is_causal")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise ValueError("packed rows need causal attention")
    if packed is not _flex and packed is not _flash and (has := [n for n in _OTHERS if options.get(n) is not None]):
        raise ValueError(f"packed rows cannot have attention with {has[0]}")
    rows, _, tokens, _ = query.shape
    if key.shape[2] != tokens:
        raise ValueError("packed rows have no keys of before")
    if rows > 1:
        query, key, value = (states.transpose(0, 1).flatten(1, 2)[None] for states in (query, key, value))
    window = options.pop("sliding_window", None)
    output = packed(function, module, query, key, value, layout, window, options)
    return output.reshape(rows, tokens, *output.shape[2:]), None


@cache
def teach_attention() -> None:
    """Let transformers' attention functions read a sight where a mask is expected."""
    known = AttentionInterface()
    for name, packed in _TAUGHT.items():
        if name in known:
            AttentionInterface.register(name, partial(_reading_sight, known[name], packed))


_TAUGHT = {
    "sdpa": _sdpa,
    "flex_attention": _flex,
    **{f"flash_attention_{version}": _flash for version in (2, 3, 4)},
}


@contextlib.contextmanager
def masks_told(listen: Callable[[torch.Tensor, Any, int | None], None]) -> Iterator[None]:
    """Within it `listen` is told of each call of an attention function: queries, mask and window."""
    known = AttentionInterface()
    functions = {name: known[name] for name in _TAUGHT if name in known}

    def told(
        function: Attention,
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any,
        *args: Any,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        listen(query, attention_mask, options.get("sliding_window"))
        return function(module, query, key, value, attention_mask, *args, **options)

    try:
        for name, function in functions.items():
            AttentionInterface.register(name, partial(told, function))
        yield
    finally:
        for name, function in functions.items():
            AttentionInterface.register(name, function)
