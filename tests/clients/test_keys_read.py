"""The lists of keys that transformers' code reads: what its source gives today, and never less than it does read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from nemoconv.mappings.hf import keys_read

from ..golden import configs

ROOT = Path(__file__).parents[2]
TRANSFORMERS = keys_read.version()
#: of the config classes, which look at every key to copy, print or compare it
EVERY_KEY = frozenset(
    """
    to_dict to_diff_dict __iter__ __repr__ __eq__ __copy__ __deepcopy__ _remove_keys_not_serialized validate
    validate_token_ids __strict_setattr__ dict_dtype_to_str recursive_diff_dict _get_generation_parameters
    _iter_config_keys_with_heterogeneous_adjustment __init__ from_dict
    """.split()
)
KINDS = sorted(
    kind
    for kind, (_, config) in configs.MODELS.items()
    if keys_read.keys_read(str(config.get("model_type", kind.partition(":")[0]))) and ":" not in kind
)


def script() -> Any:
    spec = spec_from_file_location("read_transformers_keys", ROOT / "scripts" / "read_transformers_keys.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass asks for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(
    version("transformers") != TRANSFORMERS, reason=f"the lists are those of transformers {TRANSFORMERS}"
)
def test_the_lists_are_what_the_source_gives() -> None:
    import transformers

    reader = script()
    found = json.loads(reader.text(reader.build(Path(str(transformers.__file__)).parent)))
    kept = json.loads(reader.OUTPUT.read_text())
    changed = sorted(
        kind
        for kind in found["models"].keys() | kept["models"].keys()
        if found["models"].get(kind) != kept["models"].get(kind)
    )
    assert changed == [], "run scripts/read_transformers_keys.py"
    assert found == kept


@contextmanager
def watched(found: set[str]) -> Iterator[None]:
    """Keys that are asked of any config meanwhile, but for what asks for all of them."""
    from transformers import PreTrainedConfig

    before = PreTrainedConfig.__getattribute__

    def watch(self: Any, key: str) -> Any:
        frame = sys._getframe(1)
        if frame.f_code.co_name not in EVERY_KEY and "dataclasses" not in frame.f_code.co_filename:
            found.add(key)
        return before(self, key)

    PreTrainedConfig.__getattribute__ = watch  # type: ignore[assignment]
    try:
        yield
    finally:
        PreTrainedConfig.__getattribute__ = before  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", KINDS)
def test_no_key_is_read_that_the_list_lacks(kind: str, tmp_path: Path) -> None:
    """A model is built, saved, loaded, run and lets itself generate, while its config is watched."""
    import torch
    import transformers

    hf_class, given = configs.MODELS[kind]
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "decoder_start_token_id": 0}
    told = {"model_type": kind, "architectures": [hf_class], **tokens, **given}
    listed = keys_read.keys_read(str(told["model_type"]))
    assert listed is not None
    seen: set[str] = set()
    with watched(seen):
        config = transformers.AutoConfig.for_model(**told)
        model = getattr(transformers, hf_class)(config).eval()
        model.save_pretrained(tmp_path)
        model = getattr(transformers, hf_class).from_pretrained(tmp_path).eval()
        ids = torch.arange(1, 9)[None]
        extra = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **extra)
            if model.can_generate():
                model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    keys = {key for key in seen if not key.startswith("__")}
    methods = {key for key in keys if callable(getattr(type(config), key, None))}
    settings = set(keys_read._data()["generation"].split())
    asked = {key for key in keys - methods - settings if not listed.reads(key)}
    missed = {key for key in asked if not any(fnmatchcase(key, each) for each in keys_read._HANDED_OUT)}
    assert missed == set()
