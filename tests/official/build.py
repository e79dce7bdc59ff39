"""An official checkpoint on disk: its own files, of small sizes and with random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoProcessor

from tests.official.checkpoint import Official, Spelling
from tests.official.words import write_vocabulary

WIDTHS = ("hidden_size", "intermediate_size", "projection_dim", "encoder_hidden_size")
LANGUAGE_MODELS = ("llama", "mistral")
LAYERS = 3
PATCHES_FOR = 56  # pixels of an official picture's edge to a patch of a small one's
QUESTION = "What is the cat?"
PICTURES: dict[str, tuple[int, int, str]] = {
    "wide": (90, 40, "RGB"),
    "tall": (37, 101, "RGBA"),
    "grey": (128, 128, "L"),
}
ANSWER = 8  # tokens at most
AHEAD = 0.05  # of the likeliest token, in logits: where an answer of BLIP ends
EOS_OF_LLAMA = 2
# Names of modules now, and in files.
OF_LLAVA = {
    "published": (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ),
    "modules": (("model.vision_tower.", "model.vision_tower.vision_model."),),
}


def build(official: Official, spelling: Spelling, directory: Path) -> Path:
    """Write the checkpoint: all widths, depths and pictures small, all other settings as they are."""
    directory.mkdir(parents=True)
    files = {name: json.loads(json.dumps(value)) for name, value in spelling.files.items()}
    files["config.json"] = small_config(files["config.json"])
    edge = files["config.json"]["vision_config"]["image_size"]
    for name in ("preprocessor_config.json", "processor_config.json"):
        result = files.get(name, {})
        _small_pictures(result.get("image_processor", result), edge)
    _write(directory, files)
    write_vocabulary(official.family, directory, spelling.vocabulary)
    model = _model(directory)
    if official.task in ("questions", "captions"):
        _let_it_end(model, directory)
    _save(model, spelling, files["config.json"], directory)
    _write(directory, files)  # again: transformers writes its own when it saves
    return directory


def small_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with small sizes, stated where the published one leaves them out.

    Widths are a sixteenth and heads a quarter of the published ones, of a language model a 64th and an
    eighth, so that models which differ still do.
    """
    whole = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    small = dict(config)
    for part in ("text_config", "vision_config"):
        sizes = _sizes(getattr(whole, part), config)
        small[part] = config[part] | {
            name: size
            for name, size in sizes.items()
            if name in config[part] or name not in ("head_dim", "encoder_hidden_size")
        }
        said_again = config.get(f"{part}_dict")
        if said_again is not None:
            small[f"{part}_dict"] = said_again | sizes
    for name in ("projection_dim", "image_text_hidden_size"):
        if name in config:
            small[name] = config[name] // 16
    if "image_seq_length" in config:
        vision = small["vision_config"]
        small["image_seq_length"] = (vision["image_size"] // vision["patch_size"]) ** 2
    return small


def _sizes(part: Any, config: dict[str, Any]) -> dict[str, int]:
    language = part.model_type in LANGUAGE_MODELS
    share, heads = (64, 8) if language else (16, 4)
    sizes = {name: getattr(part, name) // share for name in WIDTHS if hasattr(part, name)}
    sizes["num_attention_heads"] = part.num_attention_heads // heads
    if hasattr(part, "num_key_value_heads"):
        sizes["num_key_value_heads"] = part.num_key_value_heads // heads
        sizes["head_dim"] = sizes["hidden_size"] // sizes["num_attention_heads"]
    sizes["num_hidden_layers"] = part.num_hidden_layers // 8 if language else LAYERS
    if hasattr(part, "patch_size"):
        sizes["patch_size"] = part.patch_size
        sizes["image_size"] = part.patch_size * (part.image_size // PATCHES_FOR)
    return sizes


def _small_pictures(images: dict[str, Any], edge: int) -> None:
    for name in ("size", "crop_size"):
        if isinstance(images.get(name), dict):
            images[name] = dict.fromkeys(images[name], edge)
        elif name in images:
            images[name] = edge


def _write(directory: Path, files: dict[str, Any]) -> None:
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value, indent=2)
        (directory / name).write_text(text, encoding="utf-8")


def _model(directory: Path) -> Any:
    """Random weights large enough that attention and logits tell tokens apart."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(directory)
    model = getattr(transformers, config.architectures[0])(config).float().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            # BLIP normalises after every addition: the added part must not dominate the words.
            gain = 0.4 if name.endswith("output.dense.weight") else 1.3
            torch.nn.init.normal_(parameter, std=gain * parameter[0].numel() ** -0.5)
        elif name != "logit_scale":
            norm = float("norm" in name.lower() and "weight" in name)
            torch.nn.init.normal_(parameter, mean=norm, std=0.1)
    return model


@torch.no_grad()
def _let_it_end(model: Any, directory: Path) -> None:
    """Make the answer to the test question end within some tokens, so that stops are compared too."""
    processor = AutoProcessor.from_pretrained(directory)
    prompt = {} if type(model).__name__.endswith("ForConditionalGeneration") else {"text": QUESTION}
    if model.config.model_type == "llava":
        prompt = {"text": f"USER: <image>\n{QUESTION} ASSISTANT:"}
    given = processor(images=picture(*PICTURES["wide"]), return_tensors="pt", **prompt)
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    result = model.generate(**given, max_new_tokens=ANSWER, num_beams=1, **options)
    if model.config.model_type == "llava":
        rows = torch.tensor([EOS_OF_LLAMA, int(result.sequences[0, 2 - ANSWER])])
        model.lm_head.weight[rows] = model.lm_head.weight[rows.flip(0)]
        return
    text = model.config.text_config
    least = min(float(logits[0].max() - logits[0, text.sep_token_id]) for logits in result.logits)
    model.text_decoder.cls.predictions.bias[text.sep_token_id] += least + AHEAD


def _save(model: Any, spelling: Spelling, config: dict[str, Any], directory: Path) -> None:
    dtype = getattr(torch, config.get("dtype") or config["torch_dtype"])
    if spelling.names == "saved":
        model.to(dtype).save_pretrained(directory)
        return
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    if config["model_type"] == "llava":
        rules = OF_LLAVA[spelling.names]
        state = {_renamed(name, rules): tensor for name, tensor in state.items()}
    else:  # a buffer that was saved once, and that nothing reads
        state |= {
            name: tensor.clone()
            for name, tensor in model.named_buffers()
            if name.endswith("position_ids")
        }
    names = sorted(state)
    files = {}
    for shard in range(spelling.shards):
        name = "model.safetensors"
        if spelling.shards > 1:
            name = f"model-{shard + 1:05}-of-{spelling.shards:05}.safetensors"
        part = names[shard :: spelling.shards]
        files |= dict.fromkeys(part, name)
        whole = {each: state[each].contiguous().clone() for each in part}
        save_file(whole, directory / name, metadata={"format": "pt"})
    if spelling.shards > 1:
        size = sum(tensor.nbytes for tensor in state.values())
        index = {"metadata": {"total_size": size}, "weight_map": files}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for now, then in rules:
        if name.startswith(now):
            return then + name.removeprefix(now)
    return name


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Return a picture of soft random colours, reproducible."""
    rng = np.random.default_rng(width)
    small = rng.integers(0, 255, (5, 7, 4 if mode == "RGBA" else 3), dtype=np.uint8)
    whole = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return whole.convert(mode)
