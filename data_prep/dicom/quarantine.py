"""Why a file is not in the dataset: a small fixed vocabulary, so that reasons can be counted."""

from __future__ import annotations

REASONS = {
    "unreadable": "the file system refused to give the file",
    "empty": "the file has no bytes",
    "not_dicom": "the file lacks the DICM mark of a DICOM file",
    "bad_header": "the header is damaged, or a value in it that is needed makes no sense",
    "no_identity": "the header has no study or no instance UID, so that the video belongs nowhere",
    "no_pixel_data": "the file has no integer pixel data (a report, a plan, an index, a waveform)",
    "other_modality": "the modality is not among those asked for",
    "colour": "a colour space that is not read (CMYK, HSV, partial range), or none that makes sense",
    "single_frame": "a still image, or a single frame of a cine",
    "unsupported_pixels": "not of 1 to 16 stored bits in 8 or 16, or more pixels than any detector has",
    "burned_in_annotation": "the header says that text (perhaps a name) is part of the picture",
    "unsupported_transfer_syntax": "no decoder at hand reads this compression",
    "truncated": "the pixels end early, and fewer than 8 frames are whole",
    "decode_error": "the pixels are damaged",
    "decoder_crash": "the process that read the file died, twice",
    "duplicate": "the same video came from another file already",
    "conflicting_patient": "the study's other files name another patient",
}


class Unusable(Exception):
    """A file that does not become a video.

    ``detail`` is a sentence of ours, never the text of another library's error: such texts quote values of the file,
    and those may name a person.
    """

    def __init__(self, reason: str, detail: str | None = None) -> None:
        if reason not in REASONS:
            raise ValueError(f"{reason!r} is none of the reasons: {', '.join(REASONS)}")
        super().__init__(reason)
        self.reason = reason
        self.detail = detail or REASONS[reason]
