from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from tests.conftest import example
from tests.training.test_train import losses, run_training, weights
from vlmexp.collator.lengths import fit
from vlmexp.training.workers import WorkedLoaders, begin_worker, worker_options


@pytest.mark.parametrize(
    ("given", "on_gpu", "cpus", "processes", "expected"),
    [
        ({}, False, 64, 1, (0, None, None)),
        ({}, True, 64, 1, (8, True, 4)),
        ({}, True, 12, 4, (3, True, 4)),
        ({}, True, 2, 4, (0, None, None)),
        ({"dataloader_num_workers": 0}, True, 64, 1, (0, None, None)),
        ({"dataloader_num_workers": 2}, False, 1, 1, (2, True, 4)),
        ({"dataloader_num_workers": 2, "dataloader_prefetch_factor": 1}, True, 8, 1, (2, True, None)),
        ({"dataloader_persistent_workers": False}, True, 8, 1, (8, None, 4)),
    ],
)
def test_defaults_leave_what_is_given(given, on_gpu, cpus, processes, expected):
    names = ("num_workers", "persistent_workers", "prefetch_factor")
    options = worker_options(given, on_gpu, cpus, processes)
    assert tuple(options.get(f"dataloader_{name}") for name in names) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_takes_none_of_the_models_random_numbers(workers):
    """Or else a run that goes on with another number of workers had another dropout from its next epoch on."""
    loaders, before = WorkedLoaders(seed=0), torch.get_rng_state()
    loader = loaders.add(DataLoader(range(3), num_workers=workers))
    assert [batch.tolist() for _ in range(2) for batch in loader] == [[0], [1], [2]] * 2
    loaders.end_workers()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_a_run_that_goes_on_without_workers_is_the_undisturbed_run_with_some(small, tmp_path, cut_after, capfd):
    """Over three epochs, with evaluations: the workers take no part in the random numbers of dropout."""
    options = ["train.num_train_epochs=3", "train.save_steps=2", "train.save_total_limit=20", "train.eval_steps=2"]
    config = small(*options, "train.dataloader_num_workers=2", "collator.share_images=never")
    run_training(config, tmp_path / "whole")
    cut = cut_after(tmp_path / "whole", 2)
    run_training(small(*options, "train.dataloader_num_workers=0", "collator.share_images=never"), cut)
    assert losses(cut) == losses(tmp_path / "whole")
    assert weights(cut) == weights(tmp_path / "whole")
    assert "TOKENIZERS_PARALLELISM" not in capfd.readouterr().err


def test_a_worker_can_be_started_instead_of_forked(make_collator, draw):
    collator = make_collator()
    items = [example("red?", "yes", draw("red")), example("blue?", "no", draw("blue"), id="1")]
    dataset, copy = pickle.loads(pickle.dumps((fit(collator, items, 100, "error"), collator)))
    expected = collator(items)
    found = copy([dataset[0], dataset[1]])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_workers_end_when_they_are_told_to():
    loaders = WorkedLoaders(seed=0)
    loader = loaders.add(DataLoader(range(8), num_workers=2, persistent_workers=True))
    assert next(iter(loader)).tolist() == [0]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    loaders.end_workers()
    assert [worker.exitcode for worker in workers] == [0, 0]  # of their own accord


def test_workers_outlast_the_signal_that_a_launcher_gives_a_whole_job():
    """The step that the training ends with still takes a batch of them."""
    begin = partial(begin_worker, workers=2, rank=0)
    loaders = WorkedLoaders(seed=0)
    loader = loaders.add(DataLoader(range(40), num_workers=2, prefetch_factor=1, worker_init_fn=begin))
    batches = iter(loader)
    first = [next(batches), next(batches)]  # one of each
    for worker in batches._workers:
        os.kill(worker.pid, signal.SIGTERM)
    time.sleep(0.1)
    assert torch.cat([*first, *batches]).tolist() == list(range(40))
    loaders.end_workers()
    assert not multiprocessing.active_children()
