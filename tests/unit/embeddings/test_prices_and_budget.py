"""What tokens cost, and what may still be spent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.embeddings.budget import Budget
from shoal.embeddings.prices import Prices
from shoal.errors import ConfigurationError
from shoal.spending import Counts, SpendKey, day_of, spend_key

SMALL = "openai:text-embedding-3-small"
NOW = datetime(2026, 1, 20, 15, tzinfo=UTC)
SHIPPED = Prices.load(None)
DOLLAR = 50_000_000  # tokens of SMALL


def spent(day: str, tokens: int, model: str = SMALL) -> tuple[SpendKey, Counts]:
    return spend_key(day, model, "scraper", "NYISO", "d", "live"), Counts(1, 0, 1, tokens, 0)


# --- prices ---------------------------------------------------------------------------------------------------


def test_the_shipped_table_knows_the_models_of_openai_and_that_ours_are_free() -> None:
    """The issue's own figure: 1M chunks of 800 tokens cost $16."""
    assert SHIPPED.usd(*spent("2026-01-20", 800_000_000)) == pytest.approx(16.0)
    assert SHIPPED.per_million("local:all-MiniLM-L6-v2") == 0.0
    assert SHIPPED.per_million("openai:nomic-embed-text") is None  # nobody knows: not nothing
    assert SHIPPED.per_million(SMALL, "batch") == pytest.approx(0.01)


def test_a_request_that_failed_is_not_billed() -> None:
    key, _ = spent("2026-01-20", 0)
    assert SHIPPED.usd(key, Counts(3, 1, 3, 3 * DOLLAR, DOLLAR)) == pytest.approx(2.0)


def test_ones_own_table_wins_and_older_days_keep_their_price(tmp_path: Path) -> None:
    own = tmp_path / "prices.toml"
    own.write_text(f"""
[[price]]
model = "{SMALL}"
usd_per_million = 1.0
[[price]]
model = "{SMALL}"
usd_per_million = 3.0
batch_usd_per_million = 0.5
from = 2026-01-10
[[price]]
model = "openai:*"
usd_per_million = 7.0
""")
    prices = Prices.load(own)
    assert [prices.per_million(SMALL, "live", day) for day in ("2026-01-09", "2026-01-10")] == [1.0, 3.0]
    assert [prices.per_million(SMALL, "batch", day) for day in ("2026-01-09", "2026-01-10")] == [0.5, 0.5]
    assert prices.per_million("openai:text-embedding-3-large") == 0.13  # named exactly, though in the shipped table
    assert prices.per_million("openai:other") == 7.0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[price]", "not TOML"),
        ('[[price]]\nmodel = "a"\n', "price.0.usd_per_million"),
        ('[[price]]\nmodel = "a"\nusd_per_million = -1\n', "price.0.usd_per_million"),
        ('[[price]]\nmodel = "a"\nusd_per_million = nan\n', "price.0.usd_per_million"),
        ('[[price]]\nmodel = "a*b"\nusd_per_million = 1\n', "a . stands at the end only"),
        ('[[price]]\nmodel = "a"\nusd_per_token = 1\n', "price.0"),
        ("\xff", "not TOML"),
    ],
)
def test_a_wrong_table_is_refused_with_its_place(tmp_path: Path, text: str, why: str) -> None:
    own = tmp_path / "prices.toml"
    own.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=why):
        Prices.load(own)


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"SHOAL_PRICES .*none\.toml: No such file"):
        Prices.load(tmp_path / "none.toml")


# --- the budget -----------------------------------------------------------------------------------------------


def test_it_warns_at_80_percent_and_refuses_at_the_limit_until_the_day_turns() -> None:
    budget = Budget(SHIPPED, limit_day_usd=1.0)
    day = day_of(NOW)
    levels = []
    for _ in range(10):
        budget.add([spent(day, DOLLAR // 10)])
        levels.append(budget.state(NOW).level)
    assert levels == ["ok"] * 7 + ["warned"] * 2 + ["exhausted"]
    refused = budget.refusal(SMALL, "live", 100, NOW)
    assert refused is not None
    assert refused.resumes_at == datetime(2026, 1, 21, tzinfo=UTC)
    assert "SHOAL_BUDGET_DAY_USD" in refused.message
    assert budget.refusal(SMALL, "query", 100, NOW) is not None
    assert budget.refusal(SMALL, "live", 100, NOW + timedelta(hours=9)) is None


def test_a_text_that_would_go_beyond_the_limit_is_refused_before_it() -> None:
    budget = Budget(SHIPPED, limit_day_usd=1.0)
    budget.add([spent(day_of(NOW), DOLLAR - 1000)])
    assert budget.refusal(SMALL, "live", 500, NOW) is None
    assert budget.refusal(SMALL, "live", 1000, NOW) is not None


@pytest.mark.parametrize(("now", "turn"), [(NOW, (2026, 2)), (NOW.replace(month=12), (2027, 1))])
def test_a_month_adds_its_days_up_and_turns(now: datetime, turn: tuple[int, int]) -> None:
    budget = Budget(SHIPPED, limit_day_usd=1.0, limit_month_usd=3.0)
    for back in range(4):
        budget.add([spent(day_of(now - timedelta(days=back)), DOLLAR * 9 // 10)])
    state = budget.state(now)
    assert (state.level, state.resumes_at) == ("exhausted", datetime(*turn, 1, tzinfo=UTC))
    assert (round(state.spent_day_usd, 2), round(state.spent_month_usd, 2)) == (0.9, 3.6)
    budget.restart([spent(day_of(now), 5)])
    assert budget.state(now).level == "ok"


def test_what_costs_nothing_is_never_refused_and_what_nobody_knows_the_price_of_is_told() -> None:
    budget = Budget(SHIPPED, limit_day_usd=0.01)
    budget.add([spent(day_of(NOW), DOLLAR), spent(day_of(NOW), 10, "openai:mystery")])
    assert budget.refusal("local:all-MiniLM-L6-v2", "live", 10**9, NOW) is None
    assert budget.refusal("openai:mystery", "live", 10**9, NOW) is None
    assert budget.state(NOW).unpriced_models == ("openai:mystery",)
    assert Budget(SHIPPED).refusal(SMALL, "live", 10**12, NOW) is None  # no limit


@settings(deadline=None)
@given(st.lists(st.integers(1, DOLLAR), max_size=60))
def test_never_more_is_let_through_than_the_limit(texts: list[int]) -> None:
    budget, let_through = Budget(SHIPPED, limit_day_usd=2.0), 0
    for tokens in texts:
        if budget.refusal(SMALL, "backfill", tokens, NOW) is None:
            budget.add([spent(day_of(NOW), tokens)])
            let_through += tokens
    assert let_through < 2 * DOLLAR
