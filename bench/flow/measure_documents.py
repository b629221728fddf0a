"""What documents are like: bytes, chunks, tokens and the processor time of extraction, as shares of a whole set.

    python -m bench.flow.measure_documents ../shared/data/scrapes --model openai:text-embedding-3-small

Each file is extracted once, in this process, as a fetch worker's child would. Prints the mean and the quantiles that
the simulation draws documents from.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.straight_line import _announcements, _fetch
from shoal.documents.pipeline import Limits, TokenBudget
from shoal.embeddings.models import token_budget
from shoal.settings import load

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench.flow.measure_documents", description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="a file or directory, with a MANIFEST.json or without")
    parser.add_argument("--model", default="openai:text-embedding-3-small", help="whose tokens make the chunks")
    options = parser.parse_args()
    if not options.data.exists():
        parser.error(f"{options.data} does not exist")
    with tempfile.TemporaryDirectory(prefix="shoal-bench-documents-") as directory:
        settings = load(data_dir=Path(directory), openai_api_key="sk-none")
        budget = TokenBudget(*token_budget(settings, options.model))
        limits = Limits(settings.decompressed_bytes_max, settings.chunks_per_document_max)
        sizes, chunks, tokens, texts = list[int](), list[int](), list[int](), list[int]()
        spent: list[float] = []
        for announcement in _announcements([options.data], settings):
            began = time.process_time()
            fetched = _fetch(announcement, limits, budget)
            if fetched.extraction is None:
                continue
            spent.append(1000 * (time.process_time() - began))
            found = fetched.extraction.chunks
            sizes.append(fetched.size_bytes or 0)
            chunks.append(len(found))
            tokens.append(sum(chunk.token_count or 0 for chunk in found))
            texts.append(sum(len(chunk.text.encode()) for chunk in found))
    figures: dict[str, Sequence[float]] = {
        "bytes": sizes,
        "chunks": chunks,
        "tokens": tokens,
        "text_bytes": texts,
        "extract_cpu_ms": spent,
    }
    print(
        json.dumps(
            {"documents": len(sizes), "model": options.model, "load": os.getloadavg()[0]}
            | {name: _spread(values) for name, values in figures.items()},
            indent=2,
        )
    )
    return 0


def _spread(values: Sequence[float]) -> dict[str, object]:
    ordered = sorted(values)
    return {
        "mean": round(statistics.fmean(ordered), 3),
        "quantiles": [round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) for share in QUANTILES],
    }


if __name__ == "__main__":
    sys.exit(main())
