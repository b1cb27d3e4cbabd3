"""A local or hub model through transformers: text models, GGUF files, and vision-language models for captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tessera.enrichment.providers.base import Failure, Message, ModelRequest
from tessera.enrichment.weights import identify
from tessera.errors import InputError, ModelCallError

DEFAULT_TEXT_MODEL = "Qwen/Qwen2.5-1.5B-Instruct"
DEFAULT_VISION_MODEL = "HuggingFaceTB/SmolVLM2-2.2B-Instruct"
BATCH = 8


class TransformersModel:
    """A LanguageModel in this process, on the GPU if there is one; greedy decoding, so that a repeat says the same."""

    provider = "transformers"

    def __init__(self, model: str) -> None:
        self.name = model
        self.model, self.revision = identify(model)
        self._loaded: tuple[Any, Any, bool] | None = None

    def complete(self, requests: Sequence[ModelRequest]) -> list[str | Failure]:
        """Answer each request, eight at a time, left-padded.

        Raises:
            InputError: the model does not load, or a photo is sent to a model without a vision tower.
            ModelCallError: the device runs out of memory.
        """
        import torch

        answers: list[str | Failure] = []
        try:
            for start in range(0, len(requests), BATCH):
                answers += self._generate(requests[start : start + BATCH])
        except torch.OutOfMemoryError:
            raise ModelCallError(f"{self.name} ran out of GPU memory; take a smaller model or serve it.") from None
        return answers

    def _generate(self, requests: Sequence[ModelRequest]) -> list[str]:
        import torch

        if self._loaded is None:
            self._loaded = self._load()
        model, processor, vision = self._loaded
        if not vision and any(message.image for request in requests for message in request.messages):
            raise InputError(f"{self.name} reads no photos; captions need a vision-language model or other provider.")
        chats = [[_turn(message, vision) for message in request.messages] for request in requests]
        options: dict[str, Any] = {"padding": True}
        if vision:
            options = {"processor_kwargs": options}
        inputs = processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
        )
        inputs = inputs.to(model.device, model.dtype) if vision else inputs.to(model.device)
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=max(r.max_tokens for r in requests))
        return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def _load(self) -> tuple[Any, Any, bool]:
        """Model, tokenizer or processor, and whether it reads photos."""
        import torch
        from transformers import (
            AutoConfig,
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
            AutoProcessor,
            AutoTokenizer,
        )

        place, options = _gguf(self.name)
        options |= {"revision": self.revision, "trust_remote_code": False}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        try:
            config = AutoConfig.from_pretrained(place, **options)
            vision = getattr(config, "vision_config", None) is not None
            kind: Any = AutoModelForImageTextToText if vision else AutoModelForCausalLM
            model = kind.from_pretrained(place, config=config, dtype=dtype, **options).to(device).eval()
            processor = (AutoProcessor if vision else AutoTokenizer).from_pretrained(place, **options)
        except Exception as error:  # loaders of a dozen formats: OSError, ValueError, struct.error, KeyError, ...
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise InputError(f"{self.name} cannot be loaded by transformers ({reason}); check the folder.") from None
        tokenizer = processor.tokenizer if vision else processor
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if not processor.chat_template:
            raise InputError(f"{self.name} has no chat template; take an instruction-tuned model.")
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        return model, processor, vision


def _turn(message: Message, vision: bool) -> dict[str, Any]:
    if not vision:
        return {"role": message.role, "content": message.text}
    image = [{"type": "image", "image": message.image}] if message.image is not None else []
    return {"role": message.role, "content": [*image, {"type": "text", "text": message.text}]}


def _gguf(name: str) -> tuple[str, dict[str, Any]]:
    """Where to load from, and `gguf_file` if that is a GGUF file or a folder that holds exactly one."""
    path = Path(name).expanduser()
    if path.is_file():
        return str(path.parent), {"gguf_file": path.name}
    found = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(found) > 1:
        raise InputError(f"{name} holds {len(found)} GGUF files; give the path of one of them.")
    return str(path) if path.is_dir() else name, {"gguf_file": found[0].name} if found else {}
