"""Tiny models with random weights of every family, as the Hub has them: names, layouts, processors, chat templates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.toy.tokenizer import CHAT_TEMPLATE
from tests.conftest import PAIR

VOCABULARY = 672
END, PAD = "<|im_end|>", "<|endoftext|>"
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "rope_parameters": ROPE,
    "tie_word_embeddings": False,
}
MIXTURE: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
SIGLIP: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 32,
}
PATCHES: dict[str, Any] = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}
AREA = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How a family's tiny model is built."""

    model: str
    """transformers' class, without ForConditionalGeneration."""
    image: str
    """The token that a picture has in the chat template."""
    tokens: Mapping[str, str] = field(default_factory=dict)
    """The tokenizer's own names of further special tokens → tokens."""
    config: Callable[[dict[str, Any], Callable[[str], int]], dict[str, Any]]
    """(text settings, token → id) → the configuration's arguments."""
    processor: Callable[[Any], Any]
    """tokenizer → processor."""
    to_hub: Callable[[str, Tensor], tuple[str, Tensor]] = lambda name, tensor: (name, tensor)
    """A tensor and its name as transformers saves them → as the Hub has them."""
    text: Mapping[str, Any] = field(default_factory=dict)
    start: str = ""
    """The start token that the tokenizer adds before a text."""
    words: tuple[str, ...] = ()
    """Further ordinary tokens."""


def make(name: str, folder: Path, *, layers: int = 2, seed: int = 0, vocabulary: int = VOCABULARY) -> Path:
    """Writes a family's model to ``folder``; its weights depend on ``seed`` alone."""
    kind = KINDS[name]
    tokenizer = _tokenizer(kind)
    text = TEXT | {"num_hidden_layers": layers, "vocab_size": vocabulary, **kind.text}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    settings = kind.config(text, tokenizer.convert_tokens_to_ids)
    config = getattr(transformers, f"{kind.model}Config")(**settings)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind.model}ForConditionalGeneration")(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5 / parameter.shape[-1] ** 0.5)
            elif not parameter_name.endswith(("norm.weight", "A_log", "dt_bias")):
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    named = dict(kind.to_hub(*one) for one in load_file(folder / "model.safetensors").items())
    save_file({name: one.contiguous() for name, one in named.items()}, folder / "model.safetensors", {"format": "pt"})
    kind.processor(tokenizer).save_pretrained(folder)
    return folder


def _tokenizer(kind: Kind) -> Any:
    engine = tokenizers.Tokenizer.from_file(str(PAIR / "student" / "tokenizer.json"))
    known = engine.get_vocab()  # its own placeholder stands between two further tokens, as Qwen's does
    added = [one for one in (kind.image, *kind.tokens.values(), kind.start) if one and one not in known]
    engine.add_special_tokens([one for one in added if "><" not in one])
    engine.add_tokens(list(kind.words))
    if kind.start:
        at = engine.token_to_id(kind.start)
        engine.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{kind.start} $A", special_tokens=[(kind.start, at)]
        )
    template = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", kind.image)
    if kind.start:
        template = "{{ bos_token }}" + template
    named = {"bos_token": kind.start} if kind.start else {}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=engine,
        eos_token=END,
        pad_token=PAD,
        model_max_length=2048,
        chat_template=template,
        extra_special_tokens=dict(kind.tokens),
        **named,
    )


def _mrope(interleaved: bool) -> dict[str, Any]:
    sections = {"mrope_section": [8, 4, 4]}
    return ROPE | sections | ({"mrope_interleaved": True} if interleaved else {})


def _qwen_ids(ids: Callable[[str], int]) -> dict[str, Any]:
    named = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    named |= {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    return {f"{key}_token_id": ids(token) for key, token in named.items()}


def _qwen_vision(**more: Any) -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
        **more,
    }


def _qwen2_5(text: dict[str, Any], ids: Callable[[str], int]) -> dict[str, Any]:
    del text["head_dim"]
    text |= {"hidden_size": 128, "rope_parameters": _mrope(False)}
    vision = _qwen_vision(out_hidden_size=128, window_size=32, fullatt_block_indexes=[1])
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": False, **_qwen_ids(ids)}


def _qwen3(text: dict[str, Any], ids: Callable[[str], int]) -> dict[str, Any]:
    text |= {"rope_parameters": _mrope(True)}
    vision = _qwen_vision(num_position_embeddings=64, deepstack_visual_indexes=[0])
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": False, **_qwen_ids(ids)}


def _qwen3_5(text: dict[str, Any], ids: Callable[[str], int]) -> dict[str, Any]:
    count = text["num_hidden_layers"]
    text |= {"rope_parameters": _mrope(True) | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25}}
    text |= {"linear_key_head_dim": 128, "linear_value_head_dim": 128}
    text |= {"linear_num_key_heads": 1, "linear_num_value_heads": 2}
    text |= {"layer_types": ["linear_attention", "full_attention"] * (count // 2)}
    vision = _qwen_vision(num_position_embeddings=64)
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": False, **_qwen_ids(ids)}


def _glm(text: dict[str, Any], ids: Callable[[str], int]) -> dict[str, Any]:
    del text["head_dim"]
    text |= {
        "model_type": "glm4v_text",
        "hidden_size": 128,
        "rope_parameters": _mrope(False) | {"partial_rotary_factor": 0.5},
    }
    text["attention_bias"] = True
    text["rope_parameters"]["mrope_section"] = [4, 2, 2]
    vision = _qwen_vision(image_size=32, model_type="glm4v_vision", out_hidden_size=128)
    named = {"image": "<|image|>", "video": "<|video|>"}
    named |= {"image_start": "<|begin_of_image|>", "image_end": "<|end_of_image|>"}
    named |= {"video_start": "<|begin_of_video|>", "video_end": "<|end_of_video|>"}
    tokens = {f"{key}_token_id": ids(token) for key, token in named.items()}
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": False, **tokens}


def _internvl(text: dict[str, Any], ids: Callable[[str], int]) -> dict[str, Any]:
    vision = SIGLIP | {"patch_size": [8, 8], "image_size": [32, 32]}
    return {
        "text_config": text,
        "vision_config": vision,
        "image_token_id": ids("<IMG_CONTEXT>"),
        "image_seq_length": 4,
        "downsample_ratio": 0.5,
        "tie_word_embeddings": False,
    }


def _onevision(text: dict[str, Any], ids: Callable[[str], int]) -> dict[str, Any]:
    return {
        "text_config": text | {"model_type": "qwen2"},
        "vision_config": SIGLIP | {"model_type": "siglip_vision_model", "vision_use_head": False},
        "image_token_index": ids("<image>"),
        "video_token_index": ids("<video>"),
        "image_grid_pinpoints": PINPOINTS,
        "tie_word_embeddings": False,
    }


PINPOINTS = [[32, 32], [32, 64], [64, 32], [64, 64]]


def _smol(text: dict[str, Any], ids: Callable[[str], int]) -> dict[str, Any]:
    return {
        "text_config": text | {"model_type": "llama"},
        "vision_config": dict(SIGLIP),
        "image_token_id": ids("<image>"),
        "pad_token_id": ids(PAD),
        "scale_factor": 2,
        "tie_word_embeddings": False,
    }


def _gemma(text: dict[str, Any], ids: Callable[[str], int]) -> dict[str, Any]:
    count = text["num_hidden_layers"]
    rope = {"full_attention": ROPE | {"rope_theta": 1e5}, "sliding_attention": ROPE}
    text |= {"sliding_window": 32, "rope_parameters": rope, "query_pre_attn_scalar": 32, "tie_word_embeddings": True}
    text |= {"layer_types": ["sliding_attention", "full_attention"] * (count // 2), "bos_token_id": ids("<bos>")}
    return {
        "text_config": text,
        "vision_config": SIGLIP | {"vision_use_head": False},
        "mm_tokens_per_image": 4,
        "boi_token_index": ids("<start_of_image>"),
        "eoi_token_index": ids("<end_of_image>"),
        "image_token_index": ids("<image_soft_token>"),
        "tie_word_embeddings": True,
    }


def _qwen_processor(kind: str, videos: str) -> Callable[[Any], Any]:
    def make(tokenizer: Any) -> Any:
        return getattr(transformers, kind)(
            image_processor=transformers.Qwen2VLImageProcessor(size=AREA, **PATCHES),
            video_processor=getattr(transformers, videos)(size=AREA, **PATCHES),
            tokenizer=tokenizer,
            chat_template=tokenizer.chat_template,
        )

    return make


def _glm_processor(tokenizer: Any) -> Any:
    return transformers.Glm4vProcessor(
        image_processor=transformers.Glm4vImageProcessor(size=AREA, **PATCHES),
        video_processor=transformers.Glm4vVideoProcessor(size=AREA, **PATCHES),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )


def _internvl_processor(tokenizer: Any) -> Any:
    size = {"height": 32, "width": 32}
    return transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=4),
        video_processor=transformers.InternVLVideoProcessor(size=size),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=tokenizer.chat_template,
    )


def _onevision_processor(tokenizer: Any) -> Any:
    size = {"height": 32, "width": 32}
    return transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS),
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
        tokenizer=tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )


def _smol_processor(kind: str) -> Callable[[Any], Any]:
    def make(tokenizer: Any) -> Any:
        sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
        parts = {"image_processor": getattr(transformers, f"{kind}ImageProcessor")(**sizes), "tokenizer": tokenizer}
        if kind == "SmolVLM":
            parts["video_processor"] = transformers.SmolVLMVideoProcessor(**sizes)
        own = getattr(transformers, f"{kind}Processor")
        return own(**parts, image_seq_len=4, chat_template=tokenizer.chat_template)

    return make


def _gemma_processor(tokenizer: Any) -> Any:
    return transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=tokenizer.chat_template,
    )


def _renamed(*pairs: tuple[str, str]) -> Callable[[str, Tensor], tuple[str, Tensor]]:
    def rename(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        for old, new in pairs:
            if name.startswith(old) and not (new.startswith(old) and name.startswith(new)):
                return new + name.removeprefix(old), tensor
        return name, tensor

    return rename


def _experts_first(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """[experts, out, in] → [experts, in, out], as the Hub has Qwen3-VL's mixtures."""
    return name, tensor.mT.contiguous() if ".experts." in name else tensor


_LLAVA = [
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
]
_SIGLIP_TOWER = [("model.vision_tower.", "vision_tower.vision_model."), ("vision_tower.", "vision_tower.vision_model.")]
_QWEN2 = _renamed(("model.language_model.", "model."), ("model.visual.", "visual."))
_INTERNVL = _renamed(*_LLAVA, ("model.vision_tower.", "vision_tower."))
_VISION = "<|vision_start|><|image_pad|><|vision_end|>"
_IMG = {"start_image_token": "<img>", "end_image_token": "</img>"}
_IMG |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
_GLM = {"image_token": "<|image|>", "video_token": "<|video|>", "begin": "<|begin_of_image|>"}
_GLM |= {"end": "<|end_of_image|>", "video_begin": "<|begin_of_video|>", "video_end": "<|end_of_video|>"}
_SMOL_TOKENS = {"fake_image_token": "<fake_token_around_image>", "image_token": "<image>", "global": "<global-img>"}
_SMOL_TOKENS |= {"end_of_utterance_token": "<end_of_utterance>", "video_token": "<video>"}
_SMOL_TOKENS |= {f"row_{row}_col_{col}": f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2)}
_GEMMA = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
_QWEN3_PROCESSOR = _qwen_processor("Qwen3VLProcessor", "Qwen3VLVideoProcessor")

TURNED = Kind(model="Qwen3VLMoe", image=_VISION, config=_qwen3, processor=_QWEN3_PROCESSOR, text=MIXTURE)
"""A mixture as transformers saves it, with experts [experts, out, in]."""
KINDS: dict[str, Kind] = {
    "qwen2_5_vl": Kind(
        model="Qwen2_5_VL",
        image=_VISION,
        config=_qwen2_5,
        processor=_qwen_processor("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
        to_hub=_QWEN2,
    ),
    "qwen3_vl": Kind(model="Qwen3VL", image=_VISION, config=_qwen3, processor=_QWEN3_PROCESSOR),
    "qwen3_vl_moe": Kind(
        model="Qwen3VLMoe",
        image=_VISION,
        config=_qwen3,
        processor=_QWEN3_PROCESSOR,
        to_hub=_experts_first,
        text=MIXTURE,
    ),
    "internvl": Kind(
        model="InternVL",
        image="<IMG_CONTEXT>",
        tokens=_IMG,
        config=_internvl,
        processor=_internvl_processor,
        to_hub=_INTERNVL,
        text={"model_type": "qwen2", "hidden_size": 128},
    ),
    "internvl/qwen3": Kind(
        model="InternVL",
        image="<IMG_CONTEXT>",
        tokens=_IMG,
        config=_internvl,
        processor=_internvl_processor,
        to_hub=_INTERNVL,
        text={"model_type": "qwen3"},
    ),
    "internvl/qwen3_moe": Kind(
        model="InternVL",
        image="<IMG_CONTEXT>",
        tokens=_IMG,
        config=_internvl,
        processor=_internvl_processor,
        to_hub=_INTERNVL,
        text={"model_type": "qwen3_moe", **MIXTURE},
    ),
    "llava_onevision": Kind(
        model="LlavaOnevision",
        image="<image>",
        tokens={"image_token": "<image>", "video_token": "<video>"},
        config=_onevision,
        processor=_onevision_processor,
        to_hub=_renamed(*_LLAVA, *_SIGLIP_TOWER),
        text={"hidden_size": 128},
    ),
    "smolvlm": Kind(
        model="SmolVLM", image="<image>", tokens=_SMOL_TOKENS, config=_smol, processor=_smol_processor("SmolVLM")
    ),
    "idefics3": Kind(
        model="Idefics3", image="<image>", tokens=_SMOL_TOKENS, config=_smol, processor=_smol_processor("Idefics3")
    ),
    "gemma3": Kind(
        model="Gemma3",
        image="<start_of_image>",
        tokens=_GEMMA,
        config=_gemma,
        processor=_gemma_processor,
        to_hub=_renamed(*_LLAVA, *_SIGLIP_TOWER),
        start="<bos>",
        words=("\n", "\n\n", "\n\n\n", "\n\n\n\n"),
    ),
    "qwen3_5": Kind(model="Qwen3_5", image=_VISION, config=_qwen3_5, processor=_QWEN3_PROCESSOR),
    "glm4v": Kind(
        model="Glm4v",
        image="<|begin_of_image|><|image|><|end_of_image|>",
        tokens=_GLM,
        config=_glm,
        processor=_glm_processor,
    ),
}
