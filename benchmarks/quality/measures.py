"""What is measured of every system's answers, in the same way whoever gave them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.quality.slices import cold_items, title_twins
from benchmarks.quality.store import pack_ranks
from benchmarks.quality.train import Plan
from benchmarks.quality.world import World
from tessera.decoding.recommender import Recommender
from tessera.evaluation import diversity
from tessera.evaluation.data import Split, read_split
from tessera.evaluation.metrics import coverage, ranking_metrics, ranks, without_bought
from tessera.policy.materials import categories, read_materials
from tessera.policy.mixture import tasks_of
from tessera.policy.task_ranking import task_metrics
from tessera.policy.tasks import held_out
from tessera.schema import read_table

LIST = 20
TASK_CASES = 2000


@dataclass(frozen=True)
class Ground:
    """The split in numbers, the items table in order of item_id, and what is known of the items [items]."""

    items: pa.Table
    item_ids: list[str]
    split: Split
    twins: np.ndarray
    cold: np.ndarray
    head: np.ndarray
    category: np.ndarray
    pictured: bool

    @classmethod
    def of(cls, world: World) -> "Ground":
        """Read a world's tables."""
        table = read_table("items", world.items).sort_by("item_id")
        item_ids = table["item_id"].to_pylist()
        split, count = read_split(world.splits, item_ids), len(item_ids)
        return cls(
            table, item_ids, split, title_twins(table["title"].to_pylist()), cold_items(split.train, count),
            diversity.popularity_share(split.train, count), categories(table.to_pylist()), world.pictured,
        )

    def measure(self, validation: np.ndarray, test: np.ndarray) -> dict[str, Any]:
        """Metrics of answers [users, LIST], item numbers, -1 where an answer is shorter.

        "served": what is left of them when bought items are left out, as the service does by default.
        """
        histories, wanted = self.split.test_cases()
        rank, served = ranks(test, wanted), ranks(without_bought(test, histories), wanted)
        out = {
            "test": ranking_metrics(rank),
            "served": ranking_metrics(served),
            "validation": ranking_metrics(ranks(validation, self.split.validation_cases()[1])),
            "diversity": self.diversity(test),
            "ranks": pack_ranks(rank),
            "served_ranks": pack_ranks(served),
        }
        for name, member in (("hard", self.twins), ("cold", self.cold)):
            of = member[wanted]
            out[name] = ({**ranking_metrics(rank[of], (5, 10))} if of.any() else {}) | {"cases": int(of.sum())}
        return out

    def brief(self, rows: np.ndarray) -> dict[str, float]:
        """Accuracy and diversity of test answers, for a point of the fusion's dial."""
        return ranking_metrics(ranks(rows, self.split.test_cases()[1]), (10,)) | self.diversity(rows)

    def tasks(self, recommender: Recommender, plan: Plan, world: World) -> dict[str, Any]:
        """HR@10 and NDCG@10 on the test of every task that the policy was trained on, behind the task's prompt."""
        histories, targets = self.split.test_cases()
        policy, branch = plan.policy, plan.system.branch
        materials = read_materials(
            recommender.backbone, self.item_ids, recommender.codes, self.split.train, policy, world.items,
            world.captions(), world.intents(branch),
        )
        return task_metrics(
            recommender, tasks_of(policy.tasks), materials, held_out(histories, targets, policy.max_history),
            limit=TASK_CASES, beams=LIST, batch_size=64, seed=plan.seed,
        )

    def diversity(self, rows: np.ndarray) -> dict[str, float]:
        """How varied answers are, over the first ten."""
        found = {
            "coverage": coverage(rows, len(self.item_ids)),
            "gini": diversity.gini(rows, len(self.item_ids)),
            "head_share": diversity.head_share(rows, self.head),
        }
        if (self.category >= 0).any():
            found["categories_per_list"] = diversity.categories_per_list(rows, self.category)
            found["category_coverage"] = diversity.category_coverage(rows, self.category)
        return found
