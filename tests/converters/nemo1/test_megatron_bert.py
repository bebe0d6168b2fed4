"""Megatron-BERT, with its norms before attention and MLP: NeMo 1's own BERT, unless it is told otherwise."""

from __future__ import annotations

import io
import json
import tarfile

import legacy_nemo as legacy
import numpy
import pytest
import tiny

from nemoconv.converters.look.inspect import inspect
from nemoconv.converters.look.verify import verify
from nemoconv.converters.run.convert import convert
from nemoconv.errors import UnsupportedArchitecture, UnsupportedConfig, UnsupportedFormat
from nemoconv.mappings import samples, table_for
from nemoconv.mappings.hf.fields import read_config

torch = pytest.importorskip("torch")

LAYERS, HIDDEN, FFN, HEADS, ROWS = 4, 16, 24, 4, 40
CONFIG = {
    "model_type": "megatron-bert", "num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "intermediate_size": FFN,
    "num_attention_heads": HEADS, "vocab_size": ROWS, "type_vocab_size": 2, "max_position_embeddings": 32,
    "torch_dtype": "bfloat16",
}  # fmt: skip
CLASSES = ("MegatronBertModel", "MegatronBertForPreTraining")
TARGET = "nemo.collections.nlp.models.language_modeling.megatron_bert_model.MegatronBertModel"
#: no more than NeMo's own config of the 345M says of the model
YAML = {
    "num_layers": LAYERS, "hidden_size": HIDDEN, "ffn_hidden_size": FFN, "num_attention_heads": HEADS,
    "encoder_seq_length": 32, "max_position_embeddings": "${.encoder_seq_length}", "bert_binary_head": True,
    "apply_query_key_layer_scaling": True, "make_vocab_size_divisible_by": 4, "layernorm_epsilon": 1e-12,
    "tokenizer": {"library": "megatron", "type": "BertWordPieceLowerCase"}, "target": TARGET,
}  # fmt: skip
#: NeMo's name of a layer's part, Hugging Face's, the axis along which ranks divide the weight, and the bias
PARTS = (
    ("input_layernorm", "attention.ln", None, None),
    ("self_attention.dense", "attention.output.dense", 1, None),
    ("post_attention_layernorm", "ln", None, None),
    ("mlp.dense_h_to_4h", "intermediate.dense", 0, 0),
    ("mlp.dense_4h_to_h", "output.dense", 1, None),
)
LAST = (
    ("language_model.encoder.final_layernorm", "encoder.ln", None),
    ("language_model.pooler.dense", "pooler.dense", None),
    ("lm_head.dense", "cls.predictions.transform.dense", None),
    ("lm_head.layernorm", "cls.predictions.transform.LayerNorm", None),
    ("binary_head", "cls.seq_relationship", None),
)


def tensors(folder, cls):
    samples.build(folder, {**CONFIG, "architectures": [cls]})
    return {name.removeprefix("bert."): array for name, array in tiny.load(folder).items()}


def ranks_of(arrays, *, tp=1, pp=1):
    """The state dicts of all ranks, cut by hand."""
    states = {(t, p): {} for t in range(tp) for p in range(pp)}

    def put(stage, name, array, axis=None):
        for t in range(tp):
            piece = array if axis is None else numpy.split(array, tp, axis=axis)[t]
            states[t, stage]["model." + name] = legacy.tensor(piece)

    words = arrays["embeddings.word_embeddings.weight"]
    put(0, "language_model.embedding.word_embeddings.weight", words, 0)
    for ours, theirs in (("position", "position"), ("tokentype", "token_type")):
        array = arrays[f"embeddings.{theirs}_embeddings.weight"]
        put(0, f"language_model.embedding.{ours}_embeddings.weight", array)
    for layer in range(LAYERS):
        stage, local = divmod(layer, LAYERS // pp)
        ours, theirs = f"language_model.encoder.layers.{local}.", f"encoder.layer.{layer}."
        for number, kind in enumerate(("weight", "bias")):
            qkv = [arrays[f"{theirs}attention.self.{n}.{kind}"] for n in ("query", "key", "value")]
            split = [part.reshape(HEADS, HIDDEN // HEADS, *part.shape[1:]) for part in qkv]
            rows = numpy.stack(split, axis=1).reshape(-1, *qkv[0].shape[1:])
            put(stage, f"{ours}self_attention.query_key_value.{kind}", rows, 0)
            for name, hf, *cuts in PARTS:
                put(stage, f"{ours}{name}.{kind}", arrays[f"{theirs}{hf}.{kind}"], cuts[number])
    for name, hf, cut in LAST:
        for kind in ("weight", "bias"):
            if f"{hf}.{kind}" in arrays:
                put(pp - 1, f"{name}.{kind}", arrays[f"{hf}.{kind}"], cut)
    if "cls.predictions.bias" in arrays:
        put(pp - 1, "lm_head.bias", arrays["cls.predictions.bias"], 0)
    if pp > 1:
        put(pp - 1, "word_embeddings.weight", words, 0)
    return states


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (2, 2)])
def test_every_layout_in_both_directions(tmp_path, cls, tp, pp):
    arrays = tensors(tmp_path / "hf", cls)
    states = ranks_of(arrays, tp=tp, pp=pp)
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(states, {**YAML, "bias_gelu_fusion": False}))
    convert(source, tmp_path / "back", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "back", tiny.load(tmp_path / "hf"))
    assert verify(source, tmp_path / "hf").equal
    written = json.loads((tmp_path / "back/config.json").read_text())
    assert (written["architectures"], written["hidden_act"]) == ([cls], "gelu")
    options = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    convert(tmp_path / "hf", tmp_path / "y.nemo", to="nemo", verify=True, **options)
    with tarfile.open(tmp_path / "y.nemo") as archive:
        for (t, p), state in states.items():
            name = f"tp_rank_{t:02d}_pp_rank_{p:03d}/" if pp > 1 else f"mp_rank_{t:02d}/" if tp > 1 else ""
            data = archive.extractfile(f"./{name}model_weights.ckpt").read()
            held = torch.load(io.BytesIO(data), weights_only=True)
            assert held.keys() == state.keys()
            assert all(torch.equal(held[k].view(torch.int16), v.view(torch.int16)) for k, v in state.items())


def test_what_nemo_computes_unless_told_otherwise(tmp_path):
    """Fused GELU, by tanh."""
    states = ranks_of(tensors(tmp_path / "hf", CLASSES[1]))
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(states, YAML))
    convert(source, tmp_path / "back", to="hf")
    assert json.loads((tmp_path / "back/config.json").read_text())["hidden_act"] == "gelu_new"
    assert inspect(source)["architecture"] == f"megatron-bert:{CLASSES[1]}"


@pytest.mark.parametrize("cls", CLASSES)
def test_missing_keys_take_the_defaults_of_transformers(cls):
    transformers = pytest.importorskip("transformers")
    given = {"model_type": "megatron-bert", "architectures": [cls]}
    fields = table_for(given, "test").fields
    theirs = transformers.MegatronBertConfig().to_dict()
    assert read_config(fields, theirs)[0] == read_config(fields, given)[0]


def test_transformers_has_these_names(tmp_path):
    transformers = pytest.importorskip("transformers")
    for cls in CLASSES:
        config = transformers.MegatronBertConfig(**{k: v for k, v in CONFIG.items() if k != "torch_dtype"})
        getattr(transformers, cls)(config).save_pretrained(tmp_path / cls)
        convert(tmp_path / cls, tmp_path / f"{cls}.nemo", to="nemo", verify=True)
        convert(tmp_path / f"{cls}.nemo", tmp_path / f"{cls}_back", to="hf", verify=True)
        assert verify(tmp_path / cls, tmp_path / f"{cls}_back").equal


def test_what_is_refused(tmp_path):
    arrays = tensors(tmp_path / "hf", CLASSES[0])
    with pytest.raises(UnsupportedFormat, match="megatron-bert"):
        convert(tmp_path / "hf", tmp_path / "n2", to="nemo2")
    with pytest.raises(UnsupportedArchitecture, match="MegatronBertForMaskedLM"):
        table_for({**CONFIG, "architectures": ["MegatronBertForMaskedLM"]}, "test")
    states = ranks_of(arrays)
    for changes in ({"bert_binary_head": False}, {"megatron_legacy": True}):
        source = legacy.pack(tmp_path / "x.nemo", legacy.members(states, {**YAML, **changes}))
        with pytest.raises(UnsupportedConfig, match=next(iter(changes))):
            convert(source, tmp_path / "back", to="hf")
