"""What `tessera.schema` declares of a table, as Expectations."""

import great_expectations.expectations as gxe
import pyarrow as pa
from great_expectations.expectations.expectation import Expectation

from tessera.schema import SCHEMAS
from validation.expectations import rows

Checks = list[Expectation]

# How pandas calls the scalar types of the schema.
_TYPES = {
    pa.string(): "str", pa.int64(): "int64", pa.int32(): "int32", pa.float32(): "float32", pa.bool_(): "bool",
}


def schema(table: str) -> Checks:
    """Stock Expectations that say what `SCHEMAS[table]` declares: columns, nullability, scalar types."""
    fields = SCHEMAS[table]
    checks: Checks = [gxe.ExpectTableColumnsToMatchSet(column_set=fields.names, exact_match=False)]
    for field in fields:
        if not field.nullable:
            checks.append(gxe.ExpectColumnValuesToNotBeNull(column=field.name))
        if pa.types.is_list(field.type):
            checks.append(rows.ExpectColumnValuesToBeLists(column=field.name, description=f"{field.name} holds lists"))
        else:
            checks.append(gxe.ExpectColumnValuesToBeInTypeList(column=field.name, type_list=[_TYPES[field.type]]))
    return checks
