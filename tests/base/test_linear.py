import copy
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from rango.base.linear import Int8Linear, NF4Linear, QuantizedLinear
from rango.errors import CheckpointError
from rango.numerics.int8 import quantize_int8
from rango.numerics.nf4 import NF4Tensor, dequantize_nf4, quantize_nf4

OUT, IN = 24, 40
CONSTANTS = ("absmax", "code", "nested_absmax", "nested_code", "nested_offset")


def _tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _layer(bias: bool = True, double_quant: bool = True) -> NF4Linear:
    return NF4Linear.from_weight(_tensor(OUT, IN), _tensor(OUT) if bias else None, double_quant)


def _same(a: NF4Tensor, b: NF4Tensor) -> bool:
    parts = ("packed", *CONSTANTS)
    pairs = [(getattr(a, part), getattr(b, part)) for part in parts]
    return all(x is y if x is None or y is None else torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(IN,), (3, IN), (2, 3, IN), (0, IN)])
def test_computes_a_linear_layer_in_the_inputs_type(
    shape: tuple[int, ...], dtype: torch.dtype, bias: bool, double_quant: bool
) -> None:
    layer = _layer(bias, double_quant)
    x = _tensor(*shape, seed=1).to(dtype)
    b = None if layer.bias is None else layer.bias.to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, nn.functional.linear(x, layer.dequantize(dtype), b))


@pytest.mark.parametrize("shape", [(IN,), (3, IN), (2, 3, IN)])
def test_gradients_are_those_of_the_dense_layer(shape: tuple[int, ...]) -> None:
    layer = _layer()
    layer.requires_grad_()  # the bias alone can be: the weight is in buffers
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    dense = nn.Linear(IN, OUT)
    dense.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    x, upstream = _tensor(*shape, seed=2), _tensor(*shape[:-1], OUT, seed=3)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for module, value in zip((layer, dense), inputs, strict=True):
        module(value).backward(upstream)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad)


def test_gradient_agrees_with_finite_differences() -> None:
    layer = _layer()
    x = _tensor(3, IN).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


def test_frozen_by_default() -> None:
    layer = _layer()
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert not layer(_tensor(2, IN)).requires_grad


def test_backward_keeps_no_dense_weight() -> None:
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = _layer()(_tensor(2, IN).requires_grad_())
    assert not kept
    held = y.grad_fn.weight
    assert not any(
        isinstance(value, Tensor) and value.numel() >= OUT * IN for value in vars(held).values()
    )


def test_bytes_are_shared_with_the_module_not_copied() -> None:
    quantized = quantize_nf4(_tensor(OUT, IN))
    layer = NF4Linear(quantized)
    assert layer.quantized.packed is quantized.packed
    assert layer.quantized.shape == (OUT, IN)
    assert layer.quantized.dtype == torch.float32
    assert torch.equal(layer.dequantize(), dequantize_nf4(quantized))


@pytest.mark.parametrize("double_quant", [True, False])
def test_casts_move_the_bias_but_not_the_constants(double_quant: bool) -> None:
    for cast in (
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.double(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to("cpu", torch.float16),
    ):
        layer = _layer(double_quant=double_quant)
        before = copy.deepcopy(layer.quantized)
        model = cast(nn.Sequential(layer))
        assert _same(model[0].quantized, before)
        assert model[0].bias.dtype != torch.float32
        assert model[0].weight_dtype == torch.float32


def test_follows_to_another_device() -> None:
    layer = _layer().to("meta", torch.bfloat16)
    assert all(buffer.is_meta for buffer in layer.buffers())
    assert layer.absmax.dtype == torch.uint8
    assert layer.code.dtype == torch.float32
    assert layer.bias.is_meta


@pytest.mark.parametrize("double_quant", [True, False])
def test_state_dict_and_copies_carry_every_bit(double_quant: bool) -> None:
    layer = _layer(double_quant=double_quant)
    other = NF4Linear.from_weight(_tensor(OUT, IN, seed=9), _tensor(OUT, seed=9), double_quant)
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer)):
        assert _same(twin.quantized, layer.quantized)
        assert torch.equal(twin.bias, layer.bias)


def test_weight_reads_as_a_linear_layers() -> None:
    layer = NF4Linear.from_weight(_tensor(OUT, IN).bfloat16())
    assert layer.weight.shape == (OUT, IN)
    assert layer.weight.dtype == layer.weight_dtype == torch.bfloat16
    assert torch.equal(layer.weight, layer.dequantize())
    assert not layer.weight.requires_grad


def test_repr_tells_sizes_and_bits() -> None:
    text = repr(NF4Linear.from_weight(torch.zeros(1024, 1024)))
    assert "in_features=1024, out_features=1024, bias=False, bits=4.13" in text
    assert "double_quant=True" in text


def test_threads_do_not_disturb_each_other() -> None:
    layers = [NF4Linear.from_weight(_tensor(64, 64, seed=seed)) for seed in range(4)]
    x = _tensor(8, 64)
    expected = [layer(x) for layer in layers]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            if not torch.equal(layers[index](x), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_layers_of_all_sizes_share_memory_in_any_order() -> None:
    shapes = [(24, 40), (64, 64), (3, 5), (40, 24), (1, 1)]
    layers = [NF4Linear.from_weight(_tensor(*shape)) for shape in shapes]
    inputs = [_tensor(7, into).requires_grad_() for _, into in shapes]
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        outputs = [layer(x.to(dtype)) for layer, x in zip(layers, inputs, strict=True)]
        gradients = torch.autograd.grad([y.float().sum() for y in outputs], inputs)
        for layer, x, y, gradient in zip(layers, inputs, outputs, gradients, strict=True):
            W = layer.dequantize(dtype)
            torch.testing.assert_close(y, x.to(dtype) @ W.T)
            expected = torch.ones_like(y) @ W
            torch.testing.assert_close(gradient, expected.float())


def test_works_after_inference_mode() -> None:
    layer = NF4Linear.from_weight(_tensor(300, 300))  # larger than any before: new memory
    x = _tensor(2, 300)
    with torch.inference_mode():
        expected = layer(x)
    y = layer(x.requires_grad_())
    y.sum().backward()
    assert torch.equal(y, expected)


def test_a_gradient_of_a_gradient_keeps_its_own_weight() -> None:
    layer, other = _layer(), NF4Linear.from_weight(_tensor(OUT, IN, seed=5))
    x = _tensor(3, IN).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    other(x)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    W = layer.dequantize()
    expected = (torch.full((3, IN), 2.0) @ W.T) @ W
    torch.testing.assert_close(second, expected, rtol=1e-5, atol=1e-4)


def test_other_shapes_are_refused_with_both() -> None:
    with pytest.raises(CheckpointError, match=r"expected a weight \(out, in\), found shape \[5\]"):
        NF4Linear(quantize_nf4(torch.zeros(5)))
    with pytest.raises(CheckpointError, match=r"bias of shape \[6\].*found \[5\]"):
        NF4Linear.from_weight(torch.zeros(6, 4), torch.zeros(5))


class TestInt8:
    """What differs from NF4: the buffers; the rest is QuantizedLinear's."""

    def layer(self, bias: bool = True) -> Int8Linear:
        return Int8Linear.from_weight(_tensor(OUT, IN), _tensor(OUT) if bias else None)

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("shape", [(IN,), (3, IN), (2, 3, IN), (0, IN)])
    def test_computes_a_linear_layer_in_the_inputs_type(
        self, shape: tuple[int, ...], dtype: torch.dtype, bias: bool
    ) -> None:
        layer = self.layer(bias)
        x = _tensor(*shape, seed=1).to(dtype)
        b = None if layer.bias is None else layer.bias.to(dtype)
        y = layer(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y, nn.functional.linear(x, layer.dequantize(dtype), b))

    def test_gradient_agrees_with_finite_differences(self) -> None:
        x = _tensor(3, IN).double().requires_grad_()
        assert torch.autograd.gradcheck(self.layer(), (x,))

    def test_backward_keeps_no_dense_weight(self) -> None:
        kept: list[Tensor] = []
        with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            y = self.layer()(_tensor(2, IN).requires_grad_())
        assert not kept
        assert y.grad_fn.weight.codes.dtype == torch.int8

    def test_casts_move_the_bias_but_not_the_constants(self) -> None:
        layer = self.layer()
        codes, scales = layer.codes.clone(), layer.scales.clone()
        nn.Sequential(layer).half()
        assert torch.equal(layer.codes, codes)
        assert torch.equal(layer.scales, scales)
        assert layer.scales.dtype == torch.float32
        assert layer.bias.dtype == torch.float16

    def test_state_dict_and_copies_carry_every_bit(self) -> None:
        layer = self.layer()
        other = Int8Linear.from_weight(_tensor(OUT, IN, seed=9), _tensor(OUT, seed=9))
        other.load_state_dict(layer.state_dict())
        for twin in (other, copy.deepcopy(layer)):
            assert torch.equal(twin.weight, layer.weight)
            assert torch.equal(twin.bias, layer.bias)

    def test_weight_reads_as_a_linear_layers(self) -> None:
        layer = Int8Linear.from_weight(_tensor(OUT, IN).bfloat16())
        assert isinstance(layer, QuantizedLinear)
        assert layer.weight.shape == (OUT, IN)
        assert layer.weight.dtype == layer.weight_dtype == torch.bfloat16
        assert layer.quantized.codes is layer.codes
        assert "bits=8.8" in repr(layer)  # 32 bits a row of 40

    def test_other_shapes_are_refused_with_both(self) -> None:
        with pytest.raises(CheckpointError, match=r"Int8Linear.*bias of shape \[6\].*found \[5\]"):
            Int8Linear(quantize_int8(torch.zeros(6, 4)), torch.zeros(5))
