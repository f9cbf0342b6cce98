"""Starts a student from another model instead of the teacher's layers, such as one compressed for another task."""

from typing import Any

from transformers import PreTrainedModel

from hf_xtc.compression.convert import compress, is_packed, unpack_model
from hf_xtc.errors import XTCError
from hf_xtc.modeling.architecture import architecture_of
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.runs.teacher import load_config, load_model, load_tokenizer

# Configuration fields that must agree, if an architecture has them.
SIZES = (
    *("vocab_size", "type_vocab_size", "max_position_embeddings"),
    *("hidden_size", "intermediate_size", "hidden_dim", "num_attention_heads", "num_hidden_layers"),
)


def check_start(name: str, teacher_config: Any, layers: int, tokenizer: Any) -> None:
    """Raises if a student of `layers` layers of this teacher cannot start from a model.

    Args:
        name (`str`): Folder or Hub id.
        tokenizer (`PreTrainedTokenizerBase`): The teacher's.

    Raises:
        XTCError: if there is no such folder, or its architecture, shape or vocabulary differs.
        HubError: if there is no such model on the Hub, or it cannot be reached.
    """
    wanted = {**_shape(teacher_config), "num_hidden_layers": layers}
    found = _shape(load_config(name))
    if other := [f"{key} {found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value]:
        raise XTCError(
            f"The student cannot start from {name}, which has {', '.join(other)}. Choose a model of the student's "
            "shape."
        )
    if load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
        raise XTCError(
            f"The student cannot start from {name}: its vocabulary is not the teacher's. Choose a model with the same "
            "tokenizer."
        )


def _shape(config: Any) -> dict[str, Any]:
    sizes = {key: getattr(config, key) for key in SIZES if hasattr(config, key)}
    config_class: Any = architecture_of(config).config_class
    return {"model_type": config_class.model_type, **sizes}


def started(name: str, auto_class: Any, teacher: PreTrainedModel, recipe: XTCRecipe) -> PreTrainedModel:
    """Returns a latent student with the teacher's head and the encoder of another model, checked by `check_start`.

    Packed weights are dequantized to latent ones, so that annealing starts from the quantized model.
    """
    model = load_model(name, auto_class, fresh_head=True)
    encoder = (unpack_model(model) if is_packed(model) else model).base_model.state_dict()
    student = compress(teacher, recipe)
    own = {key for key in student.base_model.state_dict() if "activation.range" not in key}
    student.base_model.load_state_dict({key: encoder[key] for key in own}, strict=False)
    return student
