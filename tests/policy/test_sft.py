"""Training: the loss against plain forwards, the schedule, early stopping, and that it learns."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import GPT2Config, GPT2LMHeadModel

from tessera.config import PolicySettings
from tessera.decoding.recommender import Recommender
from tessera.policy import backbone as backbones
from tessera.policy import checkpoints, sft
from tessera.policy.data import IGNORE, pack

SIZE = 6
SETTINGS = PolicySettings(
    hidden=32, layers=2, heads=2, text_vocabulary=300, dropout=0.0, max_history=3, epochs=6, validate_every=2,
    batch_tokens=26, learning_rate=3e-3, weight_decay=0.0,
)
CODES = np.stack(np.unravel_index(np.random.default_rng(0).choice(SIZE**3, 20, replace=False), (SIZE,) * 3), axis=1)
HISTORIES = [np.array([0, 1, 2]), np.array([3]), np.array([4, 5]), np.array([2, 1, 0, 6]), np.array([7, 8])]


@pytest.fixture
def backbone() -> backbones.Backbone:
    return backbones.build(SETTINGS, ["words"], 3, SIZE, seed=1)


@pytest.fixture
def sharp(backbone: backbones.Backbone) -> backbones.Backbone:
    """Weights larger than at the start, so that a token that sees too much changes the loss clearly."""
    backbone.model.eval()
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.mul_(3.0)
    return backbone


@torch.no_grad()
def plain_terms(backbone: backbones.Backbone, history: np.ndarray, smoothing: float = 0.0) -> list[float]:
    """-log p of every code of one history: one forward of it alone, a softmax over the codes of the level alone."""
    tokens = [backbone.bos, *backbone.sid_tokens[np.arange(3), torch.tensor(CODES[history])].flatten().tolist()]
    logits = backbone.model(torch.tensor([tokens])).logits[0]
    terms = []
    for place, code in enumerate(CODES[history].ravel().tolist()):
        chosen = logits[place][backbone.sid_tokens[place % 3]].double()
        nll = torch.logsumexp(chosen, 0) - chosen
        terms.append(float((1 - smoothing) * nll[code] + smoothing * nll.mean()))
    return terms


def packed_batch(backbone: backbones.Backbone, histories: list[np.ndarray], row_length: int = 20) -> sft.Packed:
    return pack(histories, CODES, backbone.sid_tokens.numpy(), backbone.bos, row_length)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("row_length", [13, 20, 64])
def test_packed_loss_equals_plain_forwards(sharp: backbones.Backbone, row_length: int, smoothing: float) -> None:
    """However the histories share rows, none sees another: the mean is the one of histories on their own."""
    batch = packed_batch(sharp, HISTORIES, row_length)
    expected = np.mean([term for history in HISTORIES for term in plain_terms(sharp, history, smoothing)])
    assert expected > 2.0
    assert float(sft.sid_loss(sharp, batch, smoothing).detach()) == pytest.approx(expected, rel=1e-5)


def test_packed_positions_start_anew(backbone: backbones.Backbone) -> None:
    """GPT-2 has learned absolute positions, so it would notice a history that does not begin at position 0."""
    torch.manual_seed(2)
    config = GPT2Config(vocab_size=len(backbone.tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2)
    absolute = replace(backbone, model=GPT2LMHeadModel(config).eval())
    with torch.no_grad():
        absolute.model.transformer.wpe.weight.mul_(50.0)
        loss = float(sft.sid_loss(absolute, packed_batch(absolute, HISTORIES, 64)))
    expected = np.mean([term for history in HISTORIES for term in plain_terms(absolute, history)])
    assert loss == pytest.approx(expected, rel=1e-5)


def test_gradient_follows_the_loss(sharp: backbones.Backbone) -> None:
    """A central difference along the gradient gives its squared norm, and the loss falls against it."""
    batch = packed_batch(sharp, HISTORIES)
    model = sharp.model.double()
    sft.sid_loss(sharp, batch).backward()
    weights = list(model.parameters())
    gradients = [p.grad.clone() for p in weights]
    square = sum(float((g * g).sum()) for g in gradients)
    losses = []
    for step in (-1e-4 / square**0.5, 1e-4 / square**0.5):
        with torch.no_grad():
            for parameter, gradient in zip(weights, gradients, strict=True):
                parameter.add_(gradient, alpha=step)
            losses.append(float(sft.sid_loss(sharp, batch)))
            for parameter, gradient in zip(weights, gradients, strict=True):
                parameter.sub_(gradient, alpha=step)
    assert losses[0] < losses[1]
    # sid_loss takes logits to float32 for the softmax, so the difference is exact to a few digits only.
    assert (losses[1] - losses[0]) / 2e-4 == pytest.approx(square**0.5, rel=1e-2)


def test_only_rows_of_the_targets_level_get_gradient() -> None:
    """With untied weights the head's text rows take no part in the softmax."""
    built = backbones.build(SETTINGS, ["words"], 3, SIZE, seed=1)
    built.model.lm_head.weight = torch.nn.Parameter(built.model.lm_head.weight.detach().clone())
    batch = packed_batch(built, HISTORIES)
    batch.targets[batch.levels == 2] = IGNORE
    sft.sid_loss(built, batch).backward()
    touched = built.model.lm_head.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert touched == built.sid_tokens[:2].flatten().tolist()


def test_overfits_six_users(tmp_path: Path, make_sids: Callable) -> None:
    """After training, the constrained search returns the memorised next item of every user, and first."""
    histories = [np.array([user, user + 6, (user * 5 + 1) % 6 + 12]) for user in range(6)]
    settings = replace(SETTINGS, epochs=60, validate_every=20, learning_rate=1e-2)
    backbone = backbones.build(settings, ["words"], 3, SIZE, seed=0)
    recommender = Recommender(backbone, make_sids(CODES), SIZE, settings.max_history)

    def answers() -> list[str]:
        prompts = [[recommender.item_ids[i] for i in history[:2]] for history in histories]
        return [row[0].item_id for row in recommender.recommend(prompts, 1)]

    wanted = [f"item-{history[2]}" for history in histories]

    def validate() -> dict[str, float]:
        return {"ndcg@10": float(np.mean([a == b for a, b in zip(answers(), wanted, strict=True)]))}

    assert answers() != wanted
    progress = sft.train(backbone, histories, CODES, validate, settings, 0, tmp_path, "inputs")
    assert answers() == wanted
    assert progress.best == 1.0
    assert progress.curve[0]["train_loss"] > progress.curve[-1]["train_loss"]
    score = recommender.recommend([["item-0", "item-6"]], 1)[0][0].score
    assert score > np.log(0.8)


def test_schedule_points() -> None:
    assert sft._schedule(0, 100) == pytest.approx(1e-3 / 0.041)
    assert sft._schedule(2, 100) == pytest.approx(0.021 / 0.041)
    assert sft._schedule(4, 100) == pytest.approx(1.0)
    assert sft._schedule(28, 100) == pytest.approx(0.05 + 0.95 * 0.5 * (1 + np.sqrt(0.5)))
    assert sft._schedule(52, 100) == pytest.approx(0.05 + 0.95 * 0.5)
    assert sft._schedule(100, 100) == pytest.approx(0.05)
    assert sft._schedule(3.999, 100) == pytest.approx(1.0, abs=2e-3)  # no jump where warm-up ends


def test_the_optimizer_takes_steps_at_the_scheduled_rate(backbone: backbones.Backbone, tmp_path: Path) -> None:
    rates: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        rates.extend({group["lr"] for group in optimizer.param_groups})

    hook = register_optimizer_step_post_hook(note)
    settings = replace(SETTINGS, epochs=3, validate_every=1)
    try:  # five histories in four rows of 13 tokens (one is cut in two), two rows a step
        histories = [np.arange(4), np.arange(4, 8), np.arange(8, 12), np.arange(12, 16)]
        sft.train(backbone, histories, CODES, lambda: {"ndcg@10": 0.0}, settings, 0, tmp_path, "inputs")
    finally:
        hook.remove()
    assert rates == pytest.approx([settings.learning_rate * sft._schedule(at / 2, 3) for at in range(6)])


class Scripted:
    """Validations with given answers, which keep the weights that they were asked about."""

    def __init__(self, model: torch.nn.Module, scores: list[float]) -> None:
        self.model, self.scores = model, iter(scores)
        self.seen: list[torch.Tensor] = []

    def __call__(self) -> dict[str, float]:
        assert not self.model.training
        self.seen.append(self.model.model.embed_tokens.weight.detach().clone())
        return {"ndcg@10": next(self.scores)}


def test_stops_early_and_keeps_the_best_weights(backbone: backbones.Backbone, tmp_path: Path) -> None:
    """An equal score is no better one: the second validation stays best, and two more without a better one end it."""
    validate = Scripted(backbone.model, [0.1, 0.3, 0.3, 0.2, 0.9])
    settings = replace(SETTINGS, epochs=40, validate_every=2, patience=2)
    progress = sft.train(backbone, HISTORIES, CODES, validate, settings, 0, tmp_path, "inputs")
    assert (progress.epoch, progress.best_epoch, progress.best) == (8, 4, 0.3)
    assert [point["epoch"] for point in progress.curve] == [2, 4, 6, 8]
    weights = backbone.model.model.embed_tokens.weight
    assert torch.equal(weights, validate.seen[1])
    assert not torch.equal(weights, validate.seen[3])
    assert not backbone.model.training


def test_better_weights_count_with_their_checkpoint_alone(
    backbone: backbones.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the better weights of epoch 4 were written and before its checkpoint; repeated, epoch 4 is worse."""
    settings, write = replace(SETTINGS, epochs=4, validate_every=2), checkpoints.write
    validate = Scripted(backbone.model, [0.3, 0.5])

    def killed(work: Path, progress: checkpoints.Progress, *more: Any) -> None:
        if progress.epoch == 4:
            raise KeyboardInterrupt
        write(work, progress, *more)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            sft.train(backbone, HISTORIES, CODES, validate, settings, 0, tmp_path, "inputs")
    again = Scripted(backbone.model, [0.2])
    progress = sft.train(backbone, HISTORIES, CODES, again, settings, 0, tmp_path, "inputs")
    assert (progress.best_epoch, progress.best) == (2, 0.3)
    assert torch.equal(backbone.model.model.embed_tokens.weight, validate.seen[0])
    assert not torch.equal(validate.seen[0], validate.seen[1])


def test_the_last_epoch_is_validated_too(backbone: backbones.Backbone, tmp_path: Path) -> None:
    validate = Scripted(backbone.model, [0.1, 0.2, 0.3])
    settings = replace(SETTINGS, epochs=5, validate_every=2)
    progress = sft.train(backbone, HISTORIES, CODES, validate, settings, 0, tmp_path, "inputs")
    assert [point["epoch"] for point in progress.curve] == [2, 4, 5]
    assert torch.equal(backbone.model.model.embed_tokens.weight, validate.seen[2])


def test_dropout_is_on_in_training_and_off_in_validation() -> None:
    """The hooks of `tiny`: two training forwards differ, two validations do not."""
    backbone = backbones.build(replace(SETTINGS, dropout=0.5), ["words"], 3, SIZE, seed=1)
    backbones.add_dropout(backbone.model, 0.5)
    batch = packed_batch(backbone, HISTORIES)
    backbone.model.train()
    with torch.no_grad():
        assert float(sft.sid_loss(backbone, batch)) != float(sft.sid_loss(backbone, batch))
        backbone.model.eval()
        assert float(sft.sid_loss(backbone, batch)) == float(sft.sid_loss(backbone, batch))
