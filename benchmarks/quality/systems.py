"""Every system that is measured, and the tables that it stands in: declared here and nowhere else.

A system of this code is a set of changes to one run's settings; the budget (`BUDGETS`) is the same for all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tessera.enrichment.branches import Branch
from tessera.policy.mixture import MIXTURES, TMT_GROUPS

Words = Literal["none", "summary", "paraphrase", "intents"]
PEERS = ("popularity", "gru4rec", "sasrec", "bert4rec", "fdsa")


@dataclass(frozen=True)
class System:
    """A configuration of this code.

    branch: what of a photo enters the SIDs; words: what a model's words beside the metadata are; grounded: the SIDs
    quantize grounded vectors (SIGMA); tokenizer, policy: changes to those settings; align: the kind of training after
    SFT ("" for none) and tuned its changes.
    """

    title: str
    branch: Branch = "text"
    words: Words = "none"
    grounded: bool = False
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    align: Literal["", "grpo", "preference"] = ""
    tuned: Mapping[str, Any] = field(default_factory=dict)


def _without(group: str) -> str:
    return ",".join(task for task in MIXTURES["tmt"] if task not in TMT_GROUPS[group])


ALIGNED: Mapping[str, Any] = {"tasks": "alignment"}
TIGER = System("TIGER")
LCREC = System("LC-Rec", policy=ALIGNED)
SFT = System("DeepInterestGR, SFT only", "both", "intents", policy=ALIGNED)
DEEP = replace(SFT, title="DeepInterestGR", align="grpo", tuned={"bonus": "quality"})
TRI = System("TriAlignGR", "both", "intents", policy={"tasks": "tmt"})
# Rows of single items are the first to be learned by heart: of 0.3 and 0.5, validation chose 0.5 with own tokens and
# 0.3 (the budget's) without.
OWN: Mapping[str, Any] = {"hybrid_prefix": 1, "dropout": 0.5}
SIGMA = System("SIGMA", "both", "intents", grounded=True, policy={"tasks": "sigma", **OWN})

SYSTEMS: dict[str, System] = {
    "tiger": TIGER,
    "lcrec": LCREC,
    "minionerec": replace(LCREC, title="MiniOneRec", align="grpo"),
    "sdpo": replace(LCREC, title="S-DPO", align="preference"),
    "deepinterestgr": DEEP,
    "trialigngr": TRI,
    "sigma": SIGMA,
    "convergence": System(
        "Semantic Convergence", tokenizer={"method": "aligned", "levels": 4}, policy={"tasks": "convergence"}
    ),
    # DeepInterestGR less one thing at a time.
    "deep-no-intents": replace(DEEP, title="DeepInterestGR without intents", words="none"),
    "deep-no-cmsa": replace(DEEP, title="DeepInterestGR without CMSA", branch="text"),
    "deep-no-bonus": replace(DEEP, title="DeepInterestGR without the quality bonus", tuned={}),
    "deep-sft": SFT,
    # TriAlignGR less one group of tasks at a time.
    **{
        f"tmt-no-{group}": replace(TRI, title=f"TriAlignGR without {group}", policy={"tasks": _without(group)})
        for group in TMT_GROUPS
    },
    "tmt-next": replace(TRI, title="TriAlignGR, next-SID alone", policy={}),
    # SIGMA with one thing else at a time.
    "sigma-no-grounding": replace(SIGMA, title="SIGMA without grounding", grounded=False),
    "sigma-no-tasks": replace(SIGMA, title="SIGMA without instruction tasks", policy=OWN),
    "sigma-no-own": replace(
        SIGMA, title="SIGMA without own tokens (plain SIDs at their dropout)", policy={"tasks": "sigma"}
    ),
    "sigma-prefix-2": replace(
        SIGMA, title="SIGMA, a prefix of two codes", policy={"tasks": "sigma", **OWN, "hybrid_prefix": 2}
    ),
    # CMSA's branches and the words beside the metadata, under plain next-SID training.
    "branch-text": System("text only", "text", "intents"),
    "branch-caption": System("caption only", "caption", "intents"),
    "branch-image": System("image embedding only", "image", "intents"),
    "branch-both": System("both, with intents (DCIM)", "both", "intents"),
    "words-none": System("no intents", "both", "none"),
    "words-summary": System("summary", "both", "summary"),
    "words-paraphrase": System("paraphrase", "both", "paraphrase"),
    # GRPO's rewards, how its rollouts are made and used, and the labels of the gated bonus, all from one SFT policy.
    **{
        f"reward-{reward}": replace(SFT, title=f"{reward} reward", align="grpo", tuned={"reward": reward})
        for reward in ("prefix", "collaborative")
    },
    # Rollouts of the constrained decoder are all valid; the format reward has something to say where they may fail.
    "reward-format": replace(
        SFT, title="format reward, unconstrained rollouts", align="grpo",
        tuned={"reward": "format", "rollouts": "unconstrained"},
    ),
    "grpo-sampled": replace(SFT, title="exact match, sampled rollouts", align="grpo", tuned={"rollouts": "sampled"}),
    "grpo-updates": replace(SFT, title="exact match, four updates a batch", align="grpo", tuned={"updates": 4}),
    "sdpo-beam": replace(LCREC, title="S-DPO, negatives from the beam", align="preference", tuned={"source": "beam"}),
    **{
        f"labels-{bonus}": replace(SFT, title=f"{bonus} labels", align="grpo", tuned={"bonus": bonus})
        for bonus in ("uniform", "random", "heuristic")
    },
    # Where the target alone is paid, normalising within the group takes a bonus on it away again; here it can act.
    **{
        f"prefix-{bonus}": replace(
            SFT, title=f"prefix reward, {bonus} labels", align="grpo", tuned={"reward": "prefix", "bonus": bonus}
        )
        for bonus in ("quality", "random")
    },
}

# What photos add is seen beside these: where there are none, each is another system or nothing.
PICTURED = ("deep-no-cmsa", "tmt-no-visual", "branch-text", "branch-caption", "branch-image")

TABLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "main": ("Main table", (
        *PEERS, "tiger", "lcrec", "minionerec", "sdpo", "deepinterestgr", "trialigngr", "sigma", "convergence",
    )),
    "ablations": (
        "DeepInterestGR, one thing less at a time",
        ("deepinterestgr", "deep-no-intents", "deep-no-cmsa", "deep-no-bonus", "deep-sft"),
    ),
    "tasks": (
        "TriAlignGR, one group of tasks less at a time",
        ("trialigngr", *(f"tmt-no-{group}" for group in TMT_GROUPS), "tmt-next"),
    ),
    "hybrid": (
        "SIGMA, one thing else at a time",
        ("sigma", "sigma-no-grounding", "sigma-no-tasks", "sigma-no-own", "sigma-prefix-2"),
    ),
    "branches": (
        "CMSA branches (next-SID training)", ("branch-text", "branch-caption", "branch-image", "branch-both"),
    ),
    "words": (
        "Words beside the metadata (next-SID training)",
        ("words-none", "words-summary", "words-paraphrase", "branch-both"),
    ),
    "rewards": (
        "Rewards of GRPO, from one SFT policy",
        (
            "deep-sft", "deep-no-bonus", "grpo-sampled", "grpo-updates", "reward-format", "reward-prefix",
            "reward-collaborative",
        ),
    ),
    "preference": ("S-DPO's negatives, from one SFT policy", ("lcrec", "sdpo", "sdpo-beam")),
    "labels": (
        "What the gated bonus pays by, from one SFT policy",
        (
            "deep-no-bonus", "deepinterestgr", "labels-uniform", "labels-random", "labels-heuristic",
            "reward-prefix", "prefix-quality", "prefix-random",
        ),
    ),
}


@dataclass(frozen=True)
class Budget:
    """What a cell may cost, as changes to the settings; users: most users of the split, 0 for all.

    What peers may cost under a budget of the same name stands with them (benchmarks.peers.peers).
    """

    users: int
    tokenizer: Mapping[str, Any]
    policy: Mapping[str, Any]
    align: Mapping[str, Any]


BUDGETS: dict[str, Budget] = {
    "smoke": Budget(
        400, {"epochs": 10, "codebook_size": 32},
        {"epochs": 2, "hidden": 32, "layers": 2, "heads": 2, "text_vocabulary": 512, "validation_users": 100},
        {"cases": 128, "batch": 32, "group": 4, "validate_every": 4, "negatives": 3},
    ),
    "small": Budget(
        10_000, {"epochs": 100},
        {
            "epochs": 20, "batch_tokens": 2048, "layers": 2, "dropout": 0.3, "task_examples": 500,
            "validation_users": 1000, "validate_every": 4, "patience": 2,
        },
        {"cases": 19_200, "validate_every": 50, "group": 16},
    ),
    "full": Budget(0, {}, {}, {}),
}
