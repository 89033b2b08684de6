"""The custom ops against torch's own functions and the formulas of their papers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vllm_ext import _custom_ops
from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.errors import ConfigError
from vllm_ext.layers.activation import GeluAndMul, SiluAndMul, get_act_and_mul_fn
from vllm_ext.layers.layernorm import RMSNorm
from vllm_ext.layers.rotary_embedding import RotaryEmbedding, get_rope

DTYPES = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}

needs_kernels = pytest.mark.skipif(_custom_ops.why_missing() is not None, reason=str(_custom_ops.why_missing()))


@pytest.fixture
def norm(engine):
    norm = RMSNorm(48, eps=1e-3)
    norm.weight.copy_(torch.randn(48))
    return norm


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * weight.double()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_rms_norm(norm, scale):
    x = torch.randn(5, 48) * scale

    torch.testing.assert_close(norm(x).double(), rms(x, norm.weight), atol=1e-5, rtol=1e-5)


def test_an_out_of_tree_norm_finds_epsilon_under_vllms_name(norm):
    assert norm.variance_epsilon == 1e-3


def test_rms_norm_adds_the_residual_before_it(norm):
    x, residual = torch.randn(5, 48), torch.randn(5, 48)
    total = x + residual

    normed, new_residual = norm(x, residual)

    assert torch.equal(new_residual, total)
    torch.testing.assert_close(normed.double(), rms(total, norm.weight), atol=1e-5, rtol=1e-5)


@needs_kernels
@pytest.mark.parametrize("shape", [(5, 96), (5, 2, 96), (2, 2, 3, 96)], ids=str)
def test_rms_norm_of_another_size_than_its_weight_is_an_error(norm, shape):
    with pytest.raises(TypeError, match=r"rms_norm takes a weight \[96\], contiguous, given \[48\]"):
        norm(torch.randn(shape))


@needs_kernels
def test_rms_norm_refuses_a_residual_of_other_rows(norm):
    """As of a model that chose some rows of one, and forgot the other."""
    with pytest.raises(TypeError, match=r"a residual like x, \[5, 48\], contiguous, given \[3, 48\]"):
        norm(torch.randn(5, 48), torch.randn(3, 48))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rms_norm_in_half_precision_sums_in_float32(engine, dtype):
    engine.vllm_config.model_config.dtype = dtype
    norm = RMSNorm(4096)
    norm.weight.fill_(1)
    # The squares of these overflow float16, and their sum is beyond the reach of its steps.
    x = torch.full((1, 4096), 300.0, dtype=dtype)

    normed = norm(x)

    assert normed.dtype is dtype
    torch.testing.assert_close(normed.float(), torch.ones(1, 4096), atol=DTYPES[dtype], rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_and_mul(engine, dtype):
    gate, up = torch.randn(2, 3, 10).to(dtype)

    result = SiluAndMul()(torch.cat((gate, up), dim=-1))

    expected = F.silu(gate.double()) * up.double()
    torch.testing.assert_close(result.double(), expected, atol=DTYPES[dtype], rtol=DTYPES[dtype])


def test_silu_and_mul_of_gates_whose_exponential_is_beyond_float32(engine):
    gate = torch.tensor([-1e30, -1e5, -300, -89, -88, -87, -80, -60, 60, 80, 87, 88, 89, 300, 1e5, 1e30])
    x = torch.cat((gate, torch.ones(16)))[None]

    result = SiluAndMul()(x)

    torch.testing.assert_close(result[0], F.silu(gate), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_and_mul(engine, approximate, dtype):
    x = torch.randn(3, 20).to(dtype)
    gate, up = x.double().chunk(2, dim=-1)
    if approximate == "none":
        gelu = gate * (1 + torch.erf(gate / 2**0.5)) / 2
    else:
        gelu = gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))) / 2

    result = GeluAndMul(approximate)(x)

    torch.testing.assert_close(result.double(), gelu * up, atol=DTYPES[dtype], rtol=DTYPES[dtype])


def test_an_approximation_that_gelu_does_not_have_is_refused(engine):
    with pytest.raises(ConfigError, match="approximate is 'erf'; it takes none or tanh"):
        GeluAndMul("erf")


def test_activations_have_the_names_of_config_json(engine):
    assert type(get_act_and_mul_fn("silu")) is SiluAndMul
    assert get_act_and_mul_fn("gelu").approximate == "none"
    assert get_act_and_mul_fn("gelu_pytorch_tanh").approximate == "tanh"
    with pytest.raises(ConfigError, match="no gated activation 'relu'; there are: gelu, gelu_pytorch_tanh, silu"):
        get_act_and_mul_fn("relu")


def rotate(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Each pair (i, i + half) as a complex number, turned by position * theta ** (-2i / size)."""
    size = x.shape[-1]
    numbers = torch.complex(x[..., : size // 2].double(), x[..., size // 2 :].double())
    frequencies = theta ** (-2 * torch.arange(size // 2).double() / size)
    angles = positions.double()[:, None, None] * frequencies
    turned = numbers * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


def test_a_position_beyond_the_last_is_an_error(engine):
    rotary = RotaryEmbedding(8, 10, torch.ones(4))

    with pytest.raises(IndexError):
        rotary(torch.tensor([9, 10]), torch.randn(2, 16))


def test_rotary_embedding_turns_pairs(engine):
    rope = get_rope(HFConfig({"rope_theta": 500.0}), head_size=8, max_position=100)
    positions = torch.tensor([0, 7, 99, 7])
    query, key = torch.randn(4, 3, 8), torch.randn(4, 1, 8)

    rotated_query, rotated_key = rope(positions, query.view(4, 24), key.view(4, 8))

    torch.testing.assert_close(rotated_query.view(4, 3, 8).double(), rotate(query, positions, 500.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(rotated_key.view(4, 1, 8).double(), rotate(key, positions, 500.0), atol=1e-5, rtol=0)


def test_rotary_embedding_of_query_and_key_in_one_tensor_is_the_same(engine):
    rope = get_rope(HFConfig({}), head_size=8, max_position=50)
    positions = torch.tensor([3, 49])
    query, key = torch.randn(2, 16), torch.randn(2, 8)
    apart = torch.cat(rope(positions, query, key), dim=-1)

    together, nothing = rope(positions, torch.cat((query, key), dim=-1))

    assert torch.equal(together, apart)
    assert nothing is None


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 900.0},
        {"rope_theta": 900.0, "rope_scaling": None},
        {"rope_theta": 900.0, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_theta": 900.0, "rope_type": "default"}},
    ],
    ids=["theta", "no scaling", "default scaling", "parameters"],
)
def test_old_and_new_spellings_mean_the_same(engine, config):
    rope = get_rope(HFConfig(config), 8, 20)
    x = torch.randn(1, 1, 8)

    rotated, _ = rope(torch.tensor([13]), x.view(1, 8))

    torch.testing.assert_close(rotated.double(), rotate(x, torch.tensor([13]), 900.0)[0], atol=1e-5, rtol=0)


def test_positions_keep_their_precision_in_half_precision_models(engine):
    engine.vllm_config.model_config.dtype = torch.bfloat16
    rope = RotaryEmbedding(8, 4096, 10000.0 ** -(torch.arange(0, 8, 2) / 8))
    x = torch.randn(2, 1, 8).bfloat16()
    positions = torch.tensor([4094, 4095])

    rotated, _ = rope(positions, x.view(2, 8))

    torch.testing.assert_close(rotated.view(2, 1, 8).double(), rotate(x, positions, 10000.0), atol=4e-2, rtol=0)
