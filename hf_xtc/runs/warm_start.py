"""The model that a student starts from instead of its teacher's layers, such as the compressed one of another task."""

from typing import Any

from transformers import PreTrainedModel

from hf_xtc.compression.convert import compress, is_packed, unpack_model
from hf_xtc.errors import XTCError
from hf_xtc.modeling.architecture import architecture_of
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.runs.teacher import load_config, load_model, load_tokenizer

# Names of sizes in the configurations, as far as an architecture has them.
SIZES = (
    *("vocab_size", "type_vocab_size", "max_position_embeddings"),
    *("hidden_size", "intermediate_size", "hidden_dim", "num_attention_heads", "num_hidden_layers"),
)


def check_start(name: str, teacher_config: Any, layers: int, tokenizer: Any) -> None:
    """Refuses a model that a student of `layers` layers of this teacher cannot start from.

    Args:
        name (`str`): Folder or Hub id.
        tokenizer (`PreTrainedTokenizerBase`): The teacher's.

    Raises:
        XTCError: if there is no such folder, or its architecture, its shape or its tokenizer's words are others.
        OSError: if there is no such model.
    """
    wanted = {**_shape(teacher_config), "num_hidden_layers": layers}
    found = _shape(load_config(name))
    if other := [f"{key} {found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value]:
        raise XTCError(f"The student cannot start from {name}, which has {', '.join(other)}. Name one of its shape.")
    if load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
        raise XTCError(f"The student cannot start from {name}: its tokenizer knows other words than the teacher's.")


def _shape(config: Any) -> dict[str, Any]:
    sizes = {key: getattr(config, key) for key in SIZES if hasattr(config, key)}
    config_class: Any = architecture_of(config).config_class
    return {"model_type": config_class.model_type, **sizes}


def started(name: str, auto_class: Any, teacher: PreTrainedModel, recipe: XTCRecipe) -> PreTrainedModel:
    """A latent student of the teacher with its head and the encoder of another model, which `check_start` has passed.

    Packed weights become latent ones at the values they stand for, so that annealing starts from the quantized model.
    """
    model = load_model(name, auto_class)
    encoder = (unpack_model(model) if is_packed(model) else model).base_model.state_dict()
    student = compress(teacher, recipe)
    own = {key for key in student.base_model.state_dict() if "activation.range" not in key}
    student.base_model.load_state_dict({key: encoder[key] for key in own}, strict=False)
    return student
