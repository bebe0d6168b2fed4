"""Tiny random Llama directories, written by the real clients: transformers, tokenizers, sentencepiece."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

VOCABULARY = 320
CHAT_TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
TEXTS = ("the cat sat", "Zwölf Boxkämpfer, 42 €!", "  two  spaces\n", "新しい tokens", "")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
#: small enough for a short text to reach all three of llama3's frequency bands
LLAMA3_OTHER = {
    "rope_type": "llama3",
    "factor": 16.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 5.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}


@dataclass(frozen=True)
class Variant:
    """A Llama and how it is saved. ``style`` is the generation of transformers its config.json is from."""

    name: str
    heads: int = 4
    groups: int = 2
    head_dim: int = 16
    hidden: int = 64
    ffn: int = 96
    layers: int = 2
    vocab: int = VOCABULARY
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default"}, hash=False)
    dtype: str = "bfloat16"
    shard: str = "5GB"
    style: int = 5
    tokenizer: str = "bpe"

    def __str__(self) -> str:
        return self.name

    def fits(self, tp: int, pp: int) -> bool:
        """Whether this layout divides the model; the vocabulary is padded where it must be."""
        return not (self.groups % tp or self.ffn % tp or self.layers % pp)


VARIANTS = (
    Variant("gqa"),
    Variant("mha", groups=4, style=4),
    Variant("mqa", groups=1),
    Variant("wide-heads", head_dim=24),
    Variant("odd-groups", heads=6, groups=3, hidden=48, head_dim=8, layers=3, vocab=321),
    Variant("tied", tied=True),
    Variant("tied-v4", tied=True, style=4, rope=LLAMA3, tokenizer="sentencepiece"),
    Variant("both-biases", attention_bias=True, mlp_bias=True),
    Variant("attention-bias", attention_bias=True),
    Variant("mlp-bias", mlp_bias=True),
    Variant("llama3", rope=LLAMA3),
    Variant("llama3-other", rope=LLAMA3_OTHER),
    Variant("llama3-other-v4", rope=LLAMA3_OTHER, style=4),
    Variant("linear", rope=LINEAR),
    Variant("linear-v4", rope=LINEAR, style=4, tokenizer="sentencepiece"),
    Variant("fp16", dtype="float16"),
    Variant("fp32", dtype="float32"),
    Variant("shards", shard="30KB"),
    Variant("shards-fp32-mha", shard="30KB", dtype="float32", groups=4, tied=True),
)


def variant(name: str, **changes: Any) -> Variant:
    """One of VARIANTS by name, with some fields changed."""
    return replace(next(v for v in VARIANTS if v.name == name), **changes)


def build(folder: Path, v: Variant, seed: int = 0) -> Path:
    """Save the variant through transformers, with a tokenizer, generation config and chat template."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=v.vocab,
        hidden_size=v.hidden,
        intermediate_size=v.ffn,
        num_hidden_layers=v.layers,
        num_attention_heads=v.heads,
        num_key_value_heads=v.groups,
        head_dim=v.head_dim,
        tie_word_embeddings=v.tied,
        attention_bias=v.attention_bias,
        mlp_bias=v.mlp_bias,
        rope_parameters={**v.rope, "rope_theta": 50000.0},
        max_position_embeddings=256,
        rms_norm_eps=3e-5,
        initializer_range=0.03,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, v.dtype))
    _randomize(model, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=0, eos_token_id=[1, 2], do_sample=True, temperature=0.7, max_new_tokens=17
    )
    model.save_pretrained(folder, max_shard_size=v.shard)
    (save_bpe if v.tokenizer == "bpe" else save_sentencepiece)(folder)
    if v.style == 4:
        _as_transformers_4(folder / "config.json")
    return folder


def _randomize(model: Any, seed: int) -> None:
    """Weights that keep activations, and logits, at order 1, so that every one of them matters."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("bias"):
                noise *= 0.3
            elif p.ndim == 1:
                noise = 1 + 0.3 * noise
            elif "embed" not in name:
                noise *= 1.5 / p.shape[1] ** 0.5
            elif model.config.tie_word_embeddings:
                noise *= p.shape[1] ** -0.5
            p.copy_(noise)


def _as_transformers_4(config: Path) -> None:
    """Rewrite config.json as transformers 4 wrote it: other names for the rotary embedding and the dtype."""
    written = json.loads(config.read_text())
    rope = dict(written.pop("rope_parameters"))
    written["rope_theta"] = rope.pop("rope_theta")
    written["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    written["torch_dtype"] = written.pop("dtype")
    written["transformers_version"] = "4.53.3"
    config.write_text(json.dumps(written, indent=2))


def fill_with_random_bits(folder: Path, seed: int = 0) -> None:
    """Replace the weights by every kind of bit pattern: NaNs with payloads, infinities, -0.0, subnormals."""
    rng = random.Random(seed)
    for file in folder.glob("*.safetensors"):
        whole = file.read_bytes()
        start = 8 + struct.unpack("<Q", whole[:8])[0]
        file.chmod(0o600)
        file.write_bytes(whole[:start] + rng.randbytes(len(whole) - start))


@cache
def _sentences() -> list[str]:
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 7))) for _ in range(300)]
    return [" ".join(rng.choices(words, k=20)) for _ in range(200)]


@cache
def _trained_bpe() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    text: str = tokenizer.to_str()
    return text


def save_bpe(folder: Path) -> None:
    """A byte-level BPE tokenizer, trained on made-up words."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_bpe()),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


@cache
def _trained_sentencepiece() -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_sentences()),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    return model.getvalue()


def save_sentencepiece(folder: Path) -> None:
    """A SentencePiece tokenizer.model, as Llama 1 and 2 have it."""
    (folder / "tokenizer.model").write_bytes(_trained_sentencepiece())
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "model_max_length": 256,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """name -> (dtype, shape, bytes) of all safetensors files, read by the safetensors package."""
    import safetensors

    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, entry in safetensors.deserialize(file.read_bytes()):
            assert name not in found
            found[name] = (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
    return found


def assert_same_tensors(a: Path, b: Path) -> None:
    """Both directories hold the same names, dtypes, shapes and bytes."""
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    different = [name for name in first if first[name] != second[name]]
    assert different == []


def as_megatron_names(hf: Path, v: Variant) -> dict[str, Any]:
    """The tensors under Megatron's names, stacked by layer, joined by a plain reading of its source."""
    import torch
    from safetensors.torch import load_file

    w: dict[str, Any] = {}
    for file in hf.glob("*.safetensors"):
        w |= load_file(file)
    d, g, n = v.head_dim, v.groups, v.heads // v.groups

    def qkv(layer: int, kind: str) -> Any:
        q, k, val = (w[f"model.layers.{layer}.self_attn.{name}_proj.{kind}"] for name in "qkv")
        rows = []
        for group in range(g):
            rows += [q[group * n * d : (group + 1) * n * d], k[group * d : (group + 1) * d]]
            rows.append(val[group * d : (group + 1) * d])
        return torch.cat(rows)

    def stack(pick: Callable[[int], Any]) -> Any:
        return torch.stack([pick(layer) for layer in range(v.layers)])

    def plain(name: str) -> Any:
        return stack(lambda layer: w[f"model.layers.{layer}.{name}"])

    def gate_up(kind: str) -> Any:
        return torch.cat([plain(f"mlp.gate_proj.{kind}"), plain(f"mlp.up_proj.{kind}")], 1)

    named = {
        "embedding.word_embeddings.weight": w["model.embed_tokens.weight"],
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight": plain("input_layernorm.weight"),
        "decoder.layers.self_attention.linear_qkv.weight": stack(lambda layer: qkv(layer, "weight")),
        "decoder.layers.self_attention.linear_proj.weight": plain("self_attn.o_proj.weight"),
        "decoder.layers.mlp.linear_fc1.layer_norm_weight": plain("post_attention_layernorm.weight"),
        "decoder.layers.mlp.linear_fc1.weight": gate_up("weight"),
        "decoder.layers.mlp.linear_fc2.weight": plain("mlp.down_proj.weight"),
        "decoder.final_layernorm.weight": w["model.norm.weight"],
    }
    if not v.tied:
        named["output_layer.weight"] = w["lm_head.weight"]
    if v.attention_bias and v.mlp_bias:
        named["decoder.layers.self_attention.linear_qkv.bias"] = stack(lambda layer: qkv(layer, "bias"))
        named["decoder.layers.self_attention.linear_proj.bias"] = plain("self_attn.o_proj.bias")
        named["decoder.layers.mlp.linear_fc1.bias"] = gate_up("bias")
        named["decoder.layers.mlp.linear_fc2.bias"] = plain("mlp.down_proj.bias")
    return {"module." + name: tensor for name, tensor in named.items()}


def ids(vocab: int, length: int = 64) -> Any:
    """Token ids of a batch of two."""
    import torch

    return torch.randint(0, vocab, (2, length), generator=torch.Generator().manual_seed(7))


def load(folder: Path, dtype: str = "auto") -> Any:
    """The directory as transformers loads it, which must find every tensor and no other."""
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    found = {key: value for key, value in told.items() if value}
    assert not found, found
    return model.eval()


def logits(folder: Path, dtype: str = "auto") -> Any:
    """What transformers computes from the directory."""
    import torch

    model = load(folder, dtype)
    with torch.no_grad():
        return model(ids(model.config.vocab_size)).logits


def logits_of(folder: Path, dtype: str = "float32") -> Any:
    """What transformers computes from the directory for a text of 32 of the first 130 tokens."""
    import torch

    with torch.no_grad():
        return load(folder, dtype)(ids(130, 32)).logits


def randomize(model: Any, seed: int = 0) -> None:
    """Weights that keep activations, and logits, at order 1, whatever the matrices are called."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("bias"):
                noise *= 0.3
            elif p.ndim == 1:
                noise = 1 + 0.3 * noise
            elif id(p) not in embeddings:
                noise *= 1.5 / p.shape[1] ** 0.5
            elif head is not None and p is head.weight:
                noise *= p.shape[1] ** -0.5
            p.copy_(noise)


def directories(
    root: Path, build: Callable[[Path, str], None], as_transformers_4: Callable[[Path], None]
) -> Callable[..., Path]:
    """Directories of cases, each built once; style 4 has config.json as ``as_transformers_4`` rewrites it."""

    def directory(case: str, style: int = 5) -> Path:
        folder = root / f"{case}-{style}"
        if not folder.exists():
            build(folder, case)
            if style == 4:
                as_transformers_4(folder / "config.json")
        return folder

    return directory
