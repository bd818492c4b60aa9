"""A slow second JPEG decoder for grey pictures, lossy with 8 or 12 bits: ITU T.81 as it is written, and no faster."""

from __future__ import annotations

from itertools import product

import numpy as np

# Diagonal by diagonal, the odd ones downwards.
ZIGZAG = [
    8 * y + x for y, x in sorted(product(range(8), repeat=2), key=lambda p: (sum(p), p[0] if sum(p) % 2 else p[1]))
]


def decode_jpeg(stream: bytes) -> np.ndarray:
    """Grey levels [H, W] of a sequential JPEG of one component without restart intervals."""
    quantisers: dict[int, list[int]] = {}
    codes: dict[tuple[int, int], dict[tuple[int, int], int]] = {}
    at, bits, rows, columns, quantiser = 2, 8, 0, 0, 0
    while True:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        body = stream[at + 4 : at + 2 + length]
        at += 2 + length
        if marker == 0xDB:
            while body:
                wide, name = body[0] >> 4, body[0] & 15
                step = 1 + wide
                quantisers[name] = [int.from_bytes(body[1 + k * step : 1 + (k + 1) * step], "big") for k in range(64)]
                body = body[1 + 64 * step :]
        elif marker in (0xC0, 0xC1):
            bits, rows, columns = body[0], int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            assert body[5] == 1
            quantiser = body[8]
        elif marker == 0xC4:
            while body:
                counts = body[1:17]
                codes[body[0] >> 4, body[0] & 15] = _codes(counts, body[17:])
                body = body[17 + sum(counts) :]
        elif marker == 0xDA:
            direct, alternating = codes[0, body[2] >> 4], codes[1, body[2] & 15]
            break
    data = stream[at:].replace(b"\xff\x00", b"\xff")
    blocks = _blocks(_Bits(data), direct, alternating, -(-rows // 8), -(-columns // 8))
    blocks = blocks * np.array(quantisers[quantiser])
    natural = np.zeros_like(blocks)
    natural[..., ZIGZAG] = blocks
    k = np.arange(8)
    cosines = np.cos((2 * k[:, None] + 1) * k[None] * np.pi / 16) * np.where(k == 0, np.sqrt(0.125), 0.5)  # [x, u]
    pixels = cosines @ natural.reshape(*blocks.shape[:2], 8, 8) @ cosines.T
    picture = pixels.transpose(0, 2, 1, 3).reshape(8 * blocks.shape[0], 8 * blocks.shape[1])[:rows, :columns]
    return np.clip(np.rint(picture) + 2 ** (bits - 1), 0, 2**bits - 1).astype(int)


def _codes(counts: bytes, values: bytes) -> dict[tuple[int, int], int]:
    """(length, code) -> value, T.81 annex C."""
    found, code, at = {}, 0, 0
    for length, count in enumerate(counts, start=1):
        for _ in range(count):
            found[length, code] = values[at]
            code, at = code + 1, at + 1
        code *= 2
    return found


def _blocks(bits: _Bits, direct: dict, alternating: dict, down: int, across: int) -> np.ndarray:
    blocks = np.zeros((down * across, 64))
    last = 0
    for block in blocks:
        last += bits.number(bits.symbol(direct))
        block[0] = last
        k = 1
        while k < 64:
            run, size = divmod(bits.symbol(alternating), 16)
            if size == 0 and run != 15:
                break
            k += run
            if size:
                block[k] = bits.number(size)
            k += 1
    return blocks.reshape(down, across, 64)


class _Bits:
    def __init__(self, data: bytes) -> None:
        self.text = "".join(f"{byte:08b}" for byte in data)
        self.at = 0

    def symbol(self, codes: dict[tuple[int, int], int]) -> int:
        code = 0
        for length in range(1, 17):
            code = 2 * code + (self.text[self.at] == "1")
            self.at += 1
            if (length, code) in codes:
                return codes[length, code]
        raise AssertionError("no such code")

    def number(self, size: int) -> int:
        if not size:
            return 0
        value = int(self.text[self.at : self.at + size], 2)
        self.at += size
        return value if value >= 2 ** (size - 1) else value - 2**size + 1
