"""NeMo 2's config classes as data: the file's own order, what the tables take from it, and that it comes late.

``tests/clients/test_real_nemo_classes.py`` compares the file with NeMo.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemoconv.entry_points import BUILT_IN, entries
from nemoconv.formats.text.fiddle import PARTIAL, Node, Symbol
from nemoconv.mappings import architectures, load_table
from nemoconv.mappings.llama_like import llama_like
from nemoconv.mappings.nemo2 import classes
from nemoconv.mappings.nemo2.entry import Nemo2
from nemoconv.mappings.nemo2.fields import ArchivesOnly, NemoClasses, harmless
from nemoconv.mappings.nemo2.known import MAPPED

FILE = Path(classes.__file__).with_name("classes.json")
DOCUMENT: dict[str, Any] = json.loads(FILE.read_bytes())
#: what is refused unless a checkpoint says otherwise: layers under other names, and norms around zero
_FULL = "use_transformer_engine_full_layer_spec"
REFUSED = {
    **{f"GPTConfig{size}": {_FULL} for size in ("126M", "5B", "7B", "20B", "40B")},
    "GPTConfig175B": {_FULL, "layernorm_zero_centered_gamma"},
}


def entries_of_the_file() -> Iterator[tuple[str, dict[str, Any]]]:
    for module in DOCUMENT.values():
        yield from module["classes"].items()


def nemo_classes() -> Iterator[tuple[str, NemoClasses]]:
    """Those of every built-in table, and of the parts of its model."""
    for name in architectures():
        nemo = load_table(name).nemo
        if entries("mappings")[name].origin != BUILT_IN or isinstance(nemo, ArchivesOnly) or not nemo.config:
            continue
        yield name, nemo
        yield from ((name, rule.classes) for rule in nemo.rules if hasattr(rule, "classes"))


def test_a_class_stands_once_and_after_its_parent() -> None:
    names = [name for name, _ in entries_of_the_file()]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert len(names) > 130
    seen: set[str] = set()
    for name, found in entries_of_the_file():
        assert set(found) <= {"parent", "set"}
        assert found.get("parent", "ModelParallelConfig") in {*seen, "ModelParallelConfig"}, name
        seen.add(name)


def test_a_class_says_only_what_its_parent_does_not() -> None:
    for name, found in entries_of_the_file():
        if "parent" in found:
            parent = classes.defaults(found["parent"])
            own = classes.defaults(name)
            again = {
                field
                for field in found["set"]
                if field in parent and (type(own[field]), own[field]) == (type(parent[field]), parent[field])
            }
            assert again == set(), name


def test_what_derives_has_the_fields_of_its_parent_first() -> None:
    gpt, llama = list(classes.defaults("GPTConfig")), list(classes.defaults("Llama31Config8B"))
    assert llama[: len(gpt)] == gpt
    assert llama[-4:] == ["scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len"]


def test_every_module_says_what_it_was_read_off() -> None:
    assert {module["read_off"]["nemo-toolkit"] for module in DOCUMENT.values()} == {"2.5.3", "2.7.3"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LlamaConfig", {"seq_length": 4096, "rotary_base": 10_000, "num_query_groups": None}),
        ("Llama2Config70B", {"num_layers": 80, "num_query_groups": 8, "ffn_hidden_size": 28_672}),
        ("Llama31Config", {"scale_factor": 8.0, "old_context_len": 8192, "init_method_std": 0.02}),
        ("Llama31Config405B", {"num_layers": 126, "num_query_groups": 8, "high_freq_factor": 4.0}),
        ("Llama32Config1B", {"scale_factor": 32, "share_embeddings_and_output_weights": True}),
        ("CodeLlamaConfig7B", {"rotary_base": 1_000_000, "num_layers": 32, "seq_length": 16_384}),
        ("CodeLlamaConfig70B", {"rotary_base": 10_000, "seq_length": 4096, "num_layers": 80}),
        ("DeepSeekV3Config", {"num_moe_experts": 256, "moe_layer_freq": [0] * 3 + [1] * 58}),
        ("Gemma3Config12B", {"rotary_base": (10_000, 1_000_000), "window_size": 1024}),
        # no dataclass itself, so that its ``num_layers: int = 8`` is no field's default
        ("Llama32Reranker500MConfig", {"num_layers": 16, "pool_type": "avg"}),
    ],
)
def test_known_by_heart(name: str, expected: dict[str, object]) -> None:
    defaults = classes.defaults(name)
    assert {key: defaults[key] for key in expected} == expected


def test_values_that_json_has_not() -> None:
    assert classes.defaults("LlamaConfig")["activation_func"] == Symbol("torch.nn.functional", "silu")
    assert classes.defaults("MixtralConfig")["params_dtype"] == Symbol("torch", "bfloat16")
    assert classes.defaults("Gemma2Config")["window_size"] == (4096, 0)
    assert classes.defaults("MistralConfig7B")["window_size"] == [4096, 0]
    spec = Symbol("megatron.core.models.gpt.gpt_layer_specs", "get_gpt_decoder_block_spec")
    partial = Node(spec, {"use_transformer_engine": True}, PARTIAL)
    assert classes.defaults("DeepSeekConfig")["transformer_layer_spec"] == partial
    tower = Symbol("nemo.collections.vlm.qwen2vl.model.base", "Qwen25VLVisionConfig")
    sizes = {"num_layers": 32, "num_attention_heads": 16, "ffn_hidden_size": 3456}
    assert classes.defaults("Qwen25VLConfig72B")["vision_transformer_config"] == Node(tower, sizes)


def test_the_llama_classes_say_every_field_that_a_plain_decoder_is_made_by() -> None:
    scaling = {"scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len"}
    family = classes.family("LlamaConfig", without=("Llama4Config",))
    assert len(family) == 17
    for name, defaults in family.items():
        has_scaling = name.startswith(("Llama31", "Llama32"))
        assert set(MAPPED) - set(defaults) == (set() if has_scaling else scaling), name


def test_a_family_is_a_class_and_what_derives_from_it_in_its_module() -> None:
    qwen3 = classes.family("Qwen3Config", without=("Qwen3MoEConfig",))
    assert "Qwen3Config8B" in qwen3
    assert not {"Qwen3MoEConfig", "Qwen3Config30B_A3B", "Qwen2Config"} & set(qwen3)
    assert list(classes.family("GPTConfig"))[:2] == ["GPTConfig", "GPTConfig126M"]
    assert "LlamaConfig" not in classes.family("GPTConfig")  # another module's
    with pytest.raises(KeyError):
        qwen3["Qwen3Config30B_A3B"]


def test_changes_come_in_every_class_of_a_family() -> None:
    family = classes.family("SSMConfig", vocab_size=None)
    assert "vocab_size" not in classes.defaults("SSMConfig")
    assert "NemotronHConfig8B" in family
    assert {defaults["vocab_size"] for defaults in family.values()} == {None}


def test_nothing_can_be_changed() -> None:
    with pytest.raises(TypeError):
        classes.defaults("LlamaConfig")["num_layers"] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        classes.family("LlamaConfig")["LlamaConfig"] = {}  # type: ignore[index]


def test_every_table_takes_classes_of_its_own_modules() -> None:
    for name, nemo in nemo_classes():
        modules = {classes.module(known) for known in nemo.defaults}
        assert modules <= {nemo.module, *nemo.modules}, name
        assert nemo.config in nemo.defaults, name


def test_every_default_is_read_by_a_rule_or_known_to_change_nothing() -> None:
    """A class that computes by a default that its table does not know would be converted wrongly."""
    for name, nemo in nemo_classes():
        owned = frozenset().union(*(rule.names for rule in nemo.rules))
        for config, defaults in nemo.defaults.items():
            unread = [field for field in defaults if field not in owned and not harmless(field, defaults)]
            assert set(unread) <= REFUSED.get(config, set()), (name, config)


def test_the_file_is_read_when_the_first_table_is_made() -> None:
    """Not by ``nemoconv --help``, nor by a list of architectures."""
    code = (
        "import nemoconv.cli\n"
        "from nemoconv.mappings import architectures, load_table\n"
        "from nemoconv.mappings.nemo2 import classes\n"
        "assert 'qwen2' in architectures()\n"
        "assert classes._file.cache_info().currsize == 0\n"
        "assert 'Qwen2Config7B' in load_table('qwen2').nemo.defaults\n"
        "assert classes._file.cache_info().currsize == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_class_that_nemo_has_not_is_named() -> None:
    """By an architecture from outside that leaves its defaults out."""
    with pytest.raises(KeyError, match="MyConfig is none of the classes read off NeMo: say its defaults"):
        classes.family("MyConfig")["MyConfig"]
    with pytest.raises(KeyError, match="MyConfig is none of the classes read off NeMo"):
        llama_like("toy", "ToyForCausalLM", nemo2=Nemo2("toy.nemo", "ToyModel", "MyConfig"))
    own = Nemo2("toy.nemo", "ToyModel", "MyConfig", defaults={"MyConfig": classes.defaults("GPTConfig")})
    assert set(llama_like("toy", "ToyForCausalLM", nemo2=own).table.nemo.defaults) == {"MyConfig"}
