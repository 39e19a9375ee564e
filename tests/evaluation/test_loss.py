"""Token losses against the plain statement: all logits, then cross-entropy."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from rango.adapters.attach import attach
from rango.base.linear import Int8Linear, NF4Linear
from rango.base.stored import StoredLinear
from rango.data.samples import IGNORED, Batch, Origin, Sample
from rango.data.tokens.pack import collate
from rango.evaluation import loss
from rango.evaluation.loss import forward_logits, fused_head, token_logits, token_losses
from rango.kernels import dispatch


def sample(length: int, first: int, seed: int = 0) -> Sample:
    """Supervised from token `first` on; the last is the end of turn, so no content."""
    ids = models.inputs(1, length, seed)[0].tolist()
    supervised = [place >= first for place in range(length)]
    content = [*supervised[:-1], False]
    return Sample(tuple(ids), tuple(supervised), tuple(content), Origin("data.jsonl", 1))


SAMPLES = [sample(12, 7, 1), sample(5, 1, 2), sample(9, 8, 3)]


def plain(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    output = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
    )
    wanted = batch.targets != IGNORED
    logits = output.logits[wanted].float()
    return logits, cross_entropy(logits, batch.targets[wanted], reduction="none")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", models.CAUSAL)
def test_equals_the_plain_statement_with_its_gradients(name: str, packed: bool) -> None:
    model = models.build(name)
    batch = collate(SAMPLES, [0, 1, 2], packed=packed)
    logits, expected = plain(model, batch)
    expected.sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    found = token_losses(model, batch)
    found.losses.sum().backward()
    torch.testing.assert_close(found.losses, expected)
    for grad, p in zip(grads, (p for p in model.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-5)
    wanted = batch.targets != IGNORED
    assert found.losses.shape == (batch.supervised,)
    assert found.correct.tolist() == (logits.argmax(-1) == batch.targets[wanted]).tolist()
    assert found.content.tolist() == batch.content[wanted].tolist()
    assert found.samples.tolist() == batch.samples[wanted].tolist()


def test_only_supervised_positions_reach_the_head() -> None:
    model = models.build("llama")
    seen: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda _m, args, _o: seen.append(tuple(args[0].shape)))
    token_losses(model, collate(SAMPLES, [0, 1, 2], packed=True))
    assert seen == [(1, 5 + 4 + 1, 32)]
    token_losses(model, collate(SAMPLES, [0, 1], packed=False))
    assert seen[1] == (2, 4 + 5, 32)  # the columns that either row needs


def test_half_precision_models_get_a_loss_in_fp32() -> None:
    model = models.build("llama").to(torch.bfloat16)
    batch = collate(SAMPLES, [0], packed=True)
    assert token_logits(model, batch).dtype == torch.bfloat16
    found = token_losses(model, batch).losses
    assert found.dtype == torch.float32
    logits = token_logits(model, batch).float()
    torch.testing.assert_close(
        found, cross_entropy(logits, batch.targets[batch.targets != IGNORED], reduction="none")
    )


def test_no_supervised_token_gives_empty_tensors() -> None:
    model = models.build("llama")
    unsupervised = Sample((3, 4, 5), (False,) * 3, (False,) * 3, Origin("data.jsonl", 1))
    found = token_losses(model, collate([unsupervised], [0], packed=True))
    assert found.losses.shape == found.correct.shape == (0,)


class Plain(nn.Module):
    """A model of one's own: no options, logits returned as a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 128)

    def forward(self, input_ids: Tensor) -> Any:
        return self.embedding(input_ids)


def test_a_model_without_options_takes_the_plain_path() -> None:
    torch.manual_seed(0)
    model = Plain()
    batch = collate(SAMPLES, [0, 1, 2], packed=False)
    wanted = batch.targets != IGNORED
    expected = cross_entropy(
        model(batch.input_ids)[wanted], batch.targets[wanted], reduction="none"
    )
    torch.testing.assert_close(token_losses(model, batch).losses, expected)
    assert forward_logits(model, batch.input_ids, columns=torch.tensor([2, 4])).shape == (3, 2, 128)


compiled = pytest.mark.skipif(
    dispatch.facts().in_use == "reference", reason="the compiled kernels are not in use"
)
_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
_SMALL = _LAYERS | {"hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 2}
# every class that the kernel serves: its configuration's class and fields, chosen so that a scale
# or a soft cap changes the logits
SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "CohereForCausalLM": ("CohereConfig", _SMALL | {"logit_scale": 3.0}),
    "FalconForCausalLM": ("FalconConfig", _LAYERS | {"hidden_size": 32}),
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "GPTNeoXForCausalLM": (
        "GPTNeoXConfig",
        _LAYERS | {"hidden_size": 32, "intermediate_size": 64},
    ),
    "Gemma2ForCausalLM": ("Gemma2Config", _SMALL | {"head_dim": 8, "final_logit_softcapping": 0.3}),
    "Gemma3ForCausalLM": (
        "Gemma3TextConfig",
        _SMALL | {"head_dim": 8, "final_logit_softcapping": 0.3},
    ),
    "GemmaForCausalLM": ("GemmaConfig", _SMALL | {"head_dim": 8}),
    "GraniteForCausalLM": ("GraniteConfig", _SMALL | {"logits_scaling": 0.3}),
    "LlamaForCausalLM": ("LlamaConfig", _SMALL),
    "MistralForCausalLM": ("MistralConfig", _SMALL),
    "Olmo2ForCausalLM": ("Olmo2Config", _SMALL),
    "Phi3ForCausalLM": ("Phi3Config", _SMALL),
    "PhiForCausalLM": ("PhiConfig", _SMALL),
    "Qwen2ForCausalLM": ("Qwen2Config", _SMALL),
    "Qwen3ForCausalLM": ("Qwen3Config", _SMALL | {"head_dim": 8}),
    "SmolLM3ForCausalLM": ("SmolLM3Config", _SMALL),
}


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    """All but the input: what carries the gradient is a shift of the embeddings."""
    model.requires_grad_(False)
    shift = nn.Parameter(torch.zeros(model.get_input_embeddings().embedding_dim))
    model.get_input_embeddings().register_parameter("shift", shift)
    model.get_input_embeddings().register_forward_hook(lambda module, _x, y: y + module.shift)
    return model


def served(name: str) -> PreTrainedModel:
    config, fields = SERVED[name]
    common = {"vocab_size": models.VOCABULARY, "bos_token_id": 2, "eos_token_id": 1}
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**(common | fields)))
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    if model.get_output_embeddings().bias is not None:
        nn.init.normal_(model.get_output_embeddings().bias)
    return frozen(model.eval())


def both(model: PreTrainedModel, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Losses, correct and the shift's gradient, by the kernel and by the plain path."""
    found = []
    for mode in (dispatch.facts().in_use, "reference"):
        with dispatch.using(mode):
            assert (fused_head(model)[0] is None) == (mode == "reference")
            losses = token_losses(model, batch)
        weights = torch.linspace(0.5, 2.0, len(losses.losses))
        (losses.losses * weights).sum().backward()
        shift = model.get_input_embeddings().shift
        found.append([losses.losses.detach(), losses.correct, shift.grad.clone()])
        shift.grad = None
        # and without a gradient
        with dispatch.using(mode), torch.no_grad():
            assert torch.equal(token_losses(model, batch).correct, losses.correct)
    return found[0], found[1]


def test_every_class_of_the_table_has_a_test() -> None:
    assert SERVED.keys() == loss._SCALE_AND_SOFTCAP.keys()


@compiled
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", SERVED)
def test_the_kernel_equals_the_model_s_own_logits(name: str, packed: bool) -> None:
    model = served(name)
    fused, plain_path = both(model, collate(SAMPLES, [0, 1, 2], packed=packed))
    torch.testing.assert_close(fused[0], plain_path[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(fused[1], plain_path[1])
    size = float(plain_path[2].abs().max())
    torch.testing.assert_close(fused[2], plain_path[2], rtol=1e-5, atol=2e-5 * size)


@compiled
def test_all_positions_and_none() -> None:
    model = served("LlamaForCausalLM")
    everything = Sample((3, 4, 5, 6), (True,) * 4, (True,) * 4, Origin("data.jsonl", 1))
    fused, plain_path = both(model, collate([everything], [0], packed=True))
    torch.testing.assert_close(fused[0], plain_path[0], rtol=1e-5, atol=1e-5)
    nothing = Sample((3, 4, 5), (False,) * 3, (False,) * 3, Origin("data.jsonl", 1))
    found = token_losses(model, collate([nothing], [0], packed=True))
    assert found.losses.shape == found.correct.shape == (0,)
    found.losses.sum().backward()
    assert not model.get_input_embeddings().shift.grad.any()


@compiled
@pytest.mark.parametrize("kind", ["bf16", "nf4", "int8"])
def test_heads_held_narrow(kind: str) -> None:
    model = served("PhiForCausalLM")
    head = model.lm_head
    if kind == "bf16":
        narrow = nn.Parameter(head.weight.detach().bfloat16(), requires_grad=False)
        model.lm_head = StoredLinear(narrow, head.bias)
    else:
        held = NF4Linear if kind == "nf4" else Int8Linear
        model.lm_head = held.from_weight(head.weight, head.bias)
    fused, plain_path = both(model, collate(SAMPLES, [0, 1, 2], packed=True))
    torch.testing.assert_close(fused[0], plain_path[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused[2], plain_path[2], rtol=1e-4, atol=1e-5)


@compiled
def test_no_logits_are_stored() -> None:
    model = served("LlamaForCausalLM")
    seen: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: seen.append(x) or x,
        lambda x: x,  # type: ignore[func-returns-value]
    ):
        token_losses(model, collate(SAMPLES, [0, 1, 2], packed=True))
    assert seen
    assert all(x.shape[-1] != models.VOCABULARY for x in seen if x.ndim)


def _train_head(model: PreTrainedModel) -> None:
    model.lm_head.weight.requires_grad_(True)


def _hook_head(model: PreTrainedModel) -> None:
    model.lm_head.register_forward_hook(lambda _m, _x, y: y + 1.0)


def _hook_model(model: PreTrainedModel) -> None:
    model.register_forward_pre_hook(lambda _m, _x: None)


def _own_forward(model: PreTrainedModel) -> None:
    model.forward = model.forward


def _other_head(model: PreTrainedModel) -> None:
    model.lm_head = nn.Sequential(model.lm_head)


def _adapt_head(model: PreTrainedModel) -> None:
    attach(model, r=2, target_modules=["lm_head"])


def _halve(model: PreTrainedModel) -> None:
    model.to(torch.bfloat16)


@compiled
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_train_head, "being trained"),
        (_hook_head, "its head has hooks"),
        (_hook_model, "the model has hooks"),
        (_own_forward, "the model has hooks, or a forward of its own"),
        (_other_head, "Sequential"),
        (_adapt_head, "AdaptedModule"),
        (_halve, "fp32"),
    ],
)
def test_what_takes_the_plain_path_and_why(change: Any, reason: str) -> None:
    model = models.build("llama").requires_grad_(False)
    assert fused_head(model)[1] == ""
    change(model)
    head, why = fused_head(model)
    assert head is None
    assert reason in why
    with torch.no_grad():  # what is trained may be evaluated
        assert (fused_head(model)[0] is not None) == (change is _train_head)
    batch = collate(SAMPLES, [0, 1], packed=True)
    _, expected = plain(model, batch)
    torch.testing.assert_close(token_losses(model, batch).losses, expected)


@compiled
def test_unknown_classes_autocast_and_the_reference_take_the_plain_path() -> None:
    assert "Plain does to its logits" in fused_head(Plain())[1]
    mixtral = models.build("mixtral").requires_grad_(False)
    assert "MixtralForCausalLM" in fused_head(mixtral)[1]
    model = models.build("llama").requires_grad_(False)

    class LlamaForCausalLM(type(model)):  # type: ignore[misc]
        """Of the same name, but not transformers' own."""

    other = LlamaForCausalLM(model.config).requires_grad_(False)
    assert fused_head(other)[0] is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "fp32" in fused_head(model)[1]
    with dispatch.using("reference"):
        assert "RANGO_KERNELS=reference" in fused_head(model)[1]
    assert fused_head(model)[0] is not None


@compiled
def test_adapters_below_the_head_get_their_gradients() -> None:
    model = models.build("llama")
    adapted = attach(model, r=2, target_modules=["q_proj", "up_proj"])
    torch.manual_seed(0)
    with torch.no_grad():
        adapted.bank.parameters.normal_(std=0.1)
    batch = collate(SAMPLES, [0, 1, 2], packed=True)
    tables = []
    for mode in (dispatch.facts().in_use, "reference"):
        with dispatch.using(mode):
            assert (fused_head(model)[0] is None) == (mode == "reference")
            adapted.bank.gradients.zero_()
            token_losses(model, batch).losses.sum().backward()
            tables.append(adapted.bank.gradients.clone())
    assert tables[1].any()
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-4, atol=1e-6)
