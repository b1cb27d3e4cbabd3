import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, make_url, text

from tessera.catalog.database import Catalogue
from tessera.catalog.engine import open_engine, reading
from tessera.catalog.tables import METADATA
from tessera.errors import InputError, ServiceError
from tessera.schema import SCHEMAS


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite_url")
    return fresh_schema(request.getfixturevalue("postgres"))


def fresh_schema(server: str) -> str:
    """URL of an empty schema of the server's database: as good as a database, and made in no time."""
    name = f"t{uuid.uuid4().hex[:12]}"
    engine = create_engine(server)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    engine.dispose()
    url = make_url(server).update_query_dict({"options": f"-csearch_path={name}"})
    return url.render_as_string(hide_password=False)


@pytest.fixture
def catalogue(url: str) -> Catalogue:
    catalogue = Catalogue(url)
    catalogue.migrate()
    return catalogue


def history_table(histories: dict[str, list[str]]) -> pa.Table:
    rows = [
        {"user_id": user, "item_id": item, "timestamp": 100 + position, "position": position}
        for user, history in histories.items()
        for position, item in enumerate(history)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["interactions"])


def writes(catalogue: Catalogue) -> int:
    """Rows the database has ever written, as the server counts them."""
    with reading(catalogue.engine) as connection:
        if connection.dialect.name == "sqlite":
            return connection.connection.dbapi_connection.total_changes
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with reading(catalogue.engine) as connection:
        return connection.scalar(text("SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables"))


def test_migrations_make_the_tables_that_the_code_declares(catalogue: Catalogue) -> None:
    with catalogue.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    assert {"items", "interactions", "enrichments"} == set(METADATA.tables)
    assert [c.name for c in METADATA.tables["items"].columns] == SCHEMAS["items"].names


def test_what_goes_in_comes_out(catalogue: Catalogue, items: pa.Table, interactions: pa.Table) -> None:
    catalogue.upsert_items(items, batch=2)
    catalogue.upsert_interactions(interactions, batch=2)
    assert catalogue.items() == items
    assert catalogue.interactions() == interactions
    assert catalogue.history("u1") == ["a", "b", "a"]
    assert catalogue.history("nobody") == []


def test_empty_tables_read_as_empty(catalogue: Catalogue) -> None:
    assert catalogue.items() == SCHEMAS["items"].empty_table()
    assert catalogue.interactions().num_rows == 0


def test_repeat_writes_nothing_and_a_changed_item_is_updated(
    catalogue: Catalogue, items: pa.Table, interactions: pa.Table
) -> None:
    catalogue.replace(items, interactions)
    before = writes(catalogue)
    assert catalogue.replace(items, interactions) == {"removed_items": 0, "removed_users": 0}
    assert writes(catalogue) == before
    changed = items.set_column(1, SCHEMAS["items"].field("title"), pa.array(["Red ball", "Navy ball", "Grüne Lampe"]))
    catalogue.replace(changed, interactions)
    assert writes(catalogue) == before + 1
    assert catalogue.items() == changed


def test_a_shorter_history_leaves_no_tail_and_other_users_stay(catalogue: Catalogue, interactions: pa.Table) -> None:
    catalogue.upsert_interactions(interactions)
    catalogue.upsert_interactions(history_table({"u1": ["b"]}))
    assert catalogue.history("u1") == ["b"]
    assert catalogue.history("u2") == ["c"]


def test_replace_removes_what_is_gone(catalogue: Catalogue, items: pa.Table, interactions: pa.Table) -> None:
    catalogue.replace(items, interactions)
    removed = catalogue.replace(items.slice(0, 2), history_table({"u1": ["a"]}))
    assert removed == {"removed_items": 1, "removed_users": 1}
    assert catalogue.items()["item_id"].to_pylist() == ["a", "b"]
    assert catalogue.interactions().to_pylist() == history_table({"u1": ["a"]}).to_pylist()


def test_replace_is_all_or_nothing(catalogue: Catalogue, items: pa.Table, interactions: pa.Table) -> None:
    catalogue.replace(items, interactions)
    with catalogue.engine.begin() as connection:
        connection.execute(text("DROP TABLE interactions"))
    with pytest.raises(ServiceError, match="interactions"):
        catalogue.replace(items.slice(0, 1), interactions)
    assert catalogue.items() == items


def test_processes_that_migrate_at_once_all_succeed(url: str) -> None:
    code = "import sys; from tessera.catalog.database import Catalogue; Catalogue(sys.argv[1]).migrate()"
    started = [subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE) for _ in range(3)]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], errors


def test_sqlite_uses_wal_and_waits_for_a_busy_writer(sqlite_url: str) -> None:
    with reading(open_engine(sqlite_url)) as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA busy_timeout")) >= 10_000


def test_connections_that_open_a_new_sqlite_file_at_once_all_succeed(tmp_path: Path) -> None:
    together = threading.Barrier(4)

    def connect(file: Path) -> str:
        together.wait()
        with reading(open_engine(f"sqlite:///{file}")) as connection:
            return str(connection.scalar(text("PRAGMA journal_mode")))

    with ThreadPoolExecutor(4) as pool:
        for n in range(50):
            assert list(pool.map(connect, [tmp_path / f"{n}.db"] * 4)) == ["wal"] * 4


def test_a_database_that_is_not_up_is_one_sentence_without_the_password() -> None:
    catalogue = Catalogue("postgresql+psycopg://me:s3cret@127.0.0.1:1/shop")
    with pytest.raises(ServiceError, match="check that it is up") as caught:
        catalogue.migrate()
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["nonsense", "mysql://me:s3cret@h/d", "sqlite+nodriver:///x", "postgresql+x://me:s3cret@h/d"])
def test_unusable_urls(url: str) -> None:
    with pytest.raises(InputError, match=r"sqlite:///FILE") as caught:
        open_engine(url)
    assert "s3cret" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("this is not a database, it is a long enough text file" * 100)
    with pytest.raises(ServiceError, match="not a database"):
        Catalogue(f"sqlite:///{tmp_path / 'x.db'}").migrate()
    assert (tmp_path / "x.db").read_text().startswith("this is not")


def test_a_database_of_a_newer_tessera_is_refused(catalogue: Catalogue) -> None:
    with catalogue.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ServiceError, match="does not know"):
        catalogue.migrate()
