"""A registered policy version to its bundle."""

from kfp import dsl
from kfp.dsl import Artifact, Model, Output

from components.images import image


@dsl.component(base_image=image("publish"), install_kfp_package=False)
def fetch_policy(
    version: str, settings: str, home: str, challenger: Output[Artifact], policy: Output[Model], stats: Output[Artifact]
) -> None:
    """Look a version up in the registry and copy its bundle.

    Args:
        version: number or alias.
        settings: JSON of the settings; platform is used.
        challenger: JSON with the version's number, as `register` writes it.
        policy: the bundle.
    """
    import shutil

    from components.stage import run_stage
    from serving.registry import Registry
    from tessera.config import from_json
    from tessera.files import write_json

    def fetch() -> dict:
        registry = Registry(home, from_json(settings).platform.mlflow_url)
        found = registry.resolve(version)
        shutil.copytree(registry.download(found.model, found.version), policy.path, dirs_exist_ok=True)
        write_json(challenger.path, {"policy": found.version})
        return {"version": found.version, "policy_version": found.bundle_version}

    run_stage("fetch-policy", stats.path, fetch)
