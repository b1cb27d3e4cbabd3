"""The data a gate looks at: each table as a pandas frame, with what a check needs from other tables beside it.

Every frame has a column `row` that names the row to a person (an item id, a user id, or "user#position"). Tables are
read without `tessera.schema.conform`, so that a wrong column or a null is a finding of the gate and not a crash.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tessera.errors import InputError
from tessera.schema import SCHEMAS

Frames = dict[str, pd.DataFrame]


def read(name: str, path: Path) -> pd.DataFrame:
    """Read table `name` as it is.

    Raises:
        InputError: the file is missing or is not parquet.
    """
    try:
        with pq.ParquetFile(path) as file:
            return file.read().to_pandas()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path or run the stage that writes '{name}'.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable parquet file ({error}); write it again.") from None


def broken(frames: Frames) -> list[str]:
    """Names of the tables that lack a declared column, which no other check can look past."""
    return [name for name, frame in frames.items() if not set(SCHEMAS[name].names) <= set(frame.columns)]


def prepare(frames: Frames) -> Frames:
    """Add the joined columns that `validation.suites` looks at; every table must have its declared columns."""
    items = frames["items"]
    known = set(items["item_id"])
    tables = {name: frame for name, frame in frames.items() if name != "items"}
    out = {}
    for name, frame in tables.items():
        columns = {"row": _row(name, frame)}
        if name not in ("splits",):
            columns["in_catalogue"] = frame["item_id"].isin(known)
        out[name] = frame.assign(**columns)
    out["items"] = _count_rows(items.assign(row=items["item_id"]), tables)
    for name in ("captions", "embeddings"):
        if name in out:
            out[name] = _beside(out[name], items, ["image_status"])
    if "splits" in out:
        history = frames["interactions"].groupby("user_id", sort=False)["item_id"].agg(list).rename("history")
        out["splits"] = out["splits"].join(history, on="user_id")
    if "intents" in out:
        out["intents"] = out["intents"].assign(own_text=_own_text(out["intents"], items, frames.get("captions")))
    if "quality" in out:
        joined = _beside(out["quality"], frames["intents"], ["descriptors"])
        out["quality"] = joined.assign(descriptors=joined["descriptors"].map(_as_list))
    return out


def _row(name: str, frame: pd.DataFrame) -> pd.Series:
    if name == "interactions":
        return frame["user_id"].astype(str) + "#" + frame["position"].astype(str)
    return frame["user_id" if name == "splits" else "item_id"]


def _count_rows(items: pd.DataFrame, tables: Frames) -> pd.DataFrame:
    counts = {
        f"{name}_rows": items["item_id"].map(frame["item_id"].value_counts()).fillna(0).astype(int)
        for name, frame in tables.items()
        if name not in ("interactions", "splits")
    }
    return items.assign(**counts)


def _beside(frame: pd.DataFrame, other: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    unique = other.drop_duplicates("item_id").set_index("item_id")[columns]
    return frame.join(unique, on="item_id")


def _own_text(frame: pd.DataFrame, items: pd.DataFrame, captions: pd.DataFrame | None) -> pd.Series:
    """Everything the item says of itself, and its caption: what a grounded descriptor takes its words from."""
    texts = items.set_index("item_id")
    own = texts["title"].map(_as_text)
    for column in ("description", "brand", "categories", "attributes"):
        own = own + " " + texts[column].map(_as_text)
    own = own[~own.index.duplicated()]
    text = frame["item_id"].map(own).fillna("")
    if captions is not None:
        seen = captions.drop_duplicates("item_id").set_index("item_id")["caption"]
        text = text + " " + frame["item_id"].map(seen).map(_as_text)
    return text


def _as_list(value: Any) -> Any:
    """A list cell, empty where a join or a null left none."""
    return value if isinstance(value, np.ndarray | list) else []


def _as_text(value: Any) -> str:
    """A text or list cell as text; a null or a list's null is empty, for the schema's own checks to name."""
    if isinstance(value, np.ndarray | list):
        return " ".join(filter(None, map(_as_text, value)))
    return value if isinstance(value, str) else ""
