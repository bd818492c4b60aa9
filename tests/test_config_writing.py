"""How a report is written: what makes sense, and what is refused."""

import pytest

from deepcoro.config import Config
from deepcoro.config_writing import Writing
from deepcoro.errors import ConfigError


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"top_k": 5}, "captioning.top_k=5 would do nothing: .* set captioning.do_sample=true"),
        ({"top_p": 0.9, "temperature": 0.5}, "captioning.temperature=0.5 and captioning.top_p=0.9 would do nothing"),
        ({"do_sample": True, "num_beams": 3}, "captioning.num_beams=3 looks for .* choose one of them"),
        ({"length_penalty": 0.5}, "captioning.length_penalty=0.5 would do nothing: .*num_beams above 1"),
        ({"num_beams": 0}, "captioning.num_beams: .*greater than 0, got 0"),
        ({"do_sample": True, "top_p": 1.5}, "captioning.top_p: .*less than 1, got 1.5"),
        ({"do_sample": True, "top_k": 0}, "captioning.top_k: .*greater than 0, got 0"),
        ({"do_sample": True, "temperature": 1e-4}, "captioning.temperature: .*greater than or equal to 0.001, got"),
        ({"num_beams": 2, "length_penalty": 11}, "captioning.length_penalty: .*less than or equal to 10, got 11"),
        ({"num_beams": 2, "length_penalty": -1.5}, "captioning.length_penalty: .*greater than or equal to -1, got"),
    ],
)
def test_a_way_of_writing_that_makes_no_sense_is_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        Config(captioning=section)


def test_ways_of_writing_that_make_sense():
    drawn = Config(captioning={"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9}).captioning
    assert drawn.without_luck() == Writing(max_generation_length=128)
    searched = Config(captioning={"num_beams": 4, "length_penalty": 0.0, "max_generation_length": 9}).captioning
    assert searched.without_luck() is searched
