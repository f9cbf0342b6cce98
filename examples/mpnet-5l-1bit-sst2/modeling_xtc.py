"""Runs models that hf_xtc compressed to between 1 and 8 bits per weight, where hf_xtc is not installed.

transformers executes this file when its folder is loaded with `trust_remote_code=True`. It is short, so that you can
read it before you allow that. From top to bottom, it

1. checks config.json: the sizes, the format version, and the recipe, which says how each part is quantized;
2. turns bytes into floating-point weights (`decode`) and rounds activations (`RoundActivations`);
3. defines the layers that hold such bytes, `PackedLinear` and `PackedEmbedding`;
4. checks the weight files against config.json before they are loaded, and the loaded values afterwards;
5. puts these layers in the place of those of transformers, and zeros in that of hidden states of padding. All else,
   forward passes included, is transformers' own.

It imports the standard library, torch, transformers, and an error of huggingface_hub. It opens no connection, starts
no process, evaluates no text as code, unpickles nothing, and writes no file unless you call `save_pretrained`.

Weights are decoded at every call, which is exact and slow. After `pip install hf_xtc` the same folder runs faster, on
integer arithmetic, and this file is not executed. Licence: Apache-2.0.
"""

import json
import math
import os
import re
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_utils import load_state_dict

# transformers 4 loads models and ties weights in another way. It has all that is imported above.
if int(transformers.__version__.partition(".")[0]) < 5:
    raise ImportError(
        f"This model needs transformers 5.0 or newer, but {transformers.__version__} is installed. "
        "Run `pip install -U transformers`."
    )


class PackedFileError(ValueError, RuntimeError):
    """config.json or the weights are damaged, of another format, or do not belong together."""


# 1. config.json ------------------------------------------------------------------------------------------------------

FORMAT_VERSION = 1
LEVELS = {"binary": 2, "ternary": 3, "int4": 16, "int8": 256}
PER_BYTE = {2: 8, 3: 5, 16: 2, 256: 1}  # levels -> codes in a byte
FLOATS = ("float16", "bfloat16", "float32")
# The fields of the recipe, `config.xtc["recipe"]`, and their values; the first is what a missing field stands for.
RECIPE: dict[str, tuple[Any, ...]] = {
    "weights": (*LEVELS, None),  # of linear layers; None: not quantized
    "granularity": ("per_channel", "per_tensor", "per_group"),  # what shares a scale: a row, all, `group_size` columns
    "embedding_weights": (*LEVELS, None),
    "position_weights": ("int8", "int4", "ternary", "binary", None),
    "quantize_pooler": (True, False),
    "activation_bits": (8, 4, None),
    "activation_symmetric": (True, False),
    "activation_calibration": ("dynamic", "static"),  # the range of each token, or one that lies in the file
    "scale_dtype": FLOATS,
    "rest_dtype": FLOATS,  # of what is not quantized, in the file
}
OTHER_FIELDS = ("group_size", "keep_layers", "layers", "shifted_hidden_map")  # the last three are of training
# Fields of a configuration; a family has some of them.
SIZES = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_dim"]
SIZES += ["max_position_embeddings", "type_vocab_size", "embedding_size", "num_hidden_groups", "inner_group_num"]
SIZES += ["relative_attention_num_buckets", "local_attention"]
ACTIVATIONS = ["hidden_act", "hidden_activation", "classifier_activation", "activation"]
EPSILONS = ["layer_norm_eps", "norm_eps"]


def require(fits: bool, name: str, value: object) -> None:
    """Raises `PackedFileError`, with the value, unless it fits."""
    if not fits:
        raise PackedFileError(f"config.json says {name}={value!s:.80}, which no packed model has. Restore the file.")


def read_recipe(xtc: Any) -> dict[str, Any]:
    """The recipe in `config.xtc`, checked: a value for each field of `RECIPE`, and for `group_size`."""
    require(isinstance(xtc, dict), "xtc", xtc)
    require(xtc.get("format_version") == FORMAT_VERSION, "format_version", xtc.get("format_version"))
    stored = xtc.get("recipe", {})
    require(isinstance(stored, dict), "recipe", stored)
    for name, value in stored.items():
        require(name in RECIPE or name in OTHER_FIELDS, f"recipe.{name}", value)
    recipe = {name: stored.get(name, choices[0]) for name, choices in RECIPE.items()}
    for name, value in recipe.items():
        known = any(value == choice and type(value) is type(choice) for choice in RECIPE[name])
        require(known, f"recipe.{name}", value)
    size = recipe["group_size"] = stored.get("group_size")
    grouped = recipe["granularity"] == "per_group"
    require(type(size) is int and size > 0 if grouped else size is None, "recipe.group_size", size)
    return recipe


class XTCConfig:
    """What configurations of packed models share: `state` ("packed") and `xtc`, with format version, recipe and
    provenance. Each derives from this class and from that of a family in transformers."""

    def __init__(self, state: str = "packed", xtc: dict[str, Any] | None = None, **kwargs: Any):
        if state == "latent":
            raise PackedFileError("Latent checkpoints are for training; install hf_xtc to load one.")
        require(state == "packed", "state", state)
        self.state, self.xtc = state, {"format_version": FORMAT_VERSION} if xtc is None else xtc
        labels = kwargs.get("num_labels")  # before transformers makes a name for each
        require(labels is None or (type(labels) is int and 0 < labels <= 10**6), "num_labels", labels)
        try:
            super().__init__(**kwargs)
            self._check_values()
        except (AttributeError, KeyError, TypeError, StrictDataclassError) as error:
            raise PackedFileError(f"config.json holds a value that transformers cannot take ({error!r}).") from error
        self.dtype: Any = torch.float32 if self.dtype is None else self.dtype  # not float16, that of the first scale

    def _check_values(self: Any) -> None:
        """Refuses what no packed model has. transformers would build any size before it looks at the weights, import
        another library for a `quantization_config`, and run the code of an attention named like a Hub repository."""
        for name in (name for name in SIZES if hasattr(self, name)):
            size, most = getattr(self, name), 1000 if name == "num_hidden_layers" else 2**31 - 1
            least = 0 if name == "type_vocab_size" else 1
            require(type(size) is int and least <= size <= most, name, size)
        fits = {
            "num_attention_heads": self.hidden_size % self.num_attention_heads == 0,
            **{name: getattr(self, name) in ACT2FN for name in ACTIVATIONS if hasattr(self, name)},
            **{name: 0 < getattr(self, name) <= 1 for name in EPSILONS if hasattr(self, name)},
            "pad_token_id": self.pad_token_id is None or -self.vocab_size <= self.pad_token_id < self.vocab_size,
            "dtype": self.dtype is None or isinstance(self.dtype, (str, torch.dtype)),
            "architectures": all(isinstance(name, str) for name in self.architectures or ()),
            "quantization_config": getattr(self, "quantization_config", None) is None,
            "_attn_implementation": "/" not in str(self._attn_implementation),
        }
        for name, fit in fits.items():
            require(fit, name, getattr(self, name, None))
        read_recipe(self.xtc)


# 2. Numbers ----------------------------------------------------------------------------------------------------------


def decode(packed: Tensor, scale: Tensor, columns: int, levels: int) -> Tensor:
    """The weight, `(rows, columns)` float32, of rows of bytes and scales of shape (1, 1), (rows, 1) or (rows, groups).

    A byte is a number in base `levels`, and its digits are codes, the lowest first. A binary code, 0 or 1, is -1 or +1
    times its scale, a ternary one -1, 0 or +1 times, and any other `code - levels / 2` times.
    """
    if levels < 256:
        every_byte, powers = torch.arange(256), levels ** torch.arange(PER_BYTE[levels])
        digits = (every_byte[:, None] // powers % levels).to(packed.device, torch.uint8)
        packed = nn.functional.embedding(packed.int(), digits).flatten(-2)[..., :columns]
    codes, scale = packed.float().unflatten(-1, (scale.shape[-1], -1)), scale.float().unsqueeze(-1)
    weight: Tensor = codes.sub_(0.5).mul_(2 * scale) if levels == 2 else codes.sub_(levels // 2).mul_(scale)
    return weight.flatten(-2)


class RoundActivations(torch.autograd.Function):
    """Rounds the input of a linear layer to 2**bits levels between extremes: those of each token, or given ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, extremes: Tensor | None, bits: int, symmetric: bool) -> Tensor:
        values = x.float()
        if extremes is None:
            low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        else:
            low, high = extremes[0], extremes[1]
        if symmetric:
            half = 2 ** (bits - 1)
            step = torch.maximum(low.abs(), high.abs()) / half
            rounded: Tensor = (values / step.where(step != 0, 1.0)).round_().clamp_(-half, half - 1).mul_(step)
        else:
            step = (high - low) / 2**bits
            step = step.where(step != 0, low.abs())
            step = step.where(step != 0, 1.0)
            zero = (low / step).round_() * step
            rounded = ((values - zero) / step).round_().clamp_(0, 2**bits - 1).mul_(step).add_(zero)
        if extremes is not None:  # a range that was never measured is empty: such activations are not rounded
            rounded = torch.where(low == high, values, rounded)
        return rounded.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient as if nothing were rounded; that of rounding is zero everywhere."""
        return grads[0], None, None, None


# 3. Layers -----------------------------------------------------------------------------------------------------------


class Stored(nn.Module):
    """A module whose buffers keep the dtypes of the file when the model is converted, with `.half()` for example."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in before.items():
            after = getattr(self, name)
            if after.dtype != tensor.dtype and name != "output":
                setattr(self, name, tensor.to(after.device))
        return self


class ActivationQuantizer(Stored):
    """`RoundActivations` as the recipe says. A static range, lowest and highest, lies in the file."""

    def __init__(self, recipe: dict[str, Any]):
        super().__init__()
        self.bits, self.symmetric = recipe["activation_bits"], recipe["activation_symmetric"]
        static = recipe["activation_calibration"] == "static"
        self.register_buffer("range", torch.zeros(2, dtype=torch.float32) if static else None)

    def forward(self, x: Tensor) -> Tensor:
        return RoundActivations.apply(x, self.range, self.bits, self.symmetric)  # type: ignore[no-any-return]


class PackedLayer(Stored):
    """A weight of shape `(rows, columns)` as it lies in the file: codes in bytes, and their scales."""

    weight_packed: Tensor
    weight_scale: Tensor

    def __init__(self, rows: int, columns: int, quantizer: str, scales: tuple[int, int], recipe: dict[str, Any]):
        super().__init__()
        self.columns, self.levels = columns, LEVELS[quantizer]
        width = -(-columns // PER_BYTE[self.levels])
        self.register_buffer("weight_packed", torch.zeros(rows, width, dtype=torch.uint8))
        self.register_buffer("weight_scale", torch.zeros(scales, dtype=getattr(torch, recipe["scale_dtype"])))

    def dequantize(self) -> Tensor:
        """The weight, `(rows, columns)` float32."""
        return decode(self.weight_packed, self.weight_scale, self.columns, self.levels)


class PackedLinear(PackedLayer):
    """`nn.Linear` with a packed weight and rounded input."""

    def __init__(self, linear: nn.Linear, quantizer: str, recipe: dict[str, Any], path: str):
        rows, columns, size = linear.out_features, linear.in_features, recipe["group_size"] or linear.in_features
        require(columns % size == 0, "recipe.group_size", f"{size} for the {columns} inputs of {path}")
        scales = (1, 1) if recipe["granularity"] == "per_tensor" else (rows, columns // size)
        super().__init__(rows, columns, quantizer, scales, recipe)
        self.bias = linear.bias
        self.activation = ActivationQuantizer(recipe) if recipe["activation_bits"] else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.activation is None else self.activation(x)
        return nn.functional.linear(x, self.dequantize().to(x.dtype), self.bias)


class PackedEmbedding(PackedLayer):
    """`nn.Embedding` with packed rows and a scale for each. Only the rows that are looked up are decoded."""

    output: Tensor  # has no values; its dtype is that of the model

    def __init__(self, embedding: nn.Embedding, quantizer: str, recipe: dict[str, Any], path: str):
        rows, columns = embedding.num_embeddings, embedding.embedding_dim
        super().__init__(rows, columns, quantizer, (rows, 1), recipe)
        self.register_buffer("output", torch.empty(0), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        packed, scale = (nn.functional.embedding(ids.flatten(), t) for t in (self.weight_packed, self.weight_scale))
        rows = decode(packed, scale, self.columns, self.levels)
        return rows.view(*ids.shape, self.columns).to(self.output.dtype)


class TiedDecoder(nn.Module):
    """The output layer of a language model whose weight is that of the packed word embedding."""

    def __init__(self, embedding: PackedEmbedding, bias: nn.Parameter | None):
        super().__init__()
        self.bias = bias
        self.shared = (embedding,)  # in a tuple, it is not a submodule and not saved a second time

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.shared[0].dequantize().to(x.dtype), self.bias)


# 4. Checks of the weights --------------------------------------------------------------------------------------------

LARGEST = 2.0**18  # no number of a packed model is larger, so that no output overflows
DAMAGED = "The file is damaged; download or write it again."
MIXED = "Config and weights do not belong together; download or write both again."
NEW_HEAD = "Load it with its own number of labels, or give ignore_mismatched_sizes=True for a new head."


def check_index(folder: str) -> None:
    """Checks that the index of shards of a local folder, if it has one, names files of this folder alone."""
    file = os.path.join(folder, "model.safetensors.index.json")
    if not os.path.isfile(file):
        return
    try:
        with open(file, encoding="utf-8") as text:
            index = json.load(text)
        here = all(os.path.basename(name) == name not in ("", ".", "..") for name in index["weight_map"].values())
        if not here or not isinstance(index["metadata"], dict):
            raise ValueError("its shards must be files of the folder")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise PackedFileError(f"{file} is no index of shards ({type(error).__name__}: {error}). {DAMAGED}") from error


def read_header(file: str) -> dict[str, Tensor]:
    """Name -> tensor without values (device "meta") of a safetensors file."""
    try:
        if not os.path.isfile(file):  # a pipe or a device may have no end
            raise OSError("not a regular file")
        return dict(load_state_dict(file, map_location="meta"))
    except Exception as error:  # safetensors' own error has no narrower base class
        raise PackedFileError(f"{file} is truncated or not a safetensors file ({error}). {DAMAGED}") from error


def check_files(model: Any, files: list[str], new_head: bool) -> None:
    """Checks that files hold the tensors that the model is made of, before any of them is loaded.

    Files of the model's own class must hold all of them and no others. Of files of another class (a classifier to be
    loaded as a bare encoder, or the reverse) the encoder is compared, its pooler only if both have one.
    """
    if not all(file.endswith(".safetensors") for file in files):
        raise PackedFileError(f"{files[0]} is not a safetensors file; packed models are never read from pickles.")
    found = {name: tensor for file in files for name, tensor in read_header(file).items()}
    where = "/".join(files[0].split(os.sep)[-2:])
    encoder, prefix = model.base_model, f"{model.base_model_prefix}."
    own = type(model).__name__ in (model.config.architectures or ()) and not new_head
    if not own:
        model = encoder
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    if model is encoder and not all(any(n.startswith("pooler.") for n in names) for names in (found, expected)):
        found, expected = ({n: d[n] for n in d if not n.startswith("pooler.")} for d in (found, expected))
    missing, unknown = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing:
        raise PackedFileError(f"{where} lacks {len(missing)} tensors of the model (first: {min(missing)}). {MIXED}")
    if own and unknown:
        raise PackedFileError(f"{where} holds {len(unknown)} unknown tensors (first: {min(unknown)}). {MIXED}")
    floats = (torch.float64, *(getattr(torch, name) for name in FLOATS))
    for name, tensor in expected.items():
        shape, dtype = list(found[name].shape), found[name].dtype
        quantized = name.endswith(("weight_packed", "weight_scale"))
        if shape != list(tensor.shape) or (dtype != tensor.dtype if quantized else dtype not in floats):
            promised = f"{tensor.dtype} of shape {list(tensor.shape)}"
            head = model is not encoder and not name.startswith(prefix) and shape[1:] == list(tensor.shape[1:])
            advice = NEW_HEAD if head and shape != list(tensor.shape) else MIXED
            raise PackedFileError(f"{where}: {name} is {dtype} of shape {shape}, not {promised}. {advice}")


def check_values(model: nn.Module) -> None:
    """Checks loaded values: bytes that the format has, scales that are not negative, numbers that are finite."""
    for name, module in model.named_modules():
        if isinstance(module, PackedLayer) and module.weight_packed.numel() and not module.weight_packed.is_meta:
            last, byte = module.levels ** PER_BYTE[module.levels] - 1, int(module.weight_packed.max())
            if byte > last:
                raise PackedFileError(f"{name}.weight_packed holds {byte}; its bytes end at {last}. {DAMAGED}")
            if bool((module.weight_scale < 0).any()):
                raise PackedFileError(f"{name}.weight_scale holds a negative scale. {DAMAGED}")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
            low, high = (float(extreme) for extreme in torch.aminmax(tensor))
            if not math.isfinite(low + high) or max(-low, high) > LARGEST:
                raise PackedFileError(f"{name} holds values from {low:g} to {high:g}, beyond {LARGEST:g}. {DAMAGED}")
            if name.endswith("activation.range") and tensor[0] > tensor[1]:
                raise PackedFileError(f"{name} ends at {low:g} before it starts. {DAMAGED}")


# 5. Models -----------------------------------------------------------------------------------------------------------


def zero_padding(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """A hook of encoders: hidden states of padding are zeros, as in hf_xtc, which does not compute them."""
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return output
    hidden = output[0].masked_fill(mask[:, -output[0].shape[1] :, None] == 0, 0)
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    output.last_hidden_state = hidden
    return output


class XTCModel(PreTrainedModel):  # type: ignore[misc]
    """What packed models of all families share; each derives from this class and from one of transformers."""

    parts: dict[str, str] = {}  # see FAMILIES
    accepts_loss_kwargs = False  # for Trainer: the losses of encoders take no `num_items_in_batch`
    _tied_weights_keys: Any

    def post_init(self) -> None:
        """Swaps modules. transformers calls this at the end of `__init__`, before it loads weights."""
        recipe, encoder, output = read_recipe(self.config.xtc), self.base_model, self.get_output_embeddings()
        pooler = recipe["weights"] if recipe["quantize_pooler"] else None
        quantizers = {
            **{"linear": recipe["weights"], "words": recipe["embedding_weights"]},
            **{"positions": recipe["position_weights"], "pooler": pooler, "head": pooler},
        }
        for part, pattern in self.parts.items():
            owner = self if part == "head" else encoder
            if quantizers[part] is None or (part == "head" and (output is not None or encoder is self)):
                continue  # a language model's head, but for its output layer, is not packed
            for path, module in list(owner.named_modules()):
                if re.fullmatch(pattern, path):
                    packed = PackedEmbedding if isinstance(module, nn.Embedding) else PackedLinear
                    owner.set_submodule(path, packed(module, quantizers[part], recipe, path))
        words = self.get_input_embeddings()
        if output is not None and isinstance(words, PackedEmbedding) and self.config.tie_word_embeddings:
            path = next(name for name, module in self.named_modules() if module is output)
            self.set_submodule(path, TiedDecoder(words, output.bias))
            self._tied_weights_keys = dict(self._tied_weights_keys)  # what transformers ties: a bias, or nothing else
            del self._tied_weights_keys[f"{path}.weight"]
        encoder.register_forward_hook(zero_padding, with_kwargs=True)
        super().post_init()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """As in transformers. What a file lacks (a pooler, say) becomes zeros, not what memory happens to hold."""
        for module in self.modules():
            if isinstance(module, Stored):
                for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    if not getattr(tensor, "_is_hf_initialized", False):
                        tensor.zero_()
        super().initialize_weights()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As in transformers, where ModernBERT's writes the weights of a module's children; packed ones have none."""
        try:
            super()._init_weights(module)
        except AttributeError:
            if not any(isinstance(child, (PackedLayer, TiedDecoder)) for child in module.children()):
                raise

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Refused, for rows of codes cannot be trained."""
        raise PackedFileError("The vocabulary of a packed model cannot change. hf_xtc can unpack and train the model.")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, after `check_index`. All but the head is frozen, as in hf_xtc."""
        if isinstance(pretrained_model_name_or_path, (str, os.PathLike)):
            check_index(os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder") or ""))
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for module in model.modules():
            if module is model.base_model or isinstance(module, PackedLinear):
                module.requires_grad_(False)
        return loaded

    @classmethod
    def _load_pretrained_model(cls, model: Any, state_dict: Any, files: Any, load_config: Any, *args: Any) -> Any:
        """As in transformers, between `check_files` and `check_values`."""
        if files is not None:
            check_files(model, files, load_config.ignore_mismatched_sizes)
        loaded = super()._load_pretrained_model(model, state_dict, files, load_config, *args)
        check_values(model)
        return loaded

    def save_pretrained(self, save_directory: Any, state_dict: dict[str, Tensor] | None = None, **kwargs: Any) -> None:
        """As in transformers, with parameters in the dtype that they had in the file."""
        dtype = getattr(torch, read_recipe(self.config.xtc)["rest_dtype"])
        parameters = dict(self.named_parameters(remove_duplicate=False))
        stored: dict[int, Tensor] = {}  # a parameter of two names is converted once, so that it is saved once
        tensors = dict(self.state_dict() if state_dict is None else state_dict)
        for name in tensors.keys() & parameters.keys():
            tensors[name] = stored.setdefault(id(parameters[name]), tensors[name].to(dtype))
        kwargs.setdefault("save_original_format", False)  # else 5.0 gives LayerNorms the names of TensorFlow's BERT
        super().save_pretrained(save_directory, state_dict=tensors, **kwargs)


BERT = {
    "words": r"embeddings\.word_embeddings",
    "positions": r"embeddings\.(position|token_type)_embeddings",
    "linear": r"encoder\.layer\.\d+\.(attention|intermediate|output)\.(.+\.)?(query|key|value|dense)",
    "pooler": r"pooler\.dense",
}
ROBERTA = {**BERT, "head": r"classifier\.dense"}
# Family, as transformers begins the names of its classes -> part of the recipe -> pattern of the paths of its modules:
# in the encoder, and for "head" in a model that is no language model.
FAMILIES = {
    "Bert": BERT,
    "Roberta": ROBERTA,
    "XLMRoberta": ROBERTA,
    "Camembert": ROBERTA,
    "Electra": {
        **BERT,
        "linear": BERT["linear"] + "|embeddings_project",
        "head": r"classifier\.dense|sequence_summary\.summary",
    },
    "DistilBert": {
        **BERT,
        "linear": r"transformer\.layer\.\d+\.(attention\.(q|k|v|out)_lin|ffn\.lin[12])",
        "head": "pre_classifier",
    },
    "MPNet": {
        **ROBERTA,
        "linear": r"encoder\.layer\.\d+\.(attention\.attn\.[qkvo]|(intermediate|output)\.dense)",
    },
    "Albert": {
        **BERT,
        "linear": r"encoder\.(embedding_hidden_mapping_in|.+\.(query|key|value|attention\.dense|ffn|ffn_output))",
        "pooler": "pooler",
    },
    "DebertaV2": {
        **BERT,
        "linear": r"embeddings\.embed_proj|encoder\.layer\.\d+\..*(query_proj|key_proj|value_proj|dense)",
        "head": r"pooler\.dense",
    },
    "ModernBert": {
        "words": r"embeddings\.tok_embeddings",
        "linear": r"layers\.\d+\.(attn\.(Wqkv|Wo)|mlp\.(Wi|Wo))",
        "head": r"head\.dense",
    },
}
HEADS = ["", "_FOR_PRETRAINING", "_FOR_MASKED_LM", "_FOR_NEXT_SENTENCE_PREDICTION", "_FOR_SEQUENCE_CLASSIFICATION"]
HEADS += ["_FOR_TOKEN_CLASSIFICATION", "_FOR_QUESTION_ANSWERING", "_FOR_MULTIPLE_CHOICE"]


def make_classes(family: str) -> None:
    """Defines a configuration and, for each class that transformers has for a family, one here: XTCBertModel for
    BertModel, and so on."""
    base = getattr(transformers, f"{family}Config")
    model_type = f"xtc_{base.model_type.replace('-', '_')}"
    fields = {"model_type": model_type, "__init__": XTCConfig.__init__, "__module__": __name__}
    config_class: Any = type(f"XTC{family}Config", (XTCConfig, base), fields)
    globals()[config_class.__name__] = config_class
    for head in HEADS:
        mapping = getattr(transformers, f"MODEL{head}_MAPPING")
        if base in mapping:
            model = mapping[base]
            fields = {"config_class": config_class, "parts": FAMILIES[family], "__module__": __name__}
            globals()[f"XTC{model.__name__}"] = type(f"XTC{model.__name__}", (XTCModel, model), fields)


def __getattr__(name: str) -> Any:
    """Makes the classes of a family when the first of them is asked for; Python calls this for unknown names."""
    for family in FAMILIES:
        if name.startswith(f"XTC{family}") and f"XTC{family}Config" not in globals():
            make_classes(family)
            if name in globals():
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
