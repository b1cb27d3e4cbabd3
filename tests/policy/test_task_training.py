"""Training on several tasks: the loss against plain forwards, what is learned, and the stage on files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tessera.bundle import load_manifest
from tessera.config import PolicySettings
from tessera.decoding.recommender import Recommender
from tessera.errors import InputError
from tessera.policy import backbone as backbones
from tessera.policy import sft
from tessera.policy.data import Examples, pack_examples
from tessera.policy.ragged import Ragged
from tessera.policy.task_ranking import rank_prompts
from tessera.schema import SCHEMAS, read_table, write_table

SIZE = 6


@pytest.fixture(scope="module")
def sharp() -> backbones.Backbone:
    """Weights larger than at the start, so that a token that sees too much changes the loss clearly."""
    backbone = backbones.build(PolicySettings(hidden=32, layers=2, heads=2, text_vocabulary=300), ["words"], 2, SIZE, 1)
    backbone.model.eval()
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.mul_(3.0)
    return backbone


@torch.no_grad()
def plain_terms(backbone: backbones.Backbone, tokens: list[int], prompt: int) -> list[float]:
    """-log p of every token behind the prompt, one forward: a code among its level's, text among all tokens."""
    logits = backbone.model(torch.tensor([tokens])).logits[0].double()
    level_of = {token: level for level, row in enumerate(backbone.sid_tokens.tolist()) for token in row}
    terms = []
    for place in range(prompt, len(tokens)):
        rivals = logits[place - 1]
        if tokens[place] in level_of:
            rivals = rivals[backbone.sid_tokens[level_of[tokens[place]]]]
        terms.append(float(torch.logsumexp(rivals, 0) - logits[place - 1, tokens[place]]))
    return terms


@pytest.mark.parametrize("row_length", [9, 14, 40])
def test_mixed_targets_cost_what_plain_forwards_say(sharp: backbones.Backbone, row_length: int) -> None:
    """However examples share rows: the mean over all targets, and each task's own targets under its number."""
    (a, b), (c, d) = sharp.sid_tokens[0, :2].tolist(), sharp.sid_tokens[1, :2].tolist()
    written = [
        ([1, 40, 50, a, d], 3, 0),  # text, then an item
        ([1, b, c, 60, 70, 80, 2], 3, 1),  # an item, then text
        ([1, a, c, b, d], 1, 2),  # a history, all of it to be learned
        ([1, 90, a, c], 2, 0),
    ]
    rows, prompts, numbers = zip(*written, strict=True)
    examples = Examples(Ragged.of(rows), np.array(prompts), np.array(numbers))
    packed = pack_examples(examples, sharp.sid_tokens.numpy(), row_length)
    terms, tasks = sft.target_losses(sharp, packed)
    for number in range(3):
        expected = [t for row, prompt, task in written if task == number for t in plain_terms(sharp, row, prompt)]
        assert sorted(terms[tasks == number].tolist()) == pytest.approx(sorted(expected), rel=1e-4)
    every = [term for row, prompt, _ in written for term in plain_terms(sharp, row, prompt)]
    assert float(sft.sid_loss(sharp, packed).detach()) == pytest.approx(np.mean(every), rel=1e-5)


def test_smoothing_leaves_text_alone(sharp: backbones.Backbone) -> None:
    examples = Examples(Ragged.of([[1, 40, 50, 60]]), np.array([1]), np.array([0]))
    packed = pack_examples(examples, sharp.sid_tokens.numpy(), 8)
    plain, smoothed = sft.sid_loss(sharp, packed), sft.sid_loss(sharp, packed, 0.3)
    assert float(plain.detach()) == float(smoothed.detach())


def test_prompts_of_any_length_rank_as_on_their_own(sharp: backbones.Backbone, make_sids: Callable) -> None:
    """The score of an item behind a prompt is the sum of its codes' terms in a plain forward."""
    codes = np.stack(np.unravel_index(np.arange(0, SIZE**2, 3), (SIZE, SIZE)), axis=1)
    recommender = Recommender(sharp, make_sids(codes), SIZE, 5)
    prompts = Ragged.of([[1, 30, 31, 32, 33], [1], [1, 44, 45]])
    found = rank_prompts(recommender, prompts, len(codes), len(codes), batch_size=2)
    tokens = sharp.sid_tokens[torch.arange(2), torch.tensor(codes)].tolist()
    for prompt, ranked in zip(prompts.rows(), found, strict=True):
        cost = [sum(plain_terms(sharp, [*prompt.tolist(), *item], len(prompt))) for item in tokens]
        assert ranked.tolist() == np.argsort(cost).tolist()


@pytest.fixture(scope="module")
def told(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The toy shop with titles of its own, captions and intents, for half of the items each."""
    folder = tmp_path_factory.mktemp("told")
    ids = read_table("sids", toy.folder / "sids.parquet")["item_id"].to_pylist()
    shop = {"description": "", "brand": "", "attributes": [], "image_status": "none"}
    made = {"provider": "embedded", "model": "", "prompt_version": "1", "status": "ok"}
    rows = {
        "items": [
            {"item_id": i, "title": f"thing {i[5:]}", "categories": ["even" if n % 2 else "odd"], **shop}
            for n, i in enumerate(sorted(ids))
        ],
        "captions": [{"item_id": i, "caption": f"photo {i[5:]}", **made} for i in ids[::2]],
        "intents": [
            {"item_id": i, "surface": [], "motives": [], "descriptors": [{"text": f"for {i[5:]}", "confidence": 1.0}],
             **made}
            for i in ids[1::2]
        ],
    }
    for name, table in rows.items():
        write_table(name, pa.Table.from_pylist(table, SCHEMAS[name]), folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in rows}


def test_the_stage_logs_each_tasks_loss_and_hit_rate(toy: Any, told: dict[str, Path], quick: PolicySettings) -> None:
    """Trained until it knows the catalogue by heart: every item is found by its title, caption and intents."""
    settings = replace(
        quick, tasks="tmt", hidden=48, layers=2, epochs=60, validate_every=20, learning_rate=1e-2, dropout=0.0,
        batch_tokens=600, text_tokens=12,
    )
    trained = toy.run("tmt", settings, **told)
    first, last = trained["curve"][0], trained["curve"][-1]
    tasks = [
        "next", "titles_to_sid", "history_to_title", "title_to_sid", "sid_to_title", "intents_to_sid",
        "caption_to_sid", "caption_to_title",
    ]
    assert [key[5:] for key in last if key.startswith("loss/")] == tasks
    assert [key[6:] for key in last if key.startswith("hr@10/")] == [t for t in tasks if not t.endswith("title")]
    assert all(last[f"loss/{task}"] < first[f"loss/{task}"] for task in tasks)
    assert last["loss/sid_to_title"] < 0.3
    assert min(last[f"hr@10/{task}"] for task in ("title_to_sid", "intents_to_sid", "caption_to_sid")) == 1.0
    assert last["hr@10/next"] == last["hr@10"]
    assert load_manifest(trained["bundle"], "policy").config["tasks"] == "tmt"



def test_a_mixture_resumes_to_the_same_bundle(
    toy: Any, told: dict[str, Path], quick: PolicySettings, stop_early: Callable, epochs_run: list[int]
) -> None:
    settings = replace(quick, tasks="next,title_to_sid,choose_next", task_examples=5, batch_tokens=300)
    whole = toy.run("mixed", settings, **told)
    stop_early(lambda: toy.run("mixed-stopped", settings, **told))
    epochs_run.clear()
    resumed = toy.run("mixed-stopped", settings, **told)
    assert epochs_run == list(range(1, settings.epochs))
    assert resumed["version"] == whole["version"]
    assert resumed["curve"] == whole["curve"]


def test_other_texts_are_another_training(toy: Any, told: dict[str, Path], quick: PolicySettings) -> None:
    """A finished bundle is used again for the same captions only; training on "next" alone does not look at them."""
    settings = replace(quick, tasks="caption_to_sid", epochs=1)
    version = toy.run("captioned", settings, **told)["version"]
    assert toy.run("captioned", settings, **told)["seconds"] == 0.0
    table = read_table("captions", told["captions"])
    fewer = told["captions"].with_name("fewer.parquet")
    write_table("captions", table.slice(3), fewer)
    assert toy.run("captioned", settings, **told | {"captions": fewer})["version"] != version
    alone = toy.run("uncaptioned", replace(quick, epochs=1), items=told["items"])["version"]
    assert toy.run("uncaptioned", replace(quick, epochs=1), **told | {"captions": fewer})["seconds"] == 0.0
    assert load_manifest(toy.folder / "uncaptioned" / "policy", "policy").version == alone


@pytest.mark.parametrize(
    ("tasks", "reason"), [("tnt", "'tnt' is no mixture"), ("tmt", "'intents_to_sid' has no example here")]
)
def test_tasks_that_cannot_be_trained_are_refused(
    tasks: str, reason: str, toy: Any, told: dict[str, Path], quick: PolicySettings
) -> None:
    with pytest.raises(InputError, match=reason):
        toy.run("refused", replace(quick, tasks=tasks), items=told["items"])


def test_one_task_alone_has_no_loss_of_its_own(undisturbed: dict[str, Any]) -> None:
    assert "loss/" not in json.dumps(undisturbed["curve"])
