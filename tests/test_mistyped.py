"""Letters that look like others, flags that there are not, and stages, groups and folders that are none."""

from __future__ import annotations

import pytest

from vlmexp.command_line import flags_last
from vlmexp.errors import UserError, without_advice
from vlmexp.mistyped import refuse_flags, refuse_lookalikes

LOOKALIKES = {
    "train.learning_rate=\u22121e-4": ["U+2212", "minus sign", "type train.learning_rate=-1e-4"],
    "peft.r\u00a0=8": ["U+00A0", "no-break space", "type peft.r =8"],
    "peft.r=8\u00a0": ["U+00A0", "type peft.r=8"],
    "\u2013m": ["U+2013", "en dash", "type -m"],
    "\u2014multirun": ["U+2014", "em dash", "type -multirun"],
    "seed\uff1d3": ["U+FF1D", "fullwidth equals sign", "type seed=3"],
    "seed=\uff13": ["U+FF13", "fullwidth digit three", "type seed=3"],
    "seed=\u0663": ["U+0663", "arabic-indic digit three", "type seed=3"],
    "seed=1\u200b": ["U+200B", "which nobody sees", "seed=1\\u200b", "type seed=1"],
    "\ufeffseed=1": ["U+FEFF", "which nobody sees", "type seed=1"],
    "model.id=\u201ctiny\u201d": ["U+201C", "left double quotation mark", 'type model.id="tiny"'],
    "peft.r=\u20188\u2019": ["U+2018", "type peft.r='8'"],
    "peft.r=[8,\u22121]": ["U+2212", "type peft.r=[8,-1]"],
}
FLAGS = {
    "-x": ["'-x' is no flag"],
    "--multi-run": ["'--multi-run' is no flag", "did you mean '--multirun'?"],
    "--confg job": ["did you mean '--cfg'?"],
    "-mm": ["'-mm' is no flag"],
    "--": ["'--' is no flag"],
    "--seed=1": ["options are written without dashes, as seed=VALUE"],
    "--peft.r 8": ["options are written without dashes, as peft.r=VALUE"],
    "--cfg": ["--cfg needs a value behind it: one of job, hydra, all"],
    "--cfg jobb": ["--cfg 'jobb' must be one of job, hydra, all", "did you mean 'job'?"],
    "--cfg=": ["--cfg needs a value behind it"],
    "--info plugin": ["'plugin' must be one of", "did you mean 'plugins'?"],
    "--config-dir nowhere": ["--config-dir nowhere: there is no such folder"],
    "--config-path x": ["--config-path x would leave out vlmexp's own options", "--config-dir"],
    "-cp": ["-cp needs a value behind it"],
    "--package peft": ["--package says how --cfg shows", "--cfg job"],
    "--resolve": ["--resolve says how --cfg shows"],
    "--help=1": ["the flag --help takes no value"],
    "-m --cfg job": ["-m and --cfg ask for different things"],
    "-sc": ["-sc needs one of install=SHELL"],
    "-sc install=tcsh": ["query=SHELL: bash, fish, zsh"],
    "--experimental-rerun x": ["would read a pickle", "run=DIRECTORY"],
}
REFUSED = {
    "~peft": ["~peft: peft is a group of options", "--help"],
    "model=[]": ["model=[]: model is a group of options"],
    "~model.id": ["~model.id: an option of vlmexp is never away"],
    "~dataset.columns.answer": ["~dataset.columns.answer: an option of vlmexp is never away"],
    "stage=os.path": ["stage=os.path is of Python's own library", "pipeline"],
    "stage=json.dumps": ["stage=json.dumps is of Python's own library"],
    "stage=nope.go": ["stage=nope.go: there is no module 'nope'"],
    "stage=vlmexp.runs.Run": ["stage=vlmexp.runs.Run is not a function of (config, run)"],
    "stage=vlmexp.errors.without_advice": ["is not a function of (config, run)"],
    "stage=tests.test_mistyped.LOOKALIKES": ["is not a function of (config, run)"],
    "stage=..": ["stage '..' does not exist", "pipeline"],
    "hydra.searchpath=[file://nowhere]": ["hydra.searchpath=file://nowhere: there is no such folder"],
    "hydra.searchpath=[pkg://no.such]": ["hydra.searchpath=pkg://no.such: there is no such folder"],
    "model=${nothing}": ["Interpolation key", "${oc.env:NAME}"],
    'model.id="tiny': ['model.id="tiny: the quote " is opened and not closed'],
    "model.id=a\nb": ["model.id='a\\nb' holds the end of a line"],
    "seed=${nothing}": ["seed: Interpolation key 'nothing' not found", "${oc.env:NAME}"],
    "seed=x": ["seed='x' must be a whole number"],
    "seed=1.5": ["seed='1.5' must be a whole number"],
    "model.random_init=7": ["model.random_init=7 must be true or false"],
    "model.random_init=perhaps": ["model.random_init='perhaps' must be true or false"],
    "stage=null": ["stage=null: it needs a value"],
    "run=emptydir": ["run=emptydir is not a run directory"],
    "~train.learning_rate": ["~train.learning_rate: without it the default of TrainingArguments would count"],
    "~peft.r": ["~peft.r: without it the default of LoraConfig would count"],
    "~peft.train_parts": ["would count, and not nothing"],
    "model={}": ["model={}: model is a group of options"],
    "dataset.columns={}": ["dataset.columns={} takes nothing away: image, question, answer stay"],
    "hydra.run.dir=/proc/x": ["hydra.run.dir=/proc/x: no folder can be made there", "Name another"],
    "paths.outputs=/dev/null/x": ["hydra.run.dir=/dev/null/x/", "/dev/null is no folder"],
    "paths.data=/proc/x": ["paths.data=/proc/x: no folder can be made there"],
    f"paths.data={'x' * 300}": ["the name is too long (300 bytes", "takes 255"],
    "hydra.run.dir='~/x'": ["nothing resolves its '~' here: write /"],
    "collator.messages.x.role=user": ["Index 'x' (str) is not an int", "as in collator.messages.0.role"],
    "hydra.output_subdir=../x": ["hydra.output_subdir=../x must be a plain name"],
    "hydra/launcher=slurm": ["hydra/launcher=slurm is for a sweep", "add -m"],
}
SWEEPS = {
    ("model=glob(zz*)",): "The sweep has no points: a glob() matches no name",
    ("peft.r=range(5,1)",): "The sweep has no points",
    ("seed=0,0",): "The point (seed=0) is there twice",
    ("peft.r=8,-1",): "peft.r=-1 must be at least 1",
    ("train.learning_rate=1e-4,nan",): "train.learning_rate=nan must be a finite number",
    ("stage=train,compare",): "stage=compare makes no run",
    ("peft.r=interval(1,2)",): "interval() is for a search",
    ("model=tiny,tinyy",): "model=tinyy does not exist; did you mean 'tiny'?",
    ("seed=0,00",): "The point (seed=0) is there twice, as (seed=00) again",
    ("seed=range(0,1e9)",): "The sweep has 1,000,000,000 points, and may have 10,000",
    ("seed=range(0,200)", "peft.r=range(1,101)"): "The sweep has 20,000 points",
    ("seed=range(1,3,0)",): "needs finite numbers and a step other than 0",
    ("seed=0,x",): "seed='x' must be a whole number",
    ("seed=0,x", "hydra/launcher=basic"): "seed='x' must be a whole number",
    ("seed=0,1", "hydra.sweep.dir=/proc/x"): "hydra.sweep.dir=/proc/x: no folder can be made there",
}


@pytest.mark.parametrize("word", LOOKALIKES, ids=ascii)
def test_a_letter_that_looks_like_another_is_named(word):
    with pytest.raises(UserError) as refused:
        refuse_lookalikes(["peft.r=8", word])
    for part in LOOKALIKES[word]:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    "word",
    [
        "collator.system_prompt=R\u00e9ponds \u2013 bri\u00e8vement\u00a0!",
        "dataset.options.train=donn\u00e9es \u2014 1.jsonl",
        "dataset.columns.\u8d28\u95ee=\u8d28\u95ee",
        'collator.system_prompt="\u201cSo\u201d"',
        "evaluation.choices=[\u0bb9\u0bbf,\u2013]",
        "run=outputs/\u2212",
        "seed=3",
    ],
)
def test_texts_may_have_any_letters(word):
    refuse_lookalikes([word])


@pytest.mark.parametrize("words", FLAGS)
def test_a_flag_that_is_none(words):
    with pytest.raises(UserError) as refused:
        refuse_flags(["peft.r=8", *words.split()])
    for part in FLAGS[words]:
        assert part in str(refused.value)


def test_flags_that_are(tmp_path):
    for words in ("-m", "--multirun", "--cfg job --resolve", "-c job -p peft", "--info", "--info plugins peft.r=8"):
        refuse_flags(words.split())
    refuse_flags(["--config-dir", str(tmp_path)])
    refuse_flags(["--info", "peft.r=8"])


@pytest.mark.parametrize("argument", REFUSED, ids=ascii)
def test_what_is_none_is_refused_in_one_line(argument, call, tmp_path):
    (tmp_path / "emptydir").mkdir()
    code, said = call(argument)
    assert code == 2
    assert len(said) == 1
    assert "_dummy_" not in said[0]
    for part in REFUSED[argument]:
        assert part in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["emptydir"]


@pytest.mark.parametrize("arguments", SWEEPS, ids=" ".join)
def test_a_sweep_that_cannot_begin_leaves_nothing(arguments, call, tmp_path):
    code, said = call("-m", *arguments)
    assert code == 2
    assert SWEEPS[arguments] in said[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["nothing", "peft.nothing", "/", "a b"])
def test_a_package_that_there_is_not(package, call):
    code, said = call("--cfg", "job", "--package", package, "peft.r=8")
    assert code == 2
    assert f"--package {package} names nothing that has a value" in said[0]


def test_flags_may_stand_anywhere():
    given = ["peft.r=8", "--cfg", "job", "-p=peft", "seed=1", "--info", "seed=2", "--config-dir", "a=b", "x"]
    moved = ["peft.r=8", "seed=1", "seed=2", "x", "--cfg", "job", "-p=peft", "--info", "--config-dir", "a=b"]
    assert flags_last(given) == moved


def test_the_advice_to_run_code_is_left_out():
    torch_says = (
        "Weights only load failed. This file can still be loaded, to do so you have two options, do those steps only "
        "if you trust the source of the checkpoint. \n\t(1) In PyTorch 2.6, we changed the default value of the "
        "`weights_only` argument in `torch.load` from `False` to `True`. Re-running `torch.load` with `weights_only` "
        "set to `False` will likely succeed, but it can result in arbitrary code execution.\n\t(2) Alternatively, to "
        "load with `weights_only=True` please check the recommended steps.\n\tWeightsUnpickler error: Unsupported "
        "global: GLOBAL os.system was not an allowed global by default."
    )
    said = without_advice(f"optimizer.pt: {torch_says}")
    assert said.startswith(
        "optimizer.pt: The file is damaged, or a pickle of more than tensors, which is never loaded."
    )
    assert "GLOBAL os.system was not an allowed global" in said
    assert "weights_only" not in said
    assert "arbitrary" not in said
    assert without_advice("Set weights_only=False to go on. No such file.") == "No such file."
