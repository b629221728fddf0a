"""The command `shoal eval`. What it does stands in evaluating.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cluster.cli_options import DataDir, Output, format_of, settings_with


def evaluate(
    directory: Annotated[
        Path, typer.Argument(help="corpus.jsonl[.zst], queries.jsonl, and qrels.tsv or qrels/*.tsv.", metavar="DIR")
    ],
    keep: Annotated[bool, typer.Option("--keep", help="Leave the tables where they are, and say where.")] = False,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Measure the search on a test set of the BEIR layout: nDCG@10, recall@10 and MRR@10 of each mode.

    The set is indexed by the pipeline that scrapes go through, into tables of its own, which go at the end. Embeddings
    are cached in the data directory: a run that was interrupted goes on, and a second run embeds nothing. Each
    document's title is part of its text, unless the set says what file it was (`format`). Needs no running Shoal.
    """
    from shoal.cluster.evaluating import evaluate as run

    form = format_of(output)
    raise typer.Exit(run(settings_with(data_dir=data_dir), directory, keep=keep, form=form))
