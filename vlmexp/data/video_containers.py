"""Which files are videos by their first bytes.

FFmpeg also reads texts: play lists, lists of clips and session descriptions, which name further files and addresses to
read. So a file begins as a container does that holds its frames itself, and FFmpeg is told to look for no other.
"""

from __future__ import annotations

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
