"""Triton's configuration of the model: its inputs and outputs, and the parameters that the model reads."""

from tessera.errors import InputError

MODEL = "tessera"

_CONFIG = """\
# Written by Tessera with each release.
name: "{model}"
backend: "python"
version_policy: {{ latest {{ num_versions: 1 }} }}

# Triton only hands requests over; the model queues and batches them itself (serving/queueing.py). With a queue policy
# Triton would wait for the model, and with batches of its own for ever where a request has no rows.
max_batch_size: 0


input [
{inputs}
]
output [
{outputs}
]

# One process, whose threads decode a batch each.
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]
{parameters}
"""

_INPUTS = (
    ("history", "TYPE_STRING", -1), ("history_ids", "TYPE_INT64", -1), ("user_id", "TYPE_STRING", 1),
    ("k", "TYPE_INT32", 1), ("exclude", "TYPE_STRING", -1), ("allow", "TYPE_STRING", -1),
    ("include_history", "TYPE_BOOL", 1), ("diversity", "TYPE_FP32", 1), ("probe", "TYPE_BOOL", 1),
)  # fmt: skip
_OUTPUTS = (
    ("item_ids", "TYPE_STRING", -1), ("sids", "TYPE_STRING", -1), ("scores", "TYPE_FP32", -1),
    ("policy_version", "TYPE_STRING", 1), ("tokenizer_version", "TYPE_STRING", 1), ("index_version", "TYPE_STRING", 1),
)  # fmt: skip

INPUTS = tuple(name for name, _, _ in _INPUTS)


def model_config(*, max_batch: int, feature_server: str, **parameters: int) -> str:
    """The text of config.pbtxt; see `serving.model_repository.export` for the arguments.

    Raises:
        InputError: the feature server's URL cannot be written down.
    """
    if any(character in feature_server for character in '"\\\n'):
        raise InputError(f"{feature_server!r} is not a URL; give the feature server as http://host:port.")
    values = {"feature_server": feature_server, "max_batch": max_batch, **parameters}
    return _CONFIG.format(
        model=MODEL,
        inputs=",\n".join(_tensor(*one, " optional: true") for one in _INPUTS),
        outputs=",\n".join(_tensor(*one, "") for one in _OUTPUTS),
        parameters="\n".join(_parameter(name, str(value)) for name, value in values.items()),
    )  # fmt: skip


def _parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'


def _tensor(name: str, kind: str, length: int, more: str) -> str:
    return f'  {{ name: "{name}" data_type: {kind} dims: [ -1, {length} ]{more} }}'
