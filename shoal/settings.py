"""The one settings object: defaults, then `shoal.toml`, then `.env` and the environment (contracts 5).

Every setting has a documented default that is safe on a laptop. Names that deployments already use
(`KAFKA_BROKERS`, `LANCEDB_PATH`, ...) are read beside the `SHOAL_` ones. `load()` turns a wrong value into
one `ConfigurationError` line that names the setting; secrets are `SecretStr` and never printed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from shoal.errors import ConfigurationError

MIB = 1024 * 1024


def _names(*names: str) -> AliasChoices:
    """The first that is set wins. The field's own name (shoal.toml, options) stands last: as an environment
    variable, where case does not count, it may equal an unprefixed name."""
    return AliasChoices(*names)


class RetentionRule(BaseModel):
    """What is kept of a dataset; None: no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep_days: float | None = Field(None, gt=0, le=36_500)
    keep_versions: int | None = Field(None, ge=1)


class Settings(BaseSettings):
    """Every setting of Shoal. `shoal config show` prints the values in force and where each may be set."""

    model_config = SettingsConfigDict(
        env_prefix="SHOAL_",
        env_file=".env",
        toml_file="shoal.toml",
        extra="ignore",
        populate_by_name=True,
        frozen=True,
    )

    # --- where things are ---------------------------------------------------------------------
    data_dir: Path = Field(Path(".shoal"), description="Local state: objects, journal, cache, logs.")
    lancedb_path: str = Field(
        "", validation_alias=_names("SHOAL_LANCEDB_PATH", "LANCEDB_PATH", "lancedb_path"),
        description="Tables: a directory or s3://bucket/prefix. Empty: {data_dir}/lancedb.",
    )  # fmt: skip
    allowed_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="Directories that file:// locations may name, comma-separated; {data_dir}/objects always may.",
    )
    allowed_buckets: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="S3 buckets that locations may name, comma-separated; empty: any."
    )

    # --- Kafka --------------------------------------------------------------------------------
    kafka_brokers: str = Field(
        "", validation_alias=_names("SHOAL_KAFKA_BROKERS", "KAFKA_BROKERS", "KAFKA_BOOTSTRAP_SERVERS", "kafka_brokers"),
        description="Bootstrap servers. Empty: an embedded broker (laptop only).",
    )  # fmt: skip
    kafka_topics: Annotated[tuple[str, ...], NoDecode] = Field(
        ("scraper-notifications",), validation_alias=_names("SHOAL_KAFKA_TOPICS", "KAFKA_TOPIC", "kafka_topics"),
        description="Topics with notifications, comma-separated; the first is where `publish` announces.",
    )  # fmt: skip
    kafka_group_id: str = Field(
        "lancedb-indexer", validation_alias=_names("SHOAL_KAFKA_GROUP_ID", "KAFKA_GROUP_ID", "kafka_group_id"),
        description="Consumer group of the readers.",
    )  # fmt: skip
    kafka_auto_offset_reset: Literal["earliest", "latest", "error"] = Field(
        "earliest",
        validation_alias=_names("SHOAL_KAFKA_AUTO_OFFSET_RESET", "KAFKA_AUTO_OFFSET_RESET", "kafka_auto_offset_reset"),
        description="Where a group without offsets starts.",
    )
    kafka_group_protocol: Literal["classic", "consumer"] = Field(
        "classic", description="`consumer` is KIP-848 (brokers 4.0 and later)."
    )
    kafka_properties: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict, repr=False,
        description="Any librdkafka property (SASL, TLS, ...) as a JSON object; wins over Shoal's own.",
    )  # fmt: skip
    command_topic: str = Field("shoal_commands", description="Commands from REST, MCP and the CLI.")
    outcome_topic: str = Field("shoal_outcomes", description="Where readers answer `publish --wait`.")
    embedded_partitions: int = Field(4, ge=1, le=64, description="Partitions per topic of the embedded broker.")

    # --- S3 -----------------------------------------------------------------------------------
    s3_endpoint_url: str | None = Field(
        None,
        validation_alias=_names("SHOAL_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "s3_endpoint_url"),
        description="An S3-compatible server; empty: AWS. Keys and region come from the usual AWS_ variables.",
    )
    s3_event_rules: Annotated[dict[str, dict[str, str]], NoDecode] = Field(
        default_factory=dict,
        description='S3 event prefix rules, JSON: {"bucket/prefix": {"dataset": .., "source": .., "data_type": ..}}.',
    )

    # --- embedding ----------------------------------------------------------------------------
    embedding_provider: Literal["auto", "local", "openai", "hash"] = Field(
        "auto",
        description="auto: openai where a key is set, else local. `hash` has no meaning in it: tests only.",
    )
    openai_api_key: SecretStr | None = Field(
        None, validation_alias=_names("SHOAL_OPENAI_API_KEY", "OPENAI_API_KEY", "openai_api_key"),
        description="Key for OpenAI or a compatible server.",
    )  # fmt: skip
    openai_base_url: str | None = Field(
        None, validation_alias=_names("SHOAL_OPENAI_BASE_URL", "OPENAI_BASE_URL", "openai_base_url"),
        description="An OpenAI-compatible server; empty: OpenAI.",
    )  # fmt: skip
    openai_embedding_model: str = Field(
        "text-embedding-3-small",
        validation_alias=_names("SHOAL_OPENAI_EMBEDDING_MODEL", "OPENAI_EMBEDDING_MODEL", "openai_embedding_model"),
        description="Model for new collections with the openai provider.",
    )
    openai_requests_per_minute: int = Field(3000, ge=1, description="Start value of the limiter; headers correct it.")
    openai_tokens_per_minute: int = Field(
        1_000_000, ge=1, description="Start value of the limiter; headers correct it."
    )
    embedding_query_share: float = Field(
        0.1, ge=0.01, le=0.9,
        description="Of the provider's limits, kept for queries where its headers don't tell what is left.",
    )  # fmt: skip
    model_dir: Path | None = Field(None, description="A sentence-transformers BERT directory instead of the package.")
    openai_embedding_dimensions: int = Field(
        0, ge=0, le=65_536,
        validation_alias=_names(
            "SHOAL_OPENAI_EMBEDDING_DIMENSIONS", "OPENAI_EMBEDDING_DIMENSIONS", "openai_embedding_dimensions"
        ),
        description="Length of the vectors of new collections, where the model can give fewer; 0: the model's own.",
    )  # fmt: skip
    openai_max_input_tokens: int = Field(
        0, ge=0, le=32_768,
        description="A compatible server's model: tokens it reads of one text; 0: as known of the model, else 512.",
    )  # fmt: skip
    openai_tokenizer: Path | None = Field(
        None, description="A compatible server's model: its tokenizer.json, to count its tokens exactly."
    )
    openai_batch_inputs_max: int = Field(
        0, ge=0, le=2048, description="Texts per request; 0: 256 for OpenAI's models, 32 for others."
    )
    azure_openai_endpoint: str = Field(
        "", pattern=r"^(https?://\S+)?$",
        validation_alias=_names("SHOAL_AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_ENDPOINT", "azure_openai_endpoint"),
        description="Azure OpenAI instead of OpenAI: https://NAME.openai.azure.com.",
    )  # fmt: skip
    azure_openai_api_key: SecretStr | None = Field(
        None, validation_alias=_names("SHOAL_AZURE_OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "azure_openai_api_key"),
        description="Its key.",
    )  # fmt: skip
    azure_openai_api_version: str = Field(
        "2024-10-21",
        validation_alias=_names(
            "SHOAL_AZURE_OPENAI_API_VERSION", "AZURE_OPENAI_API_VERSION", "OPENAI_API_VERSION",
            "azure_openai_api_version",
        ),
        description="Version of its API.",
    )  # fmt: skip
    azure_openai_deployments: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        description="Its deployments by model, JSON: {model: deployment}; one that is absent is named as its model.",
    )
    embedding_query_prefix: str | None = Field(
        None, max_length=2000,
        description="Put before each query, new collections; unset: as the model is known to want it, empty: nothing.",
    )  # fmt: skip
    embedding_document_prefix: str | None = Field(
        None, max_length=2000, description="Put before each chunk; unset and empty as with the query's."
    )
    local_quantized: bool = Field(
        False, description="The local model with int8 weights, new collections: less work, vectors of their own kind."
    )
    embedding_threads: int = Field(0, ge=0, description="Threads of the local model; 0: the cores of this machine.")
    openai_batch_api: Literal["auto", "on", "off"] = Field(
        "auto", description="The Batch API (`shoal backfill --half-price`): auto is on at OpenAI itself, off elsewhere."
    )
    openai_batch_queue_tokens: int = Field(
        3_000_000, ge=10_000, le=100_000_000_000,
        description="Tokens in unfinished batches at most, as the account's page of limits has it (tier 1: 3 million).",
    )  # fmt: skip
    openai_batch_poll_s: float = Field(
        60.0, ge=0.05, le=3600, description="Seconds between two questions about a batch under way."
    )
    openai_batch_give_up_hours: float = Field(
        72.0, gt=0, le=720, description="After so long a half-price job begins no further batch; the rest pays in full."
    )
    embedding_cache_bytes_max: int = Field(1024 * MIB, ge=MIB, description="Size of the embedding cache on disk.")

    # --- cost ---------------------------------------------------------------------------------
    prices: Path | None = Field(None, description="A price table of one's own, TOML; it wins over the shipped one.")
    budget_day_usd: float = Field(
        0.0, ge=0, le=1e9, allow_inf_nan=False,
        description="US dollars per day (UTC) for embedding. Warns at 80 %; at 100 % documents wait and searches go by "
        "keywords. 0: no limit.",
    )  # fmt: skip
    budget_month_usd: float = Field(
        0.0, ge=0, le=1e9, allow_inf_nan=False, description="The same per calendar month (UTC)."
    )

    # --- bounds -------------------------------------------------------------------------------
    object_bytes_max: int = Field(64 * MIB, ge=1024, description="Larger stored objects are dead letters.")
    decompressed_bytes_max: int = Field(
        128 * MIB, ge=1024, description="Bound on what gzip, zip and zst may unfold to."
    )
    message_bytes_max: int = Field(16 * MIB, ge=1024, description="Larger Kafka values are dead letters.")
    extraction_timeout_s: float = Field(60.0, gt=0, description="After this long the extracting process is killed.")
    chunks_per_document_max: int = Field(
        200, ge=1, description="Further chunks are left out, with a warning in the row."
    )
    in_flight_items_max: int = Field(
        256, ge=1, description="Documents in flight per reader; more pauses its partitions."
    )
    in_flight_bytes_max: int = Field(
        128 * MIB, ge=MIB, description="Bytes in flight per reader: messages, extracted texts and vectors."
    )
    transient_retry_s: float = Field(
        120.0, ge=0, description="How long one bad object is retried before it is a dead letter."
    )
    checksum_mismatch: Literal["dead_letter", "warn"] = Field(
        "dead_letter", description="What a wrong md5 or size means."
    )

    # --- actors -------------------------------------------------------------------------------
    readers: int = Field(2, ge=1, description="Partition readers.")
    fetchers: int = Field(2, ge=1, description="Fetch workers.")
    readers_max: int = Field(
        0, ge=0, description="So many readers come while there is lag that they help with; 0: none but `readers`."
    )
    fetchers_max: int = Field(
        0, ge=0, description="So many fetch workers come while their queue is long; 0: none but `fetchers`."
    )
    lag_target_s: float = Field(
        60.0, ge=1, le=86_400, description="Readers come while the lag would take longer than this at the present rate."
    )
    scale_out_s: float = Field(
        30.0, ge=1, le=3600, description="How long pressure lasts before readers or fetch workers come."
    )
    scale_in_s: float = Field(
        300.0, ge=1, le=86_400, description="How long calm lasts before some of those go; each change is a rebalance."
    )
    reader_cpus: float = Field(
        0.1, gt=0, le=1, description="CPUs that Ray sets aside for a reader: one without room waits for a new node."
    )
    fetcher_cpus: float = Field(0.2, gt=0, le=1, description="CPUs that Ray sets aside for a fetch worker.")
    commit_rows_max: int = Field(2000, ge=1, description="Rows (chunks) that close a commit.")
    commit_bytes_max: int = Field(64 * MIB, ge=MIB, description="Bytes that close a commit.")
    commit_linger_ms: int = Field(
        250, ge=0, description="Age that closes a commit; with tables in S3 it is 1000 unless it is set."
    )
    compact_commits: int = Field(40, ge=2, description="Commits between two compactions.")
    cleanup_age_s: float = Field(3600.0, ge=600.0, description="Age of table versions that cleanup may remove.")
    as_of_days: float = Field(
        7.0, ge=0, le=3650, description="Days for which a search can ask for an older state of the index; 0: none."
    )
    as_of_interval_s: float = Field(
        900.0, ge=1.0, description="Least time between two kept states; at most half of `cleanup_age_s` is used."
    )
    as_of_disk_factor: float = Field(
        1.0, ge=0, le=100, description="Disk that older states may take, as a factor of the current data; oldest go."
    )
    as_of_bytes_min: int = Field(
        512 * MIB, ge=0, description="Disk that older states may take in any case, however small the tables are."
    )
    retention: Annotated[dict[str, RetentionRule], NoDecode] = Field(
        default_factory=dict,
        description='What is kept, JSON: {"dataset or prefix*": {"keep_days": N, "keep_versions": M}}; else all is.',
    )
    superseded_keep_days: float = Field(
        90.0, ge=0, le=36_500, description="Days for which an older version of a document is kept; 0: for ever."
    )
    log_retention_days: float = Field(
        30.0, ge=0, le=36_500,
        description="The longest that any log (dead letters too) can deliver a message again; what remembers a "
        "deletion is kept as long. 0: for ever (compacted or endless topics).",
    )  # fmt: skip
    scrub_days: float = Field(
        7.0, ge=0, le=3650, description="Days after which a deleted document's bytes are rewritten out of the tables' "
        "files (kept states follow after `as_of_days`); 0: only by `shoal erase --now`.",
    )  # fmt: skip
    hang_s: float = Field(
        60.0, ge=5.0, description="An actor that answers nothing, or whose loop stands still, for so long is replaced."
    )
    start_s: float = Field(
        300.0, ge=10.0, description="An actor that has not started (models, tables) after so long is replaced."
    )
    lease_s: float = Field(
        120.0, ge=5.0, description="Actors that no supervisor has asked anything for so long end themselves."
    )
    drain_s: float = Field(
        10.0, ge=0, le=25.0, description="How long a stop (Ctrl-C, SIGTERM) lets what is in flight finish."
    )
    index_rows_min: int = Field(
        20_000, ge=256, description="Below this many chunks a search is exact, without an index."
    )
    vector_dtype: Literal["float32", "float16"] = Field(
        "float32", description="How new collections store vectors; float16 halves them. Existing ones stay as they are."
    )
    index_kind: Literal["ivf_pq", "ivf_rq", "ivf_hnsw_sq", "flat"] = Field(
        "ivf_pq", description="Vector index: smallest; quicker to build; best recall, most memory; none."
    )
    index_interval_s: float = Field(
        600.0, ge=0, description="Least rest between two builds of an index; four times its length where that is more."
    )
    index_cores_share: float = Field(0.5, gt=0, le=1, description="Share of the cores that a build may use.")

    # --- recall and caches --------------------------------------------------------------------
    recall_target: float = Field(
        0.95, ge=0.5, le=1.0, description="Share of the exact 10 nearest chunks that searches must find; less alarms."
    )
    recall_interval_s: float = Field(900.0, ge=60.0, description="How often recall is measured, at most.")
    recall_queries: int = Field(
        64, ge=0, le=256,
        description="Recent search vectors (no text) that each replica keeps to measure recall with; 0: none.",
    )  # fmt: skip
    index_cache_bytes: int = Field(
        512 * MIB, ge=16 * MIB, description="Memory for index parts in each process that searches."
    )
    metadata_cache_bytes: int = Field(
        128 * MIB, ge=16 * MIB, description="Memory for manifests and statistics in each process that searches."
    )

    # --- searching ----------------------------------------------------------------------------
    search_fusion: Literal["weighted", "rrf"] = Field(
        "weighted", description="How a hybrid search joins meaning and words: by scores, about 70/30, or by ranks."
    )
    boost_recency: float = Field(0.0, ge=0, le=10, description="Weight of being new in every ranking; 0: off.")
    boost_recency_half_life_days: float = Field(30.0, gt=0, le=36_500, description="Days in which being new halves.")
    boost_title: float = Field(
        0.0, ge=0, le=10, description="Weight of the query's words in the title in every ranking; 0: off."
    )
    boost_identifier: bool = Field(
        True, description="A document whose id, urn, path or hash is the query itself comes first."
    )
    rerank_url: str = Field(
        "", pattern=r"^(https?://\S+)?$", description="A reranker's full URL, for searches with `rerank`; empty: none."
    )
    rerank_form: Literal["tei", "cohere"] = Field(
        "tei", description="What it speaks: Text Embeddings Inference (texts) or Cohere (documents)."
    )
    rerank_model: str = Field("", description="Its model, where it wants one named (cohere).")
    rerank_api_key: SecretStr | None = Field(None, description="Its key, sent as a bearer token.")
    rerank_timeout_s: float = Field(
        1.0, gt=0, le=10, description="How long a search waits for it; later it answers without, with a note."
    )

    # --- serving ------------------------------------------------------------------------------
    http_host: str = Field(
        "127.0.0.1", description="Address of REST and MCP. Other than a loopback one, it needs API keys (`auth`)."
    )
    http_port: int = Field(8000, ge=1, le=65535, description="Port of REST and MCP.")
    request_timeout_s: float = Field(
        30.0, gt=0, le=300, description="A request to REST or MCP is answered in this time, unless it names another."
    )
    push_to: str = Field(
        "", pattern=r"^(s3://[^/]+(/.*)?)?$",
        description="Where files that are pushed over REST are put: s3://bucket/prefix. Empty: {data_dir}/objects.",
    )  # fmt: skip
    client_timeout_s: float = Field(
        30.0, ge=1, le=3600,
        description="How long a client may take for the head of a request and the beginning of its body, and how long "
        "it may then be silent or read nothing (HAProxy ingress).",
    )  # fmt: skip
    serve_replicas_min: int = Field(
        1, ge=1,
        description="Replicas of REST, of MCP and of the embedding of questions that always run; 2 to outlive one.",
    )  # fmt: skip
    serve_replicas_max: int = Field(2, ge=1, validate_default=True, description="Upper bound of each of these.")
    serve_target_requests: float = Field(
        16.0, ge=0.1, le=100, description="Requests that a replica is meant to answer at once; above, more are started."
    )
    serve_upscale_delay_s: float = Field(5.0, ge=0, le=3600, description="How long there must be more of them.")
    serve_downscale_delay_s: float = Field(120.0, ge=0, le=86_400, description="How long fewer, before a replica ends.")
    haproxy: Literal["auto", "off"] = Field("auto", description="HAProxy ingress where Ray ships it.")
    dashboard_port: int = Field(0, ge=0, le=65535, description="Port of the Ray dashboard; 0: no dashboard.")
    metrics_port: int = Field(
        0, ge=0, le=65535,
        description="Port of Ray's metrics page (docs/metrics.md), on every address of this node; 0: any.",
    )  # fmt: skip
    ray_address: str | None = Field(None, description="An existing Ray cluster; empty: start one here.")
    core_resource: str = Field(
        "", pattern=r"^([A-Za-z][A-Za-z0-9_.-]*)?$",
        description="A Ray resource that only some nodes have: writer and embedder run there, say where the cache's "
        "volume is. Empty: anywhere.",
    )  # fmt: skip
    object_store_bytes: int = Field(256 * MIB, ge=80 * MIB, description="Ray's shared memory on this node.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Level of Shoal's own log.")
    log_format: Literal["text", "json"] = Field(
        "text", description="Lines for people, or one JSON object per line; both name document, message and request."
    )
    otlp_endpoint: str = Field(
        "", pattern=r"^(https?://\S+)?$",
        description="Where traces are sent by OTLP over HTTP: http://collector:4318 (docs/tracing.md); empty: none.",
    )  # fmt: skip
    trace_share: float = Field(
        1.0, ge=0, le=1, description="Share of the traces that begin here; one that came with a message decides itself."
    )

    # --- access -------------------------------------------------------------------------------
    auth: Literal["auto", "required", "anyone_may_do_anything"] = Field(
        "auto",
        description="Who needs a key. auto: everybody, but callers on this machine while http_host is a loopback "
        "address; required: they too; anyone_may_do_anything: nobody, whoever can reach the port.",
    )
    keys_file: Path | None = Field(
        None, description="API keys in this file (a mounted secret, say) instead of {lancedb_path}/_shoal/keys.json."
    )
    keys_unreadable_s: float = Field(
        60.0, ge=5.0, le=3600.0,
        description="How long the last known keys stand while their file can't be read; then no key is taken.",
    )  # fmt: skip
    oidc_issuer: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="An identity provider whose tokens are taken beside keys; empty: none.",
    )
    oidc_audience: str = Field(
        "", max_length=500,
        description="Who its tokens must be meant for (aud): Shoal's own public URL, https://shoal.example.",
    )  # fmt: skip
    oidc_jwks_url: str = Field(
        "", pattern=r"^(https?://\S+)?$", description="Its keys; empty: as its discovery document says."
    )
    oidc_scope_claim: str = Field(
        "scope", description="The claim that grants, as scopes of keys do: read, write:scraper."
    )
    rate_limit_per_minute: int = Field(
        6000, ge=0, le=10_000_000,
        description="Requests of one key per minute over all replicas: each gives a share of 1/serve_replicas_max. 0: "
        "no limit. A key may have its own (`shoal keys create --rate`).",
    )  # fmt: skip
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Names that Shoal answers to, comma-separated (no ports), beside this machine's; empty: any."
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins whose pages may call Shoal (CORS), comma-separated: https://app.example; empty: none."
    )
    audit_days: float = Field(400.0, ge=1, le=36_500, description="How long the audit trail is kept.")
    audit_read_share: float = Field(
        1.0, ge=0, le=1, description="Share of the reads that leave a line in it; changes and refusals always do."
    )
    audit_reads_bytes_max: int = Field(
        256 * MIB, ge=MIB, description="Bytes of reads and refusals in it; the oldest go. Changes are not bounded so."
    )
    api_key: SecretStr | None = Field(
        None, description="The key that Shoal's own commands send when they ask a running Shoal."
    )

    @field_validator("serve_replicas_max")
    @classmethod
    def _most_replicas(cls, value: int, info: ValidationInfo) -> int:
        if value < (least := info.data.get("serve_replicas_min", 1)):
            raise ValueError(f"is below serve_replicas_min ({least}): raise it too")
        return value

    @field_validator("readers_max", "fetchers_max")
    @classmethod
    def _most_of_a_pool(cls, value: int, info: ValidationInfo) -> int:
        pool = str(info.field_name).removesuffix("_max")
        if value and value < (least := info.data.get(pool, 1)):
            raise ValueError(f"is below {pool} ({least}): raise it too, or leave it out")
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not re.fullmatch(r"https?://[A-Za-z0-9.\-\[\]:]+", origin):
                raise ValueError(f"{origin[:60]!r} is no origin: https://app.example, without a path; * is not taken")
        return value

    @field_validator(
        "kafka_topics", "allowed_buckets", "allowed_roots", "allowed_hosts", "allowed_origins", mode="before"
    )
    @classmethod
    def _comma_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("kafka_properties", "s3_event_rules", "retention", "azure_openai_deployments", mode="before")
    @classmethod
    def _json_object(cls, value: Any) -> Any:
        return json.loads(value or "{}") if isinstance(value, str) else value

    @field_validator("retention")
    @classmethod
    def _datasets(cls, value: dict[str, RetentionRule]) -> dict[str, RetentionRule]:
        for name in value:
            if not name or "*" in name[:-1]:
                raise ValueError(f"{name!r} is neither a dataset nor a prefix with one * at its end")
        return value

    @field_validator("kafka_topics")
    @classmethod
    def _some_topic(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one topic")
        return value

    @property
    def is_embedded(self) -> bool:
        """True where no broker is configured, so Shoal hosts one itself."""
        return not self.kafka_brokers

    @property
    def tables_uri(self) -> str:
        """Where the tables are: an absolute path or an s3:// URI without a trailing slash."""
        if "://" in self.lancedb_path:
            return self.lancedb_path.rstrip("/")
        return str(Path(self.lancedb_path).resolve() if self.lancedb_path else self.home / "lancedb")

    @property
    def commit_linger_s(self) -> float:
        """Age that closes a commit, as suits where the tables are: in S3 one is eight writes, one after the other, and
        tens of reads, whatever is in it (docs/operating.md)."""
        if self.tables_uri.startswith("s3://") and "commit_linger_ms" not in self.model_fields_set:
            return 1.0
        return self.commit_linger_ms / 1000

    @property
    def home(self) -> Path:
        """The data directory, absolute: workers have another working directory."""
        return self.data_dir.expanduser().resolve()

    @property
    def file_roots(self) -> tuple[Path, ...]:
        """Every directory that a file:// location may lie in, absolute and without symlinks."""
        return (self.home / "objects", *(root.expanduser().resolve() for root in self.allowed_roots))

    @property
    def provider(self) -> Literal["local", "openai", "hash"]:
        """The provider that new collections get."""
        if self.embedding_provider == "auto":
            return "openai" if self.openai_api_key or self.azure_openai_endpoint else "local"
        return self.embedding_provider

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, dotenv_settings, TomlConfigSettingsSource(settings_cls)


def load(**overrides: Any) -> Settings:
    """The settings in force, `overrides` on top. Raises ConfigurationError naming the first wrong setting."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"setting {name}: {first['msg']} (see `shoal config show`)") from None
    except (ValueError, TypeError) as error:  # a malformed shoal.toml or JSON value
        raise ConfigurationError(f"settings could not be read: {error}") from None
