"""Bad input on the command line: one clear sentence, exit code 2, no traceback, and nothing of before is lost."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from tessera.files import sha256_file


@dataclass(frozen=True)
class Refusal:
    """How a command ended."""

    code: Any
    out: str
    err: str


Refused = Callable[..., Refusal]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Run a command that must fail in an empty working directory, and hold it to what every failure has in common."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TESSERA_HOME", raising=False)

    def run(*arguments: str) -> Refusal:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        told = capsys.readouterr()
        assert ended.value.code == 2
        assert "Traceback" not in told.out + told.err
        assert told.err.startswith("tessera: ")
        assert told.err.count("\n") == 1  # one sentence on one line
        assert "\x1b" not in told.err
        return Refusal(ended.value.code, told.out, told.err)

    return run


def snapshot(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, links followed."""
    return {
        str(Path(root, name).relative_to(folder)): sha256_file(Path(root, name))
        for root, _, names in os.walk(folder)
        for name in names
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "training", "--source=parquet", "--path=nowhere", "--out=run"], "nowhere is not a folder; --path"),
        (["run", "training", "--path=.", "--out=run"], "but the source is the shop, which reads no folder"),
        (["run", "tokenization", "--path=.", "--out=run"], "name the source, --source parquet or --source amazon"),
        (["demo", "--path=.", "--out=run"], "name the source, --source parquet or --source amazon"),
        (["bench", "quality", "--path=."], "name the source, --source parquet or --source amazon"),
        (["submit", "training", "--endpoint=http://127.0.0.1:9", "--path=/data"], "--path /data is given, but"),
        (["compile", "trainjob", "-o", "job.yaml", "--path=/data"], "--path /data is given, but"),
        (["run", "training", "--enrichment.batch-size=0", "--out=run"], "batch_size is 0; it must be at least 1"),
        (["run", "tokenization", "--enrichment.batch-size=-1", "--out=run"], "enrichment.batch_size is -1; it must be"),
        (["run", "promotion", "--evaluation.batch-size=0", "--out=run"], "evaluation.batch_size is 0; it must be"),
        (["submit", "training", "--endpoint=http://127.0.0.1:9", "--policy.epochs=0"], "policy.epochs is 0; it must"),
        (["submit", "precompute", "--endpoint=http://127.0.0.1:9", "--cluster.shards=0"], "cluster.shards is 0; it"),
        (["compile", "trainjob", "-o", "job.yaml", "--policy.validate-every=0"], "policy.validate_every is 0; it must"),
        (["bench", "quality", "--grpo.group=1"], "grpo.group is 1; it must be at least 2"),
        (["run", "training", "--preset=huge", "--out=run"], "preset 'huge'; choose demo, catalogue or paper"),
        (["run", "training", "--preset", "huge", "--out=run"], "there is no preset 'huge'"),
        (["compile", "training", "-o", "pipeline.txt"], "pipeline.txt must end in .yaml"),
        (["versions"], "there is no platform under .tessera/ yet; run a pipeline first, or name one with --home"),
        (["rollback"], "there is no platform under .tessera/ yet"),
        (["lookup", "item", "a", "--home=missing"], "missing is not a folder; name a platform's home"),
        (["serve", "--home=."], "nothing is promoted in"),
        (["recommend"], "give --user ID, or --history ID once for each purchase"),
        (["recommend", "--history=a", "--timeout=0"], "timeout is 0"),
        (["precompute", "--home=."], "nothing is promoted in"),
        (["recommend", "--user=u", "--url=127.0.0.1:9"], "127.0.0.1:9"),
        (["recommend", "--history=a", "--history=b", "--url=127.0.0.1:9", "--protocol=http"], "127.0.0.1:9"),
        (["recommend", "--history=a", "--k=0", "--url=127.0.0.1:9"], "k is 0"),
        (["recommend", "--history=", "--url=127.0.0.1:9"], "history holds ''"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_that_cannot_start(refused: Refused, tmp_path: Path, arguments: list[str], says: str) -> None:
    assert says in refused(*arguments).err
    assert snapshot(tmp_path) == {}


def test_several_platforms_ask_for_a_choice(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("beauty", "shop"):
        (tmp_path / ".tessera" / name).mkdir(parents=True)
    said = refused("versions").err
    assert "there are several platforms here" in said
    assert "beauty" in said
    assert "choose one with --home" in said
    monkeypatch.setenv("TESSERA_HOME", "elsewhere")
    assert "elsewhere is not a folder" in refused("promote").err


def items(**columns: Any) -> pa.Table:
    return pa.table({"item_id": ["a", "b", "c"], "title": ["Red ball", "Blue ball", "Lamp"]} | columns)


def write(table: pa.Table) -> Callable[[Path], object]:
    return lambda folder: pq.write_table(table, folder / "items.parquet")


def bought(*ids: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        pq.write_table(items(), folder / "items.parquet")
        pq.write_table(pa.table({"user_id": ["u"], "item_ids": [list(ids)]}), folder / "sequences.parquet")

    return make


@pytest.mark.integration
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _: None, "items.parquet does not exist"),
        (lambda folder: (folder / "items.parquet").write_bytes(b"PAR1 no more"), "is not a readable parquet file"),
        (write(items().drop_columns("title")), "has no column 'title' (it has item_id); rename or add it."),
        (write(items(item_id=["a", "b", "a"])), "rows with the same item_id and different content (a)"),
        (write(items(title=["Red ball", " \t ", "Lamp"])), "the title of item b is only white space"),
        (bought("a", "b", "zebra"), "zebra"),
    ],
    ids=["missing", "unreadable", "column", "duplicate", "white space", "unknown item"],
)
def test_a_source_that_cannot_be_read(
    refused: Refused, tmp_path: Path, make: Callable[[Path], object], says: str
) -> None:
    """Into the folder and the home of an earlier run."""
    source, out, home = (tmp_path / name for name in ("source", "run", "home"))
    for folder in (source, out, home):
        folder.mkdir()
    make(source)
    for name in ("metrics.json", "settings.json", "report.html"):
        (out / name).write_text("from before", encoding="utf-8")
    (home / "mlflow.db").write_text("from before", encoding="utf-8")
    before = {name: snapshot(folder) for name, folder in (("home", home), ("out", out), ("source", source))}
    said = refused("run", "tokenization", "--source=parquet", f"--path={source}", "--catalogue.k-core=0",
                   f"--out={out}", f"--platform.home={home}")  # fmt: skip
    assert said.err.startswith("tessera: step 'ingest' failed: ")
    assert says in said.err
    assert f"The whole log is {out / 'run.log'}." in said.err
    assert snapshot(home) == before["home"]
    assert snapshot(source) == before["source"]
    now = snapshot(out)
    assert {name: now[name] for name in before["out"]} == before["out"]


@pytest.mark.e2e
@pytest.mark.integration
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lookup", "item", "no-such-item"], "item 'no-such-item' is not in the published catalogue"),
        (["lookup", "sid", "99_99_99"], "no published item has the semantic ID 99_99_99"),
        (["lookup", "sid", "ball"], "'ball' is not a semantic ID; write its codes joined by '_'"),
        (["lookup", "user", "nobody"], "user 'nobody' has no published history"),
        (["promote", "7"], "sid-policy has no version '7'"),
        (["promote", "queen"], "sid-policy has no alias 'queen'"),
        (["rollback"], "previous"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_platform_is_asked_for_what_it_has_not(
    calm: Any, refused: Refused, arguments: list[str], says: str
) -> None:
    watched = ("mlflow.db", "feast/published.json", "feast/online.db", "catalogue.db")
    before = {name: sha256_file(calm.home / name) for name in watched}
    releases = snapshot(calm.home / "triton" / "models")
    assert says in refused(*arguments, f"--home={calm.home}").err
    assert {name: sha256_file(calm.home / name) for name in watched} == before
    assert snapshot(calm.home / "triton" / "models") == releases


@pytest.mark.e2e
@pytest.mark.integration
@pytest.mark.timeout(900)
def test_servers_do_not_start_on_a_busy_port(calm: Any, refused: Refused) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        said = refused("serve", f"--home={calm.home}", f"--platform.features-port={port}").err
    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert "choose another --platform.features-port" in said
