"""Valid lists of findings, for hypothesis."""

from hypothesis import strategies as st

from deepcoro.reports.grammar import CALCIFICATIONS, Finding
from deepcoro.reports.vocabulary import SEGMENTS


@st.composite
def one_finding(draw, segment):
    stent = draw(st.booleans())
    occlusion = draw(st.sampled_from(["none", "none", "total", "cto"]))
    values = {
        "segment": segment,
        "stenosis": 100 if occlusion != "none" else draw(st.none() | st.integers(0, 99)),
        "occlusion": occlusion,
        "timi": draw(st.none() | st.integers(0, 3)),
        "calcification": draw(st.none() | st.sampled_from(CALCIFICATIONS)),
        "thrombus": draw(st.booleans()),
        "stent": stent,
        "in_stent_restenosis": draw(st.none() | st.integers(0, 100)) if stent else None,
        "pci": draw(st.booleans()),
        "ifr": draw(st.none() | st.integers(0, 100).map(lambda n: n / 100)),
        "medina": draw(st.none() | st.tuples(*[st.sampled_from("01")] * 3).map(",".join)),
        "collaterals": draw(st.booleans()),
    }
    if all(value in (None, False, "none", segment) for value in values.values()) and values["stenosis"] is None:
        values["calcification"] = values["calcification"] or "none"
    return Finding(**values)


@st.composite
def finding_lists(draw, segments=SEGMENTS):
    chosen = draw(st.lists(st.sampled_from(segments), unique=True))
    return tuple(draw(one_finding(segment)) for segment in sorted(chosen, key=SEGMENTS.index))
