"""Which files are videos by their first bytes.

FFmpeg also reads texts: play lists, lists of clips and session descriptions, which name further files and addresses to
read. So a file begins as a container does that holds its frames itself, and FFmpeg is told to look for no other.
"""

from __future__ import annotations

import os
from typing import IO

HEAD = 400  # bytes that tell a container
DEMUXERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,flv,ogg,asf,gif,apng,ivf,yuv4mpegpipe"
NAMES = "mp4, mov, mkv, webm, avi, mpg, ts, flv, ogv, wmv or gif"
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")  # the first of an mp4 or mov
_STARTS = (
    b"\x1aE\xdf\xa3", b"FLV\1", b"OggS", b"0&\xb2u\x8ef\xcf\x11", b"GIF87a", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"DKIF",
    b"YUV4MPEG2 ", b"\0\0\1\xba", b"\0\0\1\xb3", b"\0\0\1\xb0", b"\0\0\0\1", b"\0\0\1",
)  # fmt: skip
_PACKETS = ((188, 0), (192, 4), (204, 0))  # length of an MPEG transport stream's packets, and where each has its mark


def is_container(head: bytes) -> bool:
    """Whether a file with these first bytes, HEAD of them, may hold a video."""
    if head[4:8] in _BOXES or head.startswith(_STARTS) or (head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX")):
        return True
    return any(head[start::length][:2] == b"GG" for length, start in _PACKETS)


def bytes_behind_avi(file: IO[bytes]) -> int:
    """How many bytes of an open file lie behind the end of the avi that it begins with; 0 for all other files.

    FFmpeg looks through them byte by byte for another chunk, each time that it opens the file. An avi is a row of
    `RIFF` chunks, each with the length of what follows it; the length is 0 where a writer was stopped.
    """
    whole, end = os.fstat(file.fileno()).st_size, 0
    while end < whole:
        file.seek(end)
        chunk = file.read(12)
        length = int.from_bytes(chunk[4:8], "little")
        if chunk[:4] != b"RIFF" or chunk[8:12] not in (b"AVI ", b"AVIX") or length < 4:
            break
        end += 8 + length + length % 2
    return max(0, whole - end) if end else 0
