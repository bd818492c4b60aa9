"""How a file's pixels are laid out, as its header declares; checked before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID

from data_prep.dicom.quarantine import Unusable

MAX_SIDE = 16_384  # far more than any detector, and what a JPEG can hold
MAX_PIXELS = 2**24  # of a frame, 4,096 x 4,096: in 16-bit colour a worker then takes 0.6 GB
GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
LUMA_FIRST = frozenset({"YBR_FULL", "YBR_FULL_422"})
COLOUR = frozenset({"RGB", "YBR_ICT", "YBR_RCT"}) | LUMA_FIRST
PALETTE = "PALETTE COLOR"


@dataclass(frozen=True)
class Layout:
    """Rows, columns and bits of a frame (PS3.3 C.7.6.3)."""

    syntax: UID
    rows: int
    columns: int
    samples: int  # 1 or 3
    photometric: str
    allocated: int  # bits of a sample's container, 8 or 16
    bits: int  # of it in use, 1 to 16
    high_bit: int
    signed: bool
    by_plane: bool  # three pictures, one a sample, rather than three samples a pixel

    @property
    def frame_bytes(self) -> int:
        """Of an uncompressed frame; in YBR_FULL_422 two pixels share their chroma."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * samples * self.allocated // 8


def read_layout(dataset: Dataset) -> Layout:
    """Read the layout.

    Raises:
        Unusable: what is declared is not for us, or makes no sense.
        AttributeError: there is no transfer syntax, or no size.
    """
    syntax, rows, columns = dataset.file_meta.TransferSyntaxUID, int(dataset.Rows), int(dataset.Columns)
    if not (1 <= rows <= MAX_SIDE and 1 <= columns <= MAX_SIDE):
        raise Unusable("bad_header", "the header gives a frame no sensible size")
    if rows * columns > MAX_PIXELS:
        raise Unusable("unsupported_pixels", f"a frame has more than {MAX_PIXELS:,} pixels")
    photometric, samples = str(dataset.get("PhotometricInterpretation")), dataset.get("SamplesPerPixel", 1)
    if photometric not in GREY | COLOUR | {PALETTE} or samples != (3 if photometric in COLOUR else 1):
        raise Unusable("colour")
    allocated, bits = dataset.get("BitsAllocated"), dataset.get("BitsStored")
    if allocated not in (8, 16) or bits is None or not 1 <= bits <= allocated:
        raise Unusable("unsupported_pixels")
    signed, high_bit = dataset.get("PixelRepresentation"), dataset.get("HighBit")
    if signed not in (0, 1) or high_bit is None or not bits - 1 <= high_bit < allocated:
        raise Unusable("bad_header", "the header does not say how a pixel's bits are laid out")
    if photometric in COLOUR | {PALETTE} and signed:
        raise Unusable("unsupported_pixels", "colour of signed numbers")
    if photometric == "YBR_FULL_422" and not syntax.is_encapsulated and columns % 2:
        raise Unusable("bad_header", "pixels share their chroma by twos, but a row has an odd number")
    return Layout(
        syntax=syntax,
        rows=rows,
        columns=columns,
        samples=samples,
        photometric=photometric,
        allocated=allocated,
        bits=bits,
        high_bit=high_bit,
        signed=signed == 1,
        by_plane=dataset.get("PlanarConfiguration") == 1,
    )
