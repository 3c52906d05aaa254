"""The Hub's flat Phi-3-Vision configuration, with the vision tower's own configuration below it."""

from __future__ import annotations

from typing import Any

from transformers import CLIPVisionConfig, Phi3Config
from transformers.configuration_utils import SubConfigSpec

# openai/clip-vit-large-patch14-336: the Hub's config.json names this tower and says nothing of its sizes.
CLIP_LARGE_336 = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}
# What the modeling code implements; a checkpoint that asks for anything else must not load as if it had not.
SUPPORTED: dict[str, dict[str, Any]] = {
    "embd_layer": {
        "embedding_cls": "image",
        "hd_transform_order": "sub_glb",
        "projection_cls": "mlp",
        "use_hd_transform": True,
        "with_learnable_separator": True,
    },
    "img_processor": {"name": "clip_vision_model", "type_feature": "patch"},
}


class Phi3VConfig(Phi3Config):
    """A Phi3Config and the image embedding's options.

    Attributes:
        vision_config: the vision tower; None is CLIP-L/14 at 336 pixels.
        img_processor: the Hub's description of the vision tower; `layer_idx` is the layer whose output is used.
        embd_layer: the Hub's description of the image embedding.
        image_token_id: the token that stands for one image feature, `<|image|>` in the checkpoint's tokenizer.

    Raises:
        ValueError: the checkpoint's image embedding is of a kind that is not implemented.
    """

    model_type = "phi3_v"
    sub_configs_defaults = {"vision_config": SubConfigSpec(CLIPVisionConfig, init_kwargs=CLIP_LARGE_336)}  # noqa: RUF012

    vision_config: dict[str, Any] | CLIPVisionConfig | None = None
    img_processor: dict[str, Any] | None = None
    embd_layer: dict[str, Any] | str | None = None
    image_token_id: int = 32044

    def __post_init__(self, **kwargs: Any) -> None:
        # The Hub's config.json pins flash_attention_2, over which `attn_implementation=` would have no say.
        kwargs.pop("_attn_implementation", None)
        # It also names modules of remote code, which a saved copy of the model does not have beside it.
        kwargs.pop("auto_map", None)
        for name, supported in SUPPORTED.items():
            given = getattr(self, name)
            for key, value in supported.items():
                if isinstance(given, dict) and given.get(key, value) != value:
                    raise ValueError(f"{name}.{key}={given[key]!r} is not supported for phi3_v, only {value!r} is.")
        super().__post_init__(**kwargs)
        # Phi3Config reads `su` as longrope only after the step that gives a longrope its original length.
        self.standardize_rope_params()

    @property
    def vision_feature_layer(self) -> int:
        """Index into the vision tower's hidden states; 0 is its embedding, -1 its last layer."""
        return int((self.img_processor or {}).get("layer_idx", -2))
