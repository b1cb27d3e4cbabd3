"""A catalogue that costs no rendering of photos."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessera.catalog.shop.customers import purchases
from tessera.catalog.shop.definition import stock
from tessera.config import CatalogueSettings, Settings


@pytest.fixture(scope="session")
def plain_shop(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a source of 80 items and 300 customers, whole and without photos."""
    folder = tmp_path_factory.mktemp("shop")
    stocked = stock(80, 0)
    fields = ("item_id", "title", "description", "brand", "categories")
    columns = {name: [getattr(item, name) for item in stocked] for name in fields}
    pq.write_table(pa.table(columns), folder / "items.parquet")
    pq.write_table(purchases(stocked, 300, 0), folder / "interactions.parquet")
    return Settings(source="parquet", path=folder, catalogue=CatalogueSettings(k_core=0))
