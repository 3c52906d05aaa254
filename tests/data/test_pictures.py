"""What a picture looks like, and which of many look the same."""

from __future__ import annotations

import imagehash
import numpy as np
import pytest
from PIL import Image

from vlmexp.data import pictures
from vlmexp.data.pictures import alike, looks, shrunk


@pytest.mark.parametrize("size", [(64, 64), (64, 48), (200, 31), (3, 5)])
def test_the_look_is_the_perceptual_hash_and_the_colours_however_many_are_looked_at_together(size):
    rng = np.random.default_rng(size)
    noise = [Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)) for _ in range(5)]
    images = [image.resize(size, Image.Resampling.BICUBIC) for image in noise]
    images.insert(2, Image.new("RGB", size, (9, 200, 3)))
    expected = []
    for image in images:
        small = image.resize((64, 64), Image.Resampling.BOX)
        bits = np.packbits(imagehash.phash(small).hash).tobytes()
        expected.append(bits + small.resize((4, 4), Image.Resampling.BOX).tobytes())
    assert looks([shrunk(image) for image in images]) == expected
    assert looks([shrunk(images[2])]) == expected[2:3]
    assert looks([]) == []


@pytest.mark.parametrize("pairs", [2**20, 64])
def test_alike_are_those_that_a_comparison_of_all_finds(pairs, monkeypatch):
    monkeypatch.setattr(pictures, "_PAIRS", pairs)
    rng = np.random.default_rng(5)
    others = [rng.integers(0, 256, 56, dtype=np.uint8) for _ in range(300)]
    looks = [other.copy() for other in others[:120]]
    for number, one in enumerate(looks):
        for bit in rng.choice(64, number % 12, replace=False):  # up to 11 bits of 64 are others
            one[bit // 8] ^= 1 << (bit % 8)
        one[8:] = np.clip(one[8:].astype(int) + rng.integers(-1, 2) * (number % 9), 0, 255)
    found = alike([one.tobytes() for one in looks], [other.tobytes() for other in others])
    for one, place in zip(looks, found, strict=True):
        bits = [sum(int(a ^ b).bit_count() for a, b in zip(one[:8], other[:8], strict=True)) for other in others]
        apart = [np.abs(one[8:].astype(int) - other[8:]).max() for other in others]
        near = [n for n, (bit, colour) in enumerate(zip(bits, apart, strict=True)) if bit <= 7 and colour <= 6]
        assert (place in near) if near else place == -1
    assert 20 < (found >= 0).sum() < 100
