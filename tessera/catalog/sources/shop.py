"""Source `shop`: the demo shop of `tessera.catalog.shop`, generated from a seed."""

from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from tessera.catalog.raw import RAW_ITEMS, RawCatalogue
from tessera.catalog.shop.customers import purchases
from tessera.catalog.shop.definition import stock
from tessera.catalog.shop.photos import render_all
from tessera.config import ShopSettings
from tessera.errors import InputError


def read(settings: ShopSettings, seed: int, images: Path) -> RawCatalogue:
    """Generate the shop and render its photos into `images`; equal arguments give equal tables and files.

    `truth` says of each item its family of near twins, product, intent and scene.

    Raises:
        InputError: a shop of fewer items than it has families, or without customers.
    """
    if settings.users < 1:
        raise InputError(f"the shop cannot have {settings.users} users; --shop.users must be at least 1.")
    items = stock(settings.items, seed)
    names = render_all(items, seed, images)
    rows = [{**asdict(item), "image": name} for item, name in zip(items, names, strict=True)]
    table = pa.Table.from_pylist(rows, schema=RAW_ITEMS)
    truth = pa.Table.from_pylist(rows).select(["item_id", "family", "product", "intent", "scene"])
    return RawCatalogue(table, purchases(items, settings.users, seed), images, truth=truth)
