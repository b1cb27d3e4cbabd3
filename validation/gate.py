"""Run a gate: a table's suite as a Great Expectations checkpoint, with its Data Docs, and a clear refusal."""

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

from tessera.errors import GateError, InputError
from validation import frames as framing
from validation.thresholds import THRESHOLDS, Thresholds

# Before the import: Great Expectations reads it once, and a gate must not ask the network for anything.
os.environ["GX_ANALYTICS_ENABLED"] = "false"

import great_expectations as gx
from great_expectations.checkpoint import Checkpoint, UpdateDataDocsAction
from great_expectations.core import ExpectationSuite, ExpectationSuiteValidationResult, ExpectationValidationResult
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.core.validation_definition import ValidationDefinition
from great_expectations.data_context import EphemeralDataContext
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)

from validation.columns import Checks, schema
from validation.pages import VIEW
from validation.suites import TABLES, Suite, build

log = logging.getLogger(__name__)

EXAMPLES = 5
INDEX = Path("site", "index.html")
# All unexpected rows (GX stops at 200), named by the frames' column `row`.
RESULT_FORMAT = {
    "result_format": "COMPLETE",
    "unexpected_index_column_names": ["row"],
    "return_unexpected_index_query": False,
}
# Great Expectations keeps the current context in a global, so gates of one process take turns.
_ONE_AT_A_TIME = threading.Lock()


def run(
    suite: Suite,
    tables: dict[str, Path],
    docs: Path,
    *,
    codebook_size: int | None = None,
    joint: bool = False,
    part: bool = False,
    thresholds: Thresholds = THRESHOLDS,
) -> dict[str, Any]:
    """Hold tables to a suite and write Data Docs.

    Args:
        suite: which gate: catalogue, captions, intents, embeddings or sids.
        tables: parquet file of each table in `TABLES[suite]`.
        docs: folder of the results and of the Data Docs site; gates and runs share it.
        codebook_size: codes of a level; makes the gate of SIDs exact where it would otherwise infer the size.
        joint: one model embedded text and photo together (`enrichment.multimodal`), so image vectors must be null.
        part: the embeddings are some of a catalogue's; of fewer than `shares_from`, what is a share is only reported.

    Returns:
        {success, suite, expectations: [{expectation, table, column, severity, success, observed, unexpected_count,
        examples: [{row, value}]}], data_docs: path of index.html}. Failed warnings are listed there and logged.

    Raises:
        InputError: a table is not given, missing or unreadable.
        GateError: a check of severity "critical" failed.
    """
    missing = [name for name in TABLES[suite] if name not in tables]
    if missing:
        raise InputError(f"the {suite} gate needs the table {', '.join(missing)}; give its parquet file.")
    data = {name: framing.read(name, Path(tables[name])) for name in TABLES[suite]}
    broken = framing.broken(data)
    if broken:
        checks = {name: schema(name)[:1] for name in broken}
    else:
        few = part and len(data["embeddings"]) < thresholds.shares_from
        checks = build(suite, thresholds, codebook_size, joint=joint, few=few)
        data = framing.prepare(data)
    docs = Path(docs).resolve()
    with _alone(docs):
        results, pages = _checkpoint(suite, checks, data, docs)
    outcomes = [_outcome(table, result) for table, validation in results.items() for result in validation.results]
    failed = [outcome for outcome in outcomes if not outcome["success"]]
    critical = [outcome for outcome in failed if outcome["severity"] == "critical"]
    if critical:
        raise GateError(_refusal(suite, critical, len(outcomes), pages))
    for outcome in failed:
        log.warning("%s gate, not blocking: %s", suite, _line(outcome))
    return {"success": True, "suite": suite, "expectations": outcomes, "data_docs": str(docs / INDEX)}


def _checkpoint(
    suite: str, checks: dict[str, Checks], data: framing.Frames, docs: Path
) -> tuple[dict[str, ExpectationSuiteValidationResult], dict[str, Path]]:
    """Validate one batch a table, then bring the Data Docs up to date; results and their pages come back by table."""
    context = _context(docs)
    source = context.data_sources.add_pandas("tessera")
    definitions = []
    for table, expectations in checks.items():
        name = suite if table == suite else f"{suite}_{table}"
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
        # The file of an earlier run is removed rather than read: a crash may have left half of it.
        (docs / "expectations" / f"{name}.json").unlink(missing_ok=True)
        expected = context.suites.add(ExpectationSuite(name=name, expectations=expectations))
        definition = ValidationDefinition(name=name, data=batch, suite=expected)
        definitions.append(context.validation_definitions.add(definition))
    results, pages = {}, {}
    this_run = RunIdentifier(run_name=suite, run_time=datetime.now(timezone.utc))
    for table, definition in zip(checks, definitions, strict=True):
        checkpoint = context.checkpoints.add(
            Checkpoint(
                name=definition.name, validation_definitions=[definition],
                actions=[UpdateDataDocsAction(name="data_docs")],
                result_format=RESULT_FORMAT,
            )
        )
        outcome = checkpoint.run(batch_parameters={"dataframe": data[table]}, run_id=this_run)
        [(key, results[table])] = outcome.run_results.items()
        pages[table] = docs.joinpath("site", "validations", *key.to_tuple()).with_suffix(".html")
    return results, pages


def _context(docs: Path) -> EphemeralDataContext:
    """A context whose suites, results and site are files in `docs`, and whose wiring lives in memory."""
    defaults = InMemoryStoreBackendDefaults()
    for store in (defaults.expectations_store_name, defaults.validation_results_store_name):
        folder = "expectations" if store == defaults.expectations_store_name else "results"
        defaults.stores[store]["store_backend"] = _files(docs / folder) | {"filepath_suffix": ".json"}
    defaults.data_docs_sites = {
        "tessera": {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": _files(docs / "site"),
            "site_index_builder": {
                "class_name": "DefaultSiteIndexBuilder", "validation_results_limit": 200, "view": dict(VIEW),
            },
            "site_section_builders": {name: {"view": dict(VIEW)} for name in ("expectations", "validations")},
        }
    }
    config = DataContextConfig(
        store_backend_defaults=defaults,
        analytics_enabled=False,
        data_context_id=UUID(int=0),  # pages carry it: one that identifies nobody
        progress_bars=ProgressBarsConfig(globally=False),
    )
    return gx.get_context(project_config=config, mode="ephemeral")


def _files(folder: Path) -> dict[str, str]:
    return {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)}


@contextmanager
def _alone(docs: Path) -> Iterator[None]:
    """Hold the folder's lock, so that gates of several processes do not rewrite one index page at once."""
    docs.mkdir(parents=True, exist_ok=True)
    with _ONE_AT_A_TIME, (docs / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _outcome(table: str, result: ExpectationValidationResult) -> dict[str, Any]:
    config = result.expectation_config
    assert config is not None
    found = result.result or {}
    kwargs = config.kwargs
    column = kwargs.get("column") or kwargs.get("column_A") or kwargs.get("column_list") or kwargs.get("column_set")
    return {
        "expectation": config.type,
        "table": table,
        "column": ", ".join(column) if isinstance(column, list) else column,
        "severity": str(getattr(config.severity, "value", config.severity)),
        "success": bool(result.success),
        "observed": _error(result) or _observed(found),
        "unexpected_count": int(found.get("unexpected_count") or 0),
        "examples": _examples(found),
    }


def _error(result: ExpectationValidationResult) -> str:
    info = result.exception_info or {}
    for part in (info, *(value for value in info.values() if isinstance(value, dict))):
        if part.get("raised_exception"):
            return f"could not be checked: {str(part.get('exception_message')).splitlines()[0]}"
    return ""


def _observed(found: dict[str, Any]) -> str:
    mismatched = (found.get("details") or {}).get("mismatched") or {}
    if mismatched.get("missing"):
        return f"missing: {', '.join(mismatched['missing'])}"
    if found.get("observed_value") is not None:
        return str(found["observed_value"])
    if "unexpected_count" not in found:
        return ""
    share = found.get("unexpected_percent") or 0
    return f"{found['unexpected_count'] or 0} of {found['element_count']} rows ({share:.1f}%)"


def _examples(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = found.get("unexpected_index_list") or []
    values = found.get("partial_unexpected_list") or []
    pairs = zip(rows[:EXAMPLES], values[:EXAMPLES], strict=False)
    return [{"row": str(row["row"]), "value": _plain(value)} for row, value in pairs]


def _plain(value: Any) -> str:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else [value]
    return " | ".join("null" if part is None else str(part) for part in parts)


def _line(outcome: dict[str, Any]) -> str:
    where = f"{outcome['table']}.{outcome['column']}" if outcome["column"] else outcome["table"]
    shown = "; ".join(f"{example['row']}: {example['value'][:80]}" for example in outcome["examples"])
    return f"{outcome['expectation']} ({where}): {outcome['observed']}" + (f"; rows {shown}" if shown else "")


def _refusal(suite: str, critical: list[dict[str, Any]], total: int, pages: dict[str, Path]) -> str:
    lines = "\n".join(f"- {_line(outcome)}" for outcome in critical)
    failed = [str(page) for table, page in pages.items() if any(outcome["table"] == table for outcome in critical)]
    return (
        f"the {suite} gate refused the data, {len(critical)} of {total} checks failed:\n{lines}\n"
        f"See the Data Docs, {' and '.join(failed)}; correct these rows and run again, or change a threshold in "
        "validation/thresholds.py."
    )
