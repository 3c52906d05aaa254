"""Data files that are deep, wide, long, packed or no data. Each function writes one and returns its path."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.data.hostile.images import linked, written

Maker = Callable[[Path], Path]
ROW = {"question": "q", "answer": "a"}
LINE = json.dumps(ROW).encode() + b"\n"
MIB = 2**20


def wide() -> dict:
    return {f"k{n}": n for n in range(200_000)}


def deep(depth: int) -> bytes:
    return b'{"question": "q", "answer": "a", "x": ' + b"[" * depth + b"]" * depth + b"}\n"


def lines(name: str, *content: bytes | Callable[[], Iterable[bytes]]) -> Maker:
    def make(folder: Path) -> Path:
        return written(
            folder / name, (part for each in content for part in ([each] if isinstance(each, bytes) else each()))
        )

    return make


def row(**more: object) -> bytes:
    return json.dumps(ROW | more).encode() + b"\n"


def table(folder: Path, columns: dict, **options) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), folder / "a.parquet", **options)
    return folder / "a.parquet"


def parquets() -> dict[str, Maker]:
    import pyarrow as pa

    def nested(depth: int) -> pa.Array:
        array = pa.array([1, 2])
        for _ in range(depth):
            array = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), array)
        return array

    def cut(folder: Path, change: Callable[[bytes], bytes]) -> Path:
        whole = table(folder, {"question": ["q"] * 50, "answer": ["a"] * 50}).read_bytes()
        return written(folder / "a.parquet", change(whole))

    two = {"question": ["q", "r"], "answer": ["a", "b"]}

    def large() -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array(["x" * 60 * MIB]))

    return {
        "a hundred million rows": lambda p: table(
            p, {"question": pa.nulls(10**8, pa.string()), "answer": pa.nulls(10**8, pa.string())}
        ),
        "one text of 60 MB in 500 rows": lambda p: table(
            p, {"question": large(), "answer": ["a"] * 500}, dictionary_pagesize_limit=2**30
        ),
        "nested": lambda p: table(p, two | {"x": nested(300)}),
        "20,000 columns": lambda p: table(p, two | {f"c{n}": [1, 2] for n in range(20_000)}),
        "maps": lambda p: table(
            p, two | {"m": pa.array([[(1, [None])], None], pa.map_(pa.int8(), pa.list_(pa.null())))}
        ),
        "times beyond time": lambda p: table(p, two | {"t": pa.array([2**62, -(2**62)], pa.timestamp("us"))}),
        "long durations": lambda p: table(p, two | {"t": pa.array([2**62, 1], pa.duration("s"))}),
        "an object with 5,000 fields": lambda p: table(
            p, two | {"o": pa.array([{f"f{n}": n for n in range(5_000)}] * 2)}
        ),
        "no footer": lambda p: cut(p, lambda whole: whole[:-9]),
        "footer of 2 GB": lambda p: cut(p, lambda whole: whole[:-8] + b"\xff\xff\xff\x7fPAR1"),
        "noise in the footer": lambda p: cut(p, lambda whole: whole[:-120] + bytes(90) + whole[-30:]),
        "noise in the pages": lambda p: cut(p, lambda whole: whole[:8] + b"\xff" * 30 + whole[38:]),
        "text": lambda p: written(p / "a.parquet", b"PAR1 is not PAR1"),
    }


def tables() -> dict[str, Maker]:
    return {
        "900 levels": lines("a.jsonl", LINE, deep(900)),
        "100,000 levels": lines("a.jsonl", LINE, deep(100_000)),
        "300 levels": lines("a.jsonl", LINE * 9, deep(300)),
        "900 levels in json": lines("a.json", b"[", LINE, b",", deep(900), b"]"),
        "objects in objects": lines("a.jsonl", LINE, b'{"x":' * 400 + b"1" + b"}" * 400),
        "levels as text": lines("a.jsonl", row(answer="[" * 90_000 + "]" * 90_000)),
        "200,000 keys": lines("a.jsonl", LINE, lambda: [row(**wide())]),
        "200,000 keys inside": lines("a.jsonl", LINE, lambda: [row(x=wide())]),
        "2,000 new keys in each row": lines(
            "a.jsonl", lambda: (row(x={f"{r}-{n}": n for n in range(2_000)}) for r in range(3_000))
        ),
        "20 new columns in each row": lines(
            "a.jsonl", lambda: (row(**{f"{r}-{n}": n for n in range(20)}) for r in range(3_000))
        ),
        "300 new keys in each row": lines(
            "a.jsonl", lambda: (row(x=[{f"{r}-{n}": n for n in range(300)}]) for r in range(6_000))
        ),
        "a million columns": lines(
            "a.csv", b"question,answer", lambda: (b",c%d" % n for n in range(10**6)), b"\nq,a,1\n"
        ),
        "a million values": lines("a.csv", b"question,answer\nq,a" + b"," * 10**6 + b"\n"),
        "60 million values": lines("a.csv", b"question,answer\nq,a", lambda: (b"," * MIB for _ in range(60)), b"\n"),
        "an open quote": lines("a.csv", b'question,answer\nq,"a\n', lambda: (b"q,a\n" * 2**18 for _ in range(300))),
        "an open quote in a short file": lines("a.csv", b'question,answer\nq,"a\n', b"q,a\n" * 200_000),
        "line of 1.2 GB": lines(
            "a.jsonl", LINE, b'{"question": "', lambda: (b"x" * MIB for _ in range(1_200)), b'", "answer": "a"}\n'
        ),
        "line of 60 MB": lines(
            "a.jsonl", LINE, b'{"question": "', lambda: (b"x" * MIB for _ in range(60)), b'", "answer": "a"}\n'
        ),
        "line of 1.2 GB in csv": lines("a.csv", b"question,answer\n", lambda: (b"x" * MIB for _ in range(1_200))),
        "line of 1.2 GB in json": lines("a.json", b'[{"question": "', lambda: (b"x" * MIB for _ in range(1_200))),
        "line of 1.2 GB of Chinese": lines("a.jsonl", lambda: ("鑫".encode() * 2**18 for _ in range(1_500))),
        "endless list": lines("a.json", lambda: (b"[" * MIB for _ in range(600))),
        "60 MB of empty lists": lines("a.jsonl", b'{"x": [', lambda: (b"[]," * MIB for _ in range(20)), b"[]]}\n"),
        "60 MB of empty lists in json": lines(
            "a.json", b'[{"x": [', lambda: (b"[]," * MIB for _ in range(20)), b"[]]}]"
        ),
        "60 MB of objects": lines("a.json", b'{"a": {"x": [', lambda: (b"{}," * MIB for _ in range(20)), b"{}]}}"),
        "600 MB of spaces": lines("a.json", lambda: (b" " * MIB for _ in range(600)), b"[" + LINE + b"]"),
        "two million rows in json": lines(
            "a.json", b"[", lambda: (b",".join([LINE] * 1_000) + b"," for _ in range(300)), LINE, b"]"
        ),
        "no end of a text": lines("a.json", b'{"a": "', lambda: (b"y" * MIB for _ in range(600))),
        "zeros": lines("a.jsonl", lambda: (bytes(MIB) for _ in range(300))),
        "zeros in csv": lines("a.csv", b"question,answer\nq,a\0\n"),
        "UTF-16": lambda p: written(p / "a.jsonl", LINE.decode().encode("utf-16")),
        "UTF-16 in csv": lambda p: written(p / "a.csv", "question,answer\nq,a\n".encode("utf-16")),
        "no UTF-8": lines("a.jsonl", LINE * 9_000, b'{"question": "\xff\xfe", "answer": "a"}\n'),
        "surrogates": lines("a.jsonl", LINE, b'{"question": "\\ud800", "answer": "a"}\n'),
        "number of 5,000 digits": lines("a.jsonl", LINE, b'{"question": "q", "answer": ' + b"9" * 5_000 + b"}\n"),
        "number of 5,000 digits as text": lines("a.jsonl", row(answer="9" * 5_000, choices=["a"])),
        "number of 4,000 digits": lines("a.jsonl", LINE, b'{"question": "q", "answer": ' + b"9" * 4_000 + b"}\n"),
        "number of 5,000 digits in csv": lines("a.csv", b"question,answer\nq," + b"9" * 5_000 + b"\nq,1e+400\n"),
        "numbers that are none": lines(
            "a.jsonl",
            LINE,
            b'{"question": NaN, "answer": Infinity, "x": -Infinity}\n{"question": 1e999, "answer": 1, "x": 1e-999}\n',
        ),
        "keys twice": lines("a.jsonl", b'{"question": "q", "question": "r", "answer": "a"}\n'),
        "empty keys": lines("a.jsonl", row(**{"": 1, " ": 2, "\0": 3, "a.b": 4})),
        "nothing but ends of lines": lines("a.jsonl", lambda: (b"\n" * MIB for _ in range(50))),
        "other ends of lines": lines("a.jsonl", LINE.replace(b"\n", b"\r") * 3),
        "answers in lists in lists": lines("a.jsonl", row(answer=[[["a"]]]), row(answer=[["a"] * 400_000])),
        "link to /dev/zero": lambda p: linked(p, "/dev/zero").rename(p / "a.jsonl"),
        "link to /proc/kmsg": lambda p: linked(p, "/proc/kmsg").rename(p / "a.jsonl"),
        "link to /proc/self/mem": lambda p: linked(p, "/proc/self/mem").rename(p / "a.csv"),
        "pipe": lambda p: (os.mkfifo(p / "a.jsonl"), p / "a.jsonl")[1],
        "folder": lambda p: ((p / "a.jsonl").mkdir(), p / "a.jsonl")[1],
        "gz": lambda p: written(p / "a.jsonl", b"\x1f\x8b\x08" + bytes(90)),
        "sparse terabyte": lambda p: (written(p / "a.csv", b"question,answer\nq,a\n"), os.truncate(p / "a.csv", 2**40))[
            0
        ],
        **parquets(),
    }
