"""Sample scrapes: the files a fleet of scrapers would have stored in a few days, and what must become of each.

`make_samples` writes them under a directory; `prepared` turns one into the notification to announce. The same
seed gives the same bytes, in the same order. Announced in that order each ends as its `expect` says: new
versions, late older ones, repetitions and broken ones among them. Nothing here is real data, and nothing is
sent: that is the announcer's work.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from urllib.parse import quote

from shoal.cluster import sample_documents as documents
from shoal.cluster import sample_markets as markets
from shoal.errors import DeadReason
from shoal.records import Outcome
from shoal.sources.ids import document_id
from shoal.sources.publishing import Description, Prepared, Stored, notification
from shoal.sources.versions import compact

ENVIRONMENT = "prod"
FIRST_AT = datetime(2025, 1, 18, 0, 5, tzinfo=UTC)
BETWEEN = timedelta(hours=6)  # two publications of one feed
BOMB_BYTES = 192 * 1024 * 1024  # above the default of `decompressed_bytes_max`; 190 KB as stored


@dataclass(frozen=True, slots=True)
class Sample:
    """One announcement, and the outcome it must have.

    `path`: the stored file, None where nothing is stored. `location` and `md5` are what is announced: of a
    broken sample they need not be those of the file. `message` is a raw value to send in place of a
    notification. `reason` is set where `expect` is DEAD_LETTERED.
    """

    path: Path | None
    dataset: str
    source: str
    data_type: str
    urn: str
    url: str
    content_type: str
    version: str
    collected_at: datetime
    location: str
    size_bytes: int
    md5: str
    sha256: str
    expect: Outcome = Outcome.INDEXED
    reason: DeadReason | None = None
    message: bytes | None = None


@dataclass(frozen=True, slots=True)
class Feed:
    """One thing a scraper fetches again and again. `urn` and `url` are formats over `at`, the time of a publication."""

    dataset: str
    source: str
    data_type: str
    urn: str
    url: str
    content_type: str
    build: Callable[[Random, datetime], bytes]


_CSV, _JSON, _XML, _ZIP = "text/csv", "application/json", "application/xml", "application/zip"
_SHEET = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
FEEDS = (
    Feed("nyiso_load_forecast", "nyiso", "load_forecast", "isolf_{at:%Y%m%d_%H}.csv",
         "http://mis.nyiso.com/public/csv/isolf/{at:%Y%m%d}isolf.csv", _CSV, markets.nyiso_load_forecast),
    Feed("caiso_lmp_day_ahead", "caiso", "price", "PRC_LMP_DAM_{at:%Y%m%d_%H}.xml",
         "http://oasis.caiso.com/oasisapi/SingleZip?queryname=PRC_LMP&market_run_id=DAM&version=12"
         "&startdatetime={at:%Y%m%dT%H}:00-0000", _XML, markets.caiso_prices_xml),
    Feed("ercot_dam_spp", "ercot", "price", "dam_spp_{at:%Y%m%d_%H}.json",
         "https://api.ercot.com/api/public-reports/np4-190-cd/dam_stlmnt_pnt_prices?deliveryDateFrom={at:%Y-%m-%d}",
         _JSON, markets.ercot_day_ahead_prices),
    Feed("entsoe_actual_generation", "entsoe", "generation", "A75_{at:%Y%m%d_%H}.xml",
         "https://web-api.tp.entsoe.eu/api?securityToken=0f1e2d3c-aaaa-bbbb-cccc-0123456789ab&documentType=A75"
         "&processType=A16&periodStart={at:%Y%m%d}0000",
         _XML, documents.entsoe_generation),
    Feed("pjm_inst_load", "pjm", "load", "inst_load_{at:%Y%m%d_%H}.json",
         "https://api.pjm.com/api/v1/inst_load?rowCount=1000&startRow=1", _JSON, markets.pjm_load),
    Feed("caiso_outages", "caiso", "outage", "prior_trade_date_outages_{at:%Y%m%d_%H}.html",
         "https://www.caiso.com/market/outages/{at:%Y%m%d}", "text/html; charset=utf-8", documents.outage_page),
    Feed("isone_lmp_day_ahead", "isone", "price", "WW_DALMP_ISO_{at:%Y%m%d_%H}.csv",
         "https://www.iso-ne.com/static-transform/csv/histRpts/da-lmp/WW_DALMP_ISO_{at:%Y%m%d}.csv",
         _CSV, markets.isone_hourly_prices),
    Feed("miso_lmp_5min", "miso", "price", "lmp_{at:%Y%m%d_%H}.json",
         "https://api.misoenergy.org/MISORTWDDataBroker/DataBrokerServices.asmx?messageType=getlmpconsolidatedtable",
         _JSON, markets.miso_five_minute_prices),
    Feed("aemo_dispatch", "aemo", "price", "PUBLIC_DISPATCHIS_{at:%Y%m%d%H%M}.zip",
         "http://nemweb.com.au/Reports/Current/DispatchIS_Reports/PUBLIC_DISPATCHIS_{at:%Y%m%d%H%M}.zip",
         _ZIP, markets.aemo_dispatch_zip),
    Feed("eia_region_data", "eia", "load", "region_data_{at:%Y%m%d_%H}.json",
         "https://api.eia.gov/v2/electricity/rto/region-data/data/?api_key=0123456789abcdef&frequency=hourly",
         _JSON, documents.eia_region_demand),
    Feed("tepco_area_demand", "tepco", "load", "eria_jukyu_{at:%Y%m%d_%H}.csv",
         "https://www.tepco.co.jp/forecast/html/images/eria_jukyu_{at:%Y%m}.csv", _CSV, documents.tepco_area_csv),
    Feed("weather_gridpoints", "nws", "weather", "gridpoint_{at:%Y%m%d_%H}.json",
         "https://api.weather.gov/gridpoints/OKX/33,37", "application/geo+json", documents.weather_grid),
    Feed("nyiso_lbmp_archive", "nyiso", "price", "damlbmp_zone_{at:%Y%m%d_%H}_csv.zip",
         "http://mis.nyiso.com/public/csv/damlbmp/{at:%Y%m}01damlbmp_zone_csv.zip", _ZIP, markets.nyiso_prices_zip),
    Feed("operator_notices", "ercot", "notice", "notice_{at:%Y%m%d_%H}.txt",
         "https://www.ercot.com/services/comm/mkt_notices/{at:%Y%m%d}", "text/plain", documents.market_notice),
    Feed("caiso_renewable_forecast", "caiso", "renewable_forecast", "SLD_REN_FCST_{at:%Y%m%d_%H}.zip",
         "http://oasis.caiso.com/oasisapi/SingleZip?queryname=SLD_REN_FCST&market_run_id=DAM&version=1",
         _ZIP, markets.caiso_renewables_zip),
    Feed("wind_farm_telemetry", "example_wind", "generation", "telemetry_{at:%Y%m%d_%H}.jsonl.gz",
         "https://telemetry.example-wind.com/v1/export?day={at:%Y-%m-%d}", "application/gzip", documents.turbine_lines),
    Feed("ercot_load_by_zone", "ercot", "load", "act_sys_load_by_wzn_{at:%Y%m%d_%H}.json",
         "https://api.ercot.com/api/public-reports/np6-345-cd/act_sys_load_by_wzn", _JSON, markets.ercot_load_by_zone),
    Feed("entsoe_day_ahead_prices", "entsoe", "price", "A44_{at:%Y%m%d_%H}.xml",
         "https://web-api.tp.entsoe.eu/api?documentType=A44&periodStart={at:%Y%m%d}0000",
         _XML, documents.entsoe_prices),
    Feed("installed_capacity", "isone", "reference", "capacity_{at:%Y%m%d_%H}.xlsx",
         "https://www.iso-ne.com/static-assets/documents/{at:%Y/%m}/capacity.xlsx", _SHEET, documents.capacity_sheet),
    Feed("nyiso_fuel_mix", "nyiso", "fuel_mix", "rtfuelmix_{at:%Y%m%d_%H}.csv",
         "http://mis.nyiso.com/public/csv/rtfuelmix/{at:%Y%m%d}rtfuelmix.csv", _CSV, markets.nyiso_fuel_mix),
    Feed("utility_outage_map", "example_utility", "outage", "outages_{at:%Y%m%d_%H}.geojson",
         "https://outages.example-utility.com/cweb/outages.geojson", "application/geo+json", documents.outage_map),
    Feed("api_guides", "example_grid", "documentation", "guide_{at:%Y%m%d_%H}.md",
         "https://docs.example-grid.org/api/guide.md", "text/markdown", documents.api_guide),
    Feed("miso_fuel_mix", "miso", "fuel_mix", "fuelmix_{at:%Y%m%d_%H}.json",
         "https://api.misoenergy.org/MISORTWDDataBroker/DataBrokerServices.asmx?messageType=getfuelmix",
         _JSON, markets.miso_fuel_mix),
    Feed("zonal_demand_forecast", "example_grid", "load_forecast", "demand_forecast_{at:%Y%m%d_%H}.json",
         "https://api.example-grid.org/v1/demand-forecast?start={at:%Y-%m-%dT%H:00:00Z}",
         _JSON, documents.zonal_forecast),
    Feed("grid_notices_rss", "spp", "notice", "notices_{at:%Y%m%d_%H}.rss",
         "https://www.example-iso.org/notices/rss", "application/rss+xml", documents.notices_feed),
)  # fmt: skip


def make_samples(directory: Path, count: int = 300, seed: int = 20250120) -> list[Sample]:
    """Writes the files of `count` announcements under `directory` and returns them in the order to announce.

    Of 300, ten are broken on purpose and two dozen are further versions and repetitions of documents; fewer of
    each in a smaller count.
    """
    directory = directory.resolve()
    rng = Random(seed)  # noqa: S311 - repeatable, not secret
    broken = _broken(directory, rng)[: count // 8]
    again_count = count // 12
    first = [
        _store(directory, feed, _moment(number), feed.build(rng, _moment(number)))
        for number in range(count - len(broken) - again_count)
        for feed in (FEEDS[number % len(FEEDS)],)
    ]
    again = [
        _AGAIN[number % len(_AGAIN)](directory, first[number], FEEDS[number % len(FEEDS)], rng)
        for number in range(again_count)
    ]
    for sample in broken:  # anywhere among the good ones, to show that these don't mind
        first.insert(rng.randrange(len(first) + 1), sample)
    return first + again


def prepared(sample: Sample) -> Prepared:
    """The message that announces `sample`."""
    identity = document_id(ENVIRONMENT, sample.dataset, sample.urn)
    return Prepared(
        key=identity.encode(),
        value=_notification(sample) if sample.message is None else sample.message,
        urn=sample.urn,
        document_id=identity,
        location=sample.location,
        size_bytes=sample.size_bytes,
    )


def _notification(sample: Sample) -> bytes:
    description = Description(
        environment=ENVIRONMENT,
        dataset=sample.dataset,
        urn=sample.urn,
        source=sample.source,
        data_type=sample.data_type,
        collected_at=sample.collected_at,
        content_type=sample.content_type,
        url=sample.url,
    )
    return notification(description, Stored(sample.location, sample.size_bytes, sample.md5, sample.sha256))


def _moment(number: int) -> datetime:
    round_, place = divmod(number, len(FEEDS))
    return FIRST_AT + round_ * BETWEEN + timedelta(minutes=place)


def _store(directory: Path, feed: Feed, at: datetime, data: bytes, collected_at: datetime | None = None) -> Sample:
    """One publication as a file in the layout of a scraper's bucket. `at`: of the publication."""
    collected_at = collected_at or at
    urn, version = feed.urn.format(at=at), compact(collected_at)
    path = directory / feed.dataset / f"year={at:%Y}" / f"month={at:%m}" / f"day={at:%d}" / version / urn
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Sample(
        path=path,
        dataset=feed.dataset,
        source=feed.source,
        data_type=feed.data_type,
        urn=urn,
        url=feed.url.format(at=at),
        content_type=feed.content_type,
        version=version,
        collected_at=collected_at,
        location=_location(path),
        size_bytes=len(data),
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _location(path: Path) -> str:
    return "file://" + quote(path.as_posix(), safe="/=")


# --- the same documents again -----------------------------------------------------------------


def _revised(directory: Path, sample: Sample, feed: Feed, rng: Random) -> Sample:
    """The operator corrected the publication."""
    at = sample.collected_at
    return _store(directory, feed, at, feed.build(rng, at), at + timedelta(minutes=95))


def _fetched_twice(directory: Path, sample: Sample, feed: Feed, rng: Random) -> Sample:
    """The scraper came again and found the same bytes."""
    assert sample.path is not None
    at = sample.collected_at
    same = _store(directory, feed, at, sample.path.read_bytes(), at + timedelta(hours=1))
    return replace(same, expect=Outcome.UNCHANGED)


def _late(directory: Path, sample: Sample, feed: Feed, rng: Random) -> Sample:
    """An older version that arrives after the newer one."""
    at = sample.collected_at
    older = _store(directory, feed, at, feed.build(rng, at), at - timedelta(hours=2))
    return replace(older, expect=Outcome.SUPERSEDED)


def _same_bytes_elsewhere(directory: Path, sample: Sample, feed: Feed, rng: Random) -> Sample:
    """Another dataset has the very same file: a document of its own."""
    assert sample.path is not None
    mirror = replace(feed, dataset=f"{feed.dataset}_mirror")
    return _store(directory, mirror, sample.collected_at, sample.path.read_bytes())


_AGAIN = (_revised, _fetched_twice, _late, _same_bytes_elsewhere)


# --- broken on purpose ------------------------------------------------------------------------


def _broken(directory: Path, rng: Random) -> Sequence[Sample]:
    at = FIRST_AT + timedelta(days=2)
    wanted = ("ercot_dam_spp", "nyiso_fuel_mix", "pjm_inst_load", "wind_farm_telemetry")
    json_feed, csv_feed, paged_feed, gzip_feed = (
        next(feed for feed in FEEDS if feed.dataset == name) for name in wanted
    )

    def stored(feed: Feed, urn: str, data: bytes, reason: DeadReason) -> Sample:
        sample = _store(directory, replace(feed, urn=urn), at, data)
        return replace(sample, expect=Outcome.DEAD_LETTERED, reason=reason)

    whole = json_feed.build(rng, at)
    wrong_md5 = stored(json_feed, "altered_on_the_way.json", whole, DeadReason.OBJECT_MISMATCH)
    gone = stored(paged_feed, "deleted_before_it_was_read.json", whole, DeadReason.OBJECT_MISSING)
    assert gone.path is not None
    gone.path.unlink()
    elsewhere = replace(gone, path=None, reason=DeadReason.LOCATION_REFUSED)
    raw = replace(gone, path=None, location="", size_bytes=0)
    return (
        stored(json_feed, "truncated.json", whole[: len(whole) // 2], DeadReason.EXTRACTION_FAILED),
        stored(csv_feed, "empty.csv", b"", DeadReason.EMPTY),
        replace(wrong_md5, md5="0" * 32),
        replace(gone, path=None),
        replace(elsewhere, urn="unknown_scheme.json", location="gopher://archive.example.org/inst_load.json"),
        replace(elsewhere, urn="outside_the_root.json", location="file:///etc/hosts"),
        replace(raw, urn="not_json", message=b"dataset=pjm_inst_load&urn=not_json", reason=DeadReason.NOT_JSON),
        replace(
            raw,
            urn="wrong_types",
            message=b'{"dataset": 17, "urn": ["wrong_types"], "location": null, "metadata": "none"}',
            reason=DeadReason.SCHEMA_INVALID,
        ),
        stored(gzip_feed, "bomb.jsonl.gz", _gzip_bomb(BOMB_BYTES), DeadReason.TOO_LARGE),
        stored(json_feed, "junk.bin", b"\x7fELF\x02\x01\x01\x00" + rng.randbytes(6000), DeadReason.UNSUPPORTED_FORMAT),
    )


def _gzip_bomb(unfolded_bytes: int) -> bytes:
    """Valid gzip of zeros. One block is deflated and repeated, since deflating all of it would take a second."""
    block = bytes(8 * 1024 * 1024)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    piece = deflate.compress(block) + deflate.flush(zlib.Z_FULL_FLUSH)  # after it nothing refers back
    repeats = unfolded_bytes // len(block)
    checksum = 0
    for _ in range(repeats):
        checksum = zlib.crc32(block, checksum)
    header = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
    trailer = checksum.to_bytes(4, "little") + (repeats * len(block) % 2**32).to_bytes(4, "little")
    return header + piece * repeats + deflate.flush() + trailer
