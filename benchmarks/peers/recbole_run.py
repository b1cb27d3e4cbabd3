"""Train one RecBole model on exported cases and rank the catalogue: run by RecBole's own Python, without this project.

    .venv-recbole/bin/python benchmarks/peers/recbole_run.py FOLDER

reads FOLDER/job.json and FOLDER/data.npz and writes FOLDER/result.npz and FOLDER/result.json (see peers.py for both).
Model, loss, trainer and early stopping are RecBole's; batches hold rows of similar length, cut to the longest of them,
because most histories are a third as long as the longest.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

TOP = 20
ITEM, HISTORY, LENGTH = "item_id", "item_id_list", "item_length"
PARTS = ("train", "validation", "test")


class TimeUp(Exception):
    """The job's seconds are over."""


class Similar(torch.utils.data.Sampler):
    """Shuffled rows, so ordered that a batch holds rows of similar length and the order of batches is random."""

    def __init__(self, lengths: np.ndarray, batch: int, seed: int, chunk: int = 8) -> None:
        self.lengths, self.batch, self.chunk = lengths, batch, chunk
        self.generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = self.generator.permutation(len(self.lengths))
        whole, rest = np.split(order, [len(order) // self.batch * self.batch])
        near = self.batch * self.chunk
        chunks = [whole[start : start + near] for start in range(0, len(whole), near)]
        rows = [chunk[np.argsort(self.lengths[chunk], kind="stable")] for chunk in chunks]
        if rows:
            yield from self.generator.permutation(np.concatenate(rows).reshape(-1, self.batch)).ravel().tolist()
        yield from rest.tolist()


class Cut:
    """RecBole's transform of a batch, then the columns that no row of it fills are dropped; the loss stays the same.

    BERT4Rec's masked places stand at the end of their columns, and its loss passes over place 0.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, dataset: Any, interaction: Any) -> Any:
        made = self.transform(dataset, interaction)
        columns = made.interaction
        longest = int(columns[LENGTH].max())
        for name in {HISTORY, f"Mask_{HISTORY}"} & columns.keys():
            columns[name] = columns[name][:, :longest]
        if "MASK_INDEX" in columns:
            most = max(1, int((columns["MASK_INDEX"] > 0).sum(dim=1).max()))
            for name in ("MASK_INDEX", f"Pos_{ITEM}", f"Neg_{ITEM}"):
                columns[name] = columns[name][:, -most:].contiguous()
        return made


def rows_of(flat: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Cut a flat array into rows."""
    return np.split(flat, np.cumsum(lengths)[:-1])


def training_cases(train: list[np.ndarray], cloze: bool) -> list[tuple[np.ndarray, int]]:
    """Every prefix and the item after it; for the cloze task, the item after it is the end of the row instead."""
    return [
        (items[: end + 1] if cloze else items[:end], int(items[end])) for items in train for end in range(1, len(items))
    ]


def evaluation_history(history: np.ndarray, cloze: bool, longest: int) -> np.ndarray:
    """The last items; BERT4Rec puts the mask behind a history by dropping its first place, so one is put there."""
    return np.append(history[:1], history[-(longest - 1) :]) if cloze else history[-longest:]


def write_atomic_files(folder: Path, data: Any, features: list[str], cloze: bool, longest: int) -> None:
    """The files that RecBole reads: NAME.PART.inter with one case a line, and NAME.item."""
    cases = {"train": training_cases(rows_of(data["train"], data["train_lengths"]), cloze)}
    for part in PARTS[1:]:
        histories = rows_of(data[f"{part}_histories"], data[f"{part}_lengths"])
        shown = [evaluation_history(history, cloze, longest) for history in histories]
        cases[part] = list(zip(shown, data[f"{part}_targets"].tolist(), strict=True))
    for part, rows in cases.items():
        with (folder / f"peer.{part}.inter").open("w") as file:
            file.write(f"user_id:token\t{HISTORY}:token_seq\t{ITEM}:token\n")
            for number, (history, target) in enumerate(rows):
                file.write(f"{number}\t{' '.join(map(str, history[-longest:].tolist()))}\t{target}\n")
    columns = [rows_of(data[f"feature_{name}"], data[f"feature_{name}_lengths"]) for name in features]
    with (folder / "peer.item").open("w") as file:
        file.write("\t".join([f"{ITEM}:token", *(f"{name}:token_seq" for name in features)]) + "\n")
        for item in range(int(data["items"])):
            texts = [" ".join(map(str, column[item].tolist())) for column in columns]
            file.write("\t".join([str(item), *texts]) + "\n")


def configure(job: dict[str, Any], folder: Path, rows: int, features: list[str]) -> Any:
    """RecBole's defaults for the model but for what is named here."""
    from recbole.config import Config

    batch = -(-rows // max(1, -(-rows // job["batch"])))  # equal batches: BERT4Rec divides by zero in a tiny last one
    chosen = {
        "data_path": str(folder), "checkpoint_dir": str(folder / "saved"), "state": "WARNING", "show_progress": False,
        "seed": job["seed"], "gpu_id": os.environ.get("CUDA_VISIBLE_DEVICES", "0"),
        "benchmark_filename": list(PARTS), "alias_of_item_id": [HISTORY],
        "load_col": {"inter": ["user_id", HISTORY, ITEM], "item": [ITEM, *features]},
        "MAX_ITEM_LIST_LENGTH": job["max_history"], "train_batch_size": batch, "eval_batch_size": 1024,
        "loss_type": "CE", "train_neg_sample_args": None, "epochs": job["epochs"], "stopping_step": job["patience"],
        "metrics": ["NDCG", "Hit"], "topk": [10], "valid_metric": "NDCG@10", "metric_decimal_place": 6,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
        "selected_features": features, **job["recbole"],
    }  # fmt: skip
    return Config(model=job["model"], dataset="peer", config_dict=chosen)


def train(trainer: Any, loaders: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Fit with early stopping on validation, keep the best epoch's weights, and say how it went."""
    best: dict[str, Any] = {"score": -1.0, "weights": None, "epoch": -1}
    curve: list[float] = []
    started, processor, stopped = time.perf_counter(), time.process_time(), "patience"
    bar = tqdm(total=job["epochs"], desc=f"{job['model']}, seed {job['seed']}", unit="epoch")

    def after_epoch(epoch: int, score: float) -> None:
        curve.append(float(score))
        bar.update()
        bar.set_postfix_str(f"validation NDCG@10 {score:.4f}")
        if score > best["score"]:
            weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
            best.update(score=float(score), weights=weights, epoch=epoch)
        # The processor's time, which other work on the machine does not use up.
        if job["seconds"] and time.process_time() - processor > job["seconds"]:
            raise TimeUp

    try:
        trainer.fit(loaders[0], loaders[1], verbose=False, saved=False, callback_fn=after_epoch)
        if len(curve) == job["epochs"]:
            stopped = "epochs"
    except TimeUp:
        stopped = "time"
    bar.close()
    trainer.model.load_state_dict(best["weights"])
    return {
        "curve": curve, "best_epoch": best["epoch"] + 1, "epochs": len(curve), "stopped": stopped,
        "train_seconds": round(time.perf_counter() - started, 1),
        "train_cpu_seconds": round(time.process_time() - processor, 1),
    }  # fmt: skip


@torch.no_grad()
def rank(model: Any, loader: Any, numbers: np.ndarray, device: Any) -> tuple[np.ndarray, np.ndarray]:
    """The best items of each case [cases, 20] in our numbers, and the rank of its target among all items, from 0."""
    model.eval()
    rows, ranks = [], []
    for interaction, _, _, targets in loader:
        scores = model.full_sort_predict(interaction.to(device)).view(len(targets), -1)
        scores[:, 0] = -torch.inf  # RecBole's padding item
        rows.append(scores.topk(min(TOP, scores.shape[1] - 1)).indices.cpu().numpy())
        own = scores.gather(1, targets.to(device)[:, None])
        ranks.append((scores > own).sum(dim=1).cpu().numpy())
    return numbers[np.concatenate(rows)], np.concatenate(ranks)


def run(folder: Path, work: Path) -> None:
    """Do the job of `folder`; what RecBole writes goes to `work`, the current folder."""
    from recbole.data import create_dataset, data_preparation
    from recbole.trainer import Trainer
    from recbole.utils import get_model, init_seed

    job = json.loads((folder / "job.json").read_text())
    cloze = job["model"] == "BERT4Rec"
    (work / "peer").mkdir()
    with np.load(folder / "data.npz") as data:
        features = job["features"]
        write_atomic_files(work / "peer", data, features, cloze, job["max_history"])
        lengths = data["train_lengths"]
        cases = int((lengths - 1).clip(0).sum())
    config = configure(job, work, cases, features)
    init_seed(job["seed"], reproducibility=True)
    torch.autograd.set_detect_anomaly(False)  # importing RecBole's models turns it on, at half the speed
    dataset = create_dataset(config)
    loaders = data_preparation(config, dataset)
    loaders[0].transform = Cut(loaders[0].transform)
    for loader in loaders[1:]:  # nothing is masked at random in what is ranked
        loader.transform = Cut(lambda _, interaction: interaction)
    first: Any = loaders[0]
    first.batch_sampler.sampler = Similar(first._dataset.inter_feat[LENGTH].numpy(), first.step, job["seed"])
    model = get_model(config["model"])(config, first._dataset).to(config["device"])
    trainer = Trainer(config, model)
    facts = train(trainer, loaders, job)
    measured = trainer.evaluate(loaders[1], load_best_model=False)
    facts["recbole_validation"] = {name: float(value) for name, value in measured.items()}
    # RecBole numbers items anew; its names are our numbers, and place 0 is padding.
    numbers = np.array([-1, *(int(name) for name in dataset.field2id_token[ITEM][1:])])
    found: dict[str, np.ndarray] = {}
    for part, loader in zip(PARTS[1:], loaders[1:], strict=True):
        found[f"{part}_rows"], found[f"{part}_ranks"] = rank(model, loader, numbers, config["device"])
    np.savez(folder / "result.npz", **found)  # type: ignore[arg-type]
    facts |= {"parameters": sum(one.numel() for one in model.parameters()), "threads": torch.get_num_threads()}
    (folder / "result.json").write_text(json.dumps(facts))


def main() -> None:
    """Run the job in a passing folder."""
    folder = Path(sys.argv.pop()).absolute()  # RecBole reads the command line too
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        run(folder, Path(work))
        os.chdir(folder)


if __name__ == "__main__":
    main()
