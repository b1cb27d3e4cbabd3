"""What an export leaves in the model repository, and what it leaves alone."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.model_config import MODEL
from serving.model_repository import check_index, export, newest, prune, releases, withdraw
from serving.release import release
from tessera.bundle import load_manifest
from tessera.errors import BundleError, InputError, ServiceError

Pair = tuple[Path, Path]


def test_a_release_is_complete_and_the_newest_serves(policies: Pair, tmp_path: Path) -> None:
    first, second = (load_manifest(folder, "policy").version for folder in policies)
    folder = export(policies[0], tmp_path, feature_server="http://features:6566", threads=2)
    assert folder == tmp_path / MODEL / "1"
    assert load_manifest(folder / "policy", "policy").version == first
    assert "TritonPythonModel" in (folder / "model.py").read_text()
    assert list(folder.glob("__pycache__/model.*.pyc"))  # Triton would take one that comes later for a change
    config = (tmp_path / MODEL / "config.pbtxt").read_text()
    assert 'key: "feature_server" value { string_value: "http://features:6566" }' in config
    assert 'key: "threads" value { string_value: "2" }' in config
    assert export(policies[1], tmp_path) == tmp_path / MODEL / "2"
    assert (newest(tmp_path).number, newest(tmp_path).policy_version) == (2, second)
    export(policies[0], tmp_path)  # rollback: the earlier policy under the next number
    assert releases(tmp_path) == [1, 2, 3]
    assert newest(tmp_path).policy_version == first != second
    assert not [path for path in (tmp_path / MODEL).iterdir() if path.name.startswith(".")]


def test_exporting_the_serving_policy_again_adds_no_release_but_renews_the_configuration(
    policies: Pair, tmp_path: Path
) -> None:
    export(policies[0], tmp_path)
    config = tmp_path / MODEL / "config.pbtxt"
    written = config.stat().st_mtime_ns, config.stat().st_ino
    export(policies[0], tmp_path)
    assert (config.stat().st_mtime_ns, config.stat().st_ino) == written  # a newer file would be loaded again
    assert export(policies[0], tmp_path, feature_server="http://other:1") == tmp_path / MODEL / "1"
    assert releases(tmp_path) == [1]
    assert "http://other:1" in config.read_text()


def test_numbers_sort_as_numbers_and_a_given_one_must_be_the_highest(policies: Pair, tmp_path: Path) -> None:
    export(policies[0], tmp_path, 9)
    export(policies[1], tmp_path, 10)
    assert newest(tmp_path).number == 10
    for taken in (10, 3):
        with pytest.raises(InputError, match=f"release {taken} cannot follow release 10"):
            export(policies[0], tmp_path, taken)
    assert releases(tmp_path) == [9, 10]


def test_a_damaged_bundle_is_refused_and_the_repository_stays_as_it_was(policies: Pair, tmp_path: Path) -> None:
    export(policies[0], tmp_path / "models")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("*")}
    shutil.copytree(policies[1], tmp_path / "bad")
    (tmp_path / "bad" / "sids.parquet").write_bytes(b"PAR1")
    with pytest.raises(BundleError, match=r"sids.parquet does not match"):
        export(tmp_path / "bad", tmp_path / "models")
    manifest = json.loads((tmp_path / "bad" / "manifest.json").read_text())
    (tmp_path / "bad" / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(BundleError, match="schema version 99"):
        export(tmp_path / "bad", tmp_path / "models")
    with pytest.raises(InputError, match="is not a URL"):
        export(policies[1], tmp_path / "models", feature_server='http://x" }')
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("*")} == before


def test_newer_sids_make_another_release_of_the_same_policy(policies: Pair, grown: Path, tmp_path: Path) -> None:
    export(policies[0], tmp_path)
    own = newest(tmp_path)
    folder = export(newest(tmp_path).policy, tmp_path, sids=grown)
    release_ = newest(tmp_path)
    assert (release_.number, release_.policy_version, release_.sids) == (2, own.policy_version, next(folder.glob("s*")))
    assert release_.index_version != own.index_version
    check_index(release_)
    assert export(policies[0], tmp_path, sids=grown) == folder  # the same again
    assert export(policies[0], tmp_path, sids=policies[0] / "sids.parquet") == tmp_path / MODEL / "3"
    assert newest(tmp_path).answer == own.answer  # its own SIDs, whichever way they are given
    assert newest(tmp_path).sids is None
    content = release_.sids.read_bytes() if release_.sids else b""
    next(folder.glob("s*")).write_bytes(content[:-9] + b"x" + content[-8:])
    with pytest.raises(BundleError, match=r"sids-\w+.parquet is damaged"):
        check_index(release_)
    assert grown.read_bytes() == content  # the release has a copy of its own


def test_sids_that_the_policy_cannot_write_are_refused(policies: Pair, grown: Path, tmp_path: Path) -> None:
    export(policies[0], tmp_path / "models")
    table = pq.read_table(grown)
    column = table.schema.get_field_index("tokenizer_version")
    foreign = table.set_column(column, "tokenizer_version", pa.array(["tok-2"] * len(table)))
    wrong = {
        "foreign": (foreign, "writes SIDs of tokenizer tok-1, .* holds SIDs of tok-2"),
        "mixed": (pa.concat_tables([table, foreign.cast(table.schema)]), "holds SIDs of tok-1, tok-2"),
        "empty": (table.slice(0, 0), "holds SIDs of none"),
        "other": (table.drop(["codes"]), "cannot be the index of policy"),
    }
    for name, (content, message) in wrong.items():
        pq.write_table(content, tmp_path / f"{name}.parquet")
        with pytest.raises(BundleError, match=message):
            export(policies[0], tmp_path / "models", sids=tmp_path / f"{name}.parquet")
    (tmp_path / "cut.parquet").write_bytes(grown.read_bytes()[:-50])
    for missing in ("cut.parquet", "none.parquet"):
        with pytest.raises(BundleError, match="cannot be the index of policy"):
            export(policies[0], tmp_path / "models", sids=tmp_path / missing)
    assert releases(tmp_path / "models") == [1]


def test_withdrawing_and_pruning(policies: Pair, tmp_path: Path) -> None:
    for i in range(5):
        export(policies[i % 2], tmp_path)
    prune(tmp_path)
    assert releases(tmp_path) == [3, 4, 5]
    withdraw(tmp_path, 5)
    withdraw(tmp_path, 5)
    assert releases(tmp_path) == [3, 4]
    for number in (3, 4):
        withdraw(tmp_path, number)
    with pytest.raises(ServiceError, match="promote a policy first"):
        newest(tmp_path)
    load_manifest(policies[0], "policy")  # the bundles themselves are untouched


def test_a_release_waits_for_a_server_and_with_a_wrong_address_is_withdrawn(
    policies: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSERA_CONTROL_KEY", "of the server at the address")
    release(policies[0], tmp_path / "models")
    with pytest.raises(ServiceError, match=r"release 2 was withdrawn.*no Triton server answers"):
        release(policies[1], tmp_path / "models", "http://127.0.0.1:9")
    assert releases(tmp_path / "models") == [1]
    with pytest.raises(ServiceError, match=r"release 1 was withdrawn, nothing serves: no Triton server answers"):
        release(policies[1], tmp_path / "first", "http://127.0.0.1:9")
    assert releases(tmp_path / "first") == []
