"""What a picture shows, whatever its file is called and however it is encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}
HEAD = 4  # bytes of a file that tell its ending
_SMALL = 64  # pixels to which a picture is shrunk before it is hashed, which takes a tenth of the time
_GRID = 4  # fields a side, whose mean colours look-alikes have in common
_BITS, _COLOUR = 7, 6  # so far apart may look-alikes be: bits of 64 in the hash, levels of 255 in each field's colour
_BAND = 8  # bits: of eight bands one is equal where at most seven bits differ


def stored_name(sha256: str, head: bytes) -> str:
    """The name under which a file's bytes are stored: the hash of its content, and the ending that its head tells."""
    ending = next((ending for magic, ending in _ENDINGS.items() if head.startswith(magic)), ".bin")
    return f"media/{sha256[:20]}{ending}"


def identity(size: tuple[int, int], pieces: Iterable[Image.Image]) -> bytes:
    """A hash that upright RGB pictures have in common exactly if they have the same size and pixels.

    Args:
        pieces: parts of the picture whose bytes in turn are its bytes.
    """
    found = hashlib.sha256(f"{size} ".encode())
    for piece in pieces:
        found.update(piece.tobytes())
    return found.digest()[:16]


def look(image: Image.Image) -> bytes:
    """What is left of a picture after another compression or size: 8 bytes of perceptual hash, 48 of colours.

    The hash (imagehash's phash) knows light and dark only, so the mean colours of a grid of fields stand beside it.
    Source: Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions (2010).
    """
    import imagehash  # takes scipy along

    small = image.resize((_SMALL, _SMALL), Image.Resampling.BOX)
    colours = small.resize((_GRID, _GRID), Image.Resampling.BOX)
    return np.packbits(imagehash.phash(small).hash).tobytes() + colours.tobytes()


def alike(looks: Sequence[bytes], others: Sequence[bytes]) -> np.ndarray:
    """[looks] int64: the place among the others of one that looks the same; -1: there is none."""
    found = np.full(len(looks), -1)
    (hashes, colours), (other_hashes, other_colours) = _parts(looks), _parts(others)
    for shift in range(0, 64, _BAND):
        bands, other_bands = (values >> np.uint64(shift) & np.uint64(2**_BAND - 1) for values in (hashes, other_hashes))
        order = np.argsort(other_bands, kind="stable")
        first, end = (np.searchsorted(other_bands[order], bands, side) for side in ("left", "right"))
        for index in np.flatnonzero((found < 0) & (first < end)).tolist():
            places = order[first[index] : end[index]]
            places = places[_bits_apart(other_hashes[places], hashes[index]) <= _BITS]
            apart = np.abs(other_colours[places] - colours[index]).max(axis=1, initial=0)
            near = places[apart <= _COLOUR]
            found[index] = near[0] if len(near) else -1
    return found


def _bits_apart(hashes: np.ndarray, one: np.uint64) -> np.ndarray:
    return np.unpackbits((hashes ^ one).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)


def _parts(looks: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes [looks] and colours [looks, fields]."""
    table = np.frombuffer(b"".join(looks), np.uint8).reshape(-1, 8 + 3 * _GRID**2)
    hashes = np.ascontiguousarray(table[:, :8]).view(np.uint64).reshape(-1)
    return hashes, table[:, 8:].astype(np.int16)
