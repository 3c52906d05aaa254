"""The metrics of answers during training, computed as the stages eval_base and eval_finetuned compute them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from vlmexp import distributed
from vlmexp.collator.batch import Collator
from vlmexp.collator.lengths import Fitted
from vlmexp.collator.media import media_key
from vlmexp.evaluation.generate import Reply, generate_answers
from vlmexp.evaluation.lookup import metric_names
from vlmexp.evaluation.metrics import without_value
from vlmexp.evaluation.prefix_check import Sharing, find_sharing
from vlmexp.evaluation.reasoning import REASONING_TAGS
from vlmexp.evaluation.row import row_of
from vlmexp.evaluation.score import summarise
from vlmexp.training.preflight import undisturbed


class AnswerScores:
    """Has a model that is being trained answer a fixed set of questions, and scores the answers.

    The model's mode, its buffers and all random states are as before afterwards, so that a training is bit for bit the
    same with and without it. Of several ranks each answers its share, and all get the scores of all answers.

    Args:
        examples: the questions; with their lengths without answers.
        metrics: names or dotted paths, see vlmexp.evaluation.score.
        batch_size: questions in a batch.
        max_new_tokens: of an answer.
        options: further fields of transformers.GenerationConfig.
        share_images: answer all questions about an image together.
        try_sharing: do so only if the model, which is tried once, takes that.
        packing: read prompts without padding where the model takes that.
        reasoning_tags: names of tags; what stands between them is no part of an answer.
        prefix: before the names of the values.

    Attributes:
        collator: of the questions.
        names: of the values, the main one first, without those that answers as short as the accepted ones never have.
    """

    def __init__(
        self,
        collator: Collator,
        examples: Fitted,
        metrics: Sequence[str],
        batch_size: int,
        max_new_tokens: int,
        options: Mapping[str, Any],
        share_images: bool,
        reasoning_tags: Sequence[str] = REASONING_TAGS,
        prefix: str = "",
        try_sharing: bool = False,
        packing: bool = False,
    ) -> None:
        self.examples = examples
        accepted = [example.answers for example in examples]
        undefined = without_value(metrics, [" ".join(given) for given in accepted], accepted)
        self.names = [f"{prefix}{name}" for name in metric_names(metrics) if name not in undefined]
        self.collator, self._metrics, self._options, self._prefix = collator, metrics, options, prefix
        self._tags = reasoning_tags
        self._batch_size, self._max_new_tokens = batch_size, max_new_tokens
        self._packing, self._is_known = packing, not try_sharing
        self._sharing: Sharing | None = None if share_images else Sharing("nobody wants it")

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Metric -> value; `n`, how many questions; `cut`, how many answers came to the limit without an end."""
        replies: dict[int, Reply] = {}
        with undisturbed(model):
            if self._sharing is None:
                keys = [media_key(example) or index for index, example in enumerate(self.examples)]
                self._sharing = find_sharing(
                    model, self.collator, self.examples, keys, self._packing, self._is_known,
                    int(self.examples.lengths.max(initial=0)) + self._max_new_tokens,
                )  # fmt: skip
            own = generate_answers(
                model, self.collator, self.examples, self.examples.lengths.tolist(),
                self._batch_size, self._max_new_tokens, self._options, "answer",
                share_images=self._sharing.refused is None, packed=self._sharing.packed,
                rank=distributed.rank(), ranks=distributed.world_size(), on_batch=replies.update,
                reasoning_tags=self._tags,
            )  # fmt: skip
        answers = ["".join(parts) for parts in zip(*distributed.gathered(own), strict=True)]
        rows = [row_of(example, self._tags, self.collator.view(example)) for example in self.examples]
        _, summary = summarise(answers, rows, self._metrics)
        cut = sum(distributed.gathered(sum(reply.cut for reply in replies.values())))
        # A model that says less than the accepted answers do has no more than 0 of a value that they could have.
        values = {name: summary["metrics"][name.removeprefix(self._prefix)] or 0.0 for name in self.names}
        return {"cut": cut, **values, "n": summary["n"]}
