"""Student and live teacher as transformers models: loading, adapters, packed forward to loss terms, export."""

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad

from masters_ray.config import Lora, Part
from masters_ray.errors import CheckpointError
from masters_ray.families import LOGIT_CHANGES, PER_TOKEN, TEXT_INPUTS, Architecture, without_numbers
from masters_ray.kernels import norm
from masters_ray.kernels.attention import Layout, attend
from masters_ray.kernels.head import LiveScores, answer_terms, live_terms
from masters_ray.kernels.packing import PackedBatch, PromptTensors
from masters_ray.method.masks import Masker, MaskReport
from masters_ray.method.prompts import Message
from masters_ray.models.chat import Chat
from masters_ray.models.weights import architecture, copy_beside, headers, quantisation, some, tensors

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
    """Loads a teacher with ``parts`` masked at ``ratio``. Raises as ``Masker.stream``."""
    report: list[MaskReport] = []
    masker = Masker(architecture(folder), parts, [ratio])
    state, empty = dict(masker.stream(tensors(folder), ratio, report)), _empty(folder)
    model: Any = type(empty).from_pretrained(None, config=empty.config, state_dict=state, dtype=getattr(torch, dtype))
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
    """Switches the language model to packed attention, if its family shares prompts. Raises CheckpointError for what
    changes logits."""
    from transformers import AttentionInterface

    text = model.config.get_text_config()
    for name in LOGIT_CHANGES:
        if getattr(text, name, None) not in (None, 1, 1.0):
            raise CheckpointError(f"the {whose}'s configuration has {name}={getattr(text, name)}: not supported")
    if model.lm_head.bias is not None:
        raise CheckpointError(f"the {whose}'s lm_head has a bias: not supported")
    if known(model).family.layout == "prompt_once":
        AttentionInterface.register(_PACKED, _packed_attention)
        text._attn_implementation = _PACKED


def known(model: Any) -> Architecture:
    return Architecture(model.config.to_dict())


def live_scores(teacher: Any, batch: PackedBatch) -> LiveScores:
    """teacher: as from ``load_masked``, after ``read_packed``."""
    return LiveScores(hidden=_predicting(teacher, batch), weight=teacher.lm_head.weight)


def _predicting(model: Any, batch: PackedBatch) -> Tensor:
    """Returns [answer tokens, width]: the hidden states that predict the batch's answer tokens."""
    layout, input_ids, positions = batch.layout, batch.input_ids, batch.positions
    if isinstance(layout, Layout):  # one row
        input_ids, positions = input_ids.unsqueeze(0), positions.unsqueeze(1)
    hidden: Tensor = model.model(
        input_ids=input_ids,
        position_ids=positions if len(positions) > 1 else positions[0],
        use_cache=False,
        **({"layout": layout} if isinstance(layout, Layout) else batch.per_token),
        **batch.vision,
    ).last_hidden_state
    return hidden.flatten(0, 1)[batch.predict_at]


def plain_logprobs(model: Any, inputs: Mapping[str, Tensor], answer: Sequence[int]) -> Tensor:
    """Returns float32 [tokens]: the log-probs of an answer by transformers' own forward pass over prompt and answer.
    inputs: as from ``Chat.inputs``, on the model's device. model: as from ``load_model``."""
    prompt = inputs["input_ids"]
    ids = torch.cat([prompt, torch.tensor([answer], device=prompt.device)], 1)
    of_tokens = {name: pad(inputs[name], (0, len(answer))) for name in PER_TOKEN if name in inputs}
    given = {**inputs, **of_tokens, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    logits = model(**given, use_cache=False).logits[0, prompt.shape[1] - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, ids[0, prompt.shape[1] :, None]).squeeze(-1)


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
    vision = {key: value for key, value in inputs.items() if key not in (*TEXT_INPUTS, *PER_TOKEN)}
    per_token = {key: inputs[key][0] for key in PER_TOKEN if key in inputs}
    return PromptTensors(input_ids=input_ids[0], positions=positions, vision=vision, per_token=per_token)


def freeze(model: Any, parts: Collection[str]) -> None:
    """Freezes these parts. Raises CheckpointError when lm_head is frozen but shares its weights with a trained part."""
    part_of = known(model).part_of
    for name, parameter in model.named_parameters():
        if part_of(name) in parts:
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

    part_of = known(model).part_of
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    targets = [name for name in linear if part_of(name) == "language"]
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
        with whole_folder(write_to) as building:
            wrapped.save_pretrained(building)
    return dict(wrapped.merge_and_unload().named_parameters())


def in_checkpoint(state: Mapping[str, Tensor], checkpoint: Path, dtype: str) -> dict[str, Tensor]:
    """Returns the tensors under the names and in the shapes of the checkpoint's own files, and the weights there that
    transformers' model does not have. state: parameter names → tensors on the CPU. Raises as ``check_names``."""
    found, held = _named(state, checkpoint, dtype), headers(checkpoint)
    if held.keys() - found.keys():
        found |= {name: tensor for name, tensor in tensors(checkpoint) if name not in found}
    return {name: found[name] for name in held}


def check_names(checkpoint: Path) -> None:
    """Raises CheckpointError when a parameter of the model would have no place in the checkpoint's own files, or
    another shape than there. Reads only headers."""
    _named(dict(_read_from(checkpoint).named_parameters()), checkpoint, "float32")


def _named(state: Mapping[str, Tensor], checkpoint: Path, dtype: str) -> dict[str, Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    model, held = _read_from(checkpoint), headers(checkpoint)
    tied = _tied(model)
    state = {name: tensor for name, tensor in state.items() if name not in tied}
    found = dict(revert_weight_conversion(model, _in_dtype(state, dtype)))
    twice = {alias: state[name].clone() for alias, name in tied.items() if name in state}
    again = revert_weight_conversion(model, _in_dtype(twice, dtype))
    found |= {name: tensor for name, tensor in again.items() if name in held}
    faults = []
    for name, tensor in found.items():
        expected = held[name].shape if name in held else None
        if tensor.shape != expected and tensor.ndim == 3 and tensor.mT.shape == expected:
            # transformers transposes experts while reading where shapes ask for it, but not on the way back.
            found[name] = tensor.mT.contiguous()
        elif tensor.shape != expected:
            faults.append(f"{name} of shape {list(tensor.shape)}")
    if faults:
        told = f"expected the names and shapes of its own files, would be written with {some(faults)}"
        raise CheckpointError(f"{checkpoint}: {told}. It cannot be trained here: engines would not load the result.")
    return found


def export(state: Mapping[str, Tensor], checkpoint: Path, target: Path, dtype: str) -> None:
    """Writes trained weights as an ordinary Hugging Face directory, atomically. All but weights, ``dtype`` in
    config.json and model card comes from ``checkpoint``. state: parameter names → tensors on the CPU."""
    from huggingface_hub import save_torch_state_dict

    with whole_folder(target) as building:
        building.mkdir(parents=True)
        tensors_by_name = in_checkpoint(state, checkpoint, dtype)
        # A library that writes views of one tensor would leave all but one of them out.
        whole = {name: one.clone() if one._base is not None else one for name, one in tensors_by_name.items()}
        save_torch_state_dict(whole, building)
        copy_beside(checkpoint, building, dtype)
        for file in building.glob("*.safetensors"):
            file.chmod(0o644)  # safetensors makes files that only their owner can read


@cache
def _read_from(checkpoint: Path) -> Any:
    """Returns the checkpoint's model without weights; it knows how the names in the files became its own."""
    return _loaded(checkpoint, device_map="meta")[0]


def _tied(model: Any) -> dict[str, str]:
    """Returns, of parameters that are one tensor, further name → first name."""
    first: dict[int, str] = {id(one): name for name, one in model.named_parameters()}
    names = ((name, first[id(one)]) for name, one in model.named_parameters(remove_duplicate=False))
    return {name: main for name, main in names if name != main}


def _empty(checkpoint: Path) -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(checkpoint))


def _in_dtype(state: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    return {name: tensor.detach().to(getattr(torch, dtype)).contiguous() for name, tensor in state.items()}


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yields a directory to build in; at the end of the block it replaces ``target``, unless the block raises."""
    building = target.with_name(target.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    yield building
    shutil.rmtree(target, ignore_errors=True)
    building.rename(target)
