"""A bundle as an MLflow model: signature, input example, and the code that loads it; nothing is pickled."""

import importlib.metadata
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from packaging.version import Version

import tessera
from tessera.bundle import Manifest
from tessera.errors import BundleError

SCRIPTS = {
    "tokenizer": Path(__file__).with_name("pyfunc_tokenizer.py"),
    "policy": Path(__file__).with_name("pyfunc_policy.py"),
}
NEEDED = ("mlflow", "pandas", "numpy", "pyarrow", "safetensors", "tokenizers", "torch", "tqdm", "transformers")
"""What the scripts and the part of `tessera` that they load import."""


def save_pyfunc(folder: Path, bundle: Path, manifest: Manifest) -> None:
    """Write the bundle as a pyfunc model to `folder`, which must not exist or be empty.

    The package `tessera` goes along as source, because no package index has it: as one archive, because a registry
    takes each file in a request of its own. The requirements are stated and not inferred: inference would load the
    model in a second process.
    """
    import mlflow
    from mlflow.models import ModelSignature

    if manifest.kind == "policy":
        inputs, outputs, params, example = _policy_schema(bundle)
    else:
        inputs, outputs, params, example = _tokenizer_schema(manifest)
    with TemporaryDirectory() as staging:
        mlflow.pyfunc.save_model(
            folder,
            python_model=SCRIPTS[manifest.kind],
            artifacts={"bundle": str(bundle)},
            signature=ModelSignature(inputs, outputs, params),
            input_example=example,
            code_paths=[str(_archive(Path(staging) / "tessera.zip"))],
            pip_requirements=_requirements(),
            metadata={"bundle_version": manifest.version, "tokenizer_version": manifest.parent or manifest.version},
        )


def find_bundle(model: Path) -> Path:
    """The bundle inside a pyfunc model's folder; the model's own code is not run.

    Raises:
        BundleError: the folder is not a model that `save_pyfunc` wrote, or it names a bundle outside itself.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model
    from yaml import YAMLError

    try:
        flavour = Model.load(str(model)).flavors["python_function"]
        name = PurePosixPath(flavour["artifacts"]["bundle"]["path"])
    except (MlflowException, YAMLError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{model} is not a model registered by Tessera ({error}); register it again.") from None
    if name.is_absolute() or ".." in name.parts or not name.parts or "\0" in str(name):
        raise BundleError(f"{model} names its bundle as {str(name)!r}, outside itself; do not use this model.")
    return model / name


def _archive(path: Path) -> Path:
    """Write the package `tessera` as a ZIP archive, from which Python imports it."""
    package = Path(tessera.__file__).parent
    with ZipFile(path, "w", ZIP_DEFLATED, strict_timestamps=False) as archive:
        for file in sorted(package.rglob("*")):
            if file.is_file() and file.suffix != ".pyc":
                archive.write(file, package.name / file.relative_to(package))
    return path


def _policy_schema(bundle: Path) -> tuple[Any, Any, Any, Any]:
    import pandas as pd
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    from tessera.schema import read_table

    items = read_table("sids", bundle / "sids.parquet")["item_id"][:3].to_pylist()
    # Any: a cell is a list of item ids or one string with commas.
    inputs = Schema([ColSpec(AnyType(), "history")])
    columns = {"item_ids": "string", "sids": "string", "scores": "double"}
    outputs = Schema([ColSpec(Array(kind), name) for name, kind in columns.items()])
    params = ParamSchema([ParamSpec("k", "long", 10), ParamSpec("exclude_history", "boolean", True)])
    return inputs, outputs, params, (pd.DataFrame({"history": [items]}), {"k": 5})


def _tokenizer_schema(manifest: Manifest) -> tuple[Any, Any, Any, Any]:
    import pandas as pd
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array

    widths = {name: manifest.config[f"{name}_width"] for name in ("text", "image")}
    columns = {name: width for name, width in widths.items() if width}  # a text-only tokenizer has image_width 0
    inputs = Schema([ColSpec(Array("double"), name, required=name == "text") for name in columns])
    outputs = Schema([ColSpec("string", "sid"), ColSpec(Array("long"), "codes")])
    example = pd.DataFrame({name: [[1.0] + [0.0] * (width - 1)] for name, width in columns.items()})
    return inputs, outputs, None, example


def _requirements() -> list[str]:
    """At the versions that are installed here, as a package index has them: without a local part such as +cpu."""
    return [f"{name}=={Version(importlib.metadata.version(name)).public}" for name in NEEDED]
