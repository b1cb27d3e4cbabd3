"""The promotion pipeline: the challenger against the champion on the newest purchases, and if it wins, rolled out."""

from kfp import dsl

from components.evaluate.component import evaluate
from components.fetch.component import fetch_policy
from components.gates.component import gate_policy
from components.ingest.component import ingest
from components.promote.component import promote
from pipelines.steps import gated_catalogue, heavy, light


@dsl.pipeline(name="tessera-promotion", description="The challenger becomes champion if it beats it on new purchases")
def promotion(
    ingest_settings: str = "{}",
    evaluation_settings: str = "{}",
    home: str = "/mnt/tessera/home",
    version: str = "challenger",
    who: str = "",
    why: str = "",
) -> None:
    """Measure both on the newest holdout; promote the challenger if it is better.

    Args:
        ingest_settings: JSON of settings: source, path, seed, catalogue, shop.
        evaluation_settings: JSON of settings: evaluation, platform.
        home: folder of the platform.
        version: number or alias of the policy to promote.
        who: name for the version's journal.
        why: reason for the journal.
    """
    source = light(ingest(settings=ingest_settings, home=home, source_digest=""))
    source.set_caching_options(False)  # the holdout is what was bought last
    catalogue_ok = gated_catalogue(source.outputs["catalogue"], ingest_settings, home)
    asked = {"settings": evaluation_settings, "home": home}
    fetched = light(fetch_policy(version=version, **asked)).set_caching_options(False)
    splits, served = source.outputs["splits"], {"challenger": fetched.outputs["challenger"], **asked}
    bundle = {name: fetched.outputs[name] for name in ("policy", "sids")}
    measuring = evaluate(splits=splits, settings=evaluation_settings, allow_unknown=True, **bundle)
    measured = heavy(measuring.after(catalogue_ok))
    decision = heavy(gate_policy(evaluation=measured.outputs["evaluation"], splits=splits, **served))
    decision.set_caching_options(False)
    with dsl.If(decision.outputs["Output"] == True, name="better than the champion"):  # noqa: E712
        light(promote(who=who, why=why, **served)).set_caching_options(False)
