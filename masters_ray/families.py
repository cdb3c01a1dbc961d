"""Facts of model families, keyed by config.json's model_type: families.yaml alone knows a family by name.

An entry says which part of a model each weight belongs to, which tensors hold several matrices, how many matrices a
checkpoint has, and how the learner lays a group out. Names are those of the checkpoints on the Hub and of transformers'
parameters, which differ in their prefixes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml

from masters_ray.config import MaskScope, Part
from masters_ray.errors import CheckpointError

GroupLayout = Literal["prompt_once", "rows"]
"""How the learner lays out a group: one sequence with the prompt once, or each answer a row after its own prompt."""
Counts = Mapping[Part, Callable[[Mapping[str, Any], Mapping[str, Any]], int]]
"""Part → number of its matrices, of (text_config, vision_config)."""


class Fused(NamedTuple):
    """Tensors that hold several of the method's matrices, one after the other along their output axis."""

    names: str  # regular expression of the tensors' names
    sizes: Callable[[Mapping[str, Any]], Sequence[int]]  # text_config → relative sizes of the matrices


@dataclass(frozen=True, kw_only=True)
class Family:
    parts: Mapping[Part, str]
    """Part → regular expression of its weights' names, from their beginning; the first match counts."""
    matrices: Counts = field(default_factory=dict)
    fused: Sequence[Fused] = ()
    unmasked: str = "$^"  # matrices that no mask changes, such as routers
    ignored: str = "$^"  # weights that the engines do not load; they belong to no part
    layout: GroupLayout = "prompt_once"
    padded: Sequence[str] = ()
    """Inputs of the vision tower whose second axis counts tiles: zeros fill it up when prompts are joined."""
    remask: Literal["in_place", "restart"] = "in_place"
    """Whether a running engine takes in weights of another mask, or has to start anew."""
    experts_in_out: bool = False  # whether the engine reads a tensor of all experts as [experts, in, out] alone
    caches_prefixes: bool = True  # whether the engine can keep the keys and values of a prompt for the next request


class Cut(NamedTuple):
    """How a tensor is cut into matrices: first along axis 0 if it holds experts, then along ``axis``."""

    experts: int | None
    axis: int
    sizes: tuple[int, ...]

    @property
    def matrices(self) -> int:
        return (self.experts or 1) * len(self.sizes)


_NO_MATRIX = re.compile(r"(norm\w*|pos_embed\w*|position_embedding\w*|patch_embed\w*)(\.\w+)?$")
_WEIGHT = re.compile(r"[._]weight$|\.experts\.(gate_up_proj|gate_proj|up_proj|down_proj)$")


def _dense(text: Mapping[str, Any], _: Mapping[str, Any]) -> int:
    """q, k, v, o, gate, up and down in each layer."""
    return int(text["num_hidden_layers"]) * 7


def _mixture(text: Mapping[str, Any], _: Mapping[str, Any]) -> int:
    """Attention's four in each layer; gate, up and down once, or of each expert in a layer of experts."""
    step, dense = text.get("decoder_sparse_step", 1), text.get("mlp_only_layers") or []
    layers = range(text["num_hidden_layers"])
    sparse = sum(layer not in dense and (layer + 1) % step == 0 for layer in layers)
    experts = int(text["num_experts"] if "num_experts" in text else text["num_local_experts"])
    return 4 * len(layers) + 3 * (len(layers) - sparse) + 3 * sparse * experts


def _recurrent(text: Mapping[str, Any], _: Mapping[str, Any]) -> int:
    """As dense layers, or q, k, v, z, b, a and out of a recurrence in place of attention."""
    layers, every = int(text["num_hidden_layers"]), int(text.get("full_attention_interval", 4))
    kinds = text.get("layer_types") or ["full_attention" if (n + 1) % every == 0 else "" for n in range(layers)]
    full = kinds.count("full_attention")
    return 7 * full + 10 * (layers - full)


def _recurrent_sizes(text: Mapping[str, Any]) -> tuple[int, int, int]:
    key, value = (text[f"linear_num_{one}_heads"] * text[f"linear_{one}_head_dim"] for one in ("key", "value"))
    return key, key, value


def _merger(text: Mapping[str, Any], vision: Mapping[str, Any]) -> int:
    return 2 + 2 * len(vision.get("deepstack_visual_indexes") or ())


_COUNTS = {"dense": _dense, "mixture": _mixture, "recurrent": _recurrent, "merger": _merger}
_SIZES = {"recurrent": _recurrent_sizes}


def _count(told: str | int | Mapping[str, int]) -> Callable[[Mapping[str, Any], Mapping[str, Any]], int]:
    """told: a name of ``_COUNTS``, a number, or {key of vision_config: matrices of a layer}."""
    if isinstance(told, str):
        return _COUNTS[told]
    if isinstance(told, int):
        return lambda *_: told
    [(key, matrices)] = told.items()
    return lambda _, vision: int(vision[key]) * matrices


def _fused(names: str, sizes: str | Sequence[int]) -> Fused:
    return Fused(names, _SIZES[sizes] if isinstance(sizes, str) else lambda _: tuple(sizes))


def _family(entry: Mapping[str, Any]) -> Family:
    """entry: of families.yaml."""
    counts = {part: _count(told) for part, told in entry.get("matrices", {}).items()}
    return Family(**{**entry, "matrices": counts, "fused": [_fused(**one) for one in entry.get("fused", ())]})


_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
FAMILIES = {name: _family(entry) for name, entry in _TABLE["families"].items()}
"""model_type, or model_type/text_config.model_type where the text model matters, → the family."""
UNKNOWN = _family(_TABLE["unknown"])  # for types that the table does not know
ELSEWHERE: dict[str, str] = _TABLE["elsewhere"]
"""model_type → what to take in place of a layout that needs code of its own."""

PLACEHOLDER_IDS = re.compile(r"(image|video|audio)_token_(id|index)")
"""Keys of config.json that name the placeholder tokens of pictures, videos or sounds."""
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Keys of config.json for an operation on the head's logits; None and 1 mean no operation."""
TEXT_INPUTS = ("input_ids", "attention_mask")  # outputs of a processor that the learner makes itself
PER_TOKEN = ("token_type_ids", "mm_token_type_ids")
"""Outputs of a processor with a number per token of the prompt; an answer's tokens have 0."""


@dataclass(frozen=True)
class Architecture:
    """A family's facts applied to one checkpoint."""

    config: Mapping[str, Any]  # the content of config.json

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type"))

    @property
    def text(self) -> Mapping[str, Any]:
        """The language model's settings; older files have them at the top."""
        return self.config.get("text_config") or self.config

    @cached_property
    def family(self) -> Family:
        """The family, UNKNOWN for a type that the table does not know."""
        of_text = f"{self.model_type}/{self.text.get('model_type')}"
        return FAMILIES.get(of_text) or FAMILIES.get(self.model_type) or UNKNOWN

    def part_of(self, name: str) -> Part | None:
        """Returns the part of any parameter, norms and biases included."""
        if re.match(self.family.ignored, name):
            return None
        return next((part for part, names in self.family.parts.items() if re.match(names, name)), None)

    def cut(self, name: str, shape: Sequence[int]) -> Cut | None:
        """Returns how a tensor is cut into the matrices that a mask may change; None for what is never masked: norms,
        biases, position tables, routers. An expert's matrices are apart, also in a tensor [experts, …]. Raises
        CheckpointError for a tensor that cannot be cut so.

        Example: 128 experts with gate and up in one tensor [128, 1536, 2048]: ``Cut(128, 1, (768, 768))``.
        """
        stacked = len(shape) == 3 and "experts" in name.split(".")
        if self._is_never_masked(name) or not _WEIGHT.search(name) or not (stacked or len(shape) == 2):
            return None
        experts = shape[0] if stacked else None
        axis = len(shape) - 2
        if stacked and (self._is_in_out(shape) or (self.family.experts_in_out and shape[1] == shape[2])):
            axis = 2
        sizes = next((one.sizes(self.text) for one in self.family.fused if re.search(one.names, name)), (1,))
        unit, rest = divmod(shape[axis], sum(sizes))
        if rest:
            raise CheckpointError(f"{name}: expected matrices of relative sizes {sizes} along axis {axis} of {shape}")
        return Cut(experts, axis, tuple(size * unit for size in sizes))

    def is_unknown(self, name: str, shape: Sequence[int]) -> bool:
        """Whether a tensor is a weight matrix that no rule names."""
        return len(shape) == 2 and self.part_of(name) is None and not self._is_never_masked(name)

    def turned(self, name: str, shape: Sequence[int]) -> bool:
        """Whether a tensor of experts is laid out as the family's engine does not read it."""
        gate_up = len(shape) == 3 and name.endswith(".experts.gate_up_proj")
        return gate_up and self.family.experts_in_out and shape[1] != shape[2] and not self._is_in_out(shape)

    def counted(self, shapes: Mapping[str, Sequence[int]]) -> dict[Part, int]:
        """Returns how many matrices of each part a checkpoint has. shapes: tensor name → shape."""
        found = dict.fromkeys(get_args(Part), 0)
        for name, shape in shapes.items():
            part, cut = self.part_of(name), self.cut(name, shape)
            if part is not None and cut is not None:
                found[part] += cut.matrices
        return found

    def expected(self) -> dict[Part, int]:
        """Returns how many matrices of each part config.json makes expected, as far as it and the table say enough."""
        found: dict[Part, int] = {}
        for part, count in self.family.matrices.items():
            with suppress(KeyError):  # a key with the library's default is not always written
                found[part] = count(self.text, self.config.get("vision_config") or {})
        return found

    def _is_in_out(self, shape: Sequence[int]) -> bool:
        """Whether a tensor [experts, …] has a matrix's inputs first, the hidden states."""
        return bool(shape[2] != shape[1] == self.text.get("hidden_size"))

    def _is_never_masked(self, name: str) -> bool:
        named = re.match(self.family.unmasked, name) or re.match(self.family.ignored, name)
        return bool(named or _NO_MATRIX.search(name))


def parts_in(scope: MaskScope) -> list[Part]:
    return [part for part in get_args(Part) if getattr(scope, part)]


def without_numbers(name: str) -> str:
    """Replaces each number in a tensor's name by ``*``: ``layers.0.up.weight`` gives ``layers.*.up.weight``."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
