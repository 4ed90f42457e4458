"""Facts of cities: their countries, continents and US states, without places that have namesakes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from calib_core.demo.countries import BETWEEN_CONTINENTS, plain, sovereign, usable_together
from calib_core.demo.facts import Fact

_CITY_POPULATION = 250_000  # a small model knows few places that are smaller
_CITIES_PER_CONTINENT = 200  # asked for their continent: no answer is to be right far more often than others
_STATE_CITY_POPULATION = 150_000
_RIVAL_POPULATION = 15_000  # a namesake of this size in another country makes the question unusable
_CITIES_PER_COUNTRY = 60  # so that no country is right far more often than others


def city_facts(
    countries: dict[str, Any], cities: list[dict[str, Any]], continents: dict[str, str]
) -> Iterable[Fact]:
    """Countries or continents of large cities; where a namesake is, in any spelling, is no wrong answer."""
    known = sovereign(countries)
    large = [
        city
        for city in cities
        if city["population"] >= _CITY_POPULATION
        and city["countrycode"] in known
        and not any(letter.isdigit() for letter in city["name"])  # "Sector 6"
    ]
    namesakes, rivals = _countries_by_name(cities, {plain(city["name"]) for city in large})
    taken: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for city in large:  # the largest first: of two namesakes in one country, that is the one asked for
        code, name = city["countrycode"], plain(city["name"])
        obvious = plain(known[code]["name"]) in name
        asked_elsewhere = name == plain(known[code]["capital"]) or _asked_by_state(city)
        if (
            rivals[name] == {code}
            and not obvious
            and not asked_elsewhere
            and len(taken[code]) < _CITIES_PER_COUNTRY
        ):
            taken[code].setdefault(name, city)
    ranked = sorted(
        (city for of in taken.values() for city in of.values()), key=lambda city: -city["population"]
    )
    answers = Counter(city["countrycode"] for city in ranked)
    per_continent: Counter[str] = Counter()
    for city in ranked:
        code, holders = city["countrycode"], namesakes[plain(city["name"])]
        continent = known[code]["continentcode"]
        yield _country_fact(city, known, answers, holders)
        if code in BETWEEN_CONTINENTS or per_continent[continent] == _CITIES_PER_CONTINENT:
            continue
        per_continent[continent] += 1
        elsewhere = {countries[key]["continentcode"] for key in holders if key in countries} - {continent}
        yield Fact(
            key=f"city-continent-{city['geonameid']}",
            about=f"city-{city['geonameid']}",
            subject="continent of city",
            question=f"On which continent is the city of {city['name']}?",
            open_question=f"On which continent is the city of {city['name']}?",
            statement=f"{city['name']} is in {{answer}}.",
            answer=continents[continent],
            near={name: 1.0 for key, name in continents.items() if key not in elsewhere},
        )


def _country_fact(
    city: dict[str, Any], known: dict[str, Any], answers: Mapping[str, int], holders: set[str]
) -> Fact:
    """The country of a city, against countries of its continent without a place of that name."""
    code = city["countrycode"]
    others = [key for key in known if usable_together(known, code, key) and key not in holders]
    return Fact(
        key=f"city-{city['geonameid']}",
        about=f"city-{city['geonameid']}",
        subject="country of city",
        question=f"In which country is {city['name']}?",
        open_question=f"In which country is {city['name']}?",
        statement=f"{city['name']} is in {{answer}}.",
        answer=known[code]["name"],
        # Countries are wrong answers as often as right ones elsewhere: the options alone tell nothing.
        near={
            known[key]["name"]: float(answers[key]) ** 1.5
            for key in others
            if known[key]["continentcode"] == known[code]["continentcode"] and answers[key]
        },
        far={known[key]["name"]: 1.0 for key in others},
    )


def _countries_by_name(
    cities: list[dict[str, Any]], names: set[str]
) -> tuple[defaultdict[str, set[str]], defaultdict[str, set[str]]]:
    """For each name, in any spelling: the countries with a place of that name, and those with a large one."""
    holders: defaultdict[str, set[str]] = defaultdict(set)
    rivals: defaultdict[str, set[str]] = defaultdict(set)
    for city in cities:
        spellings = filter(_in_latin_letters, (city["name"], *city["alternatenames"]))
        for name in names.intersection(map(plain, spellings)):
            holders[name].add(city["countrycode"])
            if city["population"] >= _RIVAL_POPULATION:
                rivals[name].add(city["countrycode"])
    return holders, rivals


def state_facts(cities: list[dict[str, Any]], states: dict[str, str]) -> Iterable[Fact]:
    """States of US cities; no state with a namesake of the city is a wrong answer."""
    american = [city for city in cities if city["countrycode"] == "US" and city["admin1code"] in states]
    holders, rivals = defaultdict(set), defaultdict(set)
    for city in american:
        holders[plain(city["name"])].add(city["admin1code"])
        if city["population"] >= _RIVAL_POPULATION:
            rivals[plain(city["name"])].add(city["admin1code"])
    usable: dict[str, dict[str, Any]] = {}
    for city in american:
        name, state = plain(city["name"]), city["admin1code"]
        large = city["population"] >= _STATE_CITY_POPULATION and rivals[name] == {state}
        if large and _asked_by_state(city) and plain(states[state]) not in name:
            usable.setdefault(name, city)
    per_state = Counter(city["admin1code"] for city in usable.values())
    for name, city in usable.items():
        yield Fact(
            key=f"state-{city['geonameid']}",
            about=f"state-{city['geonameid']}",
            subject="US state",
            question=f"In which US state is {city['name']}?",
            open_question=f"In which US state is {city['name']}?",
            statement=f"{city['name']} is in {{answer}}.",
            answer=states[city["admin1code"]],
            near={states[code]: float(n) for code, n in per_state.items() if code not in holders[name]},
        )


def _asked_by_state(city: dict[str, Any]) -> bool:
    """Whether a US city serves a question on its state; every fifth serves one on its country instead."""
    return bool(city["countrycode"] == "US" and city["geonameid"] % 5 > 0)


def _in_latin_letters(name: str) -> bool:
    """Whether a name begins with a Latin letter; only those can equal the names that questions use."""
    return name[:1] < "\u0250" or "\u1e00" <= name[0] < "\u1f00"
