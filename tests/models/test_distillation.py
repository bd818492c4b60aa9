"""What distillation adds to a model, and what a config of it is refused for."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from deepcoro.errors import ConfigError
from deepcoro.models.distillation import DistillationHead, local_places
from deepcoro.models.pretrained import resolve_architecture
from deepcoro.models.run_teacher import check_same_words
from deepcoro.models.text_encoder import load_tokenizer
from deepcoro.training.checkpoint import save_checkpoint

ON = "loss.weights.distillation=1"
HEAD = ("distillation.head_hidden_size=20", "distillation.head_bottleneck_size=8", "distillation.num_prototypes=15")
LOCAL = (ON, "distillation.local_views=2", *HEAD)


@pytest.fixture(scope="module")
def teacher_run(tiny_config, tiny_model, text_folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "teacher"
    config = tiny_config("contrastive.embedding_dim=20", "video_encoder.width=36", "video_encoder.tubelet=[1, 8, 8]")
    run.mkdir()
    load_tokenizer(str(text_folder)).save_pretrained(run / "tokenizer")
    save_checkpoint(run, 1, tiny_model(config, 5), {"step": 1}, config, "d")
    return run


def test_local_views_are_blocks_of_neighbours():
    """Against all blocks there are, in a grid of 3 times, 4 rows and 5 columns; each of them is drawn."""
    grid, size = (3, 4, 5), (2, 2, 3)
    blocks = set()
    for t, h, w in itertools.product(range(2), range(3), range(3)):
        inside = itertools.product(range(t, t + 2), range(h, h + 2), range(w, w + 3))
        blocks.add(tuple(sorted((a * 4 + b) * 5 + c for a, b, c in inside)))
    found = local_places(grid, size, 7, torch.arange(600), 0)
    drawn = [tuple(sorted(row)) for row in found.tolist()]
    assert set(drawn) == blocks and found.shape == (600, 12)
    assert max(drawn.count(block) for block in blocks) < 2.5 * 600 / len(blocks)
    assert torch.equal(local_places(grid, size, 7, torch.tensor([4, 99]), 0), found[[4, 99]])
    assert not torch.equal(local_places(grid, size, 7, torch.arange(600), 1), found)
    assert not torch.equal(local_places(grid, size, 8, torch.arange(600), 0), found)


def test_the_head_gives_cosines_with_its_prototypes():
    torch.manual_seed(0)
    head, x = DistillationHead(6, 10, 4, 7).double(), torch.randn(3, 2, 6, dtype=torch.float64)
    first, second, third, cosines = head[0], head[2], head[4], head[5]
    y = F.linear(F.gelu(F.linear(F.gelu(F.linear(x, first.weight, first.bias)), second.weight)), third.weight)
    wanted = torch.stack([F.cosine_similarity(y, prototype, dim=-1) for prototype in cosines.prototypes], dim=-1)
    assert torch.allclose(head(x), wanted, atol=1e-12)


def test_local_logits_are_of_what_the_encoder_makes_of_the_blocks(tiny_config, tiny_model, random_batch):
    config = tiny_config(*LOCAL, "distillation.local_size=[1, 2, 2]", "data.unit=study", "data.num_videos=2")
    model, batch = tiny_model(config).eval(), random_batch(config, rows=3, views=2)
    found = model(batch, None, ["distillation"])
    assert found.keys() == {"local_logits"} and found["local_logits"].shape == (6, 2, 15)
    clip, clips = model.normalise(batch["clip"]).flatten(0, 1), torch.tensor([0, 1, 2, 3, 4, 5])
    for view in range(2):
        places = local_places((2, 3, 3), (1, 2, 2), 0, clips, view)
        pooled = model.video_encoder.pool(model.video_encoder(clip, places))
        assert torch.allclose(model.distillation.head(pooled), found["local_logits"][:, view], atol=1e-6)


def test_masked_modelling_with_local_views_keeps_the_pool(tiny_config, tiny_model):
    alone = ("loss.weights.contrastive=0", "loss.weights.captioning=0")
    assert tiny_model(tiny_config(*alone, *LOCAL)).video_encoder.pool is not None
    assert tiny_model(tiny_config(*alone)).video_encoder.pool is None


def test_a_weight_of_zero_builds_nothing(tiny_config, tiny_model, tmp_path):
    """Not even the teacher is looked for."""
    config = tiny_config(f"distillation.teacher={tmp_path}/nowhere", "distillation.local_views=3")
    assert resolve_architecture(config) == config
    assert tiny_model(config).state_dict().keys() == tiny_model(tiny_config()).state_dict().keys()


@pytest.mark.parametrize(
    ("assignments", "says"),
    [
        ((ON,), "distillation is above 0, and there is nothing to learn from"),
        ((ON, "distillation.teacher=x", "loss.weights.contrastive=0"), "this run has no such loss"),
        (("distillation.teacher=x", "distillation.embedding_weight=0", "distillation.similarity_weight=0"), "nothing"),
        (("distillation.local_views=1", "distillation.local_weight=0"), "local_views 1 with local_weight 0"),
        (("distillation.local_size=[1, 4, 3]",), "local_size of 1x4x3 .* larger than a clip, which has 2x3x3"),
        ((*LOCAL, "distillation.local_size=[2, 3, 3]"), "local_size of 2x3x3 tokens is a whole clip"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_config, assignments, says):
    with pytest.raises(ConfigError, match=says):
        tiny_config(*assignments)


def test_what_a_teacher_says_is_filled_in(tiny_config, tiny_model, teacher_run):
    config = resolve_architecture(tiny_config(ON, f"distillation.teacher={teacher_run}"))
    assert config.distillation.teacher_dim == 20
    assert tiny_model(config).distillation.projection.weight.shape == (20, 12)
    same = resolve_architecture(config.override(["contrastive.embedding_dim=20"]))
    assert tiny_model(same).distillation.projection is None


@pytest.mark.parametrize(
    ("assignments", "says"),
    [
        (("data.num_frames=8",), "takes clips of 4x24x24 .* this run has 8x24x24; set data.num_frames=4"),
        (("data.frame_size=48",), "takes clips of 4x24x24 .* this run has 4x48x48"),
        (("distillation.teacher_dim=12",), "teacher_dim is 12, and the teacher .* has 20"),
        (("data.unit=study",), "with contrastive.level=clip, and this run has study"),
    ],
)
def test_a_teacher_of_other_clips_or_rows_is_refused(tiny_config, teacher_run, assignments, says):
    with pytest.raises(ConfigError, match=says):
        resolve_architecture(tiny_config(ON, f"distillation.teacher={teacher_run}", *assignments))


def test_a_teacher_of_another_tokenizer_is_refused_with_numbers(
    tiny_config, teacher_run, text_folder, task_text_folder, report_tokenizer
):
    config = tiny_config(ON, f"distillation.teacher={teacher_run}")
    check_same_words(config, load_tokenizer(str(text_folder)))
    other = load_tokenizer(str(task_text_folder))
    own, theirs = other.get_vocab(), load_tokenizer(str(text_folder)).get_vocab()
    number = sum(theirs.get(word) != own.get(word) for word in {*own, *theirs})
    says = f"it has {len(theirs)} words, this run {len(own)}, and {number} have not the same number"
    with pytest.raises(ConfigError, match=says):
        check_same_words(config, other)
    check_same_words(tiny_config(f"distillation.teacher={teacher_run}"), other)  # of weight 0: nobody asks
