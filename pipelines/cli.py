"""The `tessera` command."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pipelines.console import plain
from pipelines.settings import ClusterSettings
from tessera.config import PlatformSettings, PresetName, Settings, preset
from tessera.errors import InputError, TesseraError
from tessera.files import check_folder
from tessera.processes import ending_in_order
from tessera.proxies import spare_loopback
from tessera.secrets import hidden, refuse
from tessera.troubles import leave_quietly, sentence

Out = Annotated[Path, tyro.conf.arg(help="Folder of the run.")]
Home = Annotated[
    Path | None,
    tyro.conf.arg(help="Folder of the platform; else TESSERA_HOME, else the only one under .tessera/."),
]
Flat = tyro.conf.arg(name="")
Pipeline = Literal["training", "tokenization", "refresh", "promotion", "precompute"]
Table = Literal["main", "ablations", "tasks", "hybrid", "branches", "words", "rewards", "labels"]
Parameters = Annotated[
    dict[str, str], tyro.conf.arg(help="Parameters that no setting gives, by name: --parameters version 3 why better.")
]
NOTHING: dict[str, str] = {}
PLATFORM = PlatformSettings()
CLUSTER = ClusterSettings()


def run(
    pipeline: Annotated[Pipeline, tyro.conf.Positional],
    out: Out,
    settings: Annotated[Settings, Flat],
    parameters: Parameters = NOTHING,
    preset: PresetName | None = None,  # noqa: ARG001 - read from the command line before the rest, to set the defaults
) -> None:
    """Run a pipeline on this machine. Start the same command again after a failure: finished steps are not repeated.

    `training` goes from the source to a promoted policy; `tokenization` stops at the gated SIDs and needs no purchases.
    `refresh` brings new and changed items into what the champion serves. `promotion` measures the challenger and the
    champion on the newest purchases and promotes the better one. `precompute` decodes all users ahead.

    Args:
        pipeline: what to run.
        preset: where the defaults come from: `demo` for the shop, else `catalogue`; `paper` has the papers' sizes.
    """
    from pipelines import runs

    runs.run(pipeline, settings, out.resolve(), parameters)


def compile_(
    pipeline: Annotated[Pipeline | Literal["all", "trainjob"], tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o", "--out"])],
    settings: Annotated[Settings, Flat],
    cluster: ClusterSettings = CLUSTER,
    preset: PresetName | None = None,  # noqa: ARG001 - as in run
) -> None:
    """Compile a pipeline for Kubeflow, or all of them, or training on several workers as a TrainJob.

    Args:
        output: YAML file to write; of `all` a folder, which gets each pipeline as NAME.yaml and, as the Kubernetes
            resources Pipeline and PipelineVersion, as kubernetes/NAME.yaml.
        pipeline: what to compile.
        settings: written into the TrainJob; pipelines get theirs when they are started.
        preset: as for `run`.
    """
    from pipelines import compilation, trainjob

    if pipeline == "all":
        written = compilation.compile_all(output, cluster)
        plain("\n".join(map(str, written)))
    elif pipeline == "trainjob":
        trainjob.write(settings, cluster, output)
        plain(f"{output} written; apply it with kubectl.")
    else:
        compilation.compile_one(pipeline, output, cluster)
        plain(f"{output} written; upload it to Kubeflow Pipelines.")


def submit(
    pipeline: Annotated[Pipeline, tyro.conf.Positional],
    endpoint: str,
    settings: Annotated[Settings, Flat],
    parameters: Parameters = NOTHING,
    cron: str = "",
    cluster: ClusterSettings = CLUSTER,
    preset: PresetName | None = None,  # noqa: ARG001 - as in run
) -> None:
    """Run a pipeline on a Kubeflow Pipelines endpoint, once or on a schedule.

    The token for the endpoint is read from TESSERA_KFP_TOKEN; within a cluster the pod's service account is enough.

    Args:
        pipeline: what to run.
        endpoint: URL of Kubeflow Pipelines.
        settings: as for `run`; the source's path is one on the cluster's shared volume.
        cron: run on this schedule, five fields in UTC; one that was submitted for this pipeline before is replaced.
        preset: as for `run`.
    """
    from pipelines import submission

    plain(submission.submit(pipeline, settings, cluster, endpoint, parameters, cron))


def promote(
    version: Annotated[str, tyro.conf.Positional] = "challenger",
    home: Home = None,
    platform: PlatformSettings = PLATFORM,
    who: str = "",
    why: str = "",
) -> None:
    """Make a registered policy the champion: features, served policy and alias move together or not at all.

    With --platform.replicas it goes from one Triton to the next, each watched, and back where it fails or is slow.

    Args:
        version: version number or alias.
        who: name for the version's journal; else the user's.
        why: reason for the journal.
    """
    from components.promote import promotion

    _moved(promotion.promote(_home(home or platform.home), platform, version, who=who, why=why))


def rollback(home: Home = None, platform: PlatformSettings = PLATFORM, who: str = "", why: str = "") -> None:
    """Make the previous champion the champion again, with its tokenizer and features; or end a running promotion.

    Args:
        who: name for the version's journal; else the user's.
        why: reason for the journal.
    """
    from components.promote import promotion

    _moved(promotion.rollback(_home(home or platform.home), platform, who=who, why=why))


def versions(
    home: Home = None,
    mlflow_url: Annotated[str, tyro.conf.arg(aliases=["--platform.mlflow-url"])] = "",
) -> None:
    """List the registered tokenizers and policies, and who made which of them the champion, when and why.

    A promotion, rollback or refresh that died half way is finished or undone first; one that is under way is named.

    Args:
        mlflow_url: MLflow tracking and registry URI; else MLFLOW_TRACKING_URI, else the embedded one.
    """
    from components.promote import moves
    from serving import journal
    from serving.registry import Registry

    folder = _home(home)
    if unfinished := moves.glance(folder, mlflow_url):
        sys.stderr.write(f"tessera: {unfinished}\n")
    found = Registry(folder, mlflow_url).versions()
    if not found:
        raise InputError("nothing is registered yet; `tessera run training` registers a tokenizer and a policy.")
    plain(f"{'model':<14}{'version':<9}{'bundle':<14}{'tokenizer':<14}{'test NDCG@10':<14}aliases")
    for one in found:
        score = one.metrics.get("test.ndcg@10")
        shown = f"{score:.4f}" if score is not None else ""
        plain(
            f"{one.model:<14}{one.version:<9}{one.bundle_version:<14}{one.tokenizer_version:<14}{shown:<14}"
            f"{', '.join(one.aliases)}"
        )
    for one, entry in journal.history(found):
        said = ": ".join(filter(None, (entry.who, entry.why)))
        detail = f" ({entry.detail})" if entry.detail else ""
        plain(f"{entry.when}  version {one.version} {entry.outcome} by {said}{detail}")


def lookup(
    kind: Annotated[Literal["item", "sid", "user"], tyro.conf.Positional],
    key: Annotated[str, tyro.conf.Positional],
    home: Home = None,
) -> None:
    """Look up an item's enrichment and SID, the items of a SID, or a user's history in the feature store.

    Args:
        kind: what to look up.
        key: item id, SID as a_b_c, or user id.
    """
    import json

    from feature_repo import lookup as features

    found = getattr(features, kind)(_home(home), key)
    plain(json.dumps(asdict(found), indent=2, ensure_ascii=False, default=str))


def serve(home: Home = None, platform: PlatformSettings = PLATFORM) -> None:
    """Serve the champion with Triton, and its features with Feast's feature server, until interrupted."""
    from pipelines.serve import serve as start

    start(_home(home or platform.home), platform)


def precompute(
    home: Home = None,
    platform: PlatformSettings = PLATFORM,
    everyone: Annotated[bool, tyro.conf.arg(name="all")] = False,
    k: int = 20,
    batch_size: int = 64,
    chunk: int = 4096,
) -> None:
    """Decode every user ahead with the champion and publish the lists to the feature store, for clients' fallback.

    Only users whose list is missing or stale are decoded, so the same command goes on where one was ended, and brings
    the lists up to date later.

    Args:
        everyone: decode also users whose list is up to date.
        k: items a list.
        batch_size: users decoded together.
        chunk: users published together; what an ended command loses at most.
    """
    from components.precompute.precomputing import precompute as start

    done = start(_home(home or platform.home), platform, everyone=everyone, k=k, batch_size=batch_size, chunk=chunk)
    plain(
        f"{done['decoded']} of {done['users']} users decoded with policy {done['policy_version']}, "
        f"{done['fresh']} lists were up to date, {done['unknown']} users have bought nothing it knows; "
        f"{done['seconds']:.0f} s."
    )


def recommend(
    user: str = "",
    history: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    k: int = 10,
    diversity: float = 0.0,
    url: str = "127.0.0.1:8001",
    protocol: Literal["grpc", "http"] = "grpc",
    features_url: str = "127.0.0.1:6566",
    timeout: float = 5.0,
) -> None:
    """Ask a running server (`tessera serve`) for recommendations; a user's cached list answers where it fails.

    Args:
        user: user id, whose history and cached list the feature store has.
        history: item id, once for each purchase in order: `--history a --history b`; instead of the user's own.
        k: how many items.
        diversity: 0 for the likeliest items, up to 1 for more sorts of items at fewer hits.
        url: host:port of Triton.
        protocol: how to ask.
        features_url: host:port of the feature server.
        timeout: seconds to wait.
    """
    from tessera_rec_client import Recommender

    if not user and not history:
        raise InputError("give --user ID, or --history ID once for each purchase.")
    with Recommender(url, protocol, timeout, features_url) as client:
        answer = client.recommend(history or None, user=user or None, k=k, diversity=diversity)
    cached = ""
    if answer.source == "cache":
        age = "" if answer.age_s is None else f", computed {_ago(answer.age_s)} ago"
        cached = f"; from the cache, because the server failed{age}{', out of date' if answer.stale else ''}"
    plain(f"policy {answer.policy_version}, tokenizer {answer.tokenizer_version}{cached}")
    for place, item in enumerate(answer.items, 1):
        plain(f"{place:>3}  {item.item_id:<24} {item.sid:<14} {item.score:8.3f}")


def demo(
    out: Out,
    settings: Annotated[Settings, Flat],
    users: int = 5,
    preset: PresetName | None = None,  # noqa: ARG001 - as in run
) -> None:
    """The whole chain on the demo shop: train, promote, start Triton, and print a few users' recommendations.

    Args:
        users: how many users to answer.
        preset: as for `run`.
    """
    from pipelines.demo import demo as start

    start(settings, out.resolve(), users)


def bench(
    what: Annotated[Literal["quality"], tyro.conf.Positional],  # noqa: ARG001 - the only bench that is a command
    settings: Annotated[Settings, Flat],
    budget: Literal["smoke", "small", "full"] = "small",
    seeds: int = 3,
    tables: tuple[Table, ...] = (),
    systems: tuple[str, ...] = (),
    out: Path | None = None,
    work: Path = Path("runs/bench-quality"),
    preset: PresetName | None = None,  # noqa: ARG001 - as in run
) -> None:
    """Measure the papers' systems, their ablations and their peers on one split, and write tables and figures.

    Every system and seed is a cell that is stored as soon as it is measured: an interrupted bench goes on where it
    was, and more seeds or systems are added by asking for them.

    Args:
        what: what to measure.
        budget: what a cell may cost: `smoke` seconds, `small` ten minutes on two cores, `full` as the settings say.
        seeds: seeds 0, 1, ... of every system.
        tables: measure the systems of these tables only.
        systems: measure these systems only.
        out: folder of cells, tables and figures; else benchmarks/results/quality-CATALOGUE-BUDGET.
        work: folder of what is computed on the way.
        preset: as for `run`.
    """
    try:
        from benchmarks.quality import bench as quality
    except ImportError as missing:
        raise InputError(
            f"the bench needs {missing.name}; install tessera-rec with its extras enrich, train and pipelines."
        ) from None

    catalogue = settings.path.name if settings.path else settings.source
    command = f"tessera bench quality {_flags(settings)} --budget {budget} --seeds {seeds}"
    chosen = [*quality.names_of(tables), *systems]
    folder = out or Path("benchmarks/results") / f"quality-{catalogue}-{budget}"
    report = quality.run(settings, budget, seeds, chosen, folder, work / catalogue, command)
    plain(report.read_text(encoding="utf-8"))
    plain(f"{report} and the figures beside it are written.")


def _flags(settings: Settings) -> str:
    """The flags that give these settings; of the source's folder its name, and no URL, which may hold a secret."""
    start = _defaults(["--source", settings.source])
    named = replace(settings, path=Path(settings.path.name)) if settings.path else settings
    before, now = _flat(asdict(start)), _flat(asdict(named))
    told = [f"--source {settings.source}"]
    for name, value in now.items():
        if value != before[name] and name != "source" and not name.startswith("platform.") and not name.endswith("url"):
            section, _, last = name.replace("_", "-").rpartition(".")
            flag = f"{section}.{'no-' if value is False else ''}{last}".lstrip(".")
            told.append(f"--{flag}" if isinstance(value, bool) else f"--{flag} {value}")
    return " ".join(told)


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {above + name: value}
    return found


def _home(given: Path | None) -> Path:
    if given is not None or (named := os.environ.get("TESSERA_HOME")):
        home = given if given is not None else Path(str(named))
        if not home.is_dir():
            raise InputError(f"{home} is not a folder; name a platform's home, or run a pipeline first.")
        return check_folder(home.resolve())
    found = sorted(p for p in Path(".tessera").glob("*") if p.is_dir())
    if len(found) == 1:
        return check_folder(found[0].resolve())
    if found:
        raise InputError(f"there are several platforms here ({', '.join(map(str, found))}); choose one with --home.")
    raise InputError("there is no platform under .tessera/ yet; run a pipeline first, or name one with --home.")


def _ago(seconds: float) -> str:
    """A time span in the largest unit of which it holds two."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _moved(result: dict[str, Any]) -> None:
    if "canary_ended" in result:
        plain(f"version {result['canary_ended']} is no longer rolled out; champion stays version {result['champion']}.")
        return
    plain(
        f"champion is version {result['champion']} (policy {result['policy_version']}); "
        f"served as release {result['release']}."
    )


COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "compile": compile_,
    "submit": submit,
    "demo": demo,
    "promote": promote,
    "rollback": rollback,
    "versions": versions,
    "lookup": lookup,
    "serve": serve,
    "recommend": recommend,
    "precompute": precompute,
    "bench": bench,
}


def _defaults(arguments: list[str]) -> Settings:
    """Settings that the flags start from: the named preset, else the one that suits the source."""

    def value(flag: str) -> str | None:
        for number, one in enumerate(arguments):
            if one == flag and number + 1 < len(arguments):
                return arguments[number + 1]
            if one.startswith(f"{flag}="):
                return one.split("=", 1)[1]
        return None

    name = value("--preset") or ("demo" if value("--source") in (None, "shop") else "catalogue")
    if name not in ("demo", "catalogue", "paper"):
        raise InputError(f"there is no preset '{name}'; choose demo, catalogue or paper.")
    return preset(name)  # type: ignore[arg-type]


def _refuse_secrets(arguments: list[str]) -> None:
    """Before anything reads the command line: what reads it may repeat it in a message."""
    flag = ""
    for one in arguments:
        name, separator, value = one.partition("=")
        if one.startswith("--"):
            flag = name.strip("-")
        refuse(flag, value if one.startswith("--") and separator else one)


def _client_errors() -> tuple[type[Exception], ...]:
    """The thin client's errors, once a command has imported it."""
    client = sys.modules.get("tessera_rec_client")
    return (client.TesseraClientError,) if client else ()


def main(arguments: list[str] | None = None) -> None:
    """Entry point; an expected failure and a trouble of the machine print one sentence and exit with 2."""
    given = sys.argv[1:] if arguments is None else arguments
    spare_loopback()
    try:
        _refuse_secrets(given)
        settings = _defaults(given)
        commands = {**COMMANDS, "run": partial(run, settings=settings), "demo": partial(demo, settings=settings)}
        commands |= {name: partial(COMMANDS[name], settings=settings) for name in ("compile", "submit", "bench")}
        with ending_in_order():
            tyro.extras.subcommand_cli_from_dict(
                commands,
                prog="tessera",
                description="Catalogue and purchase histories to a served generative recommender.",
                args=given,
            )
            sys.stdout.flush()  # a reader that has gone is noticed here, not at the interpreter's end
    except BrokenPipeError:
        raise SystemExit(leave_quietly()) from None
    except (TesseraError, *_client_errors()) as error:
        sys.stderr.write(f"tessera: {hidden(str(error))}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("tessera: interrupted; the same command goes on from here.\n")
        raise SystemExit(130) from None
    except Exception as error:
        told = sentence(error)
        if told is None:
            raise
        sys.stderr.write(f"tessera: {hidden(told)}\n")
        raise SystemExit(2) from None
