"""The schema: every option of vlmexp with its default, and the checks that need more than one option.

Two leaves are open: `train` takes any field of `transformers.TrainingArguments`, `peft` any field of the PEFT
configuration class that it names. Their keys are checked against the installed classes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from omegaconf.errors import ValidationError as OmegaConfValidationError

from vlmexp.errors import UserError, closest
from vlmexp.signatures import check_arguments, check_fields

SPLITS = ("train", "validation", "test")
DTYPES = ("bfloat16", "float16", "float32")
OVERLONG = ("error", "drop", "shorten_text")
SHARE_IMAGES = ("auto", "always", "never")
BLINDS = ("shuffle", "blank", "none")
PARTS = ("vision", "projector", "language")
PROMPT_STYLES = ("chat", "prefix")
MEDIA = ("image", "video")
RESIZE_MODES = ("keep_aspect", "crop", "stretch")
VIDEO_LIBRARIES = ("auto", "decord", "cv2", "pyav", "torchcodec")
SAMPLING_STRATEGIES = ("uniform", "fps")
ON_BAD_SAMPLE = ("error", "skip")
TRAIN_ANSWERS = ("most_common", "sampled")
AUDITS = ("error", "warn", "off")
WANDB_MODES = ("online", "offline", "disabled")
TRACKERS = ("none", "tensorboard", "wandb")
PUSHED = ("merged", "adapter")
_NAME = r"(?!.*(?:--|\.\.))[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}", re.ASCII)
OPTIMIZERS_WITH_OWN_GROUPS = ("galore", "apollo", "lomo", "adalomo")  # beginnings of names of train.optim
EVALUATIONS = ("finetuned", "base")
FORMATS = ("table", "md", "csv", "json")
# TrainingArguments that a run decides itself, and what to set instead.
RESERVED_TRAIN = {
    "output_dir": "hydra.run.dir",
    "seed": "seed",
    "data_seed": "seed",
    "report_to": "tracking.report_to",
    "run_name": "tracking.name",
    "resume_from_checkpoint": "run=<directory>",
    "hub_token": "the environment variable HF_TOKEN",
    "push_to_hub": "export.push_to_hub",
    "hub_model_id": "export.push_to_hub",
    "hub_private_repo": "export.private",
    "hub_strategy": "export.push_to_hub",
    "hub_always_push": "export.push_to_hub",
    "hub_revision": "export.push_to_hub",
    "enable_jit_checkpoint": "a plain SIGTERM, at which every run saves its state and ends as preempted,",
}
# What TrainingArguments takes without a word, and what then fails or trains nothing.
LEAST_TRAIN = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
    "learning_rate": 0, "num_train_epochs": 0, "weight_decay": 0, "max_grad_norm": 0, "warmup_steps": 0,
    "dataloader_num_workers": 0,
}  # fmt: skip
# Arguments of from_pretrained that have an option of their own.
RESERVED_MODEL_KWARGS = {
    "revision": "model.revision",
    "trust_remote_code": "model.trust_remote_code",
    "dtype": "model.dtype",
    "torch_dtype": "model.dtype",
    "device_map": "model.device_map",
    "attn_implementation": "model.attn_implementation",
    "quantization_config": "peft.quantization",
    "load_in_4bit": "peft=qlora",
    "load_in_8bit": "peft.quantization",
    "token": "the environment variable HF_TOKEN",
}
QUANTIZED_TYPES = ("nf4", "fp4")


@dataclass
class Modules:
    """Regular expressions for dotted module names; null: the names of transformers' own families."""

    vision: str | None = None
    projector: str | None = None


@dataclass
class Model:
    """Which model, and how it is loaded."""

    id: str = "???"  # Hub id, local folder, or vlmexp:NAME for what the package ships
    revision: str | None = None
    model_class: str | None = None  # a class of import_path; null: AutoModelForImageTextToText
    processor_class: str | None = None  # null: AutoProcessor
    import_path: str = "transformers"
    dtype: str = "bfloat16"  # bfloat16 | float16 | float32; on a CPU always float32
    device_map: str | None = "auto"  # auto | cuda | cpu
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    random_init: bool = False  # take the configuration but not the weights
    end_of_turn: str | None = None  # token that ends an answer; null: the chat template's, else EOS
    prompt_style: str = (
        "chat"  # chat: the processor's chat template | prefix: the question behind the images, no template
    )
    media: list[str] = field(default_factory=lambda: ["image"])  # what it takes: image, video
    modules: Modules = field(default_factory=Modules)
    export_writer: str | None = None  # function that writes deployment_model, by dotted path; null: save_pretrained
    shared_image_prefix: bool = False  # whether masks and positions allow several questions behind one image
    model_kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of from_pretrained
    processor_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Dataset:
    """Where examples come from, what their columns mean and how answers are judged."""

    name: str = "???"
    version: str = "1"
    source: str = "???"  # a name in vlmexp.data.sources or a dotted path
    options: dict[str, Any] = field(default_factory=dict)  # arguments of the source
    splits: dict[str, str | None] = field(default_factory=lambda: {name: name for name in SPLITS})  # ours: source's
    validation_fraction: float = 0.05  # of the train split, where the source has no validation split
    test_fraction: float = 0.1  # of the train split, where the source has no test split
    split_seed: int = 0
    max_examples: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(SPLITS))
    columns: dict[str, str | None] = field(
        default_factory=lambda: {"image": "image", "question": "question", "answer": "answer"}
    )  # role: column
    required: list[str] = field(default_factory=lambda: ["question", "answer"])  # roles that no row may leave empty
    on_bad_sample: str = "error"  # error | skip: rows that miss something, and media that cannot be decoded
    max_bad_share: float = 0.05  # of the rows of a split; with more than these to skip the run stops
    train_answer: str = "most_common"  # most_common | sampled: which of several answers to train on
    metadata: list[str] = field(default_factory=list)  # columns kept beside each prediction and reported per value
    metrics: list[str] = field(default_factory=lambda: ["vqa_accuracy", "exact_match", "bleu", "rouge"])
    max_new_tokens: int = 16


@dataclass
class Part:
    """A piece of a message."""

    type: str = "text"  # text | image | video: all of the example's
    text: str | None = None


@dataclass
class Message:
    """What a role says in the conversation that becomes the prompt."""

    role: str = "user"  # system | user | assistant
    content: list[Part] = field(default_factory=list)


@dataclass
class LabelMasking:
    """Which tokens carry no loss."""

    mask_pad_token: bool = True
    mask_image_token: bool = True
    mask_input_tokens: bool = False  # true: loss on the answer only
    ignore_index: int = -100


def _vqa_messages() -> list[Message]:
    question = [Part(text="{system_prompt}"), Part(type="image"), Part(text="{question}")]
    return [Message("user", question), Message("assistant", [Part(text="{answer}")])]


@dataclass
class DataProcessing:
    """Which media an example shows, of those that it has."""

    image_data: bool = True
    video_data: bool = False


@dataclass
class ImageProcessing:
    """What is done to an image, and in size to each frame of a video, before the model's own processor sees it."""

    convert_to_rgb: bool = True  # transparency on white; false: left to the processor
    resize_mode: str = "keep_aspect"  # keep_aspect: longer side at most max_size | crop, stretch: a max_size square
    max_size: int | None = None  # pixels; null: no resizing


@dataclass
class FrameExtraction:
    """Which frames of a video are shown."""

    library: str = "auto"  # auto: what is installed | decord | cv2 | pyav | torchcodec
    sampling_strategy: str = "uniform"  # uniform: num_frames over the whole video | fps: so many a second
    num_frames: int = 8  # for uniform
    fps: float = 1.0  # for fps


@dataclass
class FileProcessing:
    """What is done to a video file."""

    convert_to_rgb: bool = True  # false: cv2 leaves its frames in BGR; the other libraries give RGB anyway
    max_duration: float | None = None  # seconds from the beginning that are looked at; null: all


@dataclass
class VideoProcessing:
    """How a video becomes frames."""

    frame_extraction: FrameExtraction = field(default_factory=FrameExtraction)
    file_processing: FileProcessing = field(default_factory=FileProcessing)


@dataclass
class Collator:
    """How an example becomes tokens."""

    system_prompt: str = "Answer briefly."
    messages: list[Message] = field(default_factory=_vqa_messages)
    max_length: int = 2048  # tokens, media included
    overlong: str = "error"  # error | drop | shorten_text
    data_processing: DataProcessing = field(default_factory=DataProcessing)
    image_processing: ImageProcessing = field(default_factory=ImageProcessing)
    video_processing: VideoProcessing = field(default_factory=VideoProcessing)
    label_masking: LabelMasking = field(default_factory=LabelMasking)
    share_images: str = "auto"  # auto | always | never: one image prefix for all its questions in a batch


@dataclass
class Evaluation:
    """What is generated and scored."""

    split: str = "test"
    batch_size: int = 32  # questions
    max_examples: int | None = None  # a fixed random sample of the split; null: all of it
    metrics: list[str] | None = None  # null: the data set's
    max_new_tokens: int | None = None  # null: the data set's
    blind: str = "shuffle"  # shuffle | blank | none: what the fine-tuned model answers to other or to white images
    blind_examples: int = 1000  # how many questions of the sample are asked again so
    generation: dict[str, Any] = field(default_factory=dict)  # further arguments of generate()


@dataclass
class TrainExtras:
    """Options of `train` that are ours and not those of TrainingArguments."""

    vision_learning_rate: float | None = None  # null: train.learning_rate
    projector_learning_rate: float | None = None  # null: train.learning_rate
    gradient_audit: str = "warn"  # error | warn | off: after the second step, name trained weights without a gradient
    memory_preflight: bool = True  # forward and backward on the heaviest batch of the training, before it begins


@dataclass
class PeftExtras:
    """Options of `peft` that are ours and not those of the PEFT configuration class."""

    config_class: str | None = None  # null: no adapter, the weights themselves are trained
    train_parts: list[str] = field(default_factory=lambda: list(PARTS))  # the others stay frozen
    quantization: dict[str, Any] | None = None  # fields of transformers.BitsAndBytesConfig for the frozen base


@dataclass
class Tracking:
    """Where metrics go beside the run directory."""

    report_to: str = "none"  # none | tensorboard | wandb
    project: str = "vlmexp"
    entity: str | None = None
    name: str | None = None  # null: the run's id
    mode: str | None = None  # wandb: online | offline | disabled; null: online with a key, offline without


@dataclass
class Export:
    """What becomes of the trained model. Nothing here changes it, so all of it may change for `stage=export run=`."""

    writer: str | None = None  # function of (model, processor, folder), by dotted path; null: model.export_writer
    parity_examples: int = 8  # prompts on which adapter, merged and written model must agree; 0: no check
    push_to_hub: str | None = None  # ORG/NAME of a repository; needs HF_TOKEN in the environment
    push: str = "merged"  # merged | adapter: which folder goes there
    private: bool = True  # of a repository that is made


@dataclass
class Compare:
    """What `stage=compare` reads and shows."""

    runs: list[str] = field(default_factory=list)  # run directories, sweeps, folders of them, globs; empty: all
    metric: str | None = None  # to sort by; null: the main metric of most runs
    evaluation: str | None = None  # finetuned | base; null: finetuned, unless no run has one
    group_seeds: bool = False  # one row for runs that differ by their seed only
    best: bool = False  # print the best run's directory and its command, and nothing else
    failed: bool = False  # only what failed or was lost, with the end of its log
    diff: list[str] = field(default_factory=list)  # [A,B]: what differs between two runs
    paired: list[str] = field(default_factory=list)  # [A,B] on the same examples; [A]: before and after its training
    examples: int = 10  # of the gains and of the losses that `paired` shows
    format: str = "table"  # table | md | csv | json
    output: str | None = None  # the file to write; null: the terminal
    html: str | None = None  # the report to write
    report_examples: int = 500  # in the report


@dataclass
class Paths:
    """Where things are written."""

    data: str = "???"  # prepared data sets, shared by all runs
    outputs: str = "outputs"
    multirun: str = "multirun"


@dataclass
class Config:
    """A whole run."""

    stage: str = "pipeline"
    run: str | None = None  # a run directory to continue or to evaluate
    seed: int = 0
    threads: int | None = None  # CPU threads of torch; null: torch decides
    model: Model = field(default_factory=Model)
    dataset: Dataset = field(default_factory=Dataset)
    collator: Collator = field(default_factory=Collator)
    peft: dict[str, Any] = field(default_factory=lambda: dataclasses.asdict(PeftExtras()))
    train: dict[str, Any] = field(default_factory=lambda: dataclasses.asdict(TrainExtras()))
    evaluation: Evaluation = field(default_factory=Evaluation)
    tracking: Tracking = field(default_factory=Tracking)
    export: Export = field(default_factory=Export)
    compare: Compare = field(default_factory=Compare)
    paths: Paths = field(default_factory=Paths)


# Whose keys are not ours to list; they are checked where they are used.
OPEN_LEAVES = (
    "train",
    "peft",
    "model.model_kwargs",
    "model.processor_kwargs",
    "dataset.options",
    "dataset.columns",
    "evaluation.generation",
)


def schema_node() -> DictConfig:
    """The schema for Hydra's ConfigStore; the open leaves accept new keys without a `+`."""
    node = OmegaConf.structured(Config)
    for leaf in OPEN_LEAVES:
        OmegaConf.select(node, leaf)._set_flag("struct", False)
    return node


def checked(composed: DictConfig) -> Config:
    """Turn a composed config into a `Config`, or raise a UserError that names the option, its value and a way out."""
    try:
        merged = OmegaConf.structured(Config)
        # As plain values: between two configs of the schema's own type, OmegaConf lets unknown keys pass.
        merged.merge_with(OmegaConf.create(OmegaConf.to_container(composed)))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None
    assert isinstance(config, Config)
    _check_choices(config)
    _check_compare(config.compare)
    _check_media(config)
    _check_open_leaves(config)
    return config


def used_columns(config: Config) -> dict[str, str]:
    """Role -> column of the roles that have one, without media that are switched off."""
    shown = dataclasses.asdict(config.collator.data_processing)
    return {
        role: column for role, column in config.dataset.columns.items() if column and shown.get(f"{role}_data", True)
    }


def train_extras(config: Config) -> TrainExtras:
    """Our own options of the `train` group."""
    return TrainExtras(**_extras("train", config.train, TrainExtras))


def peft_extras(config: Config) -> PeftExtras:
    """Our own options of the `peft` group."""
    return PeftExtras(**_extras("peft", config.peft, PeftExtras))


def library_options(group: Mapping[str, Any], extras: type) -> dict[str, Any]:
    """The options of an open group that belong to the library's class."""
    ours = {item.name for item in dataclasses.fields(extras)}
    return {name: value for name, value in group.items() if name not in ours}


def _extras(group: str, values: Mapping[str, Any], extras: type) -> dict[str, Any]:
    ours = {item.name for item in dataclasses.fields(extras)}
    try:
        typed = OmegaConf.merge(OmegaConf.structured(extras), {n: value for n, value in values.items() if n in ours})
    except OmegaConfBaseException as error:
        error.full_key = f"{group}.{error.full_key}"
        raise UserError(explain(error)) from None
    plain = OmegaConf.to_container(typed)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def explain(error: OmegaConfBaseException) -> str:
    """One sentence for an error of OmegaConf: which option, which value, what is possible."""
    key = str(error.full_key or error.key or "")
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and key:
        parent, _, name = key.rpartition(".")
        known = _keys_at(parent)
        listing = f". There are: {', '.join(known)}." if known else "."
        return f"{key}: {parent or 'the config'} has no option {name!r}{closest(name, known) or listing}"
    if isinstance(error, MissingMandatoryValue):
        return f"{key} has no default: set it with {key}=VALUE."
    first_line = str(error.msg if error.msg else error).splitlines()[0]
    if isinstance(error, OmegaConfValidationError) and key:
        return f"{key}: {first_line}."
    return f"{key}: {first_line}" if key else first_line


def _keys_at(path: str) -> list[str]:
    node = OmegaConf.structured(Config)
    found = OmegaConf.select(node, path) if path else node
    if isinstance(found, ListConfig) or found is None:
        return []
    return sorted(str(key) for key in found)


def _check_choices(config: Config) -> None:
    frames = config.collator.video_processing.frame_extraction
    for option, value, choices in (
        ("model.dtype", config.model.dtype, DTYPES),
        ("model.prompt_style", config.model.prompt_style, PROMPT_STYLES),
        *(("model.media", medium, MEDIA) for medium in config.model.media),
        ("collator.overlong", config.collator.overlong, OVERLONG),
        ("collator.share_images", config.collator.share_images, SHARE_IMAGES),
        ("tracking.report_to", config.tracking.report_to, TRACKERS),
        *(("tracking.mode", mode, WANDB_MODES) for mode in [config.tracking.mode] if mode is not None),
        ("export.push", config.export.push, PUSHED),
        ("collator.image_processing.resize_mode", config.collator.image_processing.resize_mode, RESIZE_MODES),
        ("collator.video_processing.frame_extraction.library", frames.library, VIDEO_LIBRARIES),
        ("collator.video_processing.frame_extraction.sampling_strategy", frames.sampling_strategy, SAMPLING_STRATEGIES),
        ("dataset.on_bad_sample", config.dataset.on_bad_sample, ON_BAD_SAMPLE),
        ("dataset.train_answer", config.dataset.train_answer, TRAIN_ANSWERS),
        ("evaluation.split", config.evaluation.split, SPLITS),
        ("evaluation.blind", config.evaluation.blind, BLINDS),
        *(("dataset.splits", name, SPLITS) for name in config.dataset.splits),
        *(("dataset.max_examples", name, SPLITS) for name in config.dataset.max_examples),
        *(
            ("collator.messages.role", message.role, ("system", "user", "assistant"))
            for message in config.collator.messages
        ),
        *(
            ("collator.messages.type", part.type, ("text", *MEDIA))
            for m in config.collator.messages
            for part in m.content
        ),
    ):
        _check_choice(option, value, choices)
    for option, number, least in (
        ("collator.max_length", config.collator.max_length, 1),
        ("collator.image_processing.max_size", config.collator.image_processing.max_size, 1),
        ("collator.video_processing.frame_extraction.num_frames", frames.num_frames, 1),
        ("evaluation.batch_size", config.evaluation.batch_size, 1),
        ("evaluation.max_examples", config.evaluation.max_examples, 1),
        ("evaluation.blind_examples", config.evaluation.blind_examples, 1),
        ("evaluation.max_new_tokens", config.evaluation.max_new_tokens, 1),
        ("dataset.max_new_tokens", config.dataset.max_new_tokens, 1),
        ("export.parity_examples", config.export.parity_examples, 0),
        ("threads", config.threads, 1),
        ("seed", config.seed, 0),
        *((f"dataset.max_examples.{name}", number, 1) for name, number in config.dataset.max_examples.items()),
    ):
        if number is not None and number < least:
            raise UserError(f"{option}={number} must be at least {least}.")
    if config.export.push_to_hub is not None and not _REPOSITORY.fullmatch(config.export.push_to_hub):
        raise UserError(
            f"export.push_to_hub={config.export.push_to_hub!r} must be ORG/NAME, each of letters, digits, '-', '_' and "
            "'.', with a letter or digit at both ends."
        )
    if config.collator.label_masking.ignore_index != -100:
        raise UserError(
            f"collator.label_masking.ignore_index={config.collator.label_masking.ignore_index} must be -100: it is the "
            "only label that the loss of transformers' models leaves out."
        )
    duration = config.collator.video_processing.file_processing.max_duration
    for option, amount in (("frame_extraction.fps", frames.fps), ("file_processing.max_duration", duration)):
        if amount is not None and amount <= 0:
            raise UserError(f"collator.video_processing.{option}={amount} must be more than 0.")
    for option, fraction in (
        ("dataset.max_bad_share", config.dataset.max_bad_share),
        ("dataset.validation_fraction", config.dataset.validation_fraction),
        ("dataset.test_fraction", config.dataset.test_fraction),
    ):
        if not 0 <= fraction < 1:
            raise UserError(f"{option}={fraction} must be at least 0 and less than 1.")
    for role in dict.fromkeys(["answer", *config.dataset.required]):
        if not config.dataset.columns.get(role):
            raise UserError(f"dataset.columns.{role} is not set: name the column that holds each example's {role}.")
    if not config.collator.messages or config.collator.messages[-1].role != "assistant":
        raise UserError(
            "collator.messages must end with the assistant's message, which is what the model learns to say."
        )
    if config.collator.share_images == "always" and not config.collator.label_masking.mask_input_tokens:
        raise UserError(
            "collator.share_images=always needs collator.label_masking.mask_input_tokens=true: "
            "a prompt that several questions share cannot carry a loss for each of them."
        )


def _check_media(config: Config) -> None:
    """What the data set has, the collator shows and the model takes must fit together."""
    shown = dataclasses.asdict(config.collator.data_processing)
    present = [medium for medium in MEDIA if config.dataset.columns.get(medium)]
    used = [medium for medium in present if shown[f"{medium}_data"]]
    if present and not used:
        raise UserError(
            f"dataset={config.dataset.name} has only {' and '.join(present)} data, and "
            f"collator.data_processing.{present[0]}_data is false: switch it on"
            + (", as collator=video does." if present[0] == "video" else ".")
        )
    parts = {part.type for message in config.collator.messages[:-1] for part in message.content}
    for medium in used:
        if medium not in config.model.media:
            raise UserError(
                f"collator.data_processing.{medium}_data=true: {config.model.id} takes "
                f"{' and '.join(config.model.media) or 'no media'} (model.media) and no {medium}. "
                "Choose another model, or switch it off."
            )
        if medium not in parts:
            raise UserError(
                f"collator.messages show no {medium}, and the data set has some: add the part {{type: {medium}}} (as "
                f"collator={'video' if medium == 'video' else 'vqa'} does), or set "
                f"collator.data_processing.{medium}_data=false."
            )


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{option}={value!r} must be one of {', '.join(choices)}{closest(value, choices)}")


def _check_compare(compare: Compare) -> None:
    _check_choice("compare.format", compare.format, FORMATS)
    if compare.evaluation is not None:
        _check_choice("compare.evaluation", compare.evaluation, EVALUATIONS)
    for option, number in (("examples", compare.examples), ("report_examples", compare.report_examples)):
        if number < 0:
            raise UserError(f"compare.{option}={number} must be at least 0.")
    for option, named, counts in (("diff", compare.diff, (2,)), ("paired", compare.paired, (1, 2))):
        if named and len(named) not in counts:
            raise UserError(f"compare.{option} names {len(named)} runs: write compare.{option}=[A,B].")
    views = [name for name in ("best", "failed", "diff", "paired") if getattr(compare, name)]
    views += ["html"] if compare.html is not None else []
    if len(views) > 1:
        raise UserError(f"compare.{' and compare.'.join(views)} are different views: ask for one of them.")


def _check_open_leaves(config: Config) -> None:
    for name, instead in RESERVED_TRAIN.items():
        if name in config.train:
            raise UserError(f"train.{name} is set by the run itself: use {instead} instead.")
    for group in ("model_kwargs", "processor_kwargs"):
        for name in RESERVED_MODEL_KWARGS.keys() & getattr(config.model, group).keys():
            raise UserError(
                f"model.{group}.{name} has an option of its own: use {RESERVED_MODEL_KWARGS[name]} instead."
            )
    for name in ("fsdp", "deepspeed"):
        if config.train.get(name):
            raise UserError(
                f"train.{name}={config.train[name]}: weights are not sharded here, each process holds the whole model. "
                "Leave it out; for less memory choose train=low_memory or peft.quantization."
            )
    check_fields("train", library_options(config.train, TrainExtras), "transformers", "TrainingArguments")
    ours = train_extras(config)
    _check_choice("train.gradient_audit", ours.gradient_audit, AUDITS)
    for name, rate in (("vision", ours.vision_learning_rate), ("projector", ours.projector_learning_rate)):
        if rate is not None and rate <= 0:
            raise UserError(
                f"train.{name}_learning_rate={rate} must be positive; to freeze a part use peft.train_parts."
            )
        if rate is not None and name not in peft_extras(config).train_parts:
            raise UserError(f"train.{name}_learning_rate={rate}: peft.train_parts leaves the {name} part out; add it.")
        if rate is not None and str(config.train.get("optim")).startswith(OPTIMIZERS_WITH_OWN_GROUPS):
            raise UserError(
                f"train.{name}_learning_rate={rate}: train.optim={config.train['optim']} groups the weights itself and "
                "takes one learning rate for all; choose another optimizer, such as adamw_torch."
            )
    for name, least in LEAST_TRAIN.items():
        value = config.train.get(name)
        if value is not None and value < least:
            raise UserError(f"train.{name}={value} must be at least {least}.")
    for name in ("logging_steps", "eval_steps", "save_steps"):
        value = config.train.get(name)
        if value is not None and (value <= 0 or (value >= 1 and value != int(value))):
            raise UserError(f"train.{name}={value} must be a whole number of steps, or a fraction of them below 1.")
    adapter, options = peft_extras(config), library_options(config.peft, PeftExtras)
    for part in adapter.train_parts:
        _check_choice("peft.train_parts", part, PARTS)
    if not adapter.train_parts:
        raise UserError(f"peft.train_parts is empty, so nothing would be trained: name some of {', '.join(PARTS)}.")
    if adapter.quantization:
        _check_quantization(adapter.quantization)
    if adapter.config_class is not None:
        check_fields("peft", options, "peft", adapter.config_class)
        if options.get("r") is not None and options["r"] < 1:
            raise UserError(f"peft.r={options['r']} must be at least 1: it is the rank of the adapter's matrices.")
        if not 0 <= (dropout := options.get("lora_dropout") or 0) < 1:
            raise UserError(f"peft.lora_dropout={dropout} must be at least 0 and less than 1.")
    elif options or adapter.quantization:
        extra = ", ".join(sorted(options) or ["quantization"])
        raise UserError(f"peft.{extra}: peft=none trains all weights and has no such option; choose peft=lora.")


def _check_quantization(values: Mapping[str, Any]) -> None:
    check_arguments("peft.quantization", values, "transformers", "utils/quantization_config.py", "BitsAndBytesConfig")
    for name, choices in (("bnb_4bit_quant_type", QUANTIZED_TYPES), ("bnb_4bit_compute_dtype", DTYPES)):
        if name in values:
            _check_choice(f"peft.quantization.{name}", values[name], choices)
    if values.get("load_in_4bit", False) == values.get("load_in_8bit", False):
        raise UserError("peft.quantization: set one of load_in_4bit and load_in_8bit to true, or choose peft=lora.")
