"""GRPO and S-DPO on a toy catalogue: what they raise, what holds them, and that a killed run goes on."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.config import GrpoSettings, PolicySettings, PreferenceSettings, preset
from tessera.decoding.index import CatalogueIndex
from tessera.errors import InputError
from tessera.policy import backbone as backbones
from tessera.policy import grpo, sdpo, tuning
from tessera.policy.cases import NextItemCases, next_item_cases
from tessera.policy.checkpoints import Progress
from tessera.policy.likelihood import log_probabilities
from tessera.policy.rewards import exact_match, reward_function
from tessera.policy.rollouts import roll_out

SIZE, USERS = 6, 6
CODES = np.stack(np.unravel_index(np.random.default_rng(0).choice(SIZE**3, 20, replace=False), (SIZE,) * 3), axis=1)
INDEX = CatalogueIndex.build(CODES, SIZE)
ITEM_CODES = torch.from_numpy(CODES)
CPU = torch.device("cpu")
GRPO = GrpoSettings(epochs=40, batch=6, group=16, rollouts="sampled", learning_rate=1e-2, validate_every=20)
SDPO = PreferenceSettings(epochs=40, batch=6, negatives=7, learning_rate=3e-3, validate_every=20)


@pytest.fixture
def backbone() -> backbones.Backbone:
    settings = PolicySettings(hidden=32, layers=2, heads=2, text_vocabulary=300, dropout=0.2)
    built = backbones.build(settings, ["words"], 3, SIZE, seed=1)
    backbones.add_dropout(built.model, settings.dropout)  # as supervised training leaves the model
    return built


@pytest.fixture
def cases(backbone: backbones.Backbone) -> NextItemCases:
    """Everybody's next item follows from the last one."""
    histories = [np.array([user, user + 6]) for user in range(USERS)]
    return next_item_cases(histories, CODES, backbone.sid_tokens.numpy(), backbone.bos, 3)


def rising() -> Callable[[], dict[str, float]]:
    """Validations that say each policy is better than all before, in this run or another."""
    return lambda: {"ndcg@10": time.monotonic()}


@torch.no_grad()
def scores(backbone: backbones.Backbone, cases: NextItemCases) -> torch.Tensor:
    """[users, items] log p of every item after every prompt."""
    backbone.model.eval()
    tokens, mask, _ = cases.batch(np.arange(USERS), CPU)
    return log_probabilities(backbone, tokens, mask, ITEM_CODES.expand(USERS, -1, -1)).sum(-1)


def run_grpo(
    backbone: backbones.Backbone, cases: NextItemCases, work: Path, settings: GrpoSettings = GRPO, seed: int = 0
) -> Progress:
    reward = reward_function(settings, ITEM_CODES)
    return grpo.train(backbone, INDEX, cases, reward, rising(), settings, seed, work, "inputs")


def run_sdpo(
    backbone: backbones.Backbone, cases: NextItemCases, work: Path, settings: PreferenceSettings = SDPO, seed: int = 0
) -> Progress:
    return sdpo.train(backbone, INDEX, cases, rising(), settings, seed, work, "inputs")


def test_grpo_raises_the_mean_reward(backbone: backbones.Backbone, cases: NextItemCases, tmp_path: Path) -> None:
    """From about what chance gives, one item in 20, to most rollouts; the targets become the likeliest items."""
    tokens, mask, targets = cases.batch(np.arange(USERS), CPU)

    def paid() -> float:
        made = roll_out(backbone, INDEX, tokens, mask, 200, "sampled", 1.0, torch.Generator().manual_seed(9))
        return float(exact_match(made.rows, targets).mean())

    backbone.model.eval()
    assert paid() < 0.2
    assert (scores(backbone, cases).argmax(1) == targets).float().mean() < 0.5
    progress = run_grpo(backbone, cases, tmp_path, replace(GRPO, epochs=160))
    assert paid() > 0.6
    assert progress.curve[-1]["reward"] > 1.5 * progress.curve[1]["reward"]
    assert (scores(backbone, cases).argmax(1) == targets).float().mean() > 0.6


def test_the_format_reward_teaches_an_unconstrained_policy_to_write_items(
    backbone: backbones.Backbone, cases: NextItemCases, tmp_path: Path
) -> None:
    """Of 216 SIDs 20 are items: from about a tenth of the rollouts to nearly all."""
    tokens, mask, _ = cases.batch(np.arange(USERS), CPU)

    def valid() -> float:
        made = roll_out(backbone, INDEX, tokens, mask, 200, "unconstrained", 1.0, torch.Generator().manual_seed(9))
        return float((made.rows >= 0).float().mean())

    backbone.model.eval()
    assert valid() < 0.3
    progress = run_grpo(backbone, cases, tmp_path, replace(GRPO, rollouts="unconstrained", reward="format"))
    assert valid() > 0.9
    assert progress.curve[-1]["reward"] > progress.curve[1]["reward"]


def test_grpo_from_beams_brings_the_target_to_the_front(
    backbone: backbones.Backbone, cases: NextItemCases, tmp_path: Path
) -> None:
    """Beams of ten of twenty items: whom a beam misses, the prefix reward leads to the target's neighbours."""
    run_grpo(backbone, cases, tmp_path, replace(GRPO, rollouts="beam", group=10, reward="prefix", epochs=60))
    assert (scores(backbone, cases).argmax(1) == torch.arange(6, 12)).float().mean() > 0.8


def test_a_heavy_kl_holds_the_policy(backbone: backbones.Backbone, cases: NextItemCases, tmp_path: Path) -> None:
    """The same run with and without: a hundredth of the divergence, and next to no reward gained."""
    start = scores(backbone, cases).log_softmax(1)
    weights = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}

    def moved(kl: float) -> float:
        with torch.no_grad():
            for name, parameter in backbone.model.named_parameters():
                parameter.copy_(weights[name])
        run_grpo(backbone, cases, tmp_path / str(kl), replace(GRPO, kl=kl, learning_rate=1e-3))
        return float((start.exp() * (start - scores(backbone, cases).log_softmax(1))).sum(1).mean())

    free = moved(0.0)
    assert free > 0.1
    assert moved(1000.0) < free / 100


def test_sdpo_sets_the_targets_apart(backbone: backbones.Backbone, cases: NextItemCases, tmp_path: Path) -> None:
    before = scores(backbone, cases)
    progress = run_sdpo(backbone, cases, tmp_path)
    after = scores(backbone, cases)
    targets = torch.arange(6, 12)
    assert (after.argmax(1) == targets).float().mean() > (before.argmax(1) == targets).float().mean() + 0.5
    assert progress.curve[-1]["loss"] < 0.5 * progress.curve[1]["loss"]
    assert progress.curve[-1]["accuracy"] > 0.95


def test_random_negatives_are_all_other_items_alike(backbone: backbones.Backbone, cases: NextItemCases) -> None:
    tokens, mask, targets = cases.batch(np.arange(USERS), CPU)
    settings, generator = replace(SDPO, negatives=4000), torch.Generator().manual_seed(0)
    drawn = sdpo.negatives(backbone, INDEX, tokens, mask, targets, settings, generator)
    for row, target in zip(drawn, targets.tolist(), strict=True):
        count = torch.bincount(row, minlength=20)
        assert count[target] == 0
        others = torch.cat([count[:target], count[target + 1 :]])
        assert others.min() > 140  # 4000 / 19 = 210
        assert others.max() < 280


def test_beam_negatives_are_the_likeliest_wrong_items(backbone: backbones.Backbone, cases: NextItemCases) -> None:
    tokens, mask, targets = cases.batch(np.arange(USERS), CPU)
    ranked = scores(backbone, cases).argsort(dim=1, descending=True)
    expected = [[item for item in row if item != target] for row, target in zip(ranked.tolist(), targets, strict=True)]
    for count in (19, 40):  # a beam of the whole catalogue, so that it finds exactly the best
        settings = replace(SDPO, source="beam", negatives=count)
        got = sdpo.negatives(backbone, INDEX, tokens, mask, targets, settings, torch.Generator())
        assert got.tolist() == expected
    some = sdpo.negatives(
        backbone, INDEX, tokens, mask, targets, replace(SDPO, source="beam", negatives=4), torch.Generator()
    )
    assert some.shape == (USERS, 4)
    assert not (some == targets[:, None]).any()


@pytest.mark.parametrize("run", [run_grpo, run_sdpo])
def test_a_stopped_run_ends_as_an_undisturbed_one(
    run: Callable, backbone: backbones.Backbone, cases: NextItemCases, stop_early: Callable, tmp_path: Path
) -> None:
    start = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}

    def afresh() -> None:
        with torch.no_grad():
            for name, parameter in backbone.model.named_parameters():
                parameter.copy_(start[name])

    whole = run(backbone, cases, tmp_path / "whole")
    expected = scores(backbone, cases)
    afresh()
    stop_early(lambda: run(backbone, cases, tmp_path / "stopped"))
    afresh()
    resumed = run(backbone, cases, tmp_path / "stopped")
    assert torch.equal(scores(backbone, cases), expected)
    assert [point["loss"] for point in resumed.curve[1:]] == [point["loss"] for point in whole.curve[1:]]
    afresh()
    run(backbone, cases, tmp_path / "seeded", seed=1)
    assert not torch.equal(scores(backbone, cases), expected)


class Counting(torch.optim.AdamW):
    """An optimizer that notes its rates."""

    rates: list[float]

    def step(self, *args, **kwargs):
        Counting.rates.append(self.param_groups[0]["lr"])
        return super().step(*args, **kwargs)


def test_steps_updates_and_rates(
    backbone: backbones.Backbone, cases: NextItemCases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six cases in batches of four, 20 passes: 40 steps, two updates each; the rate rises over the first two steps."""
    Counting.rates = []
    monkeypatch.setattr(torch.optim, "AdamW", Counting)
    progress = run_grpo(backbone, cases, tmp_path, replace(GRPO, batch=4, updates=2, epochs=20, validate_every=30))
    assert Counting.rates == pytest.approx([0.5e-2, 0.5e-2, *[1e-2] * 78])
    assert [point["epoch"] for point in progress.curve] == [0, 30, 40]


def test_a_pass_may_take_some_of_the_cases(backbone: backbones.Backbone, cases: NextItemCases, tmp_path: Path) -> None:
    assert run_grpo(backbone, cases, tmp_path / "a", replace(GRPO, batch=2, cases=4, epochs=3)).epoch == 6
    assert run_sdpo(backbone, cases, tmp_path / "b", replace(SDPO, batch=2, cases=4, epochs=3)).epoch == 6


@pytest.mark.parametrize(("answers", "best"), [([0.3, 0.2, 0.1], 0), ([0.3, 0.5, 0.4], 20), ([0.1, 0.1, 0.2], 40)])
def test_the_best_weights_stay(
    backbone: backbones.Backbone, cases: NextItemCases, tmp_path: Path, answers: list[float], best: int
) -> None:
    """Of the start and two validations; the start's where none was better."""
    given, seen = iter(answers), []

    def validate() -> dict[str, float]:
        assert not backbone.model.training
        seen.append(backbone.model.model.embed_tokens.weight.detach().clone())
        return {"ndcg@10": next(given)}

    progress = grpo.train(
        backbone, INDEX, cases, reward_function(GRPO, ITEM_CODES), validate, GRPO, 0, tmp_path, "inputs"
    )
    assert progress.best_epoch == best
    assert torch.equal(backbone.model.model.embed_tokens.weight, seen[best // 20])
    assert not torch.equal(seen[0], seen[1])


def test_the_reference_takes_the_models_place_and_leaves_it() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    reference = tuning.Reference({"w": weight})
    with torch.no_grad():
        weight.add_(1)
    with suppress(RuntimeError), reference.in_place():
        assert float(weight.detach()) == 1.0
        raise RuntimeError
    assert float(weight.detach()) == 2.0


def test_the_kl_is_to_the_start_and_not_to_the_last_step(
    backbone: backbones.Backbone, cases: NextItemCases, tmp_path: Path
) -> None:
    progress = run_grpo(backbone, cases, tmp_path, replace(GRPO, kl=0.0, epochs=40, validate_every=1))
    curve = [point["kl"] for point in progress.curve[1:]]
    assert curve[0] == pytest.approx(0, abs=1e-6)
    assert curve[-1] > 10 * curve[2] > 0


@pytest.mark.parametrize(
    "changed",
    [{"epsilon": 1.0}, {"clip": 1e-3, "updates": 3}, {"kl": 5.0}, {"temperature": 0.3}, {"group": 4},
     {"learning_rate": 1e-3}, {"rollouts": "beam"}],
)
def test_each_setting_tells(
    backbone: backbones.Backbone, cases: NextItemCases, tmp_path: Path, changed: dict[str, object]
) -> None:
    start = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    base = replace(GRPO, epochs=8, updates=3 if "updates" in changed else 1, reward="prefix")
    run_grpo(backbone, cases, tmp_path / "base", base)
    expected = scores(backbone, cases)
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            parameter.copy_(start[name])
    run_grpo(backbone, cases, tmp_path / "other", replace(base, **changed))
    assert float((scores(backbone, cases) - expected).abs().max()) > 1e-3


ROWS, TARGETS = torch.tensor([[0, 1, -1]]), torch.tensor([1])
THREE = torch.tensor([[0, 1], [0, 2], [3, 3]])
MADE = torch.tensor([[[0, 1], [0, 2], [3, 0]]])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("exact", [0, 1, 0]), ("prefix", [0.5, 1, 0]), ("format", [1.5, 2, 0]), ("collaborative", [0.6, 1, 0])],
)
def test_reward_function(kind: str, expected: list[float]) -> None:
    """The bonus comes on top, 2 x 0.25 for the target alone."""
    vectors, quality = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.9, 0.25, 0.9])
    plain = reward_function(GrpoSettings(reward=kind), THREE, None, vectors)
    assert plain(ROWS, MADE, TARGETS)[0].tolist() == pytest.approx(expected)
    paid = reward_function(GrpoSettings(reward=kind, bonus="quality", bonus_weight=2.0), THREE, quality, vectors)
    assert paid(ROWS, MADE, TARGETS)[0].tolist() == pytest.approx([expected[0], expected[1] + 0.5, expected[2]])


def test_rewards_that_lack_what_they_pay_by() -> None:
    with pytest.raises(InputError, match=r"grpo\.bonus is quality"):
        reward_function(GrpoSettings(bonus="quality"), THREE)
    with pytest.raises(InputError, match="vectors of the items"):
        reward_function(GrpoSettings(reward="collaborative"), THREE)


def test_the_paper_preset_trains_two_epochs_with_a_light_kl() -> None:
    paper = preset("paper").grpo
    assert (paper.epochs, paper.kl, paper.bonus) == (2, 0.001, "quality")
