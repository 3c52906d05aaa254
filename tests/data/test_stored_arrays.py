from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from vlmexp.data.stored_arrays import stored_array


def asked(folder, key: int = 0, value: int = 7):
    made = []

    def make() -> np.ndarray:
        made.append(value)
        return np.full(3, value, np.int32)

    return stored_array(folder, "threes", {"key": key}, make).tolist(), made


def test_an_array_is_made_once_for_a_key(tmp_path):
    assert asked(tmp_path / "a") == ([7, 7, 7], [7])
    assert asked(tmp_path / "a", value=8) == ([7, 7, 7], [])
    assert asked(tmp_path / "a", key=1, value=9) == ([9, 9, 9], [9])
    assert asked(tmp_path / "a") == ([7, 7, 7], [])


def test_it_is_mapped_and_not_read(tmp_path):
    for _ in range(2):
        assert isinstance(stored_array(tmp_path, "threes", {}, lambda: np.zeros(3)), np.memmap)


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x93NUMPY\x01\x00v\x00{'descr': '<i4', 'fortran_order'"])
def test_a_damaged_file_is_made_again(tmp_path, content):
    asked(tmp_path)
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes(content)
    assert asked(tmp_path, value=8) == ([8, 8, 8], [8])
    assert asked(tmp_path, value=9) == ([8, 8, 8], [])


def test_where_nothing_can_be_written_it_is_made_every_time(tmp_path):
    (tmp_path / "folder").write_text("a file")
    for value in (1, 2):
        assert asked(tmp_path / "folder", value=value) == ([value] * 3, [value])


def test_an_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError):
        stored_array(tmp_path, "threes", {"key": 0}, lambda: np.zeros(1 // 0))
    assert asked(tmp_path) == ([7, 7, 7], [7])


PROCESS = """
import os, pathlib, sys, time
import numpy as np
from vlmexp.data.stored_arrays import stored_array
folder = pathlib.Path(sys.argv[1])
def make():
    with (folder / "made").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    return np.arange(1_000_000)
assert stored_array(folder / "computed", "many", {}, make).sum() == 499_999_500_000
"""


def test_of_several_processes_one_makes_it(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path)], env=environment) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert len((tmp_path / "made").read_text().splitlines()) == 1
    assert [path.suffix for path in (tmp_path / "computed").iterdir() if path.name[0] == "."] == []
