"""How a report is written, word by word: the most probable word, one drawn by its probability, or a search."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from deepcoro.config_section import Section


class Writing(Section):
    """Greedy as it stands; sampling with ``do_sample``; beam search with ``num_beams`` above 1."""

    max_generation_length: Annotated[int, Field(gt=0)] = 128  # tokens that are written at most, the end token counted
    do_sample: bool = False  # draw each token by its probability
    # Divides the logits that are drawn from: below 1 more careful. Below the least of it they would become infinite.
    temperature: Annotated[float, Field(ge=1e-3)] = 1.0
    top_k: Annotated[int, Field(gt=0)] | None = None  # draw among the k most probable tokens; None: among all
    top_p: Annotated[float, Field(gt=0, lt=1)] | None = None  # among the fewest that have this probability together
    num_beams: Annotated[int, Field(gt=0)] = 1  # texts that are followed at once; the best of them is taken
    # The best has the largest log-probability / length ** length_penalty: 0 favours short texts, above 1 long ones.
    # Not below -1: transformers marks a text that is not there by -1e9, and a log-probability (-500 in 250 tokens, say)
    # times length ** 3 is worth less than that, so that what is not even finished would be taken for the best.
    length_penalty: Annotated[float, Field(ge=-1, le=10)] = 1.0

    @model_validator(mode="after")
    def _check_writing(self) -> Writing:
        if not self.do_sample:
            told = {"temperature": self.temperature != 1, "top_k": self.top_k, "top_p": self.top_p}
            if idle := [f"captioning.{name}={getattr(self, name)}" for name, used in told.items() if used]:
                raise ValueError(
                    f"{' and '.join(idle)} would do nothing: it says how tokens are drawn, and none are; "
                    "set captioning.do_sample=true, or leave it out"
                )
        elif self.num_beams > 1:
            raise ValueError(
                f"captioning.num_beams={self.num_beams} looks for the most probable text and captioning.do_sample=true "
                "draws one by chance; choose one of them"
            )
        if self.num_beams == 1 and self.length_penalty != 1:
            raise ValueError(
                f"captioning.length_penalty={self.length_penalty} would do nothing: it compares the texts of a beam "
                "search; set captioning.num_beams above 1, or leave it out"
            )
        return self

    def without_luck(self) -> Writing:
        """The same without drawing: what a metric is measured with."""
        if not self.do_sample:
            return self
        return Writing(max_generation_length=self.max_generation_length)
