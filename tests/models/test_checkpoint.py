"""Files of a trained model that a power loss or a copy has cut short."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlmexp.errors import UserError
from vlmexp.models.checkpoint import check_folder, file_sizes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(50)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    (tmp_path / "chat_template.jinja").write_text("{% for message in messages %}")
    (tmp_path / "README.md").write_text("a model card")
    return tmp_path


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "chat_template.jinja"])
def test_the_file_of_a_trained_model_that_is_not_whole_is_named(folder, name):
    written, content = file_sizes(folder), (folder / name).read_bytes()
    check_folder(folder, written)
    for size in (0, 1, len(content) // 2, len(content) - 1):
        os.truncate(folder / name, size)
        with pytest.raises(UserError, match=rf"{name} .*: restore it from a copy, or train again in a new run\."):
            check_folder(folder, written)
        (folder / name).write_bytes(content)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        check_folder(folder, written)


def test_what_may_change_in_a_trained_model(folder):
    written = file_sizes(folder)
    (folder / "README.md").write_text("")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{% for message in messages %} and more")
    (folder / ".mine").touch()
    check_folder(folder, written)
    os.truncate(folder / "adapter_model.safetensors", 20)
    with pytest.raises(UserError, match=r"adapter_model.safetensors is no safetensors file"):
        check_folder(folder, {})  # of an earlier version, which kept no sizes
