"""A promotion that fails half way, on a real registry and feature store: nothing of it may be served later."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from components.promote import promotion
from components.register import registering
from serving.model_repository import newest, releases
from serving.registry import Registry
from tessera.config import PlatformSettings, PolicySettings, Settings, TokenizerSettings
from tessera.errors import ServiceError
from tessera.files import write_json
from tessera.policy.backbone import build
from tessera.policy.bundle import save_policy
from tessera.schema import SCHEMAS, write_table
from tessera.tokenizer.bundle import Tokenizer
from tessera.tokenizer.bundle import build as build_tokenizer

ITEMS = [f"item{i}" for i in range(8)]
MADE_BY = {"provider": "embedded", "model": "m", "prompt_version": "v1", "status": "ok"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A platform with one registered policy, the challenger, and nothing promoted."""
    folder = tmp_path_factory.mktemp("promotion")
    settings = TokenizerSettings(codebook_size=8, latent_dim=4, hidden_dim=8, fused_dim=8, image_dim=4)
    torch.manual_seed(0)
    tokenizer = Tokenizer(build_tokenizer(settings, 4, 3), settings)
    tokenizer.save(folder / "tokenizer", {"collision_rate_after": 0.0, "utilisation": [0.5]}, "seed 0")
    fixed = {"moved": False, "tokenizer_version": tokenizer.version}
    sids = [{"item_id": item, "sid": f"{i}_0_0", "codes": [i, 0, 0], **fixed} for i, item in enumerate(ITEMS)]
    backbone = build(PolicySettings(hidden=16, layers=1, heads=2, text_vocabulary=300), ITEMS, 3, 8, 0)
    table = pa.Table.from_pylist(sids, schema=SCHEMAS["sids"])
    described: dict[str, Any] = {"config": {}, "metrics": {}}
    save_policy(folder / "policy", backbone, table, codebook_size=8, max_history=5, **described)
    described = {"description": "", "categories": [], "attributes": [], "brand": "", "image_status": "none"}
    rows = {
        "items": [{**described, "item_id": item, "title": item, "image": None} for item in ITEMS],
        "captions": [{**MADE_BY, "item_id": item, "caption": item} for item in ITEMS],
        "intents": [],
        "quality": [],
        "sids": sids,
        "splits": [{"user_id": "ann", "train": ITEMS[:2], "validation": ITEMS[2], "test": ITEMS[3]}],
    }
    for name, content in rows.items():
        write_table(name, pa.Table.from_pylist(content, schema=SCHEMAS[name]), folder / f"{name}.parquet")
    write_json(folder / "evaluation.json", {"test": {}, "validation": {}, "popularity": {}})
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    registering.run(
        {name: folder / f"{name}.parquet" for name in rows}, folder / "tokenizer", folder / "policy",
        folder / "evaluation.json", Settings(), str(folder / "home"), folder / "versions.json",
    )  # fmt: skip
    return folder / "home"


def test_a_first_promotion_that_fails_leaves_no_release_for_the_next_start(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        assert releases(home / "triton" / "models") == [1]  # it had come so far
        raise ServiceError("the registry is gone.")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "promote", fail)
        with pytest.raises(ServiceError, match="the registry is gone"):
            promotion.promote(home, PlatformSettings())
    assert releases(home / "triton" / "models") == []
    assert Registry(home).aliases().champion is None
    done = promotion.promote(home, PlatformSettings())
    assert done["policy_version"] == newest(home / "triton" / "models").policy_version
