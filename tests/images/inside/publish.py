"""Hold the tables to the gates, register the bundles, publish the features, and look one up."""

import shutil
import subprocess

from shop import HOME, WORK, settings, table

from components.promote.promotion import promote
from components.register.registering import run as register
from feature_repo.lookup import item
from serving.registry import Registry
from tessera.schema import read_table
from validation.gate import run as gate

chosen = settings()
gate("sids", {name: table(name) for name in ("items", "sids")}, WORK / "docs", codebook_size=16)
tables = {name: table(name) for name in ("items", "splits", "captions", "intents", "quality", "sids")}
register(
    tables, WORK / "tokenizer", WORK / "policy", WORK / "evaluation.json", chosen, str(HOME), WORK / "challenger.json"
)
promote(HOME, chosen.platform)
assert Registry(HOME, "").resolve("champion").version == "1"
known = read_table("sids", table("sids")).to_pylist()[0]
assert item(HOME, known["item_id"]).sid == known["sid"]
# The same image runs these servers.
for server in ("mlflow", "feast"):
    assert shutil.which(server), server
    subprocess.run([server, "--help"], check=True, capture_output=True)
