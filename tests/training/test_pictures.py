"""What is drawn of a few rows, held against pixels and texts put together by hand."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepcoro.training.pictures import attention_picture, draw_pictures, similarity_picture

REPORTS = [
    "Left coronary tree. Left main: normal. LCX: normal.",
    "Right coronary tree. Proximal RCA: 70% stenosis (severe), iFR 0.89, Medina 1,1,0.",
    "Left coronary tree. Left main: normal. LCX: normal.",
    "First diagonal: in-stent restenosis 35%, minimal calcification.",
]


@pytest.fixture
def batch_of(random_batch, report_tokenizer):
    """``batch_of(config, views)`` -> four rows with the texts above, as the data path would bring them."""

    def make(config, views=1):
        ids, lengths = report_tokenizer.encode(REPORTS)
        return random_batch(config, views=views) | {
            "input_ids": torch.from_numpy(ids).long(),
            "text_length": torch.from_numpy(lengths).long(),
            "report_key": torch.tensor([7, 8, 7, 9]),
            "unit_id": np.array(["u0", "u1", "u2", "u3"]),
        }

    return make


def frames_of(strip, size, num_frames):
    """[3, frames, H, W] of a strip, and the pixels around them."""
    cells = strip.reshape(3, size + 2, num_frames, size + 2).transpose(0, 2, 1, 3)
    inner = np.zeros_like(cells, dtype=bool)
    inner[:, :, 1:-1, 1:-1] = True
    return cells[:, :, 1:-1, 1:-1], cells[~inner]


def boxes(config, tokens):
    """Where tokens lie in a clip, as slices of time, height and width."""
    _, rows, columns = config.grid
    t, h, w = config.video_encoder.tubelet
    for token in tokens:
        k, i, j = token // (rows * columns), token // columns % rows, token % columns
        yield slice(k * t, (k + 1) * t), slice(i * h, (i + 1) * h), slice(j * w, (j + 1) * w)


def predict_zero(model):
    decoder = model.masked_video_modeling
    decoder.forward = lambda tokens, visible, hidden: torch.zeros(*hidden.shape, decoder.predict.out_features)


def test_hidden_tokens_are_grey_in_the_second_line_and_predicted_in_the_third(
    tiny_config, tiny_model, batch_of, report_tokenizer
):
    """A model that predicts zeros: normalised, that is each tubelet's own mean."""
    config = tiny_config()
    model, batch = tiny_model(config), batch_of(tiny_config())
    predict_zero(model)
    strips = draw_pictures(model, config, batch, report_tokenizer).strips
    assert strips.shape == (4, 3 * 26, 4 * 26) and strips.dtype == np.uint8
    for row, strip in enumerate(strips):
        clip = batch["clip"][row, 0].numpy()
        shown, filled = clip.copy(), clip.astype(float)
        for box in boxes(config, batch["mask_order"][row, 0, config.num_visible :].tolist()):
            shown[box], filled[box] = 128, clip[box].mean()
        lines, around = frames_of(strip, 24, 4)
        assert np.array_equal(lines[0], clip) and np.array_equal(lines[1], shown)
        assert np.abs(lines[2] - filled).max() < 0.51
        assert (around == 255).all()


def test_a_prediction_that_is_not_normalised_stands_as_it_is(tiny_config, tiny_model, batch_of, report_tokenizer):
    config = tiny_config("masked_modeling.norm_predict_loss=false")
    model, batch = tiny_model(config), batch_of(config)
    predict_zero(model)
    lines, _ = frames_of(draw_pictures(model, config, batch, report_tokenizer).strips[0], 24, 4)
    for box in boxes(config, batch["mask_order"][0, 0, config.num_visible :].tolist()):
        assert (lines[2][box] == 100).all()  # the mean grey level of the dataset, which is 0 to the model


@pytest.mark.parametrize("normalised", ["true", "false"])
def test_a_perfect_prediction_gives_the_original_back(tiny_config, tiny_model, batch_of, report_tokenizer, normalised):
    config = tiny_config(f"masked_modeling.norm_predict_loss={normalised}")
    model, batch = tiny_model(config), batch_of(config)
    reconstruct = model.reconstruct
    model.reconstruct = lambda *given: (reconstruct(*given)[1],) * 2  # the target as prediction
    for strip in draw_pictures(model, config, batch, report_tokenizer).strips:
        lines, _ = frames_of(strip, 24, 4)
        assert np.abs(lines[2].astype(int) - lines[0]).max() <= 1 and not np.array_equal(lines[1], lines[0])


def test_a_long_clip_is_shown_in_eight_frames_from_its_first_to_its_last(
    tiny_config, tiny_model, batch_of, report_tokenizer
):
    config = tiny_config("data.num_frames=16")
    model, batch = tiny_model(config), batch_of(config)
    lines, _ = frames_of(draw_pictures(model, config, batch, report_tokenizer).strips[0], 24, 8)
    assert np.array_equal(lines[0], batch["clip"][0, 0].numpy()[[0, 2, 4, 6, 9, 11, 13, 15]])


def test_rows_without_a_view_are_left_out_and_others_show_their_first(
    tiny_config, tiny_model, batch_of, report_tokenizer
):
    config = tiny_config("data.unit=study", "data.num_videos=2")
    model, batch = tiny_model(config), batch_of(config, views=2)
    batch["valid"] = torch.tensor([[True, True], [False, False], [False, True], [True, False]])
    batch["has_report"][1] = False
    pictures = draw_pictures(model, config, batch, report_tokenizer)
    firsts = [frames_of(strip, 24, 4)[0][0] for strip in pictures.strips]
    for found, (row, view) in zip(firsts, [(0, 0), (2, 1), (3, 0)]):
        assert np.array_equal(found, batch["clip"][row, view].numpy())
    assert [name for name, _, _ in pictures.reports] == ["u0", "u2", "u3"]
    assert pictures.similarity.shape == (3 * 24, 3 * 24, 3)
    batch["valid"][:] = False
    nothing = draw_pictures(model, config, batch, report_tokenizer)
    assert (nothing.strips, nothing.reports, nothing.similarity) == (None, [], None)


def test_reports_stand_beside_what_the_decoder_writes_greedily(tiny_config, tiny_model, batch_of, report_tokenizer):
    config = tiny_config("captioning.do_sample=true")  # of no account here
    model, batch = tiny_model(config), batch_of(config)
    batch["has_report"][3] = False
    batch["input_ids"][3, 1], batch["text_length"][3] = report_tokenizer.end_id, 2
    reports = draw_pictures(model, config, batch, report_tokenizer).reports
    assert [true for _, true, _ in reports] == [*REPORTS[:3], ""]
    model.eval()
    with torch.no_grad():
        memory = model.memory(
            model.video_encoder(model.normalise(batch["clip"]).flatten(0, 1)), batch["valid"], model.views_at(batch)
        )
        ids = torch.full((4, 1), report_tokenizer.start_id)
        for _ in range(16):
            ids = torch.cat([ids, model.captioning_decoder(ids, *memory)[:, -1:].argmax(-1)], dim=1)
    assert [written for _, _, written in reports] == [report_tokenizer.decode(row) for row in ids.tolist()]


def test_videos_go_down_reports_across_and_true_pairs_are_outlined(tiny_config, tiny_model, batch_of, report_tokenizer):
    config = tiny_config()
    model, batch = tiny_model(config), batch_of(config)
    batch["has_report"][1] = False
    unit = torch.eye(3)
    model.embed_units = lambda tokens, valid, views_at: torch.stack([unit[0], unit[2], unit[1], -unit[1]])
    model.embed_text = lambda ids, lengths: torch.stack([unit[0], unit[2], unit[1], unit[0]])
    picture = draw_pictures(model, config, batch, report_tokenizer).similarity
    centres = picture[12::24, 12::24]
    red, white, blue = [178, 24, 43], [247, 247, 247], [33, 102, 172]
    assert centres.tolist() == [[red, white, red], [white, red, white], [white, blue, white]]
    outlined = (picture[::24, ::24] == 0).all(-1)
    assert outlined.tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_a_batch_without_reports_has_no_similarities(tiny_config, tiny_model, batch_of, report_tokenizer):
    config = tiny_config()
    batch = batch_of(config)
    batch["has_report"][:] = False
    assert draw_pictures(tiny_model(config), config, batch, report_tokenizer).similarity is None


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20))
def test_a_higher_cosine_is_never_bluer(cosines):
    cosines = np.sort(cosines)
    picture = similarity_picture(cosines[None], np.zeros((1, len(cosines)), bool))
    assert picture.shape == (24, 24 * len(cosines), 3)
    redness = picture[0, ::24, 0].astype(int) - picture[0, ::24, 2]
    assert (np.diff(redness) >= -1).all()  # each channel is rounded by itself
    assert (np.sign(redness) == np.sign(cosines))[abs(cosines) > 0.05].all()  # blue below 0, red above


@pytest.mark.parametrize("off", ["contrastive", "captioning", "masked_modeling"])
def test_a_part_that_is_off_is_absent(tiny_config, tiny_model, batch_of, report_tokenizer, off):
    config = tiny_config(f"loss.weights.{off}=0")
    pictures = draw_pictures(tiny_model(config), config, batch_of(config), report_tokenizer)
    there = {
        "contrastive": pictures.similarity is not None,
        "captioning": pictures.reports != [],
        "masked_modeling": pictures.strips is not None,
    }
    assert there == {name: name != off for name in there}


def test_masked_modelling_alone_needs_no_text(tiny_config, tiny_model, batch_of):
    config = tiny_config("loss.weights.contrastive=0", "loss.weights.captioning=0")
    batch = batch_of(config)
    for key in ("input_ids", "text_length", "prefix_length", "task"):
        del batch[key]
    assert len(draw_pictures(tiny_model(config), config, batch, None).strips) == 4


def test_features_are_not_drawn(tiny_config, tiny_model, batch_of, report_tokenizer):
    config = tiny_config("masked_modeling.target=ema")
    pictures = draw_pictures(tiny_model(config), config, batch_of(config), report_tokenizer)
    assert pictures.strips is None and pictures.reports and pictures.similarity is not None


def test_the_model_is_left_as_it_was(tiny_config, tiny_model, batch_of, report_tokenizer):
    config = tiny_config("captioning.dropout=0.5", "video_encoder.drop_path=0.5")
    model, batch = tiny_model(config), batch_of(config)
    model.train()
    model.text_encoder.eval()  # as a frozen part would be
    modes = {name: module.training for name, module in model.named_modules()}
    weights, before = copy.deepcopy(model.state_dict()), batch["clip"].clone()
    one, two = (draw_pictures(model, config, batch, report_tokenizer) for _ in range(2))
    assert np.array_equal(one.strips, two.strips) and one.reports == two.reports  # no dropout while drawing
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(batch["clip"], before) and all(p.grad is None for p in model.parameters())
    broken = SimpleNamespace(start_id="no number")
    with pytest.raises((TypeError, AttributeError)):
        draw_pictures(model, config, batch, broken)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_attention_lies_over_the_frames_it_came_from():
    clips = np.full((1, 4, 8, 8), 100, np.uint8)
    weights = np.zeros((1, 2, 2, 2), np.float32)
    weights[0, 1, 0, 1], weights[0, 0, 1, 0] = 0.6, 0.3  # frames 2 and 3, top right; frames 0 and 1, bottom left
    picture = attention_picture(clips, weights)
    cells = picture[0].reshape(2, 10, 4, 10, 3).transpose(0, 2, 1, 3, 4)
    plain, lit = cells[0, :, 1:-1, 1:-1], cells[1, :, 1:-1, 1:-1]
    assert (plain == 100).all()
    strong, weak = [round(100 * 0.3 + 255 * 0.7), 30, 30], [round(100 * 0.65 + 255 * 0.35), 65, 65]
    for frame in range(4):
        wanted = np.full((8, 8, 3), 100)
        if frame >= 2:
            wanted[:4, 4:] = strong
        else:
            wanted[4:, :4] = weak
        assert np.abs(lit[frame].astype(int) - wanted).max() <= 1


def test_the_attention_drawn_is_that_of_the_pool(tiny_config, tiny_model, batch_of, report_tokenizer):
    config = tiny_config()
    model, batch = tiny_model(config), batch_of(config)
    picture = draw_pictures(model, config, batch, report_tokenizer).attention
    assert picture.shape == (4, 2 * 26, 4 * 26, 3)
    with torch.no_grad():
        model.video_encoder.pool.probe.mul_(0)
        model.video_encoder.pool.attention.query.bias.mul_(0)  # a probe that likes all tokens alike
    even = draw_pictures(model, config, batch, report_tokenizer).attention
    red = even[:, 26:].reshape(4, 26, 4, 26, 3)[:, 1:-1, :, 1:-1]
    grey = batch["clip"][:, 0].numpy().transpose(0, 2, 1, 3)
    assert np.abs(red[..., 1] - grey * 0.3).max() <= 0.51
    for pool in ("mean", "class"):
        config = tiny_config(f"video_encoder.pool={pool}", "video_encoder.class_token=true")
        assert draw_pictures(tiny_model(config), config, batch, report_tokenizer).attention is None
