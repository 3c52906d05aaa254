from __future__ import annotations

import random

from vlmexp.data.shapes import COLORS, SHAPES, describe, draw, examples


def test_the_same_seed_gives_the_same_pairs():
    first, second = (list(examples(5, 2, seed=3)) for _ in range(2))
    assert [text for _, text in first] == [text for _, text in second]
    assert all(a.tobytes() == b.tobytes() for (a, _), (b, _) in zip(first, second, strict=True))


def test_a_description_is_true_and_neither_asks_nor_answers():
    rng = random.Random(0)
    for _ in range(500):
        _, attributes = draw(rng)
        text = describe(attributes, rng)
        assert "?" not in text
        assert "yes" not in text.split()
        for line in text.splitlines():
            for part in line.split(", "):
                words = part.split()
                if words[-1] == "present" and len(words) == 2:
                    assert words[0] in attributes.values()
                if words[-1] == "no":
                    assert words[0] not in attributes.values()
                if words[0] == "there":
                    named = set(words) & {*COLORS, *SHAPES}
                    assert (named <= set(attributes.values())) == ("not" not in words)
