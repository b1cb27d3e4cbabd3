"""What every stage stands on: declared tables, atomic files, bundles, and settings."""

import json
import multiprocessing
import os
import signal
import stat
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessera import bundle, config
from tessera.config import PlatformSettings, Settings, catalogue_url, from_json, load_settings, preset, save_settings
from tessera.errors import BundleError, InputError
from tessera.files import new_key, read_json, read_key, replacing, sha256_file, sha256_of, write_json, write_text
from tessera.schema import SCHEMAS, conform, read_table, write_table

INTERACTIONS = {"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": [5, 6], "position": [0, 1]}

# --- tables ---


def test_conform_orders_casts_and_drops() -> None:
    """Any order, wider or large types, further columns: out comes the declared schema."""
    table = pa.table(
        {"extra": [1.0, 2.0], "position": pa.array([0, 1], pa.int64()), "timestamp": pa.array([5, 6], pa.int32()),
         "item_id": pa.array(["a", "b"], pa.large_string()), "user_id": pa.array(["u", "u"]).dictionary_encode()}
    )
    fitted = conform("interactions", table)
    assert fitted.schema.equals(SCHEMAS["interactions"])
    assert fitted.to_pydict() == INTERACTIONS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"item_id": None}, r"the log is not a 'interactions' table: column 'item_id' is missing \(it has user_id"),
        ({"timestamp": ["a", "b"]}, r"the log does not fit the 'interactions' schema"),
        ({"timestamp": [[1], [2]]}, r"does not fit the 'interactions' schema"),
        ({"timestamp": [0.5, 1.5]}, r"does not fit the 'interactions' schema"),
        ({"position": [0, 2**40]}, r"does not fit the 'interactions' schema"),
        ({"item_id": ["a", None]}, r"the log: column 'item_id' of a 'interactions' table must not be null"),
    ],
)
def test_conform_refuses(change: dict[str, Any], says: str) -> None:
    columns = {name: value for name, value in (INTERACTIONS | change).items() if value is not None}
    with pytest.raises(InputError, match=says):
        conform("interactions", pa.table(columns), "the log")


def test_optional_columns_may_hold_nulls() -> None:
    rows = [{"user_id": "u", "train": ["a"], "validation": None, "test": None}]
    assert conform("splits", pa.Table.from_pylist(rows, SCHEMAS["splits"])).to_pylist() == rows


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_table_survives_its_file(name: str, tmp_path: Path) -> None:
    empty = SCHEMAS[name].empty_table()
    write_table(name, empty, tmp_path / "deep" / "t.parquet")
    assert read_table(name, tmp_path / "deep" / "t.parquet").schema.equals(SCHEMAS[name])


def test_rows_survive_a_file_below_a_folder_that_looks_like_a_partition(tmp_path: Path) -> None:
    path = tmp_path / "user_id=7" / "t.parquet"
    write_table("interactions", pa.table(INTERACTIONS), path)
    assert read_table("interactions", path).to_pydict() == INTERACTIONS


def test_read_refuses_missing_broken_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(InputError, match=r"t.parquet does not exist; .* run the stage that writes 'interactions'"):
        read_table("interactions", path)
    write_table("interactions", pa.table(INTERACTIONS), path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="not a readable parquet file"):
        read_table("interactions", path)
    path.write_text("user_id,item_id\nu,a\n")
    with pytest.raises(InputError, match="not a readable parquet file"):
        read_table("interactions", path)
    with pytest.raises(InputError, match="not a readable parquet file"):
        read_table("interactions", tmp_path)
    pq.write_table(pa.table({"other": [1]}), path)
    with pytest.raises(InputError, match=r"t.parquet is not a 'interactions' table.*\(it has other\)"):
        read_table("interactions", path)


def test_a_table_that_does_not_fit_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table("interactions", pa.table(INTERACTIONS), path)
    with pytest.raises(InputError):
        write_table("interactions", pa.table(INTERACTIONS | {"item_id": ["a", None]}), path)
    assert read_table("interactions", path).to_pydict() == INTERACTIONS
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


# --- files ---


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the ne")
            assert path.read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    with path.open() as reader:  # who has the old file open keeps on reading it whole
        write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644  # not mkstemp's 0600: other users serve these files


def _write_and_die(path: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half of the ne")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "old")
    child = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(str(tmp_path / "file.txt"),))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert (tmp_path / "file.txt").read_text() == "old"


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_json(path, {"b": [1, 2.5, None], "a": "Gießkanne"})
    assert read_json(path) == {"b": [1, 2.5, None], "a": "Gießkanne"}
    assert "Gießkanne" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path)["a"] == "Gießkanne"
    path.write_text(path.read_text(encoding="utf-8")[:10], encoding="utf-8")
    with pytest.raises(InputError, match=r"b.json is not readable JSON .* write it again"):
        read_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not readable JSON"):
        read_json(path)
    with pytest.raises(InputError, match="does not exist"):
        read_json(tmp_path / "absent.json")


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of("a", "bc") != sha256_of("ab", "c") != sha256_of("abc")
    assert sha256_of("ü") == sha256_of("ü".encode())
    with pytest.raises(InputError, match="does not exist"):
        sha256_file(tmp_path / "absent")


def test_keys_are_read_by_their_owner_alone(tmp_path: Path) -> None:
    """0600 from the first moment on, and another key at every start."""
    first = new_key(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert read_key(tmp_path / "key") == first
    assert new_key(tmp_path / "key") != first
    with pytest.raises(InputError, match="does not exist"):
        read_key(tmp_path / "none")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000])
def test_json_beyond_measure_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    """Nesting without end and numbers of thousands of digits are no traceback."""
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(InputError, match="not readable JSON"):
        read_json(tmp_path / "file.json")


# --- bundles ---


def _write(text: str) -> Callable[[Path], None]:
    def write(staging: Path) -> None:
        (staging / "sub").mkdir()
        (staging / "sub" / "weights.txt").write_text(text)

    return write


def test_a_bundle_round_trip(tmp_path: Path) -> None:
    settings = {"path": Path("/x"), "k": 3}
    saved = bundle.save(
        tmp_path / "b", "tokenizer", _write("w"), config=settings, metrics={"m": 1}, parent="p", extra={"e": [1]}
    )
    assert saved.config == {"path": "/x", "k": 3}
    assert saved.files == {"sub/weights.txt": sha256_file(tmp_path / "b" / "sub" / "weights.txt")}
    assert (saved.kind, saved.metrics, saved.parent, saved.extra) == ("tokenizer", {"m": 1}, "p", {"e": [1]})
    assert bundle.load_manifest(tmp_path / "b", "tokenizer") == saved
    assert os.access(tmp_path / "b", os.R_OK | os.X_OK)
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o755


def test_the_version_depends_on_content_alone(tmp_path: Path) -> None:
    def version(name: str, text: str = "w", kind: str = "tokenizer", **given: Any) -> str:
        given = {"config": {"k": 1}, "metrics": {}} | given
        return bundle.save(tmp_path / name, kind, _write(text), **given).version

    same = version("a")
    assert version("elsewhere") == same
    assert version("a", metrics={"seconds": 9.0}) == same
    others = [
        version("b", text="v"), version("b", kind="policy"), version("b", config={"k": 2}), version("b", parent="p"),
        version("b", extra={"e": 1}),
    ]
    assert len({same, *others}) == 6


def test_verify_off_skips_the_hashes_and_not_the_presence(tmp_path: Path) -> None:
    bundle.save(tmp_path / "b", "policy", _write("w"), config={}, metrics={})
    (tmp_path / "b" / "sub" / "weights.txt").write_text("x")
    bundle.load_manifest(tmp_path / "b", "policy", verify=False)
    with pytest.raises(BundleError, match=r"damaged: sub/weights\.txt does not match its SHA-256"):
        bundle.load_manifest(tmp_path / "b", "policy")
    (tmp_path / "b" / "sub" / "weights.txt").unlink()
    with pytest.raises(BundleError, match=r"truncated: sub/weights\.txt is missing"):
        bundle.load_manifest(tmp_path / "b", "policy", verify=False)


def test_a_failed_save_leaves_no_bundle_and_keeps_an_old_one(tmp_path: Path) -> None:
    def fail(staging: Path) -> None:
        _write("half")(staging)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        bundle.save(tmp_path / "b", "policy", fail, config={}, metrics={})
    assert list(tmp_path.iterdir()) == []
    old = bundle.save(tmp_path / "b", "policy", _write("w"), config={}, metrics={})
    with pytest.raises(RuntimeError):
        bundle.save(tmp_path / "b", "policy", fail, config={}, metrics={})
    with pytest.raises(ValueError, match="not JSON compliant"):
        bundle.save(tmp_path / "b", "policy", _write("v"), config={}, metrics={"loss": float("nan")})
    assert bundle.load_manifest(tmp_path / "b", "policy") == old
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def _save_and_die(folder: str) -> None:
    def die(staging: Path) -> None:
        _write("half")(staging)
        os.kill(os.getpid(), signal.SIGKILL)

    bundle.save(folder, "policy", die, config={}, metrics={})


def test_a_killed_save_leaves_nothing_that_loads(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=_save_and_die, args=(str(tmp_path / "b"),))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert left  # what was staged is there
    for folder in (tmp_path / "b", *left):
        with pytest.raises(BundleError):
            bundle.load_manifest(folder, "policy")


# --- settings ---


@pytest.mark.parametrize("name", ["demo", "catalogue", "paper"])
def test_presets_survive_a_file(name: Any, tmp_path: Path) -> None:
    home = PlatformSettings(home=Path("/srv/home"), http_port=1)
    settings = replace(preset(name), source="parquet", path=Path("data/shop"), seed=3, platform=home)
    save_settings(settings, tmp_path / "settings.json")
    assert load_settings(tmp_path / "settings.json") == settings
    assert from_json(config.to_json(preset(name))) == preset(name)


def test_presets_differ() -> None:
    assert len({config.to_json(preset(name)) for name in ("demo", "catalogue", "paper")}) == 3


def test_a_partial_file_keeps_the_defaults() -> None:
    settings = from_json('{"tokenizer": {"levels": 4}, "source": "parquet", "path": "data"}')
    assert settings.tokenizer == replace(config.TokenizerSettings(), levels=4)
    assert settings.path == Path("data")
    assert settings.policy == config.PolicySettings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"tokenizer": {"levles": 4, "depth": 1}}', "unknown setting depth, levles"),
        ('{"tokens": 4}', "unknown setting tokens"),
        ('{"tokenizer": {"method": "lvq"}}', "method is 'lvq', not one of rqvae, rqkmeans"),
        ('{"tokenizer": 4}', "not of this version"),
        ('{"tokenizer": null}', "not of this version"),
        ("[1]", "not of this version"),
        ('{"seed": 1', "not of this version"),
        ("", "not of this version"),
    ],
)
def test_settings_that_do_not_fit_are_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        from_json(text)
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(InputError, match=f"{says}.*start from a preset"):
        load_settings(tmp_path / "settings.json")


def test_a_folder_needs_a_source_that_reads_it() -> None:
    with pytest.raises(InputError, match=r"--path data is given, but the source is the shop.*--source parquet"):
        from_json('{"path": "data"}')


@pytest.mark.parametrize(
    ("section", "field", "value", "bound"),
    [
        *((name, one, no - 1, f"at least {no}") for name, of in config.LEAST.items() for one, no in of.items()),
        *((name, one, 0, "above 0") for name, of in config.ABOVE_ZERO.items() for one in of),
        *((name, one, 1, "below 1") for name, of in config.BELOW_ONE.items() for one in of),
        ("policy", "learning_rate", float("nan"), "above 0"),
    ],
)
def test_numbers_out_of_range_are_refused_where_settings_are_read(
    section: str, field: str, value: float, bound: str
) -> None:
    with pytest.raises(InputError, match=rf"{section}\.{field} is {value}; it must be {bound}\."):
        from_json(json.dumps({section: {field: value}}))


def test_every_number_that_counts_something_has_a_least_value() -> None:
    """A setting that is added later, too; ports and the shop's sizes are judged where they are used."""
    for name, hint in get_type_hints(Settings).items():
        if not is_dataclass(hint) or name in ("shop", "platform"):
            continue
        counts = {one for one, kind in get_type_hints(hint).items() if kind is int}
        assert counts <= set(config.LEAST[name]), name


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match="seed is -1; it must be at least 0"):
        from_json('{"seed": -1}')


def test_a_settings_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the settings file .*absent.json"):
        load_settings(tmp_path / "absent.json")
    with pytest.raises(InputError, match="cannot read the settings file"):
        load_settings(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read the settings file"):
        load_settings(tmp_path / "binary.json")


def test_the_catalogue_url_setting_comes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Settings()
    given = replace(plain, catalogue=replace(plain.catalogue, url="postgresql+psycopg://setting/db"))
    monkeypatch.delenv("TESSERA_CATALOGUE_URL", raising=False)
    assert catalogue_url(plain, tmp_path) == f"sqlite:///{tmp_path}/catalogue.db"
    monkeypatch.chdir(tmp_path)
    assert catalogue_url(plain, "home") == f"sqlite:///{tmp_path}/home/catalogue.db"
    monkeypatch.setenv("TESSERA_CATALOGUE_URL", "postgresql+psycopg://environment/db")
    assert catalogue_url(plain, tmp_path) == "postgresql+psycopg://environment/db"
    assert catalogue_url(given, tmp_path) == "postgresql+psycopg://setting/db"
    monkeypatch.setenv("TESSERA_CATALOGUE_URL", "")
    assert catalogue_url(plain, tmp_path) == f"sqlite:///{tmp_path}/catalogue.db"


def test_no_setting_is_a_secret() -> None:
    """The key of an endpoint is named by its variable, so settings.json and a fingerprint can be shown to anybody."""
    names = {field.name for field in fields(config.EnrichmentSettings)}
    assert "api_key" not in names
    assert asdict(Settings())["enrichment"]["api_key_env"] == "OPENAI_API_KEY"


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    saved = bundle.save(tmp_path / "b", "policy", _write("w"), config={"a": 1}, metrics={})
    assert json.loads((tmp_path / "b" / bundle.MANIFEST).read_text()) == asdict(saved)
