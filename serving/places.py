"""Where MLflow keeps the artefacts of a home that was moved, copied or restored from a backup.

MLflow writes the absolute place of each artefact into its database. In a copy these places would be the original's,
which the copy would read from and write into.
"""

from pathlib import Path

import sqlalchemy
from sqlalchemy import func

ARTEFACTS = "mlartifacts"
PLACES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Tables and columns of MLflow's database that hold the place of an artefact."""


def follow(database: Path, experiment: str) -> bool:
    """Let the embedded database of a home name the artefacts in that home; tell whether it named others before.

    Args:
        database: the file home/mlflow.db; one that is not there yet names nothing.
        experiment: name of the experiment whose place tells where the home was.
    """
    if not database.is_file():
        return False
    here = (database.parent / ARTEFACTS).as_uri()
    engine = sqlalchemy.create_engine(sqlalchemy.URL.create("sqlite", database=str(database)))
    try:
        with engine.connect() as connection:
            if not sqlalchemy.inspect(connection).has_table("experiments"):
                return False
            table = sqlalchemy.table("experiments", sqlalchemy.column("name"), sqlalchemy.column("artifact_location"))
            asked = sqlalchemy.select(table.c.artifact_location).where(table.c.name == experiment)
            there = connection.scalar(asked)
        if not there or there == here or not there.startswith("file:"):
            return False
        with engine.begin() as connection:
            for name, columns in PLACES.items():
                for column in columns:
                    _rewrite(connection, name, column, there, here)
    finally:
        engine.dispose()
    return True


def _rewrite(connection: sqlalchemy.Connection, name: str, column: str, there: str, here: str) -> None:
    table = sqlalchemy.table(name, sqlalchemy.column(column))
    place = table.c[column]
    # The place itself or what lies in it; LIKE would read "%20" in it as a pattern.
    within = sqlalchemy.or_(place == there, func.substr(place, 1, len(there) + 1) == f"{there}/")
    moved = sqlalchemy.literal(here) + func.substr(place, len(there) + 1)
    connection.execute(sqlalchemy.update(table).where(within).values({column: moved}))
