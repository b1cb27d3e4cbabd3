"""Ingest the shop, ask the embedded models about it, embed it."""

import shutil

from shop import HOME, WORK, settings, table

from tessera.catalog.ingest import run as ingest
from tessera.config import catalogue_url
from tessera.enrichment import stages
from tessera.schema import read_table

chosen, catalogue = settings(), WORK / "catalogue"
HOME.mkdir()
ledger = catalogue_url(chosen, HOME)
ingest(chosen, ledger, catalogue)
for name in ("items", "splits"):
    shutil.copyfile(catalogue / f"{name}.parquet", table(name))
items, images, captions, intents, quality = (
    table("items"), catalogue / "images", table("captions"), table("intents"), table("quality"),
)  # fmt: skip
stages.run_captions(items, images, captions, chosen, ledger)
stages.run_intents(items, captions, intents, chosen, ledger)
stages.run_quality(items, captions, intents, quality, chosen, ledger)
stages.run_embeddings(items, images, captions, intents, table("embeddings"), chosen, ledger)
embedded = read_table("embeddings", table("embeddings"))
assert embedded.num_rows == chosen.shop.items
assert len(embedded["text"][0].as_py()) == 384
