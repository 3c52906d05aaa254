"""vlmexp: Hydra-composed experiments that fine-tune vision-language models."""

__version__ = "0.1.0"
