"""A policy of hybrid SIDs: trained, saved, loaded, aligned, and with items that are younger than it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tessera.bundle import load_manifest
from tessera.config import EvaluationSettings, GrpoSettings, PolicySettings, TokenizerSettings
from tessera.decoding.recommender import Recommender
from tessera.errors import InputError
from tessera.evaluation.evaluate import run as evaluate
from tessera.policy import backbone as backbones
from tessera.policy import fit
from tessera.policy.align import run_grpo
from tessera.policy.bundle import load_policy
from tessera.policy.data import pack, prompts
from tessera.policy.likelihood import log_probabilities
from tessera.policy.rollouts import rows_of
from tessera.policy.sft import sid_loss
from tessera.schema import read_table, write_table
from tessera.tokenizer import fit as tokenizer_fit
from tessera.tokenizer import grounding
from tessera.tokenizer.hybrid import initial_rows
from tessera.tokenizer.inputs import read_inputs

SIZES = (3, 4, 7)
CODES = np.column_stack([np.arange(7) % 3, np.arange(7) % 4, np.arange(7)])
SETTINGS = PolicySettings(hidden=32, layers=2, heads=2, text_vocabulary=300, dropout=0.0)
ITEMS = 30


@pytest.fixture
def backbone() -> backbones.Backbone:
    built = backbones.build(SETTINGS, ["words"], 3, SIZES, seed=0)
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.mul_(3.0)
    return built


def test_each_level_has_its_own_number_of_tokens(backbone: backbones.Backbone) -> None:
    assert backbone.sizes == SIZES
    assert (backbone.sid_tokens >= 0).sum(1).tolist() == list(SIZES)
    tokens = torch.cat([backbone.level_tokens(level) for level in range(3)]).tolist()
    first = len(backbone.tokenizer) - sum(SIZES)
    assert tokens == list(range(first, len(backbone.tokenizer)))


@torch.no_grad()
def test_training_and_scoring_go_by_the_codes_of_the_level(backbone: backbones.Backbone) -> None:
    """The mean loss of a history equals the codes' log-probabilities, each over its level's own codes.

    An item's own token has its probability in front of the prefix, where the prefix's first code has it too.
    """
    history = np.array([1, 6, 2])
    packed = pack([history], CODES, backbone.sid_tokens.numpy(), backbone.bos, 12)
    assert packed.targets[0, :9].tolist() == CODES[history].flatten().tolist()
    assert packed.levels[0, :9].tolist() == [0, 1, 2] * 3
    backbone.model.eval()
    total = 0.0
    for place in range(3):
        tokens, mask = prompts([history[:place]], CODES, backbone.sid_tokens.numpy(), backbone.bos)
        codes = torch.from_numpy(CODES[history[place]])[None, None]
        logp = log_probabilities(backbone, tokens, mask, codes)[0, 0].tolist()
        total += sum(logp)
        ids = torch.cat([tokens[0], backbone.sid_tokens[torch.arange(3), codes[0, 0]]])
        logits = backbone.model(ids[None]).logits[0, -4:-1]
        plain = [
            float(logits[behind][backbone.level_tokens(level)].log_softmax(-1)[codes[0, 0, level]])
            for level, behind in enumerate((0, 1, 0))
        ]
        assert logp == pytest.approx(plain, abs=1e-4)
    assert float(sid_loss(backbone, packed)) == pytest.approx(-total / 9, abs=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_item_tokens_start_from_their_vectors(tied: bool, tmp_path: Path) -> None:
    """Input and output rows, also of adapted models, whose trained rows are kept apart from the weights."""
    vectors = np.random.default_rng(0).normal(size=(7, 5))
    built = backbones.build(SETTINGS, ["words"], 3, SIZES, 0)
    if not tied:
        built.model.config.tie_word_embeddings = False
        built.model.lm_head.weight = torch.nn.Parameter(built.model.lm_head.weight.detach().clone())
    built.model.save_pretrained(tmp_path)
    built.tokenizer.save_pretrained(tmp_path)
    for adaptation in ("full", "lora"):
        settings = replace(SETTINGS, backbone=str(tmp_path), adaptation=adaptation)  # type: ignore[arg-type]
        grown = backbones.build(settings, [], 3, SIZES, 0, vectors)
        model: Any = grown.model
        ids = grown.level_tokens(2)
        spread = float(built.model.get_input_embeddings().weight.std())
        expected = initial_rows(vectors, 32, spread, 0)
        if hasattr(model, "merge_and_unload"):
            assert model.get_input_embeddings()(ids).detach().numpy() == pytest.approx(expected, abs=1e-6)
            model = model.merge_and_unload()
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            assert layer.weight[ids].detach().numpy() == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def trained(toy: Any, quick: PolicySettings) -> dict[str, Any]:
    settings = replace(
        quick, hidden=32, epochs=60, validate_every=20, learning_rate=1e-2, dropout=0.0, hybrid_prefix=2
    )
    return toy.run("hybrid", settings, item_vectors=toy.folder / "embeddings.parquet")


def test_it_learns_and_serves_items_under_their_published_names(toy: Any, trained: dict[str, Any]) -> None:
    manifest = load_manifest(trained["bundle"], "policy")
    assert manifest.extra == {"codebook_size": [8, 8, ITEMS], "levels": 3, "max_history": 4}
    recommender = Recommender.load(trained["bundle"])
    histories = [[f"item-{chain}-0", f"item-{chain}-1"] for chain in range(6)]
    first = [answer[0] for answer in recommender.recommend(histories, 1)]
    assert [one.item_id for one in first] == [f"item-{chain}-2" for chain in range(6)]
    published = read_table("sids", toy.folder / "sids.parquet")
    names = dict(zip(published["item_id"].to_pylist(), published["sid"].to_pylist(), strict=True))
    assert [one.sid for one in first] == [names[one.item_id] for one in first]


def test_it_is_evaluated(toy: Any, trained: dict[str, Any], tmp_path: Path) -> None:
    settings = EvaluationSettings(beam=20)
    report = evaluate(trained["bundle"], toy.folder / "splits.parquet", tmp_path / "report.json", settings)
    assert report["test"]["invalid_rate"] == 0
    assert report["items"] == ITEMS


def test_a_vector_is_needed_for_every_item(toy: Any, quick: PolicySettings, tmp_path: Path) -> None:
    table = read_table("embeddings", toy.folder / "embeddings.parquet")
    write_table("embeddings", table.slice(1), tmp_path / "embeddings.parquet")
    settings = replace(quick, hybrid_prefix=1)
    with pytest.raises(InputError, match=r"item 'item-0-0' has no vector to start its token from"):
        toy.run("refused", settings, item_vectors=tmp_path / "embeddings.parquet")
    with pytest.raises(InputError, match=r"a prefix of 1 to 3 codes, not 4"):
        toy.run("refused", replace(quick, hybrid_prefix=4))


def test_item_tokens_start_in_the_tokenizers_space(toy: Any, tmp_path: Path) -> None:
    """Grounded where the tokenizer grounds; the embeddings' text where it does not."""
    inputs = read_inputs(read_table("embeddings", toy.folder / "embeddings.parquet"))
    views = grounding.Views(inputs.text, inputs.text, np.empty((0, 2), np.int64))
    model = grounding.fit(inputs, views, seed=0, epochs=2)[0]
    model.save(tmp_path / "weights")
    told = {"settings": TokenizerSettings(method="rqkmeans", codebook_size=8, latent_dim=4), "seed": 0}
    paths = {"bundle": tmp_path / "tokenizer", "sids": tmp_path / "sids.parquet", "work": tmp_path}
    tokenizer_fit.run(toy.folder / "embeddings.parquet", **told, **paths, grounding=tmp_path / "weights")
    order = inputs.item_ids[::-1]
    plain, grounded = (
        fit._vectors(toy.folder / "embeddings.parquet", order, bundle)
        for bundle in (toy.folder / "tokenizer", tmp_path / "tokenizer")
    )
    assert np.array_equal(plain, inputs.text[::-1])
    assert np.array_equal(grounded, model.vectors(inputs)[::-1])
    with pytest.raises(InputError, match="item 'stranger' has no vector"):
        fit._vectors(toy.folder / "embeddings.parquet", ["stranger"], toy.folder / "tokenizer")


def test_it_is_aligned(toy: Any, trained: dict[str, Any], tmp_path: Path) -> None:
    settings = GrpoSettings(batch=8, group=4, rollouts="unconstrained", reward="format", validate_every=100)
    run_grpo(
        trained["bundle"], toy.folder / "splits.parquet", tmp_path / "aligned", settings, EvaluationSettings(), 0,
        tmp_path / "work",
    )
    policy = load_policy(tmp_path / "aligned")
    assert policy.codebook_size == [8, 8, ITEMS]
    codes = policy.index.codes.long()
    assert rows_of(policy.index, codes).tolist() == list(range(ITEMS))
    wrong = codes.clone()
    wrong[:, 2] = (wrong[:, 2] + 1) % ITEMS  # another's token behind this prefix, unless they share it
    owner = codes[:, 2].argsort()[wrong[:, 2]]
    shared = (codes[:, :2] == codes[owner, :2]).all(1)
    assert ((rows_of(policy.index, wrong) >= 0) == shared).all()


def test_a_new_item_is_asked_for_where_its_mates_are(toy: Any, trained: dict[str, Any], tmp_path: Path) -> None:
    """The newer table of the same tokenizer has two items more, one item less, and another order."""
    sids = read_table("sids", toy.folder / "sids.parquet")
    like = sids.to_pylist()[0]
    codes = [*like["codes"][:2], (like["codes"][2] + 1) % 8]
    new = [{**like, "item_id": f"new-{n}", "sid": f"new_{n}", "codes": codes} for n in (1, 0)]
    newer = pa.concat_tables([pa.Table.from_pylist(new, sids.schema), sids.slice(1, ITEMS - 2), sids.slice(0, 1)])
    write_table("sids", newer, tmp_path / "sids.parquet")
    before, after = Recommender.load(trained["bundle"]), Recommender.load(trained["bundle"], tmp_path / "sids.parquet")
    assert after.backbone.sizes == (8, 8, ITEMS + 2)
    assert after.item_ids == newer["item_id"].to_pylist()
    assert after.codes[-1].tolist() == before.codes[0].tolist()  # a known item keeps its token
    assert after.codes[:2, 2].tolist() == [ITEMS + 1, ITEMS]  # new ones in the order of their ids
    weight: Any = after.backbone.model.get_output_embeddings().weight.detach()
    mates = [row for row in range(ITEMS) if before.codes[row, :2].tolist() == before.codes[0, :2].tolist()]
    tokens = before.backbone.level_tokens(2)[before.codes[mates, 2].astype(np.int64)]
    for token in after.backbone.level_tokens(2)[-2:]:
        assert weight[token].tolist() == pytest.approx(weight[tokens].mean(0).tolist(), abs=1e-6)
    assert weight[tokens].tolist() == before.backbone.model.get_output_embeddings().weight[tokens].tolist()
    answer = after.recommend([["new-0", "item-1-0"]], k=ITEMS + 1 - 2, beams=ITEMS + 1)[0]
    assert "new-1" in [one.item_id for one in answer]
    assert len({one.item_id for one in answer}) == len(answer)


def test_an_unchanged_table_changes_nothing(toy: Any, trained: dict[str, Any]) -> None:
    same = Recommender.load(trained["bundle"], toy.folder / "sids.parquet")
    before = Recommender.load(trained["bundle"])
    history = [["item-0-0", "item-0-1"]]
    assert same.recommend(history, 10) == before.recommend(history, 10)
