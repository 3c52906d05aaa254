"""The schema: every option of vlmexp with its default. What values are possible is in vlmexp.checks.

Two groups are open: `train` takes any field of `transformers.TrainingArguments`, `peft` any field of the PEFT
configuration class that it names, and both have a few options of ours besides.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from omegaconf.errors import ValidationError as OmegaConfValidationError

from vlmexp.bounds import LARGEST_SEED, bounds, count, number, share, text
from vlmexp.errors import UserError, closest, shown

SPLITS = ("train", "validation", "test")
PARTS = ("vision", "projector", "language")
MEDIA = ("image", "video")
NEEDS_TRAIN = ("train", "pipeline")  # stages that are of no use without a train split
EVALUATING = ("eval_base", "pipeline")  # stages that ask the base model
IN_CONVERSATION = ("question", "answer")  # roles for which a column of conversations (the role `messages`) stands


@dataclass
class Modules:
    """Regular expressions for dotted module names; null: the names of transformers' own families."""

    vision: str | None = None
    projector: str | None = None


@dataclass
class Boxes:
    """How the model writes where something is in a picture; see vlmexp.collator.boxes."""

    unit: str = "shares"  # of width and height | thousandths | loc: 0 to 1023 | pixels: after the processor's resizing
    box: str = "[{left}, {top}, {right}, {bottom}]"  # one box
    around: str = "{boxes}"  # what stands around it
    several: str | None = None  # the same for two or more; null: as around
    between: str = text(", ")  # two boxes


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
    media: list[str] = field(default_factory=lambda: ["image"], metadata=bounds(distinct=True))  # image, video
    modules: Modules = field(default_factory=Modules)
    boxes: Boxes = field(default_factory=Boxes)
    export_writer: str | None = None  # function that writes deployment_model, by dotted path; null: save_pretrained
    shared_image_prefix: bool | str = "auto"  # whether several questions behind one image are exact; auto: it is tried
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
    validation_fraction: float = share(0.05)  # of the train split, where the source has no validation split
    test_fraction: float = share(0.1)  # of the train split, where the source has no test split
    split_seed: int = count(0, least=0, most=LARGEST_SEED)
    max_examples: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(SPLITS), metadata=bounds(least=1))
    columns: dict[str, str | None] = field(
        default_factory=lambda: {"image": "image", "question": "question", "answer": "answer"}
    )  # role: column; `messages`: whole conversations, in place of question and answer; `box`: boxes as the answer
    box_form: str = "xywh"  # xywh: left, top, width, height | xyxy: left, top, right, bottom; in pixels of the image
    prompt: list[str] = field(
        default_factory=lambda: ["{question}", "\n{system_prompt}"], metadata=bounds(fewest=1)
    )  # what {prompt} in collator.messages shows; a piece that names a role without a text is left out
    instruction: str = text("Answer briefly.")  # the value of {system_prompt}, unless collator.system_prompt is set
    open_instruction: str | None = text(None)  # of rows without choices, likewise; null: instruction
    required: list[str] = field(
        default_factory=lambda: ["question", "answer"], metadata=bounds(distinct=True)
    )  # roles that no row may leave empty
    on_bad_sample: str = "error"  # error | skip: rows that miss something, and media that cannot be decoded
    max_bad_share: float = share(0.05)  # of the rows of a split; with more than these to skip the run stops
    on_duplicates: str = "report"  # report | drop_from_train | error: pictures of train in another of the given splits
    decode_memory_mib: int = count(
        1024, least=64
    )  # for what a process decodes at a moment; media that need more are bad
    decode_timeout_s: float = number(40.0, above=0)  # a video that takes longer to read is bad
    max_file_gib: float = number(16.0, above=0)  # media with more on disk are bad, and a data file is refused
    convert: str = "auto"  # auto | always | never: lists, whole numbers and choices from what a table made of them
    train_answer: str = "most_common"  # most_common | sampled: which of several answers to train on
    metadata: list[str] = field(
        default_factory=list, metadata=bounds(distinct=True)
    )  # columns kept beside each prediction and reported per value
    kept: list[str] = field(
        default_factory=list, metadata=bounds(distinct=True)
    )  # columns kept beside each prediction, for metrics that need them
    metrics: list[str] = field(
        default_factory=lambda: ["vqa_accuracy", "exact_match", "bleu", "rouge"],
        metadata=bounds(distinct=True, fewest=1),
    )
    max_new_tokens: int | None = count(None)  # null: what the accepted answers need
    submission: str | None = None  # evalai | rrc | vizwiz: the form of the file that its test server takes
    submission_id: str = "question_id"  # the column with the test server's own ids


@dataclass
class Part:
    """A piece of a message."""

    type: str = "text"  # text | image | video: all of the example's
    text: str | None = text(None)


@dataclass
class Message:
    """What a role says in the conversation that becomes the prompt."""

    role: str = "user"  # system | user | assistant | conversation: the data set's, which comes last
    content: list[Part] = field(default_factory=list)


@dataclass
class LabelMasking:
    """Which tokens carry no loss."""

    mask_pad_token: bool = True
    mask_image_token: bool = True
    mask_input_tokens: bool = False  # true: loss on the answer only
    ignore_index: int = -100


def _vqa_messages() -> list[Message]:
    question = [Part(type="image"), Part(text="{prompt}")]
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
    max_size: int | None = count(None, most=16384)  # pixels; null: no resizing
    max_pixels: int = count(2**25)  # width times height (5,792 x 5,792); larger ones are scaled down to it


@dataclass
class FrameExtraction:
    """Which frames of a video are shown."""

    library: str = "auto"  # auto: what is installed | decord | cv2 | pyav | torchcodec
    sampling_strategy: str = "uniform"  # uniform: num_frames over the whole video | fps: so many a second
    num_frames: int = count(8, most=65536)  # for uniform
    fps: float = number(1.0, above=0, most=1000)  # for fps


@dataclass
class FileProcessing:
    """What is done to a video file."""

    convert_to_rgb: bool = True  # false: cv2 leaves its frames in BGR; the other libraries give RGB anyway
    max_duration: float | None = number(None, above=0)  # seconds from the beginning that are looked at; null: all


@dataclass
class VideoProcessing:
    """How a video becomes frames."""

    frame_extraction: FrameExtraction = field(default_factory=FrameExtraction)
    file_processing: FileProcessing = field(default_factory=FileProcessing)


@dataclass
class Collator:
    """How an example becomes tokens."""

    system_prompt: str = text("${dataset.instruction}")  # what {system_prompt} says; set here it goes before the data's
    messages: list[Message] = field(default_factory=_vqa_messages)
    max_length: int = count(2048)  # tokens, media included
    overlong: str = "error"  # error | drop | shorten_text | shrink_image
    template_options: dict[str, Any] = field(default_factory=dict)  # variables of the model's own chat template
    answer_follows: str = "finished_turn"  # finished_turn | generation_prompt: where a chat template lets a model think
    data_processing: DataProcessing = field(default_factory=DataProcessing)
    image_processing: ImageProcessing = field(default_factory=ImageProcessing)
    video_processing: VideoProcessing = field(default_factory=VideoProcessing)
    label_masking: LabelMasking = field(default_factory=LabelMasking)
    share_images: str = "auto"  # auto | always | never: one image prefix for all its questions in a batch
    packing: str = "auto"  # auto | never: batches without padding, where a test shows that they are exact


@dataclass
class Evaluation:
    """What is generated and scored."""

    suite: list[str] | None = field(
        default=None, metadata=bounds(distinct=True, fewest=1)
    )  # names of data sets (conf/dataset), each asked and scored as by itself; null: the run's own
    split: str = "test"
    batch_size: int = count(32)  # questions
    max_examples: int | None = count(None)  # a fixed random sample of the split; null: all of it
    metrics: list[str] | None = field(default=None, metadata=bounds(distinct=True, fewest=1))  # null: the data set's
    max_new_tokens: int | None = count(None)  # null: the data set's
    blind: str = "shuffle"  # shuffle | blank | none: what the fine-tuned model answers to other or to white images
    blind_examples: int = count(1000)  # how many questions of the sample are asked again so
    generation: dict[str, Any] = field(default_factory=dict)  # further arguments of generate()
    reasoning_tags: list[str] = field(
        default_factory=lambda: ["think", "analysis"], metadata=bounds(distinct=True)
    )  # what stands between <think> and </think> is no part of an answer
    answers: str = "generate"  # generate | rank: what the model says, or the likeliest of `choices`
    choices: list[str] | None = field(
        default=None, metadata=bounds(fewest=1)
    )  # to rank; null: the row's own (dataset.columns.choices), else train's
    max_choices: int = count(100, least=2)  # of the train split's answers: the most common
    rank_per_token: bool = False  # rank by log-likelihood per token, which does not favour the short ones
    invariance_examples: int = count(4, least=0)  # asked one by one as well, to see whether the batch matters; 0: none


@dataclass
class TrainExtras:
    """Options of `train` that are ours and not those of TrainingArguments."""

    vision_learning_rate: float | None = None  # null: train.learning_rate
    projector_learning_rate: float | None = None  # null: train.learning_rate
    gradient_audit: str = "warn"  # error | warn | off: after the second step, name trained weights without a gradient
    cache_vision_features: str = "auto"  # auto | on | off: a frozen tower looks at each picture once for all epochs
    memory_preflight: bool = True  # forward and backward on the heaviest batch of the training, before it begins
    fit: str = "none"  # auto: the preflight finds how few batches a step needs, and whether checkpointing | none
    profile: int | None = count(None)  # write a trace and a table of so many steps; null: of none
    eval_generation_examples: int | None = count(None, least=0)  # of each evaluation; null: 200 if a metric needs them
    early_stopping_patience: int | None = count(None)  # end after so many evaluations without a better one; null: never
    tokens_per_batch: int | None = count(None)  # a process's batch, with its padding; null: per_device_train_batch_size
    on_divergence: str = "stop"  # stop | rewind: a loss or gradient that is not finite; to the last good checkpoint
    most_rewinds: int = count(3)  # of a run, each with half of the learning rate of before


@dataclass
class PeftExtras:
    """Options of `peft` that are ours and not those of the PEFT configuration class."""

    config_class: str | None = None  # null: no adapter, the weights themselves are trained
    train_parts: list[str] = field(
        default_factory=lambda: list(PARTS), metadata=bounds(distinct=True)
    )  # the others stay frozen
    quantization: dict[str, Any] | None = None  # fields of transformers.BitsAndBytesConfig for the frozen base


@dataclass
class Tracking:
    """Where metrics go beside the run directory."""

    report_to: str = "none"  # none | tensorboard | wandb
    project: str = "vlmexp"
    entity: str | None = None
    name: str | None = None  # null: the run's id
    mode: str | None = None  # wandb: online | offline | disabled; null: online with a key, offline without
    predictions: int = count(50, least=0)  # rows of each evaluation's table in wandb, with images; 0: no table


@dataclass
class Export:
    """What becomes of the trained model. Nothing here changes it, so all of it may change for `stage=export run=`."""

    writer: str | None = None  # function of (model, processor, folder), by dotted path; null: model.export_writer
    parity_examples: int = count(8, least=0)  # on which adapter, merged and written model must agree; 0: no check
    push_to_hub: str | None = None  # ORG/NAME of a repository; needs HF_TOKEN in the environment
    push: str = "merged"  # merged | adapter: which folder goes there
    private: bool = True  # of a repository that is made


@dataclass
class Preview:
    """What `stage=preview` counts and shows; nothing here changes a training."""

    split: str = "train"
    examples: int = count(8)  # a random sample and the longest row; where images are shared, images with questions
    ids: list[str] = field(default_factory=list, metadata=bounds(distinct=True))  # show these rows instead
    rows: int | None = count(2000)  # a random sample, whose lengths and sizes are counted; null: all of the split
    output: str | None = None  # the page to write; null: preview.html in the run directory


@dataclass
class Predict:
    """What `stage=predict` answers where no image and no video is named, and whose answers they are."""

    split: str | None = None  # as the source calls it; its answers, if there are some, are not read
    max_examples: int | None = count(None)  # a fixed random sample of the split; null: all of it
    weights: str | None = None  # adapter | merged | base; null: adapter with run=, base without


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
    examples: int = count(10, least=0)  # of the gains and of the losses that `paired` shows
    format: str = "table"  # table | md | csv | json
    output: str | None = None  # the file to write; null: the terminal
    html: str | None = None  # the report to write
    report_examples: int = count(500, least=0)  # in the report


@dataclass
class Paths:
    """Where things are written."""

    data: str = text("???")  # prepared data sets, shared by all runs
    outputs: str = text("outputs")
    multirun: str = text("multirun")


@dataclass
class Config:
    """A whole run."""

    stage: str = "pipeline"
    run: str | None = None  # a run directory to continue or to evaluate
    trust_run: bool = False  # take from it, too, what can run code: options that name some, and all of Hydra's own
    image: Any = None  # for stage=predict: a file, a list of files for one question, or a folder for one each
    video: Any = None  # the same of videos
    question: str | None = None  # about them
    seed: int = count(0, least=0, most=LARGEST_SEED)
    threads: int | None = count(None, most=1024)  # CPU threads of torch; null: torch decides
    model: Model = field(default_factory=Model)
    dataset: Dataset = field(default_factory=Dataset)
    members: dict[str, Dataset] = field(default_factory=dict)  # of evaluation.suite, by their files; made, and not set
    collator: Collator = field(default_factory=Collator)
    peft: dict[str, Any] = field(default_factory=lambda: dataclasses.asdict(PeftExtras()))
    train: dict[str, Any] = field(default_factory=lambda: dataclasses.asdict(TrainExtras()))
    evaluation: Evaluation = field(default_factory=Evaluation)
    tracking: Tracking = field(default_factory=Tracking)
    export: Export = field(default_factory=Export)
    preview: Preview = field(default_factory=Preview)
    predict: Predict = field(default_factory=Predict)
    compare: Compare = field(default_factory=Compare)
    paths: Paths = field(default_factory=Paths)


# Whose keys are not ours to list; they are checked where they are used.
OPEN_LEAVES = (
    "train",
    "peft",
    "model.model_kwargs",
    "model.processor_kwargs",
    "collator.template_options",
    "dataset.options",
    "dataset.columns",
    "evaluation.generation",
)


_UNFIT = re.compile(r"Value '(.*)' (?:of type '\w+' could not be converted to|is not a) (Integer|Float|valid bool)")
_KINDS = {"Integer": "a whole number", "Float": "a number", "valid bool": "true or false"}
_NO_NULL = ("is not Optional", "Incompatible value 'None'")


def schema_node() -> DictConfig:
    """The schema for Hydra's ConfigStore; the open leaves accept new keys without a `+`."""
    node = OmegaConf.structured(Config)
    for leaf in OPEN_LEAVES:
        OmegaConf.select(node, leaf)._set_flag("struct", False)
    return node


def used_columns(config: Config) -> dict[str, str]:
    """Role -> column of the roles that have one, without media that are switched off.

    A conversation holds its questions and answers itself, so there these two have no column of their own. Boxes are the
    answer.
    """
    shown = dataclasses.asdict(config.collator.data_processing)
    unused: tuple[str, ...] = IN_CONVERSATION if config.dataset.columns.get("messages") else ()
    if config.dataset.columns.get("box"):
        unused = ("answer",)
    return {
        role: column
        for role, column in config.dataset.columns.items()
        if column and role not in unused and shown.get(f"{role}_data", True)
    }


def required_roles(config: Config) -> list[str]:
    """The roles that no row may leave empty."""
    if config.dataset.columns.get("box"):
        return list(dict.fromkeys("box" if role == "answer" else role for role in config.dataset.required))
    if not config.dataset.columns.get("messages"):
        return config.dataset.required
    answered = [] if config.stage == "predict" else ["messages"]  # by the last turn
    return [*answered, *(role for role in config.dataset.required if role not in (*IN_CONVERSATION, "messages"))]


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
    key = str(error.full_key or error.key or "").removeprefix("_dummy_")  # Hydra's, for the choice of a group
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and key:
        parent, _, name = key.rpartition(".")
        if parent == "hydra.launcher":
            return f"{key}: this launcher has no option {name!r}; choose hydra/launcher=slurm_local or slurm with it."
        known = _keys_at(parent)
        listing = f". There are: {', '.join(known)}." if known else "."
        return f"{key}: {parent or 'the config'} has no option {name!r}{closest(name, known) or listing}"
    if isinstance(error, MissingMandatoryValue):
        return f"{key} has no default: set it with {key}=VALUE."
    first_line = str(error.msg if error.msg else error).splitlines()[0].rstrip(".")
    if (found := _UNFIT.match(first_line)) is not None:
        return f"{key}={shown(repr(found[1]))} must be {_KINDS[found[2]]}."
    if any(part in first_line for part in _NO_NULL):
        return f"{key}=null: it needs a value; leave it out for its default."
    if "does not support deletion" in first_line:
        return f"~{key}: an option of vlmexp cannot be taken away; set it to another value."
    if "Cannot convert" in first_line:
        return f"{key} takes one text, and no list and no options: write {key}=TEXT."
    if "Recursive interpolation" in first_line:
        return f"{key}: its value names itself with ${{...}}; give it one."
    if isinstance(error, InterpolationKeyError | GrammarParseError):
        return (
            f"{f'{key}: ' if key else ''}{first_line}. ${{NAME}} is the value of the option NAME; of an environment "
            "variable it is ${oc.env:NAME}, and \\${NAME} are these letters themselves."
        )
    if "is not a ListConfig" in first_line or "with ListConfig" in first_line:
        return f"{key} takes a list: write {key}=[A,B], or {key}=[A] for one value."
    if isinstance(error, OmegaConfValidationError) and key:
        return f"{key}: {first_line}."
    return f"{key}: {first_line}" if key else first_line


def option_names() -> list[str]:
    """The names at the top: of groups, and of the few options that are in none."""
    return [item.name for item in dataclasses.fields(Config)]


def is_switch(key: str) -> bool:
    """Whether an option is true or false, as far as the schema knows it."""
    node = OmegaConf.structured(Config)
    try:
        return isinstance(OmegaConf.select(node, key), bool)
    except OmegaConfBaseException:
        return False


def may_be_list(key: str) -> bool:
    """Whether an option can hold a list, as far as the schema knows it."""
    try:
        OmegaConf.update(schema_node(), key, [])
    except ConfigAttributeError:
        return True
    except OmegaConfBaseException:
        return False
    return True


def _keys_at(path: str) -> list[str]:
    node = OmegaConf.structured(Config)
    found = OmegaConf.select(node, path) if path else node
    if isinstance(found, ListConfig) or found is None:
        return []
    return sorted(str(key) for key in found)
