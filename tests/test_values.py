"""Numbers out of range, texts that are empty, lists with doubles, names that no library has: refused by the shell."""

from __future__ import annotations

import dataclasses
import math

import hydra
import pytest
from omegaconf import OmegaConf, open_dict

from vlmexp.bounds import Bounds, bounds_of
from vlmexp.checks import checked
from vlmexp.config import Config
from vlmexp.errors import UserError
from vlmexp.launch.checking import ask_libraries
from vlmexp.main import CONFIG_DIR
from vlmexp.pipeline import check_options

NAN, INF = math.nan, math.inf
REFUSED = [
    ("train.learning_rate", NAN, "train.learning_rate=nan must be a finite number"),
    ("train.learning_rate", -1e-9, "train.learning_rate=-1e-09 must be at least 0"),
    ("train.weight_decay", INF, "train.weight_decay=inf must be a finite number"),
    ("train.adam_beta1", 1, "train.adam_beta1=1 must be at least 0 and less than 1"),
    ("train.adam_beta2", -0.1, "train.adam_beta2=-0.1 must be at least 0 and less than 1"),
    ("train.adam_epsilon", 0, "train.adam_epsilon=0 must be more than 0"),
    ("train.max_grad_norm", -1, "train.max_grad_norm=-1 must be at least 0"),
    ("train.num_train_epochs", 1e300, "train.num_train_epochs=1e+300 must be at least 0 and at most 1000000"),
    ("train.max_steps", -2, "train.max_steps=-2 must be at least -1"),
    ("train.max_steps", 2**40, "train.max_steps=1099511627776 must be at most 2147483647"),
    ("train.label_smoothing_factor", 1.0, "must be at least 0 and less than 1"),
    ("train.warmup_steps", -1, "train.warmup_steps=-1 must be at least 0"),
    ("train.warmup_steps", 1.5, "train.warmup_steps=1.5 must be a whole number of steps"),
    ("train.save_steps", INF, "train.save_steps=inf must be a finite number"),
    ("train.eval_steps", 0, "train.eval_steps=0 must be more than 0"),
    ("train.save_total_limit", 0, "train.save_total_limit=0 must be at least 1"),
    ("train.dataloader_num_workers", 10**6, "must be at least 0 and at most 1024"),
    ("train.dataloader_prefetch_factor", 0, "must be at least 1"),
    ("train.learning_rate", True, "train.learning_rate=True must be float"),
    ("train.bf16", 1, "train.bf16=1 must be bool"),
    ("train.optim", "adamw", "train.optim='adamw' must be one of"),
    ("train.lr_scheduler_type", "cosin", "did you mean 'cosine'?"),
    ("train.eval_strategy", "step", "did you mean 'steps'?"),
    ("train.log_level", "warn", "did you mean 'warning'?"),
    ("train.torch_compile_backend", "inducter", "did you mean 'inductor'?"),
    ("train.torch_compile_mode", "fast", "must be one of default, reduce-overhead"),
    ("train.gradient_checkpointing_kwargs", {"use_rentrant": True}, "did you mean 'use_reentrant'?"),
    ("train.lr_scheduler_kwargs", "power", "train.lr_scheduler_kwargs='power' must be options with their values"),
    ("train.lr_scheduler_kwargs", {"power": NAN}, "train.lr_scheduler_kwargs.power=nan must be a finite number"),
    ("train.most_rewinds", 0, "train.most_rewinds=0 must be at least 1"),
    ("train.vision_learning_rate", NAN, "train.vision_learning_rate=nan must be a finite number"),
    ("peft.r", 0, "peft.r=0 must be at least 1"),
    ("peft.r", 10**6, "peft.r=1000000 must be at least 1 and at most 65536"),
    ("peft.lora_alpha", 0, "peft.lora_alpha=0 must be more than 0"),
    ("peft.lora_dropout", 1, "peft.lora_dropout=1 must be at least 0 and less than 1"),
    ("peft.lora_dropout", NAN, "peft.lora_dropout=nan must be a finite number"),
    ("peft.rank_pattern", {"q_proj": 0}, "peft.rank_pattern.q_proj=0 must be at least 1"),
    ("peft.target_modules", [], "peft.target_modules=[] names no module"),
    ("peft.target_modules", "(", "peft.target_modules='(' is no regular expression"),
    ("peft.train_parts", ["language", "language"], "'language' is there twice"),
    ("evaluation.generation", {"top_p": NAN}, "evaluation.generation.top_p=nan must be a finite number"),
    ("evaluation.generation", {"temperature": -1}, "evaluation.generation.temperature=-1 must be at least 0"),
    ("evaluation.generation", {"num_beams": 10**6}, "must be at least 1 and at most 1024"),
    ("evaluation.generation", {"num_beams": 2.5}, "evaluation.generation.num_beams=2.5 must be a whole number"),
    ("evaluation.generation", {"do_sample": 1}, "evaluation.generation.do_sample=1 must be true or false"),
    ("evaluation.generation", {"renormalize_logits": 0}, "renormalize_logits=0 must be true or false"),
    ("evaluation.generation", {"repetition_penalty": 0}, "repetition_penalty=0 must be more than 0"),
    ("evaluation.generation", {"length_penalty": "x"}, "length_penalty='x' must be a number"),
    ("evaluation.choices", [], "evaluation.choices=[] is empty"),
    ("peft.target_modules", [1], "peft.target_modules=[1]: 1 is no name"),
    ("train", {"load_best_model_at_end": True, "save_strategy": "no"}, "load_best_model_at_end=true needs evaluations"),
    ("train.dataloader_multiprocessing_context", "forc", "did you mean 'fork'?"),
    ("evaluation.metrics", [], "evaluation.metrics=[] is empty"),
    ("dataset.metrics", ["bleu", "bleu"], "'bleu' is there twice"),
    ("dataset.metadata", ["a", "a"], "'a' is there twice"),
    ("dataset.metadata", [" "], "dataset.metadata=' ' is empty"),
    ("dataset.columns.image", "", "dataset.columns.image='' is empty"),
    ("dataset.split_seed", 2**32, "dataset.split_seed=4294967296 must be at least 0 and at most 4294967295"),
    ("dataset.max_bad_share", NAN, "dataset.max_bad_share=nan must be a finite number"),
    ("dataset.version", "../..", "dataset.version='../..' must be the name of a folder"),
    ("dataset.version", "", "dataset.version='' is empty"),
    ("model.media", ["image", "image"], "'image' is there twice"),
    ("model.device_map", "gpu", "model.device_map='gpu' must be auto, cpu, cuda or one GPU such as cuda:0"),
    ("model.revision", "", "model.revision='' is empty"),
    ("model.modules.vision", "(", "model.modules.vision='(' is no regular expression"),
    ("model.processor_kwargs", {"max_pixels": NAN}, "model.processor_kwargs.max_pixels=nan must be a finite number"),
    ("collator.template_options", {"a": [1.0, INF]}, "collator.template_options.a=inf must be a finite number"),
    ("collator.image_processing.max_size", 10**9, "must be at least 1 and at most 16384"),
    ("collator.video_processing.frame_extraction.fps", NAN, "fps=nan must be a finite number"),
    ("collator.video_processing.frame_extraction.fps", 0, "fps=0.0 must be more than 0"),
    ("collator.video_processing.file_processing.max_duration", -1.0, "max_duration=-1.0 must be more than 0"),
    ("tracking.project", "", "tracking.project='' is empty"),
    ("threads", 10**5, "threads=100000 must be at least 1 and at most 1024"),
    ("seed", 10**30, "seed=1000000000000000000000000000000 must be at least 0 and at most 4294967295"),
]  # fmt: skip
TAKEN = [
    ("train.learning_rate", 0), ("train.weight_decay", 0), ("train.adam_beta1", 0), ("train.max_grad_norm", 0),
    ("train.warmup_steps", 0), ("train.warmup_steps", 0.1), ("train.num_train_epochs", 0.5), ("train.max_steps", -1),
    ("train.eval_steps", 0.1), ("train.save_total_limit", None), ("train.neftune_noise_alpha", 0),
    ("train.lr_scheduler_kwargs", '{"power": 2}'), ("train.lr_scheduler_kwargs", {"power": 2}),
    ("train.torch_compile_backend", "inductor"),
    ("train.optim", "paged_adamw_8bit"), ("peft.lora_dropout", 0), ("peft.lora_alpha", 1), ("peft.r", 65536),
    ("peft.target_modules", r".*\.(q|v)_proj"), ("evaluation.generation", {"do_sample": True, "temperature": 1}),
    ("evaluation.generation", {"num_beams": 2, "early_stopping": "never", "length_penalty": -1}),
    ("evaluation.generation", {"top_k": 0}), ("evaluation.generation", {"top_p": None}),
    ("model.device_map", "cuda:1"), ("model.device_map", None), ("collator.system_prompt", ""),
    ("dataset.columns.image", None), ("dataset.max_bad_share", 0.0), ("seed", 2**32 - 1), ("compare.runs", ["a", "a"]),
]  # fmt: skip
BY_LIBRARIES = {
    "model.model_class=Qwen2VLForConditionalGenerationn": ["is not in transformers; did you mean 'Qwen2VLForCond"],
    "model.model_class=NoSuchModel": ["model.model_class=NoSuchModel is not in transformers", "null takes AutoModel"],
    "model.model_class=Qwen2VLConfig": ["model.model_class=Qwen2VLConfig: this is no class of a model"],
    "model.processor_class=Qwen2VLProcesor": ["did you mean 'Qwen2VLProcessor'?", "null takes AutoProcessor"],
    "model.processor_kwargs.max_pixel=1000": ["max_pixel=1000: Qwen2VLProcessor has no option", "'max_pixels'?"],
    "model.processor_kwargs.do_resize=maybe": ["model.processor_kwargs.do_resize='maybe' must be true or false"],
    "model.processor_kwargs.max_pixels=-1": ["model.processor_kwargs.max_pixels=-1: Qwen2VLProcessor cannot work so"],
    "model.model_kwargs.low_cpu_mem=true": ["low_cpu_mem=True: Qwen2VLForConditionalGeneration has no option"],
    "model.model_kwargs.offload_foldr=x": ["did you mean 'offload_folder'?"],
    "model.attn_implementation=sdp": ["model.attn_implementation 'sdp' does not exist; did you mean 'sdpa'?"],
    "model.end_of_turn=nosuchtoken": ["nosuchtoken"],
    "train.lr_scheduler_type=cosine_with_min_lr": ["cosine_with_min_lr cannot be built"],
    "train={lr_scheduler_type: inverse_sqrt, lr_scheduler_kwargs: {timescale: 0}}": ["timescale", "division by zero"],
    "export.writer=os.nothing": ["export.writer=os.nothing"],
    "peft.target_modules=[nothing_here]": ["['nothing_here'] match no module of Qwen2VLForConditionalGeneration"],
    "peft.target_modules=[q_proj,k_prj]": ["peft.target_modules names 'k_prj'", "did you mean 'k_proj'?"],
    "peft.exclude_modules=all-linear": ["peft.exclude_modules names 'all-linear'"],
    "peft.modules_to_save=[head_of_it]": ["peft.modules_to_save names 'head_of_it'"],
    "peft.rank_pattern={q_prj: 4}": ["peft.rank_pattern names 'q_prj'", "did you mean 'q_proj'?"],
    "peft.target_parameters=[q_proj.wait]": ["peft.target_parameters names 'q_proj.wait'"],
    "model.modules.vision=no_such_tower": ["model.modules.vision='no_such_tower' fits no module"],
    "model.model_kwargs.tie_word_embeddings=maybe": ["tie_word_embeddings='maybe' must be true or false"],
    "peft.trainable_token_indices=[-5]": ["-5 must be at least 0 and less than"],
    "peft.layers_to_transform=[1000]": ["`layers_to_transform` cannot be used when `target_modules` is a str"],
    "model.model_kwargs.use_safetensors=false": ["which can run code", "model.trust_remote_code=true"],
    "model.model_kwargs.use_safetensors=0": ["use_safetensors=0 must be true or false"],
    "dataset.splits.train=trian": ["dataset.splits.train=trian: the source has no such split; it has train, test"],
    "train.dataloader_persistent_workers=true": ["is for worker processes"],
}


@pytest.fixture(scope="module")
def composed():
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        return hydra.compose("config", ["paths.data=data"])


def changed(composed, option, value):
    config = composed.copy()
    with open_dict(config):
        OmegaConf.update(config, option, value, merge=False)
    return config


@pytest.mark.parametrize(("option", "value", "said"), REFUSED, ids=lambda item: ascii(item)[:40])
def test_a_value_that_cannot_be_is_refused_with_its_bounds(composed, option, value, said):
    with pytest.raises(UserError) as refused:
        checked(changed(composed, option, value))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("option", "value"), TAKEN, ids=lambda item: ascii(item)[:40])
def test_a_value_at_the_edge_is_taken(composed, option, value):
    checked(changed(composed, option, value))


def test_two_precisions_are_refused(composed):
    with pytest.raises(UserError, match=r"train\.bf16=true and train\.fp16=true are two precisions"):
        checked(changed(changed(composed, "train.bf16", True), "train.fp16", True))


def test_every_number_of_the_schema_has_bounds():
    def options(node, prefix=""):
        for item in dataclasses.fields(node):
            value = getattr(node, item.name)
            if dataclasses.is_dataclass(value):
                yield from options(value, f"{prefix}{item.name}.")
            elif str(item.type) in ("int", "int | None", "float"):
                yield f"{prefix}{item.name}", bounds_of(item)

    assert {name for name, bounds in options(Config()) if bounds == Bounds()} == {"collator.label_masking.ignore_index"}


def test_what_a_library_refuses_is_said_before_there_is_a_directory(compose, tmp_path):
    """One test for all: the libraries are imported once."""
    for override, parts in BY_LIBRARIES.items():
        with pytest.raises(UserError) as refused:
            check_options(compose("stage=train", "train.dataloader_num_workers=0", override))
        for part in parts:
            assert part in str(refused.value), override
    check_options(compose("stage=train", "train.adam_beta1=0", "model.model_kwargs.tie_word_embeddings=true"))
    check_options(compose("stage=preview", "model.processor_kwargs.max_pixels=4096"))
    check_options(compose("stage=train", "peft.init_lora_weights=pissa", "peft.exclude_modules=[v_proj]"))
    assert not list(tmp_path.iterdir())


def test_points_are_shown_to_the_libraries_before_one_starts(compose):
    def points(*overrides):
        return [(f"point {n}", (text,), compose("stage=train", text)) for n, text in enumerate(overrides)]

    with pytest.raises(UserError, match=r"point 1: peft\.target_modules=\['nothing_here'\] match no module"):
        ask_libraries(points("peft.target_modules=all-linear", "peft.target_modules=[nothing_here]"), elsewhere=True)
    far = points("model.device_map=cuda:97")
    with pytest.raises(UserError, match=r"point 0: model\.device_map=cuda:97: torch sees"):
        ask_libraries(far, elsewhere=False)
    ask_libraries(far, elsewhere=True)
