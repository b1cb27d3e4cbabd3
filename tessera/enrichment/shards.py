"""A catalogue in parts that workers enrich side by side: an item's part follows from its content alone."""

import re

import pyarrow as pa

from tessera.errors import InputError
from tessera.files import sha256_of

_RANGE = 1 << 32


def items_of(items: pa.Table, shard: str) -> pa.Table:
    """The rows of an `items` table in a shard, "2/8" for the third of eight equal ranges of content hashes; "" for all.

    Raises:
        InputError: no shard is called so.
    """
    if not shard:
        return items
    mine = [in_shard(row["item_id"] + row["title"] + row["description"], shard) for row in items.to_pylist()]
    return items.filter(pa.array(mine, pa.bool_()))


def in_shard(content: str, shard: str) -> bool:
    """Whether the hash of a text falls into a shard's range; every text is in exactly one of "0/n" to "n-1/n".

    Raises:
        InputError: no shard is called so.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    part, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if part >= count:
        raise InputError(f"there is no shard '{shard}'; write 0/4 to 3/4 for the parts of four.")
    return int(sha256_of(content)[:8], 16) * count // _RANGE == part
