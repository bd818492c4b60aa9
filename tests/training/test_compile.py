"""A step with a compiled video encoder is the plain one, bare and under DDP; a checkpoint knows nothing of it."""

import pytest
import torch
import torch.distributed as dist

from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.training.optim import build_optimizer
from deepcoro.training.step import compile_encoder, train_step


@pytest.fixture
def process_group(tmp_path):
    before = torch._dynamo.config.optimize_ddp
    torch._dynamo.reset()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch._dynamo.config.optimize_ddp = before


def take_steps(config, model, wrapped, batches):
    optimizer, loss = build_optimizer(model, config.optim), MultitaskLoss.from_config(config)
    for batch in batches:
        weights, shared = loss.loss_weights, config.shared_pass.enabled
        result = train_step(wrapped, loss, optimizer, [batch], weights, config.num_visible, shared_pass=shared)
    return result.total


@pytest.mark.parametrize(("ddp", "shares"), [(False, False), (True, False), (True, True)])
def test_steps_are_those_of_the_plain_encoder(process_group, tiny_config, tiny_model, random_batch, ddp, shares):
    shared = ("shared_pass.enabled=true",) if shares else ()
    config = tiny_config("video_encoder.checkpoint_activations=true", "video_encoder.attention=divided", *shared)
    batches = [random_batch(config, rows=rows, seed=rows) for rows in (4, 3)]  # the second of another size
    plain, compiled = tiny_model(config).train(), tiny_model(config).train()
    compile_encoder(compiled, backend="eager")
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    wrapped = torch.nn.parallel.DistributedDataParallel(compiled, broadcast_buffers=False) if ddp else compiled
    totals = [take_steps(config, plain, plain, batches), take_steps(config, compiled, wrapped, batches)]
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0  # it was compiled
    assert torch.allclose(*totals, atol=1e-5)
    for (name, one), two in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-5), name
    plain.load_state_dict(compiled.state_dict())
    with torch.no_grad():
        outs = [model.eval()(random_batch(config, rows=2)) for model in (plain, compiled)]
    assert torch.allclose(outs[0]["video_embedding"], outs[1]["video_embedding"], atol=1e-6)


@pytest.mark.long
def test_accumulated_steps_draw_the_same_with_and_without_a_graph(process_group, tiny_config, tiny_model, random_batch):
    """Compiled by inductor, which draws random numbers in its own way unless told not to: residual branches that are
    left out have to be the same in the pass for the embeddings and in the one for the gradients."""
    config = tiny_config("video_encoder.drop_path=0.5", "captioning.dropout=0.1")
    batches, loss = [random_batch(config, seed=seed) for seed in (1, 2)], MultitaskLoss.from_config(config)
    plain, compiled = tiny_model(config).train(), tiny_model(config).train()
    compile_encoder(compiled)
    for model in (plain, compiled):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        torch.manual_seed(5)
        train_step(model, loss, optimizer, batches, loss.loss_weights, config.num_visible, max_grad_norm=1e9)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    for (name, one), two in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        assert one.grad is None or torch.allclose(one.grad, two.grad, atol=1e-5), name
