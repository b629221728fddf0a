"""Names of the actors: how they find one another, and what status and logs call them."""

NAMESPACE = "shoal"
EMBEDDER = "embedder"
WRITER = "writer"


def reader_name(number: int) -> str:
    return f"reader-{number}"


def fetcher_name(number: int) -> str:
    return f"fetcher-{number}"
