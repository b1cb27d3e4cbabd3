"""New items beside published ones: SIDs from a frozen tokenizer, none of the published ones moved."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tessera.schema import read_table, write_table
from tessera.tokenizer.bundle import Tokenizer


def run(embeddings: Path, items: Path, published: Path, tokenizer: Path, sids: Path) -> dict[str, Any]:
    """Write the `sids` table of a catalogue that has grown: published rows as they are, in their order, then new ones.

    Args:
        embeddings: of the new items; those of items that have a SID already are passed over.
        items: the catalogue as it is now; an item that it lacks loses its row, and its SID goes to nobody here.
        published: the `sids` table in use.

    Returns:
        published, kept, withdrawn and added: numbers of items; moved: how many of the added ones collisions moved.

    Raises:
        InputError: a table is unusable, or no SID is free.
        BundleError: the published SIDs are of another tokenizer, or the embeddings of another encoder.
    """
    held, vectors = read_table("sids", published), read_table("embeddings", embeddings)
    new = vectors.filter(pc.invert(pc.is_in(vectors["item_id"], value_set=held["item_id"])))
    added = Tokenizer.load(tokenizer).append(new, held) if new.num_rows else held.schema.empty_table()
    kept = held.filter(pc.is_in(held["item_id"], value_set=read_table("items", items)["item_id"]))
    write_table("sids", pa.concat_tables([kept, added]), sids)
    return {
        "published": held.num_rows,
        "kept": kept.num_rows,
        "withdrawn": held.num_rows - kept.num_rows,
        "added": added.num_rows,
        "moved": pc.sum(added["moved"]).as_py() or 0,
    }
