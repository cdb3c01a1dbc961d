"""Student and live teacher as transformers models: loading, adapters, packed forward to loss terms, export."""

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from masters_ray.config import Lora, Part
from masters_ray.errors import CheckpointError
from masters_ray.kernels import norm
from masters_ray.kernels.attention import Layout, attend
from masters_ray.kernels.head import LiveScores, answer_terms, live_terms
from masters_ray.kernels.packing import PackedBatch, PromptTensors
from masters_ray.method.masks import MaskReport, masked
from masters_ray.method.prompts import Message
from masters_ray.models.chat import Chat
from masters_ray.models.weights import copy_beside, quantisation, some, tensors
from masters_ray.parts import LOGIT_CHANGES, NOT_VISION, part_of, part_of_parameter, without_numbers

Terms = tuple[Tensor, Tensor, Tensor]
"""Log-prob of each answer token, JSD to the teacher in nats, its error bound in nats: float32 [answer tokens] each."""
_PACKED = "masters_packed"


def load_model(folder: Path, dtype: str) -> Any:
    """Loads the model. Raises CheckpointError when it cannot, or when weights are missing or have another shape."""
    return _loaded(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa")[0]


def unexpected_weights(folder: Path) -> list[str]:
    """Returns the names of a checkpoint's weights that its model does not have; [] for a quantised one. Reads only
    headers. Raises as ``load_model``, and CheckpointError for weights of more layers than config.json says."""
    from transformers.utils import logging

    if quantisation(folder) is not None:
        return []
    logging.set_verbosity_error()  # otherwise transformers prints a table of missing weights
    logging.disable_progress_bar()
    model, extra = _loaded(folder, device_map="meta")
    own = set(map(without_numbers, model.state_dict()))
    if further := [name for name in extra if without_numbers(name) in own]:
        found = f"expected the layers that config.json says, found weights of further ones: {some(further)}"
        raise CheckpointError(f"{folder}: {found}. Mend it, or download the checkpoint again.")
    return extra


def _loaded(folder: Path, **options: Any) -> tuple[Any, list[str]]:
    from transformers import AutoModelForImageTextToText

    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        remedy = "Take a vision-language model in transformers' own layout, which is often named -hf."
        raise CheckpointError(f"{folder}: the model cannot be loaded: {error} {remedy}") from error
    faults = [f"no {name}" for name in sorted(info["missing_keys"])]
    for name, found, expected in sorted(info["mismatched_keys"]):
        faults.append(f"{name} of shape {list(found)} in place of {list(expected)}")
    if faults:
        found = f"expected all weights of the model that config.json describes, found {some(faults)}"
        raise CheckpointError(f"{folder}: {found}. Download or export it again.")
    return model, sorted(info["unexpected_keys"])


def load_masked(folder: Path, dtype: str, ratio: float, parts: frozenset[Part]) -> tuple[Any, MaskReport]:
    """Loads a teacher for ``live_scores``, ``parts`` masked at ``ratio``. Raises as ``masked`` and ``read_packed``."""
    report: list[MaskReport] = []
    state, empty = dict(masked(tensors(folder), ratio, parts, report)), _empty(folder)
    model: Any = type(empty).from_pretrained(None, config=empty.config, state_dict=state, dtype=getattr(torch, dtype))
    read_packed(model, "teacher")
    return model.eval().requires_grad_(False), report[0]


class PackedStudent(nn.Module):
    """Wraps a vision-language model; its forward returns the loss terms of a packed batch."""

    def __init__(self, model: Any, logits_bytes: int) -> None:
        """Changes ``model``: attention, head (to one that returns loss terms), norms. Raises as ``read_packed``."""
        super().__init__()
        read_packed(model, "student")
        norm.speed_up(model)
        model.lm_head = TermsHead(model.lm_head, logits_bytes)
        self.model = model

    def forward(self, batch: PackedBatch, teacher: LiveScores | None = None) -> Terms:
        """teacher: scores to use in place of those in the batch."""
        return self.model.lm_head(_predicting(self.model, batch), batch, teacher)


class TermsHead(nn.Module):
    """The output head with the loss terms behind it; a separate module, so that ZeRO gathers its weight."""

    def __init__(self, head: nn.Linear, logits_bytes: int) -> None:
        super().__init__()
        self.weight = head.weight
        self._logits_bytes = logits_bytes

    def forward(self, hidden: Tensor, batch: PackedBatch, teacher: LiveScores | None) -> Terms:
        student = hidden, self.weight, batch.targets
        if teacher is not None:
            return live_terms(*student, teacher, logits_bytes=self._logits_bytes)
        scores = batch.top_ids, batch.top_logprobs, batch.left_out
        return answer_terms(*student, *scores, logits_bytes=self._logits_bytes)


def read_packed(model: Any, whose: str) -> None:
    """Switches the language model to packed attention. Raises CheckpointError for what changes logits."""
    from transformers import AttentionInterface

    text = model.config.get_text_config()
    for name in LOGIT_CHANGES:
        if getattr(text, name, None) not in (None, 1, 1.0):
            raise CheckpointError(f"the {whose}'s configuration has {name}={getattr(text, name)}: not supported")
    if model.lm_head.bias is not None:
        raise CheckpointError(f"the {whose}'s lm_head has a bias: not supported")
    AttentionInterface.register(_PACKED, _packed_attention)
    text._attn_implementation = _PACKED


def live_scores(teacher: Any, batch: PackedBatch) -> LiveScores:
    """teacher: as from ``load_masked``."""
    return LiveScores(hidden=_predicting(teacher, batch), weight=teacher.lm_head.weight)


def _predicting(model: Any, batch: PackedBatch) -> Tensor:
    """Returns [answer tokens, width]: the hidden states that predict the batch's answer tokens."""
    positions = batch.positions.unsqueeze(1)
    hidden: Tensor = model.model(
        input_ids=batch.input_ids.unsqueeze(0),
        position_ids=positions if len(positions) > 1 else positions[0],
        use_cache=False,
        layout=batch.layout,
        **batch.vision,
    ).last_hidden_state[0]
    return hidden[batch.predict_at]


def _packed_attention(
    _: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, scaling: float, layout: Layout, **options: Any
) -> tuple[Tensor, None]:
    if dropout := options.get("dropout"):
        raise ValueError(f"packed attention has no dropout; the configuration asks for {dropout}")
    return attend(query, key, value, layout, scaling), None


def prompt_tensors(
    model: Any, chat: Chat, messages: Sequence[Message], pictures: Sequence[Image.Image]
) -> PromptTensors:
    """Returns a prompt's tensors, with the rotary positions that ``model`` itself would compute."""
    inputs = chat.inputs(messages, pictures)
    input_ids = inputs["input_ids"]
    if hasattr(model.model, "get_rope_index"):
        positions, _ = model.model.get_rope_index(**{key: value for key, value in inputs.items() if "pixel" not in key})
        positions = positions[:, 0]
    else:
        positions = torch.arange(input_ids.shape[1]).unsqueeze(0)
    vision = {key: value for key, value in inputs.items() if key not in NOT_VISION}
    return PromptTensors(input_ids=input_ids[0], positions=positions, vision=vision)


def freeze(model: Any, parts: Collection[str]) -> None:
    """Freezes these parts. Raises CheckpointError when lm_head is frozen but shares its weights with a trained part."""
    for name, parameter in model.named_parameters():
        if part_of_parameter(name) in parts:
            parameter.requires_grad_(False)
    if "lm_head" in parts and model.lm_head.weight.requires_grad:
        raise CheckpointError("lm_head and embeddings are one matrix: put both or neither in learner.frozen.")


def checkpoint_activations(model: Any) -> None:
    """Has each layer recompute its activations in the backward pass."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()  # transformers recomputes in training mode only


def add_adapters(model: Any, lora: Lora) -> Any:
    """Adds adapters to all linear layers of the language model, in place; freezes the rest. Returns peft's wrapper."""
    from peft import LoraConfig, get_peft_model

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    targets = [name for name in linear if part_of(f"{name}.weight") == "language"]
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets)
    return get_peft_model(model, settings)


def merged(
    state: Mapping[str, Tensor], checkpoint: Path, lora: Lora, write_to: Path | None = None
) -> dict[str, Tensor]:
    """Returns the student with merged adapters: parameter names → float32 tensors. state: of the adapted model.
    write_to: directory for the adapters alone in peft's format, written atomically."""
    model = load_model(checkpoint, "float32")
    wrapped = add_adapters(model, lora)
    missing, unexpected = model.load_state_dict(dict(state), strict=False)
    if unexpected or any("lora_" in name for name in missing):
        raise ValueError(f"the trained state does not fit the adapted model: {unexpected}, {missing}")
    if write_to is not None:
        wrapped.peft_config["default"].base_model_name_or_path = str(checkpoint)
        with _whole_folder(write_to) as building:
            wrapped.save_pretrained(building)
    return dict(wrapped.merge_and_unload().named_parameters())


def in_checkpoint(state: Mapping[str, Tensor], checkpoint: Path, dtype: str) -> dict[str, Tensor]:
    """Returns the tensors as ``export`` names and splits them. state: parameter names → tensors on the CPU."""
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(_empty(checkpoint), _in_dtype(state, dtype)))


def export(state: Mapping[str, Tensor], checkpoint: Path, target: Path, dtype: str) -> None:
    """Writes trained weights as an ordinary Hugging Face directory, atomically. All but weights, ``dtype`` in
    config.json and model card comes from ``checkpoint``. state: parameter names → tensors on the CPU."""
    with _whole_folder(target) as building:
        _empty(checkpoint).save_pretrained(building, state_dict=_in_dtype(state, dtype))
        copy_beside(checkpoint, building, dtype)
        for file in building.glob("*.safetensors"):
            file.chmod(0o644)  # safetensors makes files that only their owner can read


def _empty(checkpoint: Path) -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(checkpoint))


def _in_dtype(state: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    return {name: tensor.detach().to(getattr(torch, dtype)).contiguous() for name, tensor in state.items()}


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """Yields a directory to build in; at the end of the block it replaces ``target``, unless the block raises."""
    building = target.with_name(target.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    yield building
    shutil.rmtree(target, ignore_errors=True)
    building.rename(target)
