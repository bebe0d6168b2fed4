"""Every registered format and architecture passes the tests that plug-ins inherit."""

from nemoconv.mappings import samples
from nemoconv.testing import ConverterTests, MappingTests


class TestHF(ConverterTests):
    format = "hf"


class TestNeMo2(ConverterTests):
    format = "nemo2"


class TestLlama(MappingTests):
    config = samples.LLAMA


class TestLlamaTied(MappingTests):
    config = {**samples.LLAMA, "tie_word_embeddings": True}


class TestLlamaBiases(MappingTests):
    config = {**samples.LLAMA, "attention_bias": True, "mlp_bias": True}


class TestLlamaAttentionBiasOnly(MappingTests):
    config = {**samples.LLAMA, "attention_bias": True}


class TestLlamaMlpBiasOnly(MappingTests):
    config = {**samples.LLAMA, "mlp_bias": True}
