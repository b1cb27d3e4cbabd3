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
_LATEST = 10**15  # as milliseconds, the year 33658
MOST_UNREADABLE = 0.01
"""Share of a file's lines that may be no records; a file with more is another file, or damaged."""


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
    record = parse_line(first)
    if record is None:
        raise InputError(f"line 1 of {path} is neither JSON nor a Python literal; download the file again.")
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


class Records:
    """The records of a file's lines; a line that is none is counted, not fatal, as long as it is an exception.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unreadable = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each line's record.

        Raises:
            InputError: more than one line of a hundred is no record, so this is no such file, or it was damaged.
        """
        number, first = 0, ""
        for number, line in enumerate(tqdm(lines(self.path), desc=self.path.name, unit=" lines", disable=None), 1):
            record = parse_line(line)
            if record is None:
                self.unreadable += 1
                first = first or f"line {number} of {self.path}"
            else:
                yield record
        if self.unreadable > MOST_UNREADABLE * number:
            others = f", and so are {self.unreadable - 1} others" if self.unreadable > 1 else ""
            raise InputError(f"{first} is neither JSON nor a Python literal{others}; download the file again.")


def parse_line(line: str) -> dict[str, Any] | None:
    """One line as a record, None if it is none; Python literals, which 2014's files hold, are read and not run."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or nesting without end
        try:
            record = ast.literal_eval(line)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            record = None
    return record if isinstance(record, dict) else None


def review_columns(files: Files) -> tuple[list[pa.ChunkedArray], int]:
    """User, item and time of every review, null where a review has none that is usable; and lines that are no review.

    JSON is read by Arrow, in parallel, since reviews go into the millions; what Arrow does not take is read line by
    line.
    """
    fields = ("user_id", "parent_asin", "timestamp") if files.year == 2023 else ("reviewerID", "asin", "unixReviewTime")
    schema = pa.schema([(fields[0], pa.string()), (fields[1], pa.string()), (fields[2], pa.int64())])
    parse = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        with pa.input_stream(files.reviews, compression="detect") as stream:
            table = arrow_json.read_json(stream, arrow_json.ReadOptions(block_size=_BLOCK), parse)
        return [table[name] for name in fields], 0
    except (pa.ArrowException, OSError):
        return _columns(Records(files.reviews), schema)


def _columns(records: Records, schema: pa.Schema) -> tuple[list[pa.ChunkedArray], int]:
    user, item, time = schema.names
    columns: list[list[Any]] = [[], [], []]
    for record in records:
        columns[0].append(_id(record.get(user)))
        columns[1].append(_id(record.get(item)))
        columns[2].append(_time(record.get(time)))
    arrays = [pa.chunked_array([pa.array(c, f.type)]) for c, f in zip(columns, schema, strict=True)]
    return arrays, records.unreadable


def _id(value: Any) -> str | None:
    """A text that can be stored; lone surrogates cannot."""
    return value if isinstance(value, str) and value.isprintable() else None


def _time(value: Any) -> int | None:
    """Whole seconds or milliseconds that a time can have."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LATEST:
        return None
    return int(value)
