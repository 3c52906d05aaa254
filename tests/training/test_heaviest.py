from __future__ import annotations

from vlmexp.training.heaviest import TokenCounts, heaviest, stored_batches, training_batches
from vlmexp.training.sampling import EpochSampler, shuffled

#                    0   1   2   3   4   5
COUNTS = TokenCounts([9, 3, 30, 5, 12, 12], [4, 0, 0, 4, 10, 10])
SHARED = TokenCounts([9, 9, 12, 20, 8, 5], [4, 4, 4, 16, 4, 0], ["a", "a", "a", "b", "c", "none"])


def test_tokens_of_a_batch_include_padding():
    assert COUNTS.tokens([0, 1, 3]) == 27
    assert COUNTS.media_tokens([0, 1, 3]) == 8


def test_a_shared_image_counts_once():
    assert SHARED.rows([0, 3, 1, 5]) == [[0, 1], [3], [5]]
    assert SHARED.row_length([0, 1, 2]) == 4 + 5 + 5 + 8
    assert SHARED.tokens([0, 1, 2, 3]) == 2 * 22
    assert SHARED.media_tokens([0, 1, 2, 3]) == 20


def test_the_heaviest_by_tokens_and_by_media():
    assert heaviest(COUNTS, [[0, 1], [2, 3], [4, 5]]) == [[2, 3], [4, 5]]
    assert heaviest(COUNTS, [[0, 1], [5, 4]]) == [[5, 4]]
    assert heaviest(COUNTS, [[1], [2]]) == [[2]]
    assert heaviest(COUNTS, []) == []


def test_the_longest_row_comes_first_with_its_longest_question():
    assert heaviest(SHARED, [[3, 0, 5, 2, 1]]) == [[2, 0, 1, 3, 5]]


def test_the_batches_are_those_of_the_training():
    sampler = EpochSampler(shuffled(5), 5, seed=3, batch_size=2)
    found = list(training_batches(sampler, count=5))
    assert [len(batch) for batch in found] == [2, 2, 1, 2, 2]
    first = list(sampler)
    assert [index for batch in found[:3] for index in batch] == first
    sampler.set_epoch(1)
    assert [index for batch in found[3:] for index in batch] == list(sampler)[:4] != first[:4]
    assert list(stored_batches(5, 2)) == [[0, 1], [2, 3], [4]]
