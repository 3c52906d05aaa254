"""The parts of a vision-language model: vision tower, projector, language model."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

PARTS = ("vision", "projector", "language")


@dataclass(frozen=True)
class ModulePatterns:
    """Regular expressions that find vision tower and projector, anywhere in a module's or parameter's dotted name.

    The projector is looked for first: some families keep it inside the vision tower. What is neither is the language
    model. The defaults fit transformers' own families.
    """

    vision: str = r"\b(visual|vision_tower|vision_model|vision_encoder|vision_embed_tokens)\b"
    projector: str = (
        r"\b(multi_modal_projector|connector|merger|deepstack_merger_list|img_projection|image_newline|glb_GN|sub_GN)\b"
    )

    def part_of(self, name: str) -> str:
        """`vision`, `projector` or `language`."""
        if re.search(self.projector, name):
            return "projector"
        return "vision" if re.search(self.vision, name) else "language"

    def pattern_of(self, parts: Collection[str]) -> str | None:
        """A pattern that fits whole names of modules in any of the parts; None for no part."""
        patterns = {
            "vision": rf"(?!.*(?:{self.projector})).*(?:{self.vision}).*",
            "projector": rf".*(?:{self.projector}).*",
            "language": rf"(?!.*(?:{self.vision}|{self.projector})).*",
        }
        return "|".join(f"(?:{patterns[part]})" for part in PARTS if part in parts) or None


DEFAULT_PATTERNS = ModulePatterns()
