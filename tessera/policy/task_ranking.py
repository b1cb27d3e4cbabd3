"""How well a policy answers each task: the constrained decoder behind the task's own prompt."""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from tessera.decoding.forward import Prompts
from tessera.decoding.recommender import Recommender
from tessera.decoding.search import beam_search
from tessera.evaluation.metrics import ranking_metrics, ranks
from tessera.policy.mixture import cases_of
from tessera.policy.ragged import Ragged
from tessera.policy.tasks import Cases, Materials, write


def rank_prompts(
    recommender: Recommender, prompts: Ragged, k: int, beams: int, batch_size: int, progress: str = ""
) -> np.ndarray:
    """The k best items behind each prompt: [prompts, k] item numbers in falling order, -1 where fewer exist.

    Args:
        prompts: one row of tokens a prompt, the opening token included.
    """
    model, index, (decoder, head) = recommender.backbone.model, recommender.index, recommender.engine()
    out = np.full((len(prompts), k), -1, dtype=np.int64)
    order = np.argsort(-prompts.lengths, kind="stable")
    for start in tqdm(range(0, len(order), batch_size), desc=progress, unit="batch", disable=not progress):
        chosen = order[start : start + batch_size]
        tokens, mask = (part.to(model.device) for part in prompts.take(chosen).left_padded())
        length = mask.sum(1)
        asked = Prompts(tokens, length, torch.zeros_like(length))
        rows = beam_search(decoder, head, index, asked, k=k, beams=beams).rows.cpu().numpy()
        out[chosen, : rows.shape[1]] = rows
    return out


def task_metrics(
    recommender: Recommender,
    tasks: Sequence[str],
    materials: Materials,
    purchases: Cases,
    *,
    limit: int,
    beams: int,
    batch_size: int,
    seed: int,
    ks: Sequence[int] = (5, 10),
) -> dict[str, dict[str, float]]:
    """HR@K, NDCG@K and the number of `cases` of every task that ends in an item, over the whole catalogue.

    A task about customers is asked for the held-out purchases that it fits (of those that stay in one category, or
    leave it, and so on), so its numbers compare with its own at another time, not with another task's. A task about
    items is asked for items of the catalogue, as training did: its hit rate says how well the SIDs were learned. Tasks
    that end in a title, or that nothing fits, are left out.

    Args:
        purchases: held-out purchases (tessera.policy.tasks.held_out); limit: most cases a task, drawn by `seed`; 0 is
            no limit.
    """
    out = {}
    for number, task in enumerate(tasks):
        cases = cases_of(task, purchases, materials)
        if materials.templates[task].target != "sid" or not len(cases):
            continue
        rng = np.random.default_rng([seed, number])
        cases = cases.take(np.sort(rng.permutation(len(cases))[: limit or None]))
        examples = write(task, number, cases, materials, rng)
        k = min(max(ks), materials.items)
        rows = rank_prompts(recommender, examples.tokens.first(examples.prompt), k, beams, batch_size)
        out[task] = ranking_metrics(ranks(rows, cases.item), ks) | {"cases": len(cases)}
    return out
