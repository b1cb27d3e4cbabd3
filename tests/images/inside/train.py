"""Fit a tokenizer and a policy on what was embedded, and measure the policy."""

from shop import WORK, settings, table

from tessera.evaluation.evaluate import run as evaluate
from tessera.files import read_json
from tessera.policy.fit import run as train
from tessera.tokenizer.fit import run as fit

chosen = settings()
tokenizer, policy, work = WORK / "tokenizer", WORK / "policy", WORK / "checkpoints"
fit(table("embeddings"), tokenizer, table("sids"), chosen.tokenizer, chosen.seed, work / "tokenizer")
train(
    table("items"), table("splits"), table("sids"), tokenizer, policy,
    chosen.policy, chosen.evaluation, chosen.seed, work / "policy",
)  # fmt: skip
evaluate(policy, table("splits"), WORK / "evaluation.json", chosen.evaluation)
assert 0 <= read_json(WORK / "evaluation.json")["test"]["ndcg@10"] <= 1
