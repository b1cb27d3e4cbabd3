"""Running a pipeline on this machine through kfp.local: the same components, each step a subprocess."""

import builtins
import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.report.metrics import ENRICHMENTS
from pipelines.console import Console, plain
from tessera import processes
from tessera.config import Settings, check, relation, save_settings, to_json
from tessera.errors import InputError, TesseraError
from tessera.files import check_folder, read_json, replacing, sha256_of, write_json

SOURCE = "source.json"


def home_of(settings: Settings) -> Path:
    """Folder of the platform: the setting, else TESSERA_HOME, else `.tessera/<catalogue>` in the working directory."""
    if settings.platform.home is not None:
        return check_folder(settings.platform.home.resolve())
    if named := os.environ.get("TESSERA_HOME"):
        return check_folder(Path(named).resolve())
    catalogue = settings.source if settings.path is None else settings.path.resolve().name
    return check_folder((Path(".tessera") / catalogue).resolve())


def claim(settings: Settings, home: Path) -> None:
    """Keep in a home that is named after its catalogue which one it is of, because two folders may share a last name.

    A home that was named is the user's word, and is neither marked nor asked.

    Raises:
        InputError: the home is of another source.
    """
    if settings.platform.home is not None or os.environ.get("TESSERA_HOME"):
        return
    mark = home / SOURCE
    mine = {"source": settings.source, "path": str(settings.path.resolve()) if settings.path else ""}
    owner = read_json(mark) if mark.is_file() else mine
    # What failed before anything was kept has no claim.
    if owner != mine and any(one != mark for one in home.iterdir()):
        raise InputError(
            f"the platform {home} is of the source {_spoken(owner)}, and this run is of {_spoken(mine)}; give this one "
            f"a home of its own with --platform.home FOLDER, or, if its folder was only moved, remove {mark} and run "
            "again."
        )
    write_json(mark, mine)


def _spoken(source: dict[str, str]) -> str:
    return f"{source['source']} {source['path']}".strip()


def arguments(settings: Settings, home: Path, out: Path, digest: str | None = None) -> dict[str, Any]:
    """The pipelines' parameters: to each step the sections of the settings that it uses.

    Args:
        digest: of the source's files; None takes it, "" is for a source that is elsewhere.

    Raises:
        InputError: settings out of range or that exclude each other, or a source that is not there.
    """
    check(settings)
    relation(settings)
    check_folder(out)
    if settings.path is not None:  # steps may run in another folder
        settings = replace(settings, path=settings.path.resolve())

    def only(*names: str, **more: Any) -> str:
        whole = json.loads(to_json(settings))
        return json.dumps({name: whole[name] for name in names} | more, sort_keys=True)

    # A joint embedding shows photos to its model, or does not; two encoders leave that to the tokenizer.
    joint = settings.enrichment.multimodal.provider != "embedded"
    shown = {"tokenizer": {"use_images": settings.tokenizer.use_images}} if joint else {}
    sections = [] if settings.alignment == "none" else [settings.alignment]
    read = {"tokenizer": {name: getattr(settings.tokenizer, name) for name in ("method", "use_images")}}
    return {
        "ingest_settings": only("source", "path", "seed", "catalogue", "shop"),
        "enrichment_settings": only("catalogue", "enrichment", **shown),
        "relate_settings": only("seed", "space", "catalogue", "enrichment", **read),
        "tokenizer_settings": only("seed", "space", "tokenizer"),
        "policy_settings": only("seed", "policy"),
        "align_settings": only("seed", "alignment", *sections),
        "evaluation_settings": only("evaluation", "platform"),
        "platform_settings": to_json(settings),
        "home": str(home),
        "work": str(out / "work"),
        "shards": [],  # one machine gains nothing from asking in parts
        "source_digest": source_digest(settings.path, settings.source) if digest is None else digest,
        "title": out.name,
    }


def source_digest(path: Path | None, source: str = "parquet") -> str:
    """Names, sizes and times of a source's files: enough to see that it changed, cheap for any size."""
    if path is None:
        return ""
    files = source_files(path, source)
    return sha256_of(*(f"{p.relative_to(path)} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files))[:16]


def source_files(path: Path, source: str) -> list[Path]:
    """A source's files, without the photos of an `amazon` source: ingest itself downloads them there.

    Raises:
        InputError: the path is not a folder.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; --path must name the folder that holds the catalogue's files.")
    skipped = path / "images" if source == "amazon" else None
    return sorted(p for p in path.rglob("*") if p.is_file() and (skipped is None or skipped not in p.parents))


def run(
    pipeline: Any, parameters: dict[str, Any], settings: Settings, out: Path, kept_as: str = "settings.json"
) -> dict[str, Any]:
    """Run a pipeline in `out`; steps that an earlier run with the same inputs finished are not repeated.

    Args:
        kept_as: name of the file with the settings; a training's is `settings.json`, and a pipeline that runs in the
            same folder leaves it alone.

    Returns:
        the pipeline's outputs by name, each a path, and under "reused" the steps that were not repeated.

    Raises:
        TesseraError: a step failed, with its sentence and the log to read.
    """
    from kfp import local

    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (
        (out / "run.log").open("a", encoding="utf-8") as log,
        tempfile.TemporaryDirectory(prefix="tessera-") as workspace,
        warnings.catch_warnings(),
        _environment(),
    ):
        warnings.simplefilter("ignore")
        console = Console(log, sys.stdout)
        local.init(
            runner=_runner(parameters, settings, out),
            pipeline_root=str(out / "artifacts"),
            workspace_root=workspace,
            enable_caching=True,
            cache_root=str(out / "cache"),
        )
        try:
            with contextlib.redirect_stdout(console), _runner_log(console):
                task = pipeline(**parameters)
        except RuntimeError:  # the runner's own words name the task again, and nothing else
            where = f"step '{console.failed_step}' failed" if console.failed_step else "the run failed"
            reason = console.failure or _unexpected(console)
            raise TesseraError(f"{where}: {reason} The whole log is {out / 'run.log'}.") from None
    forget_failures(out / "cache")
    outputs = {name: Path(artifact.path) for name, artifact in task.outputs.items()}
    for name, path in outputs.items():
        _link(out / _named(name), path)
    # Last, so that a run that fails leaves the settings of the one whose results are here.
    save_settings(settings, out / kept_as)
    return {**outputs, "reused": console.reused, "seconds": time.monotonic() - started}


def _unexpected(console: Console) -> str:
    if console.uncaught:
        return f"this is a defect of the program or of what it was given: {console.uncaught.rstrip('.')}."
    if console.signal:
        return (
            f"it was ended by a signal ({console.signal}); the system does so for want of memory: choose smaller "
            "batches or a larger machine."
        )
    return "it ended without a traceback and without a signal that the log names; read the end of the log."


def _runner(parameters: dict[str, Any], settings: Settings, out: Path) -> Any:
    from kfp import local

    from pipelines import containers

    if not containers.wanted():
        return local.SubprocessRunner(use_venv=False)
    home = Path(parameters["home"])
    home.mkdir(parents=True, exist_ok=True)
    return containers.runner([home, out, *([settings.path.resolve()] if settings.path else [])])


def forget_failures(cache: Path) -> None:
    """Take back what the cache holds of steps that recorded failed items or photos, so that the next run retries."""
    for entry in cache.glob("*.json"):
        stats = read_json(entry).get("stats")
        said = Path(stats["uri"]) if stats else None
        if said is not None and said.is_file() and _failed(read_json(said)):
            entry.unlink()


def _failed(stats: dict[str, Any]) -> bool:
    failed = stats.get("failed", 0)
    return bool(stats.get("photos_failed") or (any(failed.values()) if isinstance(failed, dict) else failed))


def finish(out: Path, outputs: dict[str, Any]) -> dict[str, Any]:
    """Write `metrics.json` and `report.html` into the run's folder, and say what the run cost.

    A step whose outputs were reused called no model in this run, whatever it did when it ran.
    """
    metrics = read_json(outputs["metrics"])
    reused = outputs["reused"]
    for kind, step in ENRICHMENTS.items():
        if step in reused:
            metrics["model_calls"][kind] = 0
    metrics["reused_steps"] = reused
    metrics["seconds"]["total"] = round(outputs["seconds"], 1)
    write_json(out / "metrics.json", metrics)
    with replacing(out / "report.html") as temporary:
        shutil.copyfile(outputs["report"], temporary)
    _tell(out, metrics)
    return metrics


def _tell(out: Path, metrics: dict[str, Any]) -> None:
    test, validation = metrics, metrics["validation"]
    plain(
        f"\n  test        HR@10 {test['hr@10']:.4f}   NDCG@10 {test['ndcg@10']:.4f}   "
        f"(popularity HR@10 {metrics['popularity_hr@10']:.4f})\n"
        f"  validation  HR@10 {validation['hr@10']:.4f}   NDCG@10 {validation['ndcg@10']:.4f}\n"
        f"  {metrics['promotion']['reason']}"
    )
    calls = sum(metrics["model_calls"].values())
    told = ", ".join(f"{kind} {count}" for kind, count in metrics["model_calls"].items())
    plain(f"  enrichment model calls: {told}" if calls else "  no enrichment model was called: nothing was new.")
    plain(f"  {out / 'report.html'}   {out / 'metrics.json'}   {metrics['seconds']['total']:.0f} s")


def _named(name: str) -> str:
    """Artifacts are stored without an ending; people expect one."""
    folders = dict.fromkeys(("catalogue", "tokenizer", "policy"), "")
    endings = {"report": ".html", "metrics": ".json", "evaluation": ".json", **folders}
    return name + endings.get(name, ".parquet")


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() or link.is_file():
        link.unlink()
    link.symlink_to(os.path.relpath(target, link.parent))


@contextlib.contextmanager
def _runner_log(console: Console) -> Iterator[None]:
    """Let the runner's log reach the console also where the runner sets up no handler: it tells reused steps there."""
    handler = logging.StreamHandler(console)
    handler.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d - %(levelname)s - %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    # Steps that the runner starts in threads each put back what they found, and may find what another one put there.
    level, handlers, printed = root.level, root.handlers[:], builtins.print
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:], builtins.print = handlers, printed
        root.setLevel(level)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Steps are quiet, find this interpreter, and draw their bars seldom where nobody watches."""
    wanted = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "TQDM_MININTERVAL": "0.5" if sys.stdout.isatty() else "15",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
        "PYTHONUNBUFFERED": "1",
        processes.RUNNER: str(os.getpid()),
        # Threads that spin while they wait cost more than they save as soon as another process wants a core.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
