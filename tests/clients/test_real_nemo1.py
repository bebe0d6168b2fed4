"""The real NeMo 2.4.1 restores the archives that we write and computes what transformers does. See real_nemo1/."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.look.verify import verify
from nemoconv.converters.run.convert import convert
from nemoconv.mappings import load_table, samples, table_for

PYTHON = os.environ.get("NEMOCONV_NEMO1_PYTHON")
pytestmark = pytest.mark.skipif(
    not PYTHON,
    reason="NEMOCONV_NEMO1_PYTHON does not name a Python that has NeMo 2.4.1 (real_nemo1/README.md)",
)
CHILD = Path(__file__).with_name("real_nemo1") / "child.py"
TOKENIZER = Path(__file__).parents[2] / "fixtures" / "legacy" / "hf_llama_mha" / "tokenizer.model"
TIMEOUT = 600
MODELS = "nemo.collections.nlp.models."
GPT = MODELS + "language_modeling.megatron_gpt_model.MegatronGPTModel"
T5_MODEL = MODELS + "language_modeling.megatron_t5_model.MegatronT5Model"
BERT = MODELS + "language_modeling.megatron_bert_model.MegatronBertModel"
EMBEDDING = MODELS + "information_retrieval.megatron_bert_embedding_model.MegatronBertEmbeddingModel"

COMMON = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 100}
SIZES = {**COMMON, "intermediate_size": 48, "max_position_embeddings": 64}
GROUPED = {**SIZES, "num_key_value_heads": 2}
EXPERTS = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
NEW = {"new_decoder_architecture": True, "num_kv_heads": 2}
#: NeMo's layers take 1e-05 for the norms after attention and MLP, whatever the config says
GEMMA2 = {"query_pre_attn_scalar": 24, "sliding_window": 16, "rms_norm_eps": 1e-5, "head_dim": 16}
#: NeMo adds 100 tokens and more to the tokenizer's, and pads those to 256
T5: dict[str, Any] = {
    "d_model": 32, "d_ff": 48, "d_kv": 16, "num_heads": 4, "num_layers": 3, "vocab_size": 256,
    "tie_word_embeddings": False,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "t5": {**T5, "feed_forward_proj": "gated-gelu"},
    "t5 silu": {**T5, "feed_forward_proj": "gated-silu"},
    "bert": {**SIZES, "architectures": ["BertModel"]},
    "bert heads": {**SIZES, "architectures": ["BertForPreTraining"]},
    "megatron-bert": SIZES,
    "megatron-bert heads": {**SIZES, "architectures": ["MegatronBertForPreTraining"]},
    "gemma": {**GROUPED, "head_dim": 16},
    "gemma2": {**GROUPED, **GEMMA2, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "falcon 7B": COMMON,
    "falcon 40B": {**COMMON, **NEW},
    "falcon 11B": {**COMMON, **NEW, "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False},
    "falcon serial": {**COMMON, "multi_query": False, "parallel_attn": False, "bias": True},
    "mixtral": {**GROUPED, "num_local_experts": 4},
    "qwen3": {**GROUPED, "head_dim": 16},
    "qwen3_moe": {**EXPERTS, "head_dim": 16, "norm_topk_prob": True},
    "glm": {**GROUPED, "head_dim": 16, "pad_token_id": 0},
    "nemotron": {**GROUPED, "head_dim": 8},
}


def build(folder: Path, name: str) -> tuple[Path, str]:
    """(a Hugging Face directory in float32 with a tokenizer of 100 tokens, its class)."""
    kind = name.partition(" ")[0]
    config = {"model_type": kind, "architectures": [load_table(kind).hf_class], **CASES[name]}
    samples.build(folder / "bfloat16", config, seed=3)
    convert(folder / "bfloat16", folder / "hf", to="hf", dtype="float32")
    shutil.copy(TOKENIZER, folder / "hf" / ("spiece.model" if kind == "t5" else TOKENIZER.name))
    return folder / "hf", table_for(config, name).hf_class


def nemo(archive: Path, kind: str, reference: Path, hf_class: str) -> dict[str, Any]:
    """The answer of NeMo's process."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    for name in ("PYTHONPATH", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    command = [str(PYTHON), "-W", "ignore", str(CHILD), str(archive), kind, str(reference), hf_class, "11"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(answer)
    return answer


def class_of(name: str, rank_files: bool) -> str:
    if name.startswith("t5"):
        return T5_MODEL
    if "bert" not in name:
        return GPT
    return EMBEDDING if name == "bert" and not rank_files else BERT


@pytest.mark.parametrize("name", CASES)
def test_nemo_computes_what_transformers_does(tmp_path: Path, name: str) -> None:
    source, hf_class = build(tmp_path, name)
    convert(source, tmp_path / "x.nemo", to="nemo")
    answer = nemo(tmp_path / "x.nemo", class_of(name, False), source, hf_class)
    assert answer["differences"]
    assert all(difference < 1e-5 for difference in answer["differences"].values())


@pytest.mark.parametrize("name", ["bert", "gemma", "mixtral"])
def test_nemo_restores_a_state_dict(tmp_path: Path, name: str) -> None:
    """Strictly: neither a key too many nor one too few."""
    source, hf_class = build(tmp_path, name)
    convert(source, tmp_path / "x.nemo", to="nemo", rank_files=True)
    answer = nemo(tmp_path / "x.nemo", class_of(name, True), source, hf_class)
    assert all(difference < 1e-5 for difference in answer["differences"].values())


@pytest.mark.parametrize(("name", "stages"), [("bert heads", 2), ("falcon 40B", 2), ("t5", 1)])
def test_nemo_restores_every_rank(tmp_path: Path, name: str, stages: int) -> None:
    source, hf_class = build(tmp_path, name)
    options = {"tensor_parallel_size": 2, "pipeline_parallel_size": stages}
    convert(source, tmp_path / "x.nemo", to="nemo", rank_files=True, **options)  # type: ignore[arg-type]
    assert len(nemo(tmp_path / "x.nemo", class_of(name, True), source, hf_class)["entries"]) == 2 * stages


def as_the_script_does(archive: Path, out: Path, legacy: bool = True) -> None:
    """A T5's archive with q, k and v of all heads one below the other, gate and up apart, as NeMo's
    hf_t5-v1_1_to_nemo.py makes it."""
    torch = pytest.importorskip("torch")
    with tarfile.open(archive) as source, tarfile.open(out, "w") as target:
        for member in source.getmembers():
            if not member.isfile():
                continue
            file = source.extractfile(member)
            assert file is not None
            data = file.read()
            if member.name.endswith("model_config.yaml"):
                data = data.replace(b"activation: fast-geglu", b"activation: geglu")
                if legacy:
                    data = data.replace(b"megatron_legacy: false", b"megatron_legacy: true")
            elif member.name.endswith("model_weights.ckpt"):
                state = torch.load(io.BytesIO(data), weights_only=True)
                for key, value in list(state.items()):
                    kinds = 3 if "query_key_value" in key else 2 if "key_value" in key else 0
                    if kinds:
                        by_head = value.reshape(T5["num_heads"], kinds, T5["d_kv"], T5["d_model"])
                        state[key] = by_head.transpose(0, 1).reshape(value.shape).clone()
                    elif "dense_h_to_4h" in key:
                        gate, up = (half.clone() for half in value.chunk(2))
                        state[key], state[key.replace("dense_h_to_4h", "dense_h_to_4h_2")] = gate, up
                written = io.BytesIO()
                torch.save(state, written)
                data = written.getvalue()
            described = tarfile.TarInfo(member.name)
            described.size = len(data)
            target.addfile(described, io.BytesIO(data))


@pytest.mark.parametrize("legacy", [True, False], ids=["told so", "not told so"])
def test_blocks_of_heads_are_read_as_nemo_reads_them(tmp_path: Path, legacy: bool) -> None:
    """With the control: an archive whose config says the other order is another model, for both of us."""
    source, hf_class = build(tmp_path, "t5")
    convert(source, tmp_path / "written.nemo", to="nemo")
    as_the_script_does(tmp_path / "written.nemo", tmp_path / "x.nemo", legacy)
    answer = nemo(tmp_path / "x.nemo", T5_MODEL, source, hf_class)
    assert (answer["differences"]["logits"] < 1e-5) is legacy
    assert verify(tmp_path / "x.nemo", source).equal is legacy


def test_a_wrong_tensor_does_not_pass(tmp_path: Path) -> None:
    """The control: the archive of a model with one norm of other weights."""
    source, hf_class = build(tmp_path, "gemma")
    other, _ = build(tmp_path / "other", "gemma")
    file = other / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-32 * 4 :] = bytes(32 * 4)  # model.norm.weight is the last
    file.write_bytes(data)
    convert(other, tmp_path / "x.nemo", to="nemo")
    answer = nemo(tmp_path / "x.nemo", GPT, source, hf_class)
    assert answer["differences"]["logits"] > 1e-3
