"""Which tests prove what the tables' ``verified`` says, and with it ``nemoconv supported`` and its page.

:data:`PROOFS` names, for each architecture and each kind of proof, tests of this folder as pytest does.
:func:`problems` compares the two: a word without a test has to end in "by hand", and a test without a word
is not passed over either.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from nemoconv.mappings import architectures, described
from nemoconv.mappings.architecture import Architecture
from nemoconv.mappings.table import Table

BITS, LOGITS, MEGATRON, MTP, DECODING = (
    "bits",
    "logits",
    "megatron-core",
    "multi-token prediction",
    "decoding",
)
NEMO_1 = "NeMo 1"
#: how a word begins -> what it claims
CLAIMS: Final[Mapping[str, str]] = {
    r"bit-equal$": BITS,
    r"transformers (logits|outputs)|(logits|states) of transformers' ": LOGITS,
    r"megatron-core (logits|states)": MEGATRON,
    r"both with multi-token prediction$": MTP,
    r"transformers' own \w+ decoding$": DECODING,
    r"NeMo 1's own restore and logits": NEMO_1,
}
#: what "real NeMo" may have done
DEEDS: Final = ("import", "export", "load", "save", "restore", "logits")
BY_HAND: Final = ", by hand"

Proofs = Mapping[str, Collection[str]]


def is_plain_decoder(architecture: Architecture | None) -> bool:
    """Whether NeMo's plain config class builds it, of dense layers: then test_plain_decoders proves it."""
    if architecture is None or not architecture.follows or architecture.main.blocks.mixture:
        return False
    return architecture.table.nemo.config == "GPTConfig" and ":" not in architecture.name


def claims(word: str) -> set[str]:
    """The kinds of proof that a word of ``verified`` claims; none if it is not understood."""
    if word.startswith("real NeMo "):
        told = re.findall(r"\w+", word.partition("(")[0])
        return {f"NeMo {deed}" for deed in DEEDS if deed in told}
    return {kind for start, kind in CLAIMS.items() if re.match(start, word)}


def problems(table: Table, proofs: Proofs, collected: Collection[str]) -> Iterator[str]:
    """What ``verified`` and ``proofs`` say differently, and tests that pytest did not collect."""
    claimed: set[str] = set()
    for word in table.verified:
        kinds = claims(word.removesuffix(BY_HAND))
        if not kinds:
            yield f"{word!r} claims nothing that is known here"
        for kind in kinds:
            proved = bool(proofs.get(kind))
            if word.endswith(BY_HAND) is proved:
                yield f"{word!r}: {kind} has {'a' if proved else 'no'} test"
        claimed |= kinds
    for kind in proofs.keys() - claimed:
        yield f"nothing is said of {kind}, which has tests"
    for test in sorted({test for tests in proofs.values() for test in tests} - set(collected)):
        yield f"there is no test {test}"


def _named(file: str, *tests: str) -> tuple[str, ...]:
    return tuple(f"tests/clients/test_{file}.py::test_{test}" for test in tests)


def _nemo(architecture: str) -> dict[str, tuple[str, ...]]:
    """The real NeMo 2's importer and exporter."""
    return {
        "NeMo import": _named("real_nemo", f"nemo_imports_to_what_we_write[{architecture}]"),
        "NeMo export": _named("real_nemo", f"nemo_exports_what_we_wrote[{architecture}]"),
    }


def _dense(case: str) -> Proofs:
    way = [f"there_and_back_is_the_same_model[{case}-{style}]" for style in (4, 5)]
    megatron = [f"megatron_core_computes_the_same[{case}-{tp}]" for tp in (1, 2)]
    file = "dense_architectures"
    return {BITS: _named(file, *way), LOGITS: _named(file, *way), MEGATRON: _named(file, *megatron)}


def _in_one(file: str, case: str) -> Proofs:
    """Of files whose tests try the layouts, and the generations of config.json, in a loop."""
    way = _named(file, f"there_and_back_is_the_same_model[{case}]")
    return {BITS: way, LOGITS: way, MEGATRON: _named(file, f"megatron_core_computes_the_same[{case}]")}


def _loaded(file: str, case: str) -> Proofs:
    """The same, where the real NeMo 2 loads what we write, too."""
    load = _named("real_nemo_load", f"every_parameter_has_our_bits[{case}]")
    return {**_in_one(file, case), "NeMo load": load}


def _all_in_one(file: str, case: str = "") -> Proofs:
    """Of files with one test for all, where megatron-core is compared with what transformers computed."""
    test = _named(file, "there_and_back_and_in_megatron_core" + (f"[{case}]" if case else ""))
    return {BITS: test, LOGITS: test, MEGATRON: test}


def _moe(case: str) -> Proofs:
    layouts = "(1, 1, 1)", "(2, 1, 1)", "(1, 2, 2)"
    way = [f"there_and_back_through_nemo_2[{layout}-{case}]" for layout in layouts]
    way.append(f"configs_of_transformers_4_mean_the_same[{case}]")
    cut = [f"megatron_core_computes_the_same_at_other_layouts[({tp}, 1, {ep})-{case}]" for tp, ep in (TP, EP)]
    whole = f"megatron_core_computes_what_transformers_computes[{case}]"
    return {
        BITS: _named("moe_architectures", *way),
        LOGITS: _named("moe_architectures", *way),
        MEGATRON: _named("moe_architectures", whole, *cut),
    }


TP, EP = (2, 1), (1, 2)


def _mtp(case: str, *loads: str) -> Proofs:
    at = [f"[({tp}, 1, {ep})-{case}]" for tp, ep in ((1, 1), TP, EP)]
    return {
        MTP: _named(
            "mtp_layers", *(f"megatron_core_predicts_what_transformers_predicts{each}" for each in at)
        ),
        "NeMo load": _named(
            "real_nemo_moe", *(f"every_parameter_has_our_bits[{case}-{load}]" for load in loads)
        ),
    }


def _state_space(case: str, *sizes: int) -> Proofs:
    way = [f"there_and_back_through_nemo_2[{tp}-{case}]" for tp in (1, 2)]
    megatron = [f"megatron_core_computes_the_same[{case}-{tp}]" for tp in sizes]
    file = "state_space"
    way.append(f"older_configs_mean_the_same[{case}]")
    return {BITS: _named(file, *way), LOGITS: _named(file, *way), MEGATRON: _named(file, *megatron)}


def _vision(case: str, *deeds: str) -> Proofs:
    way = _named("vision_language", f"there_and_back_is_the_same_model[{case}]")
    file = "real_nemo_vision"
    tests = {"import": "nemo_imports_to_what_we_write", "export": "nemo_exports_what_we_wrote"}
    return {
        BITS: way,
        LOGITS: way,
        "NeMo logits": _named(file, f"nemos_model_computes_the_same[{case}]"),
        **{f"NeMo {deed}": _named(file, f"{tests[deed]}[{case}]") for deed in deeds},
    }


def _speech(case: str) -> Proofs:
    return {
        BITS: _named("speech", f"torch_loads_what_goes_back[{case}]"),
        LOGITS: _named("speech", f"outputs_are_those_of_nemo[{case}]"),
    }


def _archive(test: str, cases: Collection[str], restored: Collection[str]) -> Proofs:
    """Of architectures that only NeMo 1's archives hold."""
    way = _named("nemo1_models", *(f"{test}[{case}]" for case in cases))
    theirs = [f"nemo_computes_what_transformers_does[{case}]" for case in restored]
    return {BITS: way, LOGITS: way, NEMO_1: _named("real_nemo1", *theirs)}


def _t5(case: str) -> Proofs:
    file = "real_nemo_t5"
    return {
        **_in_one("t5", case),
        "NeMo import": _named(file, f"nemo_imports_to_what_we_write[{case}]"),
        "NeMo export": _named(file, f"nemo_exports_what_we_wrote[{case}]"),
    }


_LLAMA: Final = ("gqa", "mha", "both-biases", "llama3")
_SIZES: Final = ("tp1pp1", "tp2pp1", "tp1pp2", "tp2pp2")
_LLAMA_WAY = [f"the_way_to_nemo2_and_back_changes_nothing[{v}-{at}]" for v in _LLAMA for at in _SIZES]
_DESCRIBED: Final = {
    "baichuan": "baichuan",
    "chatglm": "chatglm",
    "nemotron-nas": "nemotron-nas",
    "llama_bidirec": "embedding",
    "llama_bidirec:LlamaBidirectionalForSequenceClassification": "reranker",
}
_BY_HAND: Final[Mapping[str, Proofs]] = {
    "llama": {
        BITS: _named("roundtrip", *_LLAMA_WAY),
        LOGITS: _named("roundtrip", *_LLAMA_WAY),
        MEGATRON: _named(
            "megatron", *(f"megatron_core_computes_what_transformers_computes[gqa-{at}]" for at in _SIZES)
        ),
        **_nemo("llama"),
    },
    **{
        case: {**_dense(case), **_nemo(case)}
        for case in ("mistral", "qwen2", "qwen3", "phi3", "starcoder2", "nemotron", "gemma", "gemma2")
    },
    "gemma3_text": _dense("gemma3_text"),
    "gpt_bigcode": _in_one("gpt_architectures", "gpt_bigcode"),
    **{case: _loaded("gpt_architectures", case) for case in ("gpt2", "gpt_neox", "glm")},
    **{case: _loaded("plain_gpt", case) for case in ("smollm3", "seed_oss", "ernie4_5", "stablelm", "glm4")},
    **{case: _t5(case) for case in ("t5", "mt5")},
    "mimo": _all_in_one("mimo"),
    "bert": _all_in_one("bert", "BertModel"),
    **{f"bert:{name}": _all_in_one("bert", name) for name in ("BertForMaskedLM", "BertForPreTraining")},
    **{name: _all_in_one("described_code", case) for name, case in _DESCRIBED.items()},
    **{
        case: _moe(case) for case in ("qwen3_moe", "qwen2_moe", "deepseek_v2", "llama4_text", "glm4_moe_lite")
    },
    "mixtral": {**_moe("mixtral"), **_nemo("mixtral")},
    "glm4_moe": {**_moe("glm4_moe"), **_mtp("glm4_moe", "stacked-GPTConfig")},
    "deepseek_v3": {
        **_moe("deepseek_v3"),
        **_mtp("deepseek_v3", "stacked-DeepSeekV3Config", "singleton-DeepSeekV3Config"),
        DECODING: _named("dequantization", "experts_in_fp8[deepseek_v3]", "every_fp8_code_at_many_scales"),
    },
    "gpt_oss": {
        **_moe("gpt_oss"),
        DECODING: _named("dequantization", "gpt_oss_in_mxfp4", "every_mxfp4_code_at_every_scale"),
    },
    "mamba2": _state_space("mamba2", 1),
    "nemotron_h": _state_space("nemotron_h", 1, 2),
    "llava": _vision("llava", "import"),
    **{case: _vision(case, "import", "export") for case in ("qwen2_vl", "qwen2_5_vl")},
    **{f"parakeet_{case}": _speech(case) for case in ("ctc", "rnnt", "tdt")},
    "canary": _speech("canary"),
    "falcon": _archive(
        "falcon", ("7B", "40B", "11B", "one after the other"), ("falcon 7B", "falcon 40B", "falcon serial")
    ),
    "megatron-bert": _archive("bert", ("MegatronBertModel",), ("megatron-bert",)),
    "megatron-bert:MegatronBertForPreTraining": _archive(
        "bert", ("MegatronBertForPreTraining",), ("megatron-bert heads",)
    ),
}


def _plain_decoder(name: str) -> Proofs:
    """Of decoders that are proved by being there."""
    file = "plain_decoders"
    way = _named(file, f"there_and_back_is_the_same_model[{name}]")
    megatron = [f"megatron_core_computes_the_same[{name}-{tp}]" for tp in (1, 2)]
    return {BITS: way, LOGITS: way, MEGATRON: _named(file, *megatron)}


PROOFS: Final[Mapping[str, Proofs]] = {
    **_BY_HAND,
    **{
        name: _plain_decoder(name)
        for name in architectures()
        if name not in _BY_HAND and is_plain_decoder(described(name))
    },
}
