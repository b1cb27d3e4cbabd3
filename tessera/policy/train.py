"""Training a policy from files, without the pipeline: in one process, or in several that torchrun starts.

`python -m tessera.policy.train sft ...` takes one process and one GPU, if there is one;
`torchrun --nproc-per-node 4 -m tessera.policy.train sft ...` takes four, with the same result: each computes its share
of every step's rows. Settings are the `settings.json` of a run.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import tyro

from tessera.config import load_settings
from tessera.errors import TesseraError
from tessera.policy import align as aligning
from tessera.policy import distributed, fit


def sft(
    settings: Path,
    items: Path,
    splits: Path,
    sids: Path,
    tokenizer: Path,
    bundle: Path,
    work: Path,
    captions: Path | None = None,
    intents: Path | None = None,
    item_vectors: Path | None = None,
) -> dict[str, Any]:
    """Supervised training: tables and a tokenizer bundle to a policy bundle.

    Runs in several processes where torchrun starts it: torchrun --nproc-per-node GPUS -m tessera.policy.train sft ...

    Args:
        settings: a run's settings.json; policy, evaluation and seed are used.
        items: the tables of the run.
        tokenizer: bundle whose SIDs `sids` holds.
        bundle: folder to write the policy to.
        work: folder of the checkpoints; the same command goes on from the last one.
        captions: needed by tasks that tell captions, as `intents` by those that tell intents.
        item_vectors: embeddings that items' own tokens start from, with policy.hybrid_prefix.
    """
    chosen = load_settings(settings)
    options = chosen.policy, chosen.evaluation, chosen.seed, work
    told = captions, intents, item_vectors
    return fit.run(items, splits, sids, tokenizer, bundle, *options, *told)


def align(
    settings: Path, policy: Path, splits: Path, quality: Path, intents: Path, bundle: Path, work: Path
) -> dict[str, Any]:
    """Training a policy bundle further with GRPO or S-DPO, as the settings' `alignment` says.

    Runs in several processes where torchrun starts it: torchrun --nproc-per-node GPUS -m tessera.policy.train align ...

    Args:
        settings: a run's settings.json; alignment, the section of that name, evaluation and seed are used.
        policy: bundle of supervised training.
        quality: table that a bonus is paid by, as `intents`.
        bundle: folder to write the new policy to.
        work: folder of the checkpoints, of this training alone.
    """
    return aligning.run(policy, splits, quality, intents, bundle, load_settings(settings), work)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: prints the metrics as JSON; an expected failure prints one sentence and exits with 2."""
    try:
        with distributed.joined():
            level = logging.INFO if distributed.first() else logging.ERROR
            logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
            metrics = tyro.extras.subcommand_cli_from_dict(
                {"sft": sft, "align": align}, prog="python -m tessera.policy.train", description=__doc__, args=arguments
            )
            if distributed.first():
                print(json.dumps({name: value for name, value in metrics.items() if name != "curve"}, default=str))
    except TesseraError as error:
        sys.stderr.write(f"tessera.policy.train: {error}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
