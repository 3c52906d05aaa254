"""Every kind of adapter: trained, in `model/` and merged it is one model, or it is refused before it is trained."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import types
import typing
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from tests.conftest import example
from vlmexp.errors import UserError
from vlmexp.models.adapter import attach, load_adapter, merged, peft_config
from vlmexp.models.adapter_kinds import KEPT_CLASSES, REFUSED_CLASSES, moves_base
from vlmexp.models.adapter_start import begin_with, load_start, save_start, start_of
from vlmexp.models.export import save_adapter

TWO = r".*language_model\.layers\.0\.(self_attn\.q_proj|mlp\.down_proj)"
WITH_BIAS = r".*language_model\.layers\.0\.self_attn\.[qv]_proj"
# What a class needs beside the modules that it is for, in a model with layers of 128 and 384 numbers.
NEEDED: dict[str, dict[str, Any]] = {
    "AdamssConfig": {"r": 8, "num_subspaces": 2, "subspace_rank": 1},
    "BeftConfig": {"target_modules": WITH_BIAS},
    "C3AConfig": {"block_size": 32},
    "FourierFTConfig": {"n_frequency": 50, "scaling": 10.0},
    "FrodConfig": {"progressbar": False},
    "IA3Config": {"feedforward_modules": r".*down_proj"},
    "LNTuningConfig": {"target_modules": ["input_layernorm"]},
    "OFTConfig": {"r": 0, "oft_block_size": 32},
    "PveraConfig": {"r": 8},
    "TrainableTokensConfig": {"target_modules": ["embed_tokens"], "token_indices": [465, 663, 895]},
    "UniLoraConfig": {"init_theta_d_bound": 0.5},
    "VBLoRAConfig": {"vector_length": 32, "num_vectors": 16, "topk": 2},
    "VeraConfig": {"r": 8},
}
LORA: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True},
    "rank-stabilised": {"use_rslora": True},
    "ranks of their own": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    "all biases": {"bias": "all"},
    "biases of adapted layers": {"bias": "lora_only", "use_dora": True},
    "bias in the adapter": {"lora_bias": True, "target_modules": WITH_BIAS},
    "whole modules": {"modules_to_save": ["merger"]},
    "a whole head": {"modules_to_save": ["lm_head"]},
    "tokens": {"trainable_token_indices": [465, 663, 895]},
    "tied tokens": {"trainable_token_indices": [465, 663, 895], "ensure_weight_tying": True},
    "parameters": {"target_modules": [], "target_parameters": ["layers.0.self_attn.q_proj.weight"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "tied embeddings": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "both embeddings": {"target_modules": ["embed_tokens", "lm_head"]},
    "convolutions": {"target_modules": ["proj"]},
    "left out": {"target_modules": "all-linear", "exclude_modules": ["v_proj"]},
    "blocks": {"use_bdlora": {"target_modules_bd_a": ["q_proj"], "match_strict": False, "nblocks": 2}},
    "VeLoRA": {"velora_config": {}},
    "PiSSA in DoRA": {"init_lora_weights": "pissa_niter_2", "use_dora": True, "modules_to_save": ["merger"]},
    "PiSSA, rank-stabilised": {
        "init_lora_weights": "pissa_niter_2", "use_rslora": True, "bias": "all",
        "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3},
    },
    "OLoRA and embeddings": {"init_lora_weights": "olora", "target_modules": ["q_proj", "embed_tokens"]},
}  # fmt: skip
OTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "VeRA without projections": ("VeraConfig", {"save_projection": False}),
    "PVeRA without projections": ("PveraConfig", {"save_projection": False}),
    "RandLoRA without projections": ("RandLoraConfig", {"save_projection": False}),
    "TinyLoRA without projections": ("TinyLoraConfig", {"save_projection": False}),
    "FRoD without projections": ("FrodConfig", {"save_projection": False}),
    "Uni-LoRA without indices": ("UniLoraConfig", {"save_indices": False}),
    "SHiRA with a seed": ("ShiraConfig", {"random_seed": 3}),
    "low-rank PSOFT": ("PsoftConfig", {"psoft_svd": "lowrank"}),
    "supertuning with LoRA": ("SupertuningConfig", {"r": 4, "lora_alpha": 8.0}),
    "parallel DEFT": ("DeftConfig", {"para": True}),
}
REFUSED_STARTS = {"LoraConfig": ["eva", "corda", "loftq"], "RandLoraConfig": [False], "TinyLoraConfig": [False]}
# Values of an `init…` field that need another option.
STARTS_NEED = {("MissConfig", "mini"): {"r": 4, "mini_r": 2}}


def classes() -> dict[str, Any]:
    return {cls.__name__: cls for cls in PEFT_TYPE_TO_CONFIG_MAPPING.values()}


def choices(hint: Any) -> list[Any]:
    """The values that an annotation lists."""
    if hint is bool:
        return [True, False]
    if typing.get_origin(hint) is typing.Literal:
        values = typing.get_args(hint)
        return [value.replace("[number of iters]", "4") if isinstance(value, str) else value for value in values]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [value for part in typing.get_args(hint) for value in choices(part)]
    return []


def starts(cls: Any) -> list[tuple[str, Any]]:
    """Each field of a class that says how its weights begin, with each of its values."""
    hints = typing.get_type_hints(cls)
    fields = [field.name for field in dataclasses.fields(cls) if "init" in field.name]
    return [(name, value) for name in fields for value in dict.fromkeys(choices(hints[name]))]


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> class and options of everything that must stay one model."""
    found: dict[str, tuple[str, dict[str, Any]]] = {name: ("LoraConfig", options) for name, options in LORA.items()}
    found |= OTHER
    for name, cls in classes().items():
        if name not in KEPT_CLASSES:
            continue
        begun = starts(cls)
        found |= {} if begun else {name: (name, {})}
        for field, value in begun:
            if value not in REFUSED_STARTS.get(name, ()):
                found[f"{name}, {field}={value}"] = (name, {field: value, **STARTS_NEED.get((name, value), {})})
    if importlib.util.find_spec("sklearn") is None:
        found = {case: (name, options) for case, (name, options) in found.items() if name != "AdamssConfig"}
    return found


def test_no_class_of_the_installed_peft_is_unknown():
    prompts = {name for name, cls in classes().items() if issubclass(cls, peft.PromptLearningConfig)}
    assert classes().keys() - prompts - set(KEPT_CLASSES) - REFUSED_CLASSES.keys() == set()
    assert not set(KEPT_CLASSES) & REFUSED_CLASSES.keys()


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "AdaLoraConfig",
            {"total_step": 10},
            "peft.config_class=AdaLoraConfig: its ranks are dealt out anew after each step, and what that goes by is "
            "in no checkpoint; choose another, such as peft=lora.",
        ),
        (
            "CPTConfig",
            {},
            "peft.config_class=CPTConfig: a learned prompt cannot be merged into a deployment_model; choose an adapter "
            "of weights, such as peft=lora.",
        ),
        (
            "LoraConfig",
            {"init_lora_weights": "eva"},
            "peft.init_lora_weights=eva: it is worked out from batches before the training, which is not done here; "
            "choose true, false, gaussian, orthogonal, mica, olora, pissa or pissa_niter_4.",
        ),
        (
            "LoraConfig",
            {"init_lora_weights": "newest"},
            "peft.init_lora_weights=newest: it has not been tried here, and may be another model when it is loaded "
            "again; choose true, false, gaussian, orthogonal, mica, olora, pissa or pissa_niter_4.",
        ),
        (
            "LoraConfig",
            {"init_lora_weights": "pissa", "target_parameters": ["q_proj.weight"]},
            "peft.init_lora_weights=pissa changes the base weights, and of peft.target_parameters that cannot be told "
            "apart afterwards: leave one of them out.",
        ),
        (
            "LoraConfig",
            {"alora_invocation_tokens": [5, 6]},
            "peft.alora_invocation_tokens=[5, 6]: an adapter that acts behind some tokens only cannot be merged into a "
            "deployment_model; leave it out.",
        ),
        (
            "LoraConfig",
            {"use_qalora": True},
            "peft.use_qalora=True: it is for a base in GPTQ, and without one nothing would come of it; leave it out.",
        ),
        (
            "PveraConfig",
            {"sample_at_inference": True},
            "peft.sample_at_inference=True: the model would answer differently each time; leave it out.",
        ),
        (
            "TinyLoraConfig",
            {"init_weights": False},
            "peft.init_weights=False: without a start its vectors get no gradient, and nothing would be trained; leave "
            "it out.",
        ),
    ],
)
def test_what_would_not_be_one_model_is_refused_before_it_is_trained(name, options, sentence):
    with pytest.raises(UserError) as caught:
        peft_config(name, options)
    assert str(caught.value) == sentence


def test_a_class_that_a_newer_peft_brings_is_refused(monkeypatch):
    monkeypatch.setattr(peft, "NewestConfig", peft.LoraConfig, raising=False)
    with pytest.raises(UserError, match="config_class=NewestConfig of this version of peft has not been tried"):
        peft_config("NewestConfig", {})


@pytest.mark.parametrize("name", sorted(REFUSED_CLASSES))
def test_every_refused_class_says_why(name):
    with pytest.raises(UserError, match=f"peft.config_class={name}: .*; choose another"):
        peft_config(name, {})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "LoraConfig",
            {"lora_bias": True},
            r"adapter of model\.language_model\.layers\.0\.mlp\.down_proj \(Linear\) cannot be merged into a "
            r"deployment_model: Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias",
        ),
        ("BeftConfig", {}, "has no bias, cannot merge"),
        ("C3AConfig", {"block_size": 256}, "The block size should be a factor of the input size"),
    ],
)
def test_what_a_layer_cannot_take_up_shows_when_it_is_attached(name, options, message, model):
    with pytest.raises(UserError, match=message):
        attach(model, peft_config(name, {"target_modules": TWO, "task_type": "CAUSAL_LM", **options}))


def test_a_start_that_would_change_two_weights_at_once_is_refused(model):
    config = peft_config("LoraConfig", {"r": 4, "target_modules": ["lm_head"], "init_lora_weights": "pissa"})
    with pytest.raises(UserError, match="lm_head shares its weight with another module"):
        start_of(attach(model, config))


class Table:
    """The forms of an adapter on a model, and how far their logits on a batch are apart."""

    def __init__(self, model, processor, batch, folder: Path) -> None:
        self.model, self.processor, self.batch, self.folder = model, processor, batch, folder

    def fresh(self, seed: int) -> Any:
        torch.manual_seed(seed)
        return copy.deepcopy(self.model)

    @torch.no_grad()
    def logits(self, model: Any) -> torch.Tensor:
        inputs = {name: value for name, value in self.batch.items() if name != "labels"}
        return model.eval()(**inputs, use_cache=False).logits

    def differences(self, name: str, options: dict[str, Any]) -> dict[str, float]:
        """The largest difference of logits of each form to those of the trained model, and what training changed."""
        options = {"target_modules": TWO, "task_type": "CAUSAL_LM", **NEEDED.get(name, {}), **options}
        if "r" in {field.name for field in dataclasses.fields(getattr(peft, name))}:
            options.setdefault("r", 4)
        trained = attach(self.fresh(1), peft_config(name, options))
        start = start_of(trained) if moves_base(options) else None
        optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=2e-2)
        before = self.logits(trained)
        trained.train()
        for _ in range(2):
            trained(**self.batch, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found, folder = self.logits(trained), self.folder / name

        save_adapter(trained, self.processor, folder, "vlmexp:tiny", start)
        reloaded = load_adapter(self.fresh(2), folder)
        forms = {"model": self.logits(reloaded), "deployment_model": self.logits(merged(reloaded))}

        trained.save_pretrained(folder / "checkpoint")
        resumed = attach(self.fresh(3), peft_config(name, options))
        if start is not None:
            save_start(start, folder / "start")
            begin_with(resumed, load_start(folder / "start"))
        resumed.load_adapter(str(folder / "checkpoint"), "default", is_trainable=True)
        forms["resumed"] = self.logits(resumed)
        differences = {form: float((logits - found).abs().max()) for form, logits in forms.items()}
        return {"trained": float((found - before).abs().max()), **differences}


@pytest.mark.slow
def test_every_kind_is_one_model_in_all_its_forms(model, processor, make_collator, draw, tmp_path):
    batch = make_collator()([example("what color is it?", "red", draw("red")), example("is it?", "no", draw("teal"))])
    table = Table(model, processor, batch, tmp_path)
    wrong = {}
    for case, (name, options) in cases().items():
        found = table.differences(name, options)
        moved = found.pop("trained")
        if not (moved > 1e-3 and max(found.values()) < 1e-4):
            wrong[case] = {"trained": moved, **found}
    assert wrong == {}
    assert len(cases()) > 100
