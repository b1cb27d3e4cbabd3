"""`make demo`: the whole chain on the demo shop, ending with answers from Triton."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import runs
from pipelines.console import plain
from pipelines.local import home_of
from pipelines.serve import servers
from tessera.config import Settings
from tessera.files import read_json
from tessera.schema import read_table


def demo(settings: Settings, out: Path, users: int) -> None:
    """Train, promote, serve, ask for a few users, stop the servers."""
    from tessera_rec_client import Recommender

    runs.training(settings, out)
    # Ports are the machine's to choose here, so that a demo never meets a server that runs already.
    platform = replace(settings.platform, http_port=0, grpc_port=0, metrics_port=0, features_port=0)
    catalogue = out / "catalogue"
    titles = _titles(read_table("items", catalogue / "items.parquet"))
    scenes = _scenes(catalogue / "truth.parquet")
    samples = read_json(out / "evaluation.json")["samples"][:users]
    plain("\nstarting Triton and the feature server …")
    with servers(home_of(settings), platform) as (triton, _), Recommender(triton.grpc_url) as client:
        for sample in samples:
            answer = client.recommend(user=sample["user_id"], k=5)
            plain(f"\nuser {sample['user_id']} bought")
            for item in sample["history"][-4:] + [sample["target"]]:
                plain(f"    {titles[item]:<44}{scenes.get(item, '')}")
            plain(f"  Triton recommends (policy {answer.policy_version})")
            for one in answer.items:
                plain(f"    {titles[one.item_id]:<44}{scenes.get(one.item_id, ''):<12}{one.sid:<10}{one.score:8.3f}")
    plain("\nservers stopped. `tessera serve` starts them again.")


def _titles(items: pa.Table) -> dict[str, str]:
    return dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))


def _scenes(truth: Path) -> dict[str, str]:
    """What the photo shows, which the demo shop knows and the policy was never told."""
    if not truth.exists():
        return {}
    table = pq.read_table(truth)
    return dict(zip(table["item_id"].to_pylist(), table["scene"].to_pylist(), strict=True))
