"""What lies in a model's directory besides the weights that are read, and what transformers makes of it.

Nothing is dropped in silence: an adapter that transformers would apply is refused unless the user leaves it
out, a second set of weights is named, adapters inside the shards are named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from ...errors import MappingError, UnsupportedConfig, UnsupportedFormat, some
from ...mappings.hf.fields import Value
from ...stores.files import Folder

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
#: beside a model, transformers loads the adapter that it describes on top of the weights
ADAPTER: Final = "adapter_config.json"
_ADAPTER_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
#: parts of names that PEFT gives to tensors of a model that its adapters were not merged into
_UNMERGED: Final = (
    ".lora_A.",
    ".lora_B.",
    ".lora_embedding_A",
    ".lora_embedding_B",
    ".lora_magnitude_vector",
)
_WRAPPED: Final = (".base_layer.", ".modules_to_save.", ".original_module.")
_LAYER_TYPES: Final = ("layer_types", "mlp_layer_types")


def check_adapter(directory: Folder, allowed: Collection[str]) -> None:
    """Raise UnsupportedFormat for an adapter beside the weights, unless :data:`ADAPTER` is ``allowed``."""
    if ADAPTER in allowed or not directory.exists(ADAPTER):
        return
    held = [name for name in _ADAPTER_WEIGHTS if directory.exists(name)]
    raise UnsupportedFormat(
        f"{directory.path}: {ADAPTER} lies beside the model: transformers applies the adapter "
        f"({some(held) or 'whose weights are missing'}) to these weights when it loads them",
        hint="merge it first (PEFT's merge_and_unload); --ignore-adapter converts the weights alone",
    )


def adapter_note(directory: Folder) -> list[str]:
    """What a report says of an adapter beside the weights."""
    if not directory.exists(ADAPTER):
        return []
    return [f"the adapter beside the weights ({ADAPTER}) is left out"]


def check_unmerged(names: Iterable[str], where: object) -> None:
    """Raise MappingError for tensors of adapters among those of the model."""
    names = list(names)
    adapters = [name for name in names if any(part in f"{name}." for part in _UNMERGED)]
    wrapped = [name for name in names if any(part in name for part in _WRAPPED)]
    if adapters or wrapped:
        raise MappingError(
            f"{where}: the weights were saved with LoRA adapters inside that are not merged: "
            f"{len(adapters)} tensors of adapters, {len(wrapped)} that they wrap "
            f"({some(adapters or wrapped, 3)})",
            hint="load it with PEFT, merge (merge_and_unload) and save it again",
        )


def check_layer_types(config: Mapping[str, Value], where: str) -> None:
    """Raise UnsupportedConfig for kinds of layers that are not one a layer, as transformers 5.24 does
    (configuration_utils.py, ``validate_layer_type``)."""
    layers = config.get("num_hidden_layers")
    for key in _LAYER_TYPES:
        kinds = config.get(key)
        if isinstance(kinds, list) and type(layers) is int and len(kinds) != layers:
            raise UnsupportedConfig(
                f"{where}: {key} has {len(kinds)} entries for num_hidden_layers={layers}",
                hint=f"transformers refuses that too; give {key} one entry a layer",
            )


def shards_of(directory: Folder, weight_map: Mapping[str, str] | None) -> tuple[bool, list[str]]:
    """Whether the single file is what transformers loads, and the files with weights that it then leaves.

    transformers 5.24 (modeling_utils.py, ``_get_resolved_checkpoint_files``) asks for model.safetensors
    before it asks for an index.
    """
    named = set(weight_map.values()) if weight_map is not None else set()
    single = directory.exists(SINGLE) and named != {SINGLE}
    read = {SINGLE} if single else named
    held = [name for name in directory.names() if _is_weights(name) and name not in read]
    left = [name for name in held if name not in _ADAPTER_WEIGHTS]
    return single, ([INDEX] if single and weight_map is not None else []) + left


def _is_weights(name: str) -> bool:
    pickled = name.startswith(("pytorch_model", "consolidated")) and name.endswith((".bin", ".pth", ".pt"))
    return name.endswith(".safetensors") or pickled


def left_note(left: Iterable[str], single: bool) -> list[str]:
    """What a report says of weights that are there and not read."""
    left = list(left)
    if not left:
        return []
    if left[0] == INDEX:
        return [
            f"two sets of weights: {SINGLE} was read, as transformers does; not read: {some(left, 6)}, which "
            "other loaders may read"
        ]
    told = f"beside {SINGLE}" if single else f"{INDEX} does not name them"
    return [f"weights that were not read, as transformers does not either ({told}): {some(left, 6)}"]


def tokenizer_note(tokens: int | None, rows: int) -> list[str]:
    """What a report says of a tokenizer with more tokens than the embedding has rows, which transformers
    loads all the same."""
    if tokens is None or tokens <= rows:
        return []
    return [
        f"the tokenizer has {tokens:,} tokens, the embedding {rows:,} rows: the last {tokens - rows:,} fail "
        "when they are used, here as in the source"
    ]
