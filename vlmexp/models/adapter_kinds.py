"""Which of PEFT's adapters are one model in three places: trained, in `model/`, and merged in `deployment_model/`.

The tests train, reload and merge every kind that is let through here. A kind that a newer PEFT brings is refused until
it is in one of these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import peft

from vlmexp.errors import UserError

KEPT_CLASSES = (
    "AdamssConfig", "BOFTConfig", "BeftConfig", "BoneConfig", "C3AConfig", "DeftConfig", "DeloraConfig",
    "FourierFTConfig", "FrodConfig", "GloraConfig", "GraloraConfig", "HRAConfig", "HiraConfig", "IA3Config",
    "LNTuningConfig", "LoHaConfig", "LoKrConfig", "LoraConfig", "MissConfig", "OFTConfig", "OSFConfig", "PeanutConfig",
    "PsoftConfig", "PveraConfig", "RandLoraConfig", "RoadConfig", "ShiraConfig", "SupertuningConfig", "TinyLoraConfig",
    "TrainableTokensConfig", "UniLoraConfig", "VBLoRAConfig", "VeraConfig", "WaveFTConfig",
)  # fmt: skip
REFUSED_CLASSES = {
    "AdaLoraConfig": "its ranks are dealt out anew after each step, and what that goes by is in no checkpoint",
    "AdaptionPromptConfig": "its prompts inside the layers cannot be merged into a deployment_model",
    "LilyConfig": "what it adds depends on the input and cannot be merged into a deployment_model",
    "PolyConfig": "it wants the number of a task with every example, which this training does not give",
    "ShadowConfig": "it trains a second network beside the model, which cannot be merged into a deployment_model",
    "XLoraConfig": "it mixes adapters that are trained already, and the mixture cannot be merged",
}
MOVING_INITS = ("pissa", "olora")  # beginnings of init_lora_weights that take the adapter's start out of the base
KEPT_INITS = ("gaussian", "orthogonal", "mica", *MOVING_INITS)
_NOT_PREPARED = "it is worked out from batches before the training, which is not done here"
REFUSED_INITS = {
    "corda": _NOT_PREPARED,
    "eva": _NOT_PREPARED,
    "lora_ga": _NOT_PREPARED,
    "loftq": "it puts the base model's own weights into a few bits, which no adapter holds (for those: peft=qlora)",
}
# Class and start of its weights, where they begin otherwise than with `init_weights=true`.
REFUSED_UNSTARTED = {
    "RandLoraConfig": "a start at random is so large that merged weights round otherwise than the adapter",
    "TinyLoraConfig": "without a start its vectors get no gradient, and nothing would be trained",
}
_OWN_LOSS = "it needs a loss of its own beside the model's, which is not computed here"
# Options that change what is trained, once they are set at all.
REFUSED_OPTIONS = {
    "alora_invocation_tokens": "an adapter that acts behind some tokens only cannot be merged into a deployment_model",
    "arrow_config": "it chooses between adapters that are trained already",
    "corda_config": _NOT_PREPARED,
    "eva_config": _NOT_PREPARED,
    "inference_mode": "nothing would be trained",
    "kasa_config": _OWN_LOSS,
    "layer_replication": "it makes a model with more layers out of the base model, which no adapter holds",
    "loftq_config": REFUSED_INITS["loftq"],
    "lora_ga_config": _NOT_PREPARED,
    "megatron_config": "it has a module of Megatron's imported, whose layers no model here has",
    "monteclora_config": _OWN_LOSS,
    "sample_at_inference": "the model would answer differently each time",
    "use_asa": "its ranks are dealt out anew by a call after each step, which is not made here",
    "use_qalora": "it is for a base in GPTQ, and without one nothing would come of it",
}


def require_kept(class_name: str, options: Mapping[str, Any]) -> None:
    """Raise a UserError for an adapter that would not be the same when it is loaded again, or that nothing can merge.

    Args:
        options: of the PEFT configuration class.
    """
    if issubclass(getattr(peft, class_name), peft.PromptLearningConfig):
        raise UserError(
            f"peft.config_class={class_name}: a learned prompt cannot be merged into a deployment_model; "
            "choose an adapter of weights, such as peft=lora."
        )
    if class_name in REFUSED_CLASSES:
        raise UserError(
            f"peft.config_class={class_name}: {REFUSED_CLASSES[class_name]}; choose another, such as peft=lora."
        )
    if class_name not in KEPT_CLASSES:
        raise UserError(
            f"peft.config_class={class_name} of this version of peft has not been tried here, and may be another model "
            f"when it is loaded again; choose one of {', '.join(KEPT_CLASSES)}."
        )
    if class_name in REFUSED_UNSTARTED and options.get("init_weights") is False:
        raise UserError(f"peft.init_weights=False: {REFUSED_UNSTARTED[class_name]}; leave it out.")
    for name, reason in REFUSED_OPTIONS.items():
        if options.get(name):
            raise UserError(f"peft.{name}={options[name]}: {reason}; leave it out.")
    _require_kept_init(options)


def _require_kept_init(options: Mapping[str, Any]) -> None:
    start = options.get("init_lora_weights", True)
    if isinstance(start, bool):
        return
    if start.lower() in REFUSED_INITS or not start.lower().startswith(KEPT_INITS):
        reason = REFUSED_INITS.get(
            start.lower(), "it has not been tried here, and may be another model when it is loaded again"
        )
        raise UserError(
            f"peft.init_lora_weights={start}: {reason}; choose true, false, gaussian, orthogonal, mica, olora, pissa "
            "or pissa_niter_4."
        )
    if moves_base(options) and options.get("target_parameters"):
        raise UserError(
            f"peft.init_lora_weights={start} changes the base weights, and of peft.target_parameters that cannot be "
            "told apart afterwards: leave one of them out."
        )


def moves_base(options: Mapping[str, Any]) -> bool:
    """Whether an adapter of these options begins by taking a part out of the base weights."""
    return str(options.get("init_lora_weights", True)).lower().startswith(MOVING_INITS)
