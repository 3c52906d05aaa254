"""What a training run leaves behind: the adapter, and a merged model that needs nothing of ours."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from vlmexp.files import new_folder
from vlmexp.models.adapter import merged


def save_adapter(model: PreTrainedModel | PeftModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write adapter (or, without one, the whole model) and processor; the folder appears complete or not at all."""
    with new_folder(folder) as temporary:
        model.save_pretrained(str(temporary))
        processor.save_pretrained(temporary)


def save_merged(model: PreTrainedModel | PeftModel, processor: ProcessorMixin, folder: Path) -> PreTrainedModel:
    """Merge the adapter into the model, write both model and processor, and return the merged model."""
    whole = merged(model)
    with new_folder(folder) as temporary:
        whole.save_pretrained(temporary)
        processor.save_pretrained(temporary)
    return whole
