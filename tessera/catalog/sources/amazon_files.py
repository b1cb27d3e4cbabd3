"""Which files of a folder are Amazon reviews and metadata, of which year, and how their lines are read."""

import ast
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import json as arrow_json
from tqdm import tqdm

from tessera.errors import InputError

_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_BLOCK = 64 << 20  # a line must fit into one block


@dataclass(frozen=True)
class Files:
    """One category's pair of files."""

    reviews: Path
    meta: Path
    year: int


def detect(folder: Path) -> Files:
    """Find the reviews and the metadata by each file's name and first record.

    Raises:
        InputError: one is missing, there are several, or a file's name and content disagree.
    """
    roles: dict[str, list[tuple[Path, int]]] = {"reviews": [], "meta": []}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(_SUFFIXES) and path.is_file():
            role, year = _classify(path)
            if path.name.startswith("meta_") != (role == "meta"):
                raise InputError(f"{path} is not named like the {role} that it holds; rename it or get the right file.")
            roles[role].append((path, year))
    for role, found in roles.items():
        if len(found) != 1:
            what = f"{len(found)} ({', '.join(path.name for path, _ in found)})" if found else "none"
            raise InputError(
                f"{folder} must hold one reviews and one metadata file of Amazon Reviews ({', '.join(_SUFFIXES)}); "
                f"of {role} it has {what}."
            )
    (reviews, of_reviews), (meta, of_meta) = roles["reviews"][0], roles["meta"][0]
    if (of_reviews == 2023) != (of_meta == 2023):
        raise InputError(f"{reviews.name} and {meta.name} are of different years; take both from one release.")
    return Files(reviews, meta, of_meta)


def _classify(path: Path) -> tuple[str, int]:
    first = next(lines(path), None)
    if first is None:
        raise InputError(f"{path} is empty; download it again.")
    record = parse_line(first, path, 1)
    if "parent_asin" in record:
        return ("reviews" if "user_id" in record else "meta"), 2023
    if "asin" not in record:
        raise InputError(
            f"{path} is not a file of Amazon Reviews: its first line has neither asin nor parent_asin; give the files "
            "as they are published."
        )
    if "reviewerID" in record:
        return "reviews", 2014  # 2014 and 2018 share the form of reviews
    nested = isinstance(record.get("categories"), list)
    return "meta", 2014 if nested or "imUrl" in record or "salesRank" in record else 2018


def lines(path: Path) -> Iterator[str]:
    """The file's lines that are not blank.

    Raises:
        InputError: the file cannot be read to its end.
    """
    opened = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            yield from (line for line in file if not line.isspace())
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read to its end ({error}); download it again.") from None


def parse_line(line: str, path: Path, number: int) -> dict[str, Any]:
    """One line as a record; Python literals, which 2014's files hold, are read without running anything."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        try:
            record = ast.literal_eval(line)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            record = None
    if not isinstance(record, dict):
        raise InputError(f"line {number} of {path} is neither JSON nor a Python literal; download the file again.")
    return record


def review_columns(files: Files) -> list[pa.ChunkedArray]:
    """User, item and time of every review; JSON is read by Arrow, in parallel, since reviews go into the millions."""
    fields = ("user_id", "parent_asin", "timestamp") if files.year == 2023 else ("reviewerID", "asin", "unixReviewTime")
    schema = pa.schema([(fields[0], pa.string()), (fields[1], pa.string()), (fields[2], pa.int64())])
    first = next(lines(files.reviews))
    if not _is_json(first):
        return _literal_columns(files.reviews, schema)
    parse = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        with pa.input_stream(files.reviews, compression="detect") as stream:
            table = arrow_json.read_json(stream, arrow_json.ReadOptions(block_size=_BLOCK), parse)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{files.reviews} is truncated or not JSON lines ({error}); download it again.") from None
    return [table[name] for name in fields]


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


def _literal_columns(path: Path, schema: pa.Schema) -> list[pa.ChunkedArray]:
    columns: list[list[Any]] = [[] for _ in schema]
    for number, line in enumerate(tqdm(lines(path), desc=path.name, unit=" reviews", disable=None), start=1):
        record = parse_line(line, path, number)
        for column, name in zip(columns, schema.names, strict=True):
            column.append(record.get(name))
    try:
        return [pa.chunked_array([pa.array(c, f.type)]) for c, f in zip(columns, schema, strict=True)]
    except (pa.ArrowException, TypeError) as error:
        raise InputError(f"{path} has a field of another type ({error}); download it again.") from None
