"""Training of RQ-VAE: warm-up, k-means initialisation, dead-code revival, and checkpoints to resume from."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from tessera.config import TokenizerSettings
from tessera.files import replacing
from tessera.tokenizer.kmeans import squared_distances
from tessera.tokenizer.rqvae import RQVAE

CHECKPOINT = "checkpoint.safetensors"
# Share of the epochs: codes that no item used in an epoch are re-seeded until the last stretch, in which every code
# settles and the rate decays to 0.
SETTLE = 0.3
# A small catalogue is cut into this many batches an epoch at least, or it would see too few steps.
LEAST_STEPS = 8
log = logging.getLogger(__name__)


class Training:
    """State of one fit: model, AdamW, random generator, epoch and curve; all of it goes into a checkpoint."""

    def __init__(self, model: RQVAE, settings: TokenizerSettings, seed: int, work: Path, fingerprint: str) -> None:
        self.model, self.settings, self.path, self.fingerprint = model, settings, work / CHECKPOINT, fingerprint
        self.generator = torch.Generator().manual_seed(seed)
        self.epoch, self.curve = 0, list[dict[str, Any]]()
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for n, p in model.named_parameters() if n != "codebooks"], "weight_decay": 1e-4},
                {"params": [model.codebooks], "weight_decay": 0.0},
            ],
            lr=settings.learning_rate, fused=True,
        )

    @property
    def warmup(self) -> int:
        """Epochs without quantization; 0 when there are too few to spare one."""
        return int(self.settings.epochs * self.model.warmup)

    def fit(self, x: Tensor, has_image: Tensor) -> list[dict[str, Any]]:
        """Train to the last epoch on balanced inputs x [N, D], has_image [N]; the curve has one record an epoch."""
        epochs, every = self.settings.epochs, self.settings.checkpoint_every
        self.resume()
        with tqdm(total=epochs, initial=self.epoch, desc="RQ-VAE", unit="epoch") as bar:
            while self.epoch < epochs:
                if self.epoch == self.warmup:
                    self.model.initialise(x, has_image, self.generator)
                record = self.train_epoch(x, has_image)
                self.curve.append(record)
                self.epoch += 1
                used = "/".join(f"{share:.2f}" for share in record["utilisation"])
                bar.set_postfix(loss=f"{record['loss']:.4f}", utilisation=used, refresh=False)
                bar.update()
                if self.epoch % every == 0 and self.epoch < epochs:
                    self.save()
        return self.curve

    def train_epoch(self, x: Tensor, has_image: Tensor) -> dict[str, Any]:
        """One pass in random order; returns {"epoch", "loss", its terms, "utilisation" per level}."""
        quantized = self.epoch >= self.warmup
        levels, size, _ = self.model.codebooks.shape
        usage = torch.zeros(levels, size, device=x.device)
        terms = torch.zeros(5, device=x.device, dtype=torch.float64)
        order = torch.randperm(len(x), generator=self.generator).to(x.device)
        batches = order.split(min(self.settings.batch_size, -(-len(x) // LEAST_STEPS)))
        for step, rows in enumerate(batches):
            self._set_rate(self.epoch + step / len(batches))
            losses = self.model.losses(x[rows], has_image[rows], quantized=quantized)
            total = losses.total(self.settings.commitment)
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
            self.optimizer.step()
            alignment = torch.as_tensor(losses.alignment, device=x.device)
            parts = torch.stack([total, losses.reconstruction, losses.codebook, losses.commitment, alignment]).detach()
            terms += parts.double() * len(rows) / len(x)
            for level, codes in enumerate(losses.codes.T):
                usage[level] += torch.bincount(codes, minlength=size)
        if quantized and self.epoch < self.settings.epochs * (1 - SETTLE):
            self._revive(usage, x[batches[0]], has_image[batches[0]])
        names = ("loss", "reconstruction", "codebook", "commitment", "alignment")
        utilisation = [round(share, 4) for share in (usage > 0).float().mean(1).tolist()]
        values = {name: round(value, 6) for name, value in zip(names, terms.tolist(), strict=True)}
        return {"epoch": self.epoch + 1, **values, "utilisation": utilisation}

    def _set_rate(self, epoch: float) -> None:
        """Linear warm-up over the first hundredth, constant, then a cosine to 0 over the settling epochs."""
        done, start = epoch / self.settings.epochs, 1 - SETTLE
        scale = min(1.0, 100 * done + 0.1)
        if done > start:
            scale = 0.5 * (1 + math.cos(math.pi * (done - start) / SETTLE))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * scale

    @torch.no_grad()
    def _revive(self, usage: Tensor, x: Tensor, has_image: Tensor) -> None:
        """Put each code that no item used (usage [L, K]) on the residual of a random item, its moments cleared."""
        residual = self.model.latents(x, has_image)
        moments = self.optimizer.state.get(self.model.codebooks, {})
        for level, book in enumerate(self.model.codebooks):
            dead = (usage[level] == 0).nonzero().squeeze(1)
            drawn = torch.randint(len(x), (len(dead),), generator=self.generator).to(x.device)
            chosen = book[squared_distances(residual, book).argmin(1)]
            book[dead] = residual[drawn]
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name][level, dead] = 0.0
            residual = residual - chosen

    def save(self) -> None:
        """Write the checkpoint: one safetensors file, so that tensors and counters can never be of two epochs."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        tensors["generator"] = self.generator.get_state()
        state = {"fingerprint": self.fingerprint, "epoch": self.epoch, "curve": self.curve}
        with replacing(self.path) as temporary:
            save_file(
                {name: value.contiguous().cpu() for name, value in tensors.items()},
                temporary,
                metadata={"state": json.dumps(state)},
            )

    def resume(self) -> bool:
        """Continue from the checkpoint in `work` if it is of these inputs and settings; false if there is none such."""
        if not self.path.is_file():
            return False
        try:
            with safe_open(self.path, "pt") as file:
                state = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            log.warning("%s is no readable checkpoint (%s): the tokenizer is fitted from the start.", self.path, error)
            return False
        if state.get("fingerprint") != self.fingerprint:
            log.info("%s belongs to other inputs or settings: the tokenizer is fitted from the start.", self.path)
            return False
        prefix = "model."
        self.model.load_state_dict({n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)})
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.generator.set_state(tensors["generator"])
        self.epoch, self.curve = state["epoch"], state["curve"]
        log.info("the tokenizer's fit continues at epoch %d of %d.", self.epoch + 1, self.settings.epochs)
        return True
