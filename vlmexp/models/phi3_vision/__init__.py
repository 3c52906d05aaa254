"""microsoft/Phi-3-vision-128k-instruct on transformers' own Phi3 and CLIP classes, without remote code.

Importing this package makes transformers' Auto classes know the model type `phi3_v`, so that a checkpoint in the Hub's
format loads as it is and is saved under the same names:

    import vlmexp.models.phi3_vision
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from vlmexp.models.phi3_vision.configuration import Phi3VConfig
from vlmexp.models.phi3_vision.image_processing import Phi3VImageProcessor
from vlmexp.models.phi3_vision.modeling import Phi3VForCausalLM, Phi3VModel
from vlmexp.models.phi3_vision.processing import Phi3VProcessor

__all__ = ["Phi3VConfig", "Phi3VForCausalLM", "Phi3VImageProcessor", "Phi3VModel", "Phi3VProcessor"]

AutoConfig.register("phi3_v", Phi3VConfig, exist_ok=True)
AutoModelForImageTextToText.register(Phi3VConfig, Phi3VForCausalLM, exist_ok=True)
AutoModelForCausalLM.register(Phi3VConfig, Phi3VForCausalLM, exist_ok=True)  # the class that the Hub's config names
AutoProcessor.register(Phi3VConfig, Phi3VProcessor, exist_ok=True)
# One implementation, whichever backend is asked for: only Pillow's resizing gives the original's pixels.
AutoImageProcessor.register(
    Phi3VConfig,
    image_processor_classes={"pil": Phi3VImageProcessor, "torchvision": Phi3VImageProcessor},
    exist_ok=True,
)
