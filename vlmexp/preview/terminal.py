"""The preview in a terminal: coloured where it has colours, in words and brackets where it has none."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from vlmexp.preview.cards import Card, Segment
from vlmexp.preview.summary import Preview, card_title, media_sizes, numbers, packing, policy
from vlmexp.preview.survey import histogram
from vlmexp.preview.tokens import MASKED, MEDIA, PADDING, PART, TRAINED, Piece

_STYLES = {TRAINED: "bold green", MASKED: "", MEDIA: "cyan", PADDING: "dim"}
_BARS = 12  # of the histogram
_LISTED = 5  # examples that are too long or cannot be used
_ROWS, _SEGMENTS = 4, 4  # the page shows all


def print_preview(console: Console, preview: Preview) -> None:
    """Numbers, lengths, what is too long or left out, and every row with its tokens."""
    out = _Lines(console)
    out.line(preview.title, "bold")
    table = numbers(preview)
    width = max(map(len, table))
    for name, (number, about) in table.items():
        out.line(f"  {name:<{width}}  {number:>8}  {about}")
    out.line("")
    _histogram(out, preview)
    out.line(media_sizes(preview.survey))
    if preview.sharing:
        out.line(preview.sharing)
    out.line(policy(preview), "yellow" if preview.too_long else "")
    for row, tokens, media in preview.too_long[:_LISTED]:
        out.line(f"  {row}: {tokens:,} tokens, {media:,} of them by media")
    _problems(out, preview)
    out.line("")
    console.print(_legend(console))
    for card in preview.cards[:_ROWS]:
        _card(out, card)
    out.line("")
    if len(preview.cards) > _ROWS:
        out.line(f"{len(preview.cards) - _ROWS} more rows are on the page.", "dim")


class _Lines:
    """Prints text as it is, in characters that the terminal's encoding has, and never as a control sequence."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def line(self, text: str, style: str = "") -> None:
        self.console.print(Text(self.plain(text), style=style))

    def plain(self, text: str) -> str:
        visible = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
        if not self.console.encoding.lower().startswith("utf"):
            visible = visible.encode("ascii", "backslashreplace").decode()
        return visible


def _legend(console: Console) -> Text:
    if _is_plain(console):
        return Text("Rows of a batch; {+trained+}, everything else is read without a loss")
    kinds = [(kind, _STYLES[kind]) for kind in (TRAINED, MASKED, MEDIA, PADDING)]
    return Text("Rows of a batch; ").append_text(Text(" ").join(Text(*kind) for kind in kinds))


def _histogram(out: _Lines, preview: Preview) -> None:
    bins = histogram(preview.survey.lengths, min(_BARS, len(preview.survey.lengths)))
    most = max(count for _, _, count in bins)
    digits = len(f"{bins[-1][1]:,}")
    room = max(8, min(40, out.console.width - 2 * digits - 24))
    mark = "█" if out.console.encoding.lower().startswith("utf") else "#"
    for first, last, count in bins:
        bar = mark * (-(-count * room // most))
        out.line(f"  {first:>{digits},} - {last:>{digits},} tokens  {count:>7,}  {bar}")


def _problems(out: _Lines, preview: Preview) -> None:
    if preview.errors:
        out.line(f"Rows that cannot be used and are left out: {len(preview.errors):,}", "yellow")
    for error in preview.errors[:_LISTED]:
        out.line(f"  {error}")


def _card(out: _Lines, card: Card) -> None:
    out.line("")
    out.line(card_title(card), "bold")
    if card.problem:
        out.line(f"  {card.problem}", "red")
        return
    for medium in card.media:
        out.line(f"  {medium.title}: {medium.about}", "dim")
    for question in card.questions:
        if question.fate:
            out.line(f"  {question.example.id}: {question.fate}", "yellow")
    counts = ", ".join(f"{count:,} {kind}" for kind, count in card.counts.items())
    out.line(f"  {counts}. {packing(card)}".rstrip(), "dim")
    for segment in card.segments[:_SEGMENTS]:
        if segment.title:
            out.line(f"  [{segment.title}]", "dim")
        out.console.print(_tokens(out, segment))
    if len(card.segments) > _SEGMENTS:
        out.line("  ... the rest of the row is on the page", "dim")


def _tokens(out: _Lines, segment: Segment) -> Text:
    text, last = Text(), ""
    marked = _is_plain(out.console)
    for piece in segment.pieces:
        if marked and (piece.kind == TRAINED) != (last == TRAINED):
            text.append("{+" if piece.kind == TRAINED else "+}")
        text.append(out.plain(_folded(piece)), _STYLES[piece.kind])
        last = piece.kind
    if marked and last == TRAINED:
        text.append("+}")
    return text


def _is_plain(console: Console) -> bool:
    return console.color_system is None or console.no_color


def _folded(piece: Piece) -> str:
    """The text of a piece, with how often its token is repeated; nothing for a part of a character."""
    if piece.text == PART:
        return ""
    return f" {piece.text} x {piece.count:,} " if piece.count > 1 else piece.text
