"""A loss is a mean over labelled tokens: across batches, accumulated steps and ranks, with smoothed labels too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.training.conftest import logged
from vlmexp.training.loss import labelled_tokens, summed_loss


class Plain(torch.nn.Module):
    """A model that has its hidden states from outside."""

    def __init__(self, identity: bool = True) -> None:
        super().__init__()
        self.head = torch.nn.Identity() if identity else torch.nn.Flatten(0, 0)

    def forward(self, hidden: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(hidden))


def test_smoothed_labels_by_hand():
    """Three tokens and a vocabulary of two. Logits at the first token predict the second label, 0; the third is -100.

    p = 1 / (1 + e^-2) of label 0; smoothed by 0.2: -(0.9 ln p + 0.1 ln (1 - p)) = 0.326928.
    """
    labels = torch.tensor([[1, 0, -100]])
    inputs = {"hidden": torch.tensor([[[2.0, 0.0], [0.0, 5.0], [9.0, 9.0]]]), "labels": labels}
    for model in (Plain(), Plain(identity=False)):
        head = model.head if isinstance(model.head, torch.nn.Identity) else None
        for smoothing, expected in ((0.2, 0.326928), (0.0, 0.126928)):
            loss, outputs = summed_loss(model, head, inputs, smoothing)
            assert float(loss) == pytest.approx(expected, abs=1e-6)
            assert outputs.logits.shape == ((1, 1, 2) if head is not None else (1, 3, 2))
    nothing = {"hidden": inputs["hidden"].requires_grad_(), "labels": torch.tensor([[5, -100, -100]])}
    loss, _ = summed_loss(Plain(), Plain().head, nothing)
    loss.backward()
    assert float(loss) == 0.0
    assert int(labelled_tokens(labels)) == 1
    assert int(labelled_tokens(torch.tensor([[5, -100, -100]]))) == 0  # nothing predicts a row's first token


QUIET = ["save_strategy=no", "eval_strategy=no", "warmup_steps=0", "lr_scheduler_type=constant"]


def by_hand(trainer, smoothing: float = 0.0) -> float:
    """The mean loss of a labelled token over the validation split, example by example."""
    summed, tokens = 0.0, 0
    for example in trainer.eval_dataset:
        batch = trainer.collated([example])
        labels = batch.pop("labels")
        with torch.no_grad():
            scores = trainer.model(**batch, use_cache=False).logits.log_softmax(-1)
        for position in range(1, labels.shape[1]):
            if (label := labels[0, position]) != -100:
                at = scores[0, position - 1]
                summed -= float((1 - smoothing) * at[label] + smoothing * at.mean())
                tokens += 1
    return summed / tokens


@pytest.mark.parametrize("sharing", ["always", "never"])
def test_labels_are_smoothed_in_training_only(trained, uneven, sharing):
    """label_smoothing_factor: with several questions behind an image as with one."""
    trainer, *_ = trained(
        "max_steps=1", *QUIET, "eval_strategy=steps", "label_smoothing_factor=0.1",
        extra=[f"collator.share_images={sharing}"],
    )  # fmt: skip
    batch = trainer.collated(list(trainer.eval_dataset))
    trainer.model.train()
    smoothed = trainer.compute_loss(trainer.model, batch)
    assert float(trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(10))) == pytest.approx(
        float(smoothed) * int(labelled_tokens(batch["labels"])) / 10, rel=1e-6
    )
    trainer.model.eval()
    assert float(smoothed) == pytest.approx(by_hand(trainer, 0.1), rel=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(by_hand(trainer), rel=1e-5)


@pytest.mark.parametrize("accepts", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_accumulated_batches_are_one_batch(trained, uneven, monkeypatch, accepts, smoothing):
    """gradient_accumulation_steps: also for models that are not told how many tokens a step has."""
    if not accepts:
        from transformers import Qwen2VLForConditionalGeneration

        monkeypatch.setattr(Qwen2VLForConditionalGeneration, "accepts_loss_kwargs", False, raising=False)
    common = [
        "max_steps=2",
        *QUIET,
        "optim=sgd",
        "learning_rate=0.1",
        "max_grad_norm=0",
        f"label_smoothing_factor={smoothing}",
    ]
    runs = []
    for size, steps in ((8, 1), (2, 4)):
        _, lines, _, after = trained(
            *common, f"per_device_train_batch_size={size}", f"gradient_accumulation_steps={steps}",
            "train_sampling_strategy=random", extra=["collator.share_images=never"],
        )  # fmt: skip
        runs.append((logged(lines), after))
    (losses, after), (others, same) = runs
    assert [loss for _, loss in others] == pytest.approx([loss for _, loss in losses], rel=1e-5)
    assert all(torch.allclose(after[name], same[name], atol=5e-6) for name in after)


def test_the_evaluation_is_the_mean_over_tokens_whatever_the_batches(trained, uneven):
    """per_device_eval_batch_size: and with it what is best, and when to stop."""
    runs = []
    for size in (1, 3, 8):
        trainer, lines, _, _ = trained(
            "max_steps=12", "learning_rate=0.02", "eval_steps=1", "save_steps=1", "metric_for_best_model=loss",
            "early_stopping_patience=2", "warmup_steps=0", f"per_device_eval_batch_size={size}",
        )  # fmt: skip
        values = [loss for _, loss in logged(lines, "eval_loss")]
        runs.append((values, trainer.state.best_global_step, trainer.state.global_step))
    for values, best, end in runs[1:]:
        assert values == pytest.approx(runs[0][0], rel=1e-5)
        assert (best, end) == runs[0][1:]
    trainer.model.eval()
    assert len({len(example.answers[0].split()) for example in trainer.eval_dataset}) > 2
    assert trainer.evaluate()["eval_loss"] == pytest.approx(by_hand(trainer), rel=1e-5)
