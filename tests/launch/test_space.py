"""What a search looks through, as it is written on the command line."""

from __future__ import annotations

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from vlmexp.errors import UserError
from vlmexp.launch.space import Space, read_space
from vlmexp.main import CONFIG_DIR


def read(*overrides: str) -> Space:
    return read_space(OverridesParser.create().parse_overrides(list(overrides)))


@pytest.mark.parametrize(
    ("values", "distribution"),
    [
        ("8,16", CategoricalDistribution(["8", "16"])),
        ("choice(8,16,8)", CategoricalDistribution(["8", "16"])),
        ("choice([a,b],'x y',true)", CategoricalDistribution(["[a,b]", "x\\ y", "True"])),
        ("choice(\"a,b\",\"it's [x]\",'','1')", CategoricalDistribution(["a\\,b", "'it\\'s [x]'", "", "'1'"])),
        ("range(1,10,4)", IntDistribution(1, 9, step=4)),
        ("range(3,0)", None),
        ("range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("int(interval(1,9))", IntDistribution(1, 9)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("interval(0,0.5)", FloatDistribution(0, 0.5)),
        ("tag(log,interval(1e-5,1e-3))", FloatDistribution(1e-5, 1e-3, log=True)),
    ],
)
def test_values(values, distribution):
    if distribution is None:
        with pytest.raises(UserError, match="the range is empty"):
            read(f"a={values}")
    else:
        assert read(f"a={values}").dimensions == {"a": distribution}


def test_a_point_is_written_and_read():
    space = read(
        "stage=train", "peft.r=8,16", "lr=tag(log,interval(1e-5,1e-3))", "n=int(interval(1,9))", "x=range(0,1,0.1)"
    )
    params = {"peft.r": "16", "lr": 0.000123456789, "n": 3, "x": 0.1 + 0.2}
    overrides = space.overrides(params)
    assert overrides == ["stage=train", "peft.r=16", "lr=0.000123457", "n=3", "x=0.3"]
    assert space.params(overrides) == {"peft.r": "16", "lr": 0.000123457, "n": 3, "x": 0.3}


@pytest.mark.parametrize(
    "other",
    [
        ["stage=train", "peft.r=32", "lr=0.5"],
        ["stage=train", "peft.r=8", "lr=2.0"],
        ["stage=train", "peft.r=8", "lr=high"],
        ["stage=train", "peft.r=8"],
        ["peft.r=8", "lr=0.5"],
        ["stage=train", "peft.r=8", "lr=0.5", "seed=1"],
    ],
)
def test_a_point_of_another_space_is_none_of_this(other):
    space = read("stage=train", "peft.r=8,16", "lr=interval(0.0,1.0)")
    assert space.params(["peft.r=8", "lr=0.5", "stage=train"]) == {"peft.r": "8", "lr": 0.5}
    assert space.params(other) is None


def test_every_value_is_probed():
    assert list(read("a=1,2", "b=interval(0.5,2.5)", "c=0").probes()) == [
        ["c=0", "a=1", "b=0.5"], ["c=0", "a=2", "b=0.5"], ["c=0", "a=1", "b=2.5"], ["c=0", "a=1", "b=1.23333"],
    ]  # fmt: skip


def test_all_points_of_a_finite_space():
    assert list(read("a=1,2", "b=range(0,1,0.5)", "c=int(interval(1,3))").grid())[:4] == [
        ["a=1", "b=0", "c=1"], ["a=1", "b=0", "c=2"], ["a=1", "b=0", "c=3"], ["a=1", "b=0.5", "c=1"],
    ]  # fmt: skip
    assert list(read("a=1,2", "b=interval(0.5,1)").grid()) == []


def test_what_is_given_last_counts():
    space = read("a=1,2", "b=1,2", "b=3", "a=4,5")
    assert space.fixed == ["b=3"]
    assert space.dimensions == {"a": CategoricalDistribution(["4", "5"])}


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("a=1", "no option has several values"),
        ("a=interval(2,1)", r"needs A < B"),
        ("a=tag(log,interval(0,1))", r"needs 0 < A < B"),
        ("a=tag(lgo,interval(1,2))", "tagged log, and not lgo"),
        ("seed=glob(*)", r"seed=glob\(\*\) fits no file of a group"),
    ],
)
def test_a_mistake(override, part):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        with pytest.raises(UserError, match=part):
            read_space(parser.parse_overrides([override]))
