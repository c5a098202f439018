"""Engine settings choose a configuration, with the engine's refusals."""

import pytest

from gdn_lab.config import EngineSettings, Machine
from gdn_lab.engine.engine_settings import configured

HOPPER = Machine((9, 0), "0.7.2")


@pytest.mark.parametrize(
    "settings, name, prefill, dtype",
    [
        ({}, "before-32", "triton", "float32"),
        ({"linear_attn_backend": "flashinfer"}, "after", "flashinfer", "float32"),
        ({"linear_attn_decode_backend": "flashinfer", "mamba_ssm_dtype": "bfloat16"}, "after", "triton", "bfloat16"),
        ({"linear_attn_decode_backend": "cutedsl"}, "best", "triton", "float32"),
    ],
)
def test_settings_choose_a_configuration(settings, name, prefill, dtype):
    entry, chosen = configured(EngineSettings(**settings), HOPPER)
    assert (entry.name, entry.prefill, chosen) == (name, prefill, dtype)


@pytest.mark.parametrize(
    "settings, machine, sentence",
    [
        ({"linear_attn_backend": "flashinfer"}, Machine(None, None), "there is none; set linear_attn_decode_backend"),
        ({"linear_attn_backend": "cutedsl"}, HOPPER, "'cutedsl' has no prefill kernel"),
        (
            {"linear_attn_prefill_backend": "flashinfer"},
            HOPPER,
            "takes a VK .K-last. pool, and 'triton' decodes on a KV",
        ),
        ({"mamba_ssm_dtype": "int8"}, HOPPER, "mamba_ssm_dtype: 'int8' is unknown"),
    ],
)
def test_what_the_engine_refuses_is_refused(settings, machine, sentence):
    with pytest.raises(ValueError, match=sentence):
        configured(EngineSettings(**settings), machine)
