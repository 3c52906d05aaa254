"""The preview as one HTML file that needs no network."""

from __future__ import annotations

import html
import re
from collections import Counter
from importlib import resources
from typing import Any

from vlmexp.comparison.report import as_script
from vlmexp.preview.cards import Card
from vlmexp.preview.media import Medium
from vlmexp.preview.pictures import as_uri
from vlmexp.preview.summary import WORST, Preview, card_title, media_sizes, numbers, packing, policy
from vlmexp.preview.survey import histogram

_ALONE, _AMONG_OTHERS = 560, 224  # pixels on the longer side of a picture
_PICTURES = 24  # of a medium
_SIZES = 2000  # points of the plot


def build_page(preview: Preview) -> str:
    """The page as text; what comes from the data is in it as JSON alone, and reaches the page as text."""
    survey = preview.survey
    content = {
        "facts": list(preview.facts.items()),
        "numbers": [[name, *values] for name, values in numbers(preview).items()],
        "sharing": preview.sharing,
        "policy": policy(preview),
        "maxLength": preview.max_length,
        "lengths": histogram(survey.lengths),
        "worst": [list(row) for row in preview.too_long[:WORST]],
        "sizesText": media_sizes(survey),
        "sizes": [[*size, count] for size, count in survey.sizes.most_common(_SIZES)],
        "cards": [_card(card) for card in preview.cards],
        "leftOut": len(preview.errors),
        "errors": preview.errors[:WORST],
        "choice": preview.choice,
    }
    page, report = (resources.files(f"vlmexp.{room}") / "page" for room in ("preview", "comparison"))
    parts = {
        "TITLE": html.escape(preview.title),
        "STYLE": "\n".join(file.read_text(encoding="utf-8") for file in (report / "report.css", page / "preview.css")),
        "SCRIPT": (page / "preview.js").read_text(encoding="utf-8"),
        "DATA": as_script(content),
    }
    template = (page / "preview.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _card(card: Card) -> dict[str, Any]:
    return {
        "title": card_title(card),
        "packing": packing(card),
        "problem": card.problem,
        "counts": card.counts,
        "length": card.length,
        "media": [_medium(medium) for medium in card.media],
        "questions": [
            {
                "id": question.example.id,
                "fate": question.fate,
                "length": question.length,
                "fields": list(question.example.fields.items()),
                "answer": question.example.answer,
                "accepted": [
                    f"{answer} ({count} times)" if count > 1 else answer
                    for answer, count in Counter(question.example.answers).most_common()
                ],
            }
            for question in card.questions
        ],
        "segments": [
            {"title": segment.title, "pieces": [[p.id, p.text, p.kind, p.count] for p in segment.pieces]}
            for segment in card.segments
        ],
    }


def _medium(medium: Medium) -> dict[str, Any]:
    longest = _ALONE if len(medium.pictures) == 1 else _AMONG_OTHERS
    shown = medium.pictures[:_PICTURES]
    left = len(medium.pictures) - len(shown)
    return {
        "title": medium.title,
        "about": f"{medium.about} {left} more are not shown." if left else medium.about,
        "pictures": [[as_uri(image, longest), caption] for image, caption in shown],
    }
