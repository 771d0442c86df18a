"""Settings that contradict each other: what the types cannot say."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from agent.config import Config, Domain, Link, Power, PowerRule, Store
from agent.records import raw_stream, segments_stream

Mistake = tuple[list[str | int], str, str]  # key, what is wrong, remedy


def contradictions(config: Config) -> Iterator[Mistake]:
    """All of them."""
    yield from _deaf(config)
    yield from _overlaps(config.domains)
    yield from _contradictions(config.link)
    yield from _unsecured(config)
    yield from _unsafe(config.store)
    yield from _powerless(config)


def _contradictions(link: Link) -> Iterator[Mistake]:
    """Settings of the link that others leave without effect."""
    if link.ack_from == "ingest" and link.broker_url is None:
        yield (
            ["link", "ack_from"],
            "the embedded broker has no ingest behind it that could acknowledge",
            "name a broker in link.broker_url, or set ack_from: broker to try things out",
        )
    if link.blobs_by == "put" and link.broker_url is None:
        wrong = "the embedded broker has no cloud behind it that could grant it"
        yield ["link", "blobs_by"], wrong, "name a broker in link.broker_url, or leave it at mqtt"
    if link.password_file is not None and link.username is None:
        wrong = "has no effect without link.username"
        yield ["link", "password_file"], wrong, "set link.username too"


def _unsecured(config: Config) -> Iterator[Mistake]:
    """An authority that nothing is judged by."""
    link, urls = config.link, [config.link.broker_url or "", *config.updates.urls]
    if link.ca_file is not None and not any(url.startswith(("mqtts:", "https:")) for url in urls):
        remedy = "write link.broker_url as mqtts://..."
        yield ["link", "ca_file"], "has no effect without TLS", remedy


def _deaf(config: Config) -> Iterator[Mistake]:
    """A domain that is to hear, and cannot."""
    name = config.audio.domain
    if config.domains_all[name].engine != "speech":
        wrong = f"{config.domains[name].engine}, but audio.domain is {name}"
        remedy = "name another domain in audio.domain, or leave engine out"
        yield ["domains", name, "engine"], wrong, remedy


def _overlaps(domains: dict[str, Domain]) -> Iterator[Mistake]:
    """What of a domain contradicts itself, or another."""
    seen: dict[str, str] = {}
    for name, one in domains.items():
        for i, model in enumerate(one.models):
            if model in seen:
                wrong = f"{model!r} is a model of domain {seen[model]} already"
                yield ["domains", name, "models", i], wrong, "a model is served by one domain"
            seen[model] = name
        for part in (one.cpus or "").split(","):
            first, _, last = part.partition("-")
            if last and int(first) > int(last):
                yield ["domains", name, "cpus"], f"{part}: goes backwards", "write 0-3, not 3-0"
        if one.instances.min > one.instances.max:
            wrong = f"{one.instances.min} is above max {one.instances.max}"
            yield ["domains", name, "instances", "min"], wrong, "raise max, or lower min"
        if one.restart_s_min > one.restart_s_max:
            wrong = f"{one.restart_s_min} is above restart_s_max {one.restart_s_max}"
            yield ["domains", name, "restart_s_min"], wrong, "lower it, or raise restart_s_max"


def _unsafe(store: Store) -> Iterator[Mistake]:
    """Rules that would keep sound in memory alone: accepted sound is durable."""
    for suffix in (raw_stream(""), segments_stream("")):
        tails = [suffix[i:] for i in range(len(suffix) + 1)]
        for i, rule in enumerate(store.streams):
            if rule.durability == "volatile" and _may_match(rule.match, suffix):
                yield (
                    ["store", "streams", i, "durability"],
                    f"{rule.match!r} matches streams of sound (*{suffix}), which is never volatile",
                    f"match fewer streams, or put a rule for '*{suffix}' before this one",
                )
            if rule.match in [f"*{tail}" for tail in tails]:
                break  # no later rule counts for these streams


def _may_match(pattern: str, suffix: str) -> bool:
    """Whether a pattern matches a name that ends so: then its own end, from somewhere, does."""
    return any(fnmatchcase(suffix, pattern[i:]) for i in range(len(pattern) + 1))


def _powerless(config: Config) -> Iterator[Mistake]:
    """Profiles of power that nobody has, and rules that do not say when."""
    power, at = config.power, list[str | int](["power"])
    known = f"name one of power.profiles: {', '.join(power.profiles) or 'there is none'}"
    if power.profile is not None and power.profile not in power.profiles:
        yield [*at, "profile"], f"no profile is called {power.profile!r}", known
    for i, rule in enumerate(power.rules):
        if rule.profile not in power.profiles:
            yield [*at, "rules", i, "profile"], f"no profile is called {rule.profile!r}", known
        elif not _goes_back(power, rule):
            wrong = f"{rule.profile!r} sets nvpmodel, and nothing would set it back"
            yield [*at, "rules", i, "profile"], wrong, "name a power.profile that has nvpmodel too"
        if not _says_when(rule):
            remedy = "set one: above_c, or battery_below, or begin and end"
            yield [*at, "rules", i], "it does not say when, or says it twice", remedy
    for name, profile in power.profiles.items():
        where = [*at, "profiles", name, "rest"]
        for domain in profile.rest:
            if domain == config.audio.domain:
                wrong = f"{domain!r} hears, as long as this agent runs"
                yield where, wrong, "name domains that may wait"
            elif domain not in config.domains:
                known = f"known: {', '.join(config.domains) or 'there is none'}"
                yield where, f"no domain is called {domain!r}", known


def _goes_back(power: Power, rule: PowerRule) -> bool:
    """Whether the board's mode is set again once the rule holds no more."""
    usual = power.profiles.get(power.profile or "")
    sets = power.profiles[rule.profile].nvpmodel is not None
    return not sets or (usual is not None and usual.nvpmodel is not None)


def _says_when(rule: PowerRule) -> bool:
    """Whether it says so, in one way."""
    times = [rule.begin is not None, rule.end is not None]
    ways = [rule.above_c is not None, rule.battery_below is not None, any(times)]
    return ways.count(True) == 1 and times[0] == times[1]
