"""From a composed config to a checked one: every value that would fail later is refused here, in a sentence."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlmexp.checks.open_groups import check_open_groups
from vlmexp.checks.together import (
    check_compare,
    check_evaluation,
    check_media,
    check_predict,
    check_together,
    check_tracking,
)
from vlmexp.checks.values import check_bounds, check_choices
from vlmexp.config import Config, explain
from vlmexp.errors import UserError


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
    check_choices(config)
    check_bounds(config)
    check_together(config)
    check_compare(config.compare)
    check_predict(config)
    check_evaluation(config.evaluation)
    check_media(config)
    check_tracking(config.tracking)
    check_open_groups(config)
    return config
