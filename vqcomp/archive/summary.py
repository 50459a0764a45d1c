"""What an archive came to: sizes and rates."""

from __future__ import annotations

from dataclasses import dataclass

from ..runtime import layout
from .reader import Archive


@dataclass(frozen=True)
class Summary:
    """What a compression, or an evaluation, came to. Sizes in bytes.

    raw_bytes counts ceil(log2 vocabulary) bits per token (commaVQ: 10), and the files that are kept as they are; rate
    is raw_bytes / zip_bytes. payload is the streams, weights the model's file, runtime what decodes, files what else
    is kept (compressed). seconds is the time of everything, the check of what was written included;
    tokens_per_second is tokens / seconds.
    """

    segments: int
    tokens: int
    raw_bytes: int
    zip_bytes: int
    payload_bytes: int
    weights_bytes: int
    runtime_bytes: int
    files_bytes: int
    rate: float
    payload_bits_per_token: float
    seconds: float
    tokens_per_second: float
    skipped: int = 0
    """Pieces of the data that were bad and, with skip_bad, are not in the zip."""
    left_out: int = 0
    """Files, and members of shards, that hold no tokens and are not in the zip."""

    @property
    def rest_bytes(self) -> int:
        """The manifest and the zip's own headers."""
        return self.zip_bytes - self.payload_bytes - self.weights_bytes - self.runtime_bytes - self.files_bytes


def summarize(archive: Archive, seconds: float) -> Summary:
    """The sums of an open archive; `seconds` is how long the work on it took."""
    sizes, tokens = archive.sizes(), archive.tokens
    payload, raw = sizes[layout.STREAMS], archive.raw_bytes
    return Summary(
        segments=len(archive),
        tokens=tokens,
        raw_bytes=raw,
        zip_bytes=sizes["total"],
        payload_bytes=payload,
        weights_bytes=sizes.get(layout.MODEL, 0),
        runtime_bytes=sizes.get(layout.BOOTSTRAP, 0) + sizes.get(layout.RUNTIME, 0),
        files_bytes=sizes.get(layout.FILES, 0),
        rate=raw / sizes["total"],
        payload_bits_per_token=8 * payload / tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else 0.0,
    )
