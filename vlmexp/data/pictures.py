"""What a picture shows, whatever its file is called and however it is encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}
HEAD = 4  # bytes of a file that tell its ending
_SMALL = 64  # pixels a side to which a picture is shrunk before it is hashed, which takes a tenth of the time
_WAVES = 32  # pixels to which it is shrunk for the hash, whose bits tell of the eight longest waves across and down
_GRID = 4  # fields a side, whose mean colours look-alikes have in common
_BITS, _COLOUR = 7, 6  # so far apart may look-alikes be: bits of 64 in the hash, levels of 255 in each field's colour
_PAIRS = 2**20  # of pictures that are compared at once
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


def shrunk(image: Image.Image) -> Image.Image:
    """As much of an RGB picture as `looks` takes."""
    return image if image.size == (_SMALL, _SMALL) else image.resize((_SMALL, _SMALL), Image.Resampling.BOX)


def looks(small: Sequence[Image.Image]) -> list[bytes]:
    """What is left of shrunk pictures after another compression or size: 8 bytes of perceptual hash, 48 of colours.

    The hash (imagehash's phash) knows light and dark only, so the mean colours of a grid of fields stand beside it.
    Source: Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions (2010).
    """
    from scipy.fftpack import dct

    if not small:
        return []
    tall = Image.new("RGB", (_SMALL, _SMALL * len(small)))
    for place, image in enumerate(small):
        tall.paste(image, (0, place * _SMALL))
    colours = _scaled(tall, _GRID, Image.Resampling.BOX).reshape(len(small), -1)
    light = _scaled(tall.convert("L"), _WAVES, Image.Resampling.LANCZOS)
    low = dct(dct(light, axis=1)[:, :8], axis=2)[:, :, :8].reshape(len(small), -1)
    middle = np.sort(low)[:, 31:33]
    bits = np.packbits(low > (middle[:, :1] + middle[:, 1:]) / 2, axis=1)
    return [own.tobytes() for own in np.concatenate([bits, colours], axis=1)]


def _scaled(tall: Image.Image, side: int, way: Image.Resampling) -> np.ndarray:
    """[pictures, side, side, ...] the squares that stand below each other in an image, each scaled by itself.

    The weights of a filter cost more than their use, so they are worked out once for all: across while the pictures
    stand below each other, and down while they stand side by side, where none has a neighbour to take from.
    """
    narrow = np.asarray(tall.resize((side, tall.height), way))
    wide = narrow.reshape(-1, tall.width, *narrow.shape[1:]).swapaxes(0, 1)
    wide = wide.reshape(tall.width, -1, *narrow.shape[2:])
    found = np.asarray(Image.fromarray(wide).resize((wide.shape[1], side), way))
    return found.reshape(side, -1, side, *found.shape[2:]).swapaxes(0, 1)


def alike(looks: Sequence[bytes], others: Sequence[bytes]) -> np.ndarray:
    """[looks] int64: the place among the others of one that looks the same; -1: there is none."""
    found = np.full(len(looks), -1)
    (hashes, colours), (other_hashes, other_colours) = _parts(looks), _parts(others)
    for shift in range(0, 64, _BAND):
        bands, other_bands = (values >> np.uint64(shift) & np.uint64(2**_BAND - 1) for values in (hashes, other_hashes))
        order = np.argsort(other_bands, kind="stable")
        for band in np.unique(bands[found < 0]):
            first, end = (np.searchsorted(other_bands[order], band, side) for side in ("left", "right"))
            places, own = order[first:end], np.flatnonzero((bands == band) & (found < 0))
            for part in np.array_split(own, 1 + len(own) * len(places) // _PAIRS):
                is_near = np.bitwise_count(hashes[part, None] ^ other_hashes[places]) <= _BITS
                for row in np.flatnonzero(is_near.any(axis=1)).tolist():
                    index, nearer = part[row], places[is_near[row]]
                    apart = np.abs(other_colours[nearer] - colours[index]).max(axis=1)
                    near = nearer[apart <= _COLOUR]
                    found[index] = near[0] if len(near) else -1
    return found


def _parts(looks: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes [looks] and colours [looks, fields]."""
    table = np.frombuffer(b"".join(looks), np.uint8).reshape(-1, 8 + 3 * _GRID**2)
    hashes = np.ascontiguousarray(table[:, :8]).view(np.uint64).reshape(-1)
    return hashes, table[:, 8:].astype(np.int16)
