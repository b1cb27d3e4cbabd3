"""A registered policy version to its bundle."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Model, Output

from components.images import image


@dsl.component(base_image=image("publish"), install_kfp_package=False)
def fetch_policy(
    version: str,
    settings: str,
    home: str,
    challenger: Output[Artifact],
    policy: Output[Model],
    sids: Output[Dataset],
    stats: Output[Artifact],
) -> None:
    """Look a version up in the registry and copy its bundle, and the SIDs that refreshes gave it.

    Args:
        version: number or alias.
        settings: JSON of the settings; platform is used.
        challenger: JSON with the version's number, as `register` writes it.
        policy: the bundle.
        sids: the newer table that the version is served over; an empty file where the bundle's own is the newest.
    """
    import shutil

    from components.stage import run_stage
    from serving import newer_sids
    from serving.registry import Registry
    from tessera.config import from_json
    from tessera.files import write_json, write_text

    def fetch() -> dict:
        registry = Registry(home, from_json(settings).platform.mlflow_url)
        found = registry.resolve(version)
        shutil.copytree(registry.bundle(found), policy.path, dirs_exist_ok=True)
        newer = newer_sids.fetch(registry, found)
        if newer is None:
            write_text(sids.path, "")
        else:
            shutil.copyfile(newer, sids.path)
        write_json(challenger.path, {"policy": found.version})
        return {"version": found.version, "policy_version": found.bundle_version}

    run_stage("fetch-policy", stats.path, fetch)
