"""Distillation in a training run: what the teachers give, who is trained by it, from when on, and how a run goes on."""

import pytest
import torch
import torch.nn.functional as F

from deepcoro.config_training import first_step
from deepcoro.errors import CheckpointError
from deepcoro.losses.multitask import LossWeightScheduler, MultitaskLoss
from deepcoro.models.multitask import MultitaskModel
from deepcoro.training.checkpoint import load_training_state, load_weights, save_checkpoint
from deepcoro.training.optim import build_optimizer, load_optimizer
from deepcoro.training.step import train_step
from deepcoro.training.teachers import Teachers

CPU = torch.device("cpu")
HEAD = ("distillation.head_hidden_size=20", "distillation.head_bottleneck_size=8", "distillation.num_prototypes=15")
LOCAL = ("loss.weights.distillation=1", "distillation.local_views=2", "distillation.teacher_momentum=0.5", *HEAD)


class Run:
    """A training loop in small."""

    def __init__(self, config):
        torch.manual_seed(0)
        self.model = MultitaskModel.from_sources(config).train()
        self.config, self.step = self.model.config, 0
        self.teachers = Teachers(self.config, self.model, CPU)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.loss, self.told = MultitaskLoss.from_config(self.config), []
        self.weights_at = LossWeightScheduler.from_config(config).weights

    def take(self, *batches):
        batches = [dict(batch) | {"position": batch["position"] + 4 * self.step} for batch in batches]
        torch.manual_seed(self.step)
        weights = self.loss.with_parts(self.weights_at(self.step))
        self.teachers.teach(batches, weights)
        result = train_step(self.model, self.loss, self.optimizer, batches, weights, self.config.num_visible)
        self.step += 1
        self.teachers.update(self.step)
        self.told.append(self.teachers.look(self.step))
        return result


@pytest.fixture(scope="module")
def teacher_run(tiny_config, tiny_model, tmp_path_factory):
    """A run of a wider model with more of an embedding, trained on other grey levels and tubelets."""
    run = tmp_path_factory.mktemp("runs") / "teacher"
    config = tiny_config(
        "contrastive.embedding_dim=20", "video_encoder.width=36", "video_encoder.tubelet=[1, 8, 8]",
        "data.pixel_mean=90.0", "contrastive.logit_bias=-3.0",
    )  # fmt: skip
    model = tiny_model(config, 5)
    save_checkpoint(run, 1, model, {"step": 1}, config, "d")
    return run, model.eval()


@pytest.fixture
def taught(tiny_config, teacher_run):
    on = ("loss.weights.distillation=0.5", f"distillation.teacher={teacher_run[0]}")
    return lambda *more: Run(tiny_config(*on, *more))


@pytest.fixture
def local(tiny_config):
    return lambda *more: Run(tiny_config(*LOCAL, *more))


def own_of(batch):
    """A batch as it came, without what teachers put into it."""
    return {name: value for name, value in batch.items() if not name.startswith(("teacher_", "global_"))}


@pytest.mark.parametrize("similarity", ["softmax", "sigmoid"])
def test_a_step_of_a_larger_teacher_by_formula(taught, teacher_run, random_batch, similarity):
    """The losses of a step, and the slopes of its distillation alone, of a batch of which a row has no text and another
    no video."""
    made = taught(
        f"distillation.similarity={similarity}", "distillation.embedding_weight=0.7",
        "loss.weights.captioning=0", "loss.weights.masked_modeling=0",
    )  # fmt: skip
    batch = random_batch(made.config)
    batch["has_report"][2], batch["valid"][3, 0], batch["has_report"][3] = False, False, False
    big, small = teacher_run[1], made.model

    def embed(model):
        out = model(batch, None, ["contrastive"])
        video, text = out["video_embedding"], out["text_embedding"]
        bias = out["logit_bias"] if similarity == "sigmoid" else 0
        return video, text, out["logit_scale"] * video @ text.T + bias

    (v, t, s), (bv, bt, bs) = embed(small), (x.detach() for x in embed(big))
    project = small.distillation.projection
    told, seen = [0, 1], [0, 1, 2]
    video = (1 - F.cosine_similarity(project(v), bv))[seen].mean()
    text = (1 - F.cosine_similarity(project(t), bt))[told].mean()
    s, bs = s[:2, :2], bs[:2, :2]
    if similarity == "sigmoid":
        p, q = bs.sigmoid(), s.sigmoid()
        rows = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    else:
        rows = sum(bs.softmax(d) * (bs.softmax(d) / s.softmax(d)).log() for d in (0, 1)) / 2
    alike = rows.sum() / 2
    total = 0.5 * (0.7 * (video + text) + alike)
    wanted = torch.autograd.grad(total, [p for p in small.parameters() if p.requires_grad], allow_unused=True)

    before = {name: p.detach().clone() for name, p in big.named_parameters()}
    weights = made.loss.with_parts(made.weights_at(0)) | {"contrastive": 0.0}
    assert {name: w for name, w in weights.items() if name.startswith("distillation_")} == {
        "distillation_video": 0.35, "distillation_text": 0.35, "distillation_similarity": 0.5,
    }  # fmt: skip
    made.teachers.teach([batch], weights)
    sgd = torch.optim.SGD(small.parameters(), lr=0.0)
    found = train_step(small, made.loss, sgd, [batch], weights, made.config.num_visible, max_grad_norm=1e9)
    for name, value in (("video", video), ("text", text), ("similarity", alike)):
        assert found.losses[f"distillation_{name}"].item() == pytest.approx(value.item(), rel=1e-5)
    assert found.total.item() == pytest.approx(total.item(), rel=1e-5)
    for (name, p), grad in zip(((n, p) for n, p in small.named_parameters() if p.requires_grad), wanted):
        assert (p.grad is None) == (grad is None), name
        assert grad is None or torch.allclose(p.grad, grad, atol=1e-6), name
    assert project.weight.grad.abs().sum() > 0
    teacher = made.teachers.parts["distillation"].teacher
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in teacher.named_parameters() if n in before)


@pytest.mark.parametrize("kind", ["taught", "local"])
def test_a_teacher_is_in_no_optimizer_and_no_model(kind, taught, local, random_batch):
    made = {"taught": taught, "local": local}[kind]()
    (part,) = made.teachers.parts.values()
    own = {id(p) for p in part.teacher.parameters()}
    assert own and not own & {id(p) for p in made.model.parameters()}
    assert not own & {id(p) for group in made.optimizer.param_groups for p in group["params"]}
    made.take(random_batch(made.config))
    assert all(not p.requires_grad and p.grad is None for p in part.teacher.parameters())
    assert not any(module.training for module in part.teacher.modules())
    assert len(made.optimizer.state) == sum(p.requires_grad for p in made.model.parameters())


def test_accumulated_micro_batches_are_one_batch_but_for_similarities(tiny_config, taught, random_batch):
    """Embeddings of all micro-batches are held against the teacher's, beside the pairs of all of them."""
    more = ("distillation.similarity_weight=0", "loss.weights.masked_modeling=0", "training.accumulation_steps=2")
    one, two = taught(*more[:2]), taught(*more)
    batch = random_batch(one.config, rows=4, length=12)
    batch["has_report"][3] = False
    parts = [{key: value[half] for key, value in batch.items()} for half in (slice(0, 1), slice(1, 4))]
    together, apart = one.take(batch), two.take(*parts)
    for name, value in together.losses.items():
        assert apart.losses[name].item() == pytest.approx(value.item(), abs=1e-5), name
    gradients = dict(two.model.named_parameters())
    for name, p in one.model.named_parameters():
        if p.grad is not None:
            assert torch.allclose(gradients[name].grad, p.grad, atol=1e-5), name


def test_the_average_follows_by_the_formula_and_so_does_its_center(local, random_batch):
    made = local("distillation.center_momentum=0.8", "optim.lr=0.01")
    part = made.teachers.parts["distillation_local"]
    names = {f"encoder.{n}": p for n, p in made.model.video_encoder.named_parameters()}
    names |= {f"head.{n}": p for n, p in made.model.distillation.head.named_parameters()}
    expected = {name: p.detach().double().clone() for name, p in names.items()}
    center = torch.zeros(15, dtype=torch.float64)
    for step in range(3):
        batch = random_batch(made.config, seed=step)
        batch["valid"][1] = False
        clip = (batch["clip"].flatten(0, 1).float() - 100) / 40
        with torch.no_grad():
            encoder, head = part.teacher["encoder"], part.teacher["head"]
            if step == 0:  # it has the model's weights then
                encoder, head = made.model.video_encoder, made.model.distillation.head
            logits = head(encoder.pool(encoder(clip)))
        given = dict(batch)
        part_center = part.center.clone()
        made.teachers.teach([given], {"distillation": 1.0})
        wanted = ((logits - part_center) / 0.04).softmax(dim=-1)
        assert torch.allclose(given["global_targets"], wanted, atol=1e-5)
        part.center.copy_(part_center)  # as if it had not been asked
        made.take(batch)
        center = 0.8 * center + 0.2 * logits[[0, 2, 3]].double().mean(dim=0)
        assert torch.allclose(part.center.double(), center, atol=1e-6)
        for name, p in names.items():
            expected[name] = 0.5 * expected[name] + 0.5 * p.detach().double()
        entropy = torch.distributions.Categorical(wanted[[0, 2, 3]]).entropy().mean() / torch.tensor(15.0).log()
        assert made.told[-1]["distillation/target_entropy"] == pytest.approx(entropy.item(), abs=1e-4)
    found = dict(part.teacher.named_parameters())
    assert found.keys() == expected.keys()
    assert max((found[name].double() - expected[name]).abs().max() for name in expected) < 1e-6


def test_the_loss_of_local_views_by_formula(local, random_batch):
    made = local("loss.weights.contrastive=0", "loss.weights.captioning=0", "loss.weights.masked_modeling=0")
    batch = dict(random_batch(made.config))
    batch["valid"][0] = False
    weights = made.loss.with_parts(made.weights_at(0))
    made.teachers.teach([batch], weights)
    logits = made.model(batch, None, ["distillation"])["local_logits"]
    logs = (logits / 0.1).log_softmax(dim=-1)
    wanted = -(batch["global_targets"][1:, None] * logs[1:]).sum(dim=-1).mean()
    parameters = [p for p in made.model.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(wanted, parameters, allow_unused=True)
    sgd = torch.optim.SGD(parameters, lr=0.0)
    found = train_step(made.model, made.loss, sgd, [batch], weights, made.config.num_visible, max_grad_norm=1e9)
    assert found.losses.keys() == {"distillation_local"}
    assert found.total.item() == pytest.approx(wanted.item(), rel=1e-6)
    for p, grad in zip(parameters, slopes, strict=True):
        assert p.grad is None if grad is None else torch.allclose(p.grad, grad, atol=1e-6)


def test_it_begins_exactly_when_it_is_to(local, random_batch):
    """At 0.6 of 10 steps, counted from 0 the sixth: before, no teacher is asked and none follows; then it is the model
    of that moment."""
    made = local("loss.start_fraction.distillation=0.6", "distillation.teacher_momentum=1")
    assert first_step(0.6, made.config.training.num_steps) == 6
    begin = {}
    for step in range(8):
        if step == 6:
            begin = {n: p.detach().clone() for n, p in made.model.video_encoder.named_parameters()}
        result = made.take(random_batch(made.config, seed=step))
        assert ("distillation_local" in result.losses) == (step >= 6)
        assert bool(made.teachers.state_dict()["distillation_local"]) == (step >= 6)
        assert bool(made.told[-1]) == (step >= 6)
    teacher = made.teachers.parts["distillation_local"].teacher["encoder"]
    assert all(torch.equal(p, begin[name]) for name, p in teacher.named_parameters())


@pytest.mark.parametrize("start", [0.0, 0.3])
def test_a_run_that_goes_on_is_one_that_never_stopped(tiny_config, teacher_run, random_batch, tmp_path, start):
    """With both kinds, stopped after two of four steps: where it begins at the fourth, before there is an average."""
    config = tiny_config(
        *LOCAL, f"distillation.teacher={teacher_run[0]}", f"loss.start_fraction.distillation={start}", "optim.lr=0.01"
    )
    whole, first = Run(config), Run(config)
    for step in range(4):
        whole.take(random_batch(config, seed=step))
    for step in range(2):
        first.take(random_batch(config, seed=step))
    state = {"optimizer": first.optimizer.state_dict(), "teachers": first.teachers.state_dict(), "step": 2}
    place = save_checkpoint(tmp_path, 2, first.model, state, first.config, "d")
    again, state = Run(config), load_training_state(place)
    load_weights(place, again.model)
    load_optimizer(again.optimizer, state["optimizer"])
    again.teachers.load_state_dict(state["teachers"])
    again.step = state["step"]
    for step in range(2, 4):
        again.take(random_batch(config, seed=step))
    for one, other in zip(whole.model.state_dict().items(), again.model.state_dict().items(), strict=True):
        assert torch.equal(one[1], other[1]), one[0]
    one, other = (run.teachers.parts["distillation_local"] for run in (whole, again))
    assert torch.equal(one.center, other.center) and one.center.abs().sum() > 0
    for p, q in zip(one.teacher.parameters(), other.teacher.parameters(), strict=True):
        assert torch.equal(p, q)
    assert whole.told[2:] == again.told


def test_another_teacher_than_the_run_began_with_is_refused(tiny_config, tiny_model, teacher_run, tmp_path):
    config = tiny_config("contrastive.embedding_dim=20")
    save_checkpoint(tmp_path / "b", 1, tiny_model(config, 2), {"step": 1}, config, "d")
    on = ("loss.weights.distillation=1", "distillation.embedding_weight=0")
    first, second = (Run(tiny_config(*on, f"distillation.teacher={run}")) for run in (teacher_run[0], tmp_path / "b"))
    with pytest.raises(CheckpointError, match="distillation.teacher has other weights in .*b/checkpoints/1"):
        second.teachers.load_state_dict(first.teachers.state_dict())
    first.teachers.load_state_dict(first.teachers.state_dict())


def test_a_weight_of_zero_asks_no_teacher(tiny_config, random_batch, tmp_path):
    made = Run(tiny_config(f"distillation.teacher={tmp_path}/nowhere", "distillation.local_views=2"))
    assert made.teachers.parts == {} and made.model.distillation is None
    assert not any(name.startswith("distillation") for name in made.take(random_batch(made.config)).losses)
