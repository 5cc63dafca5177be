"""The dashboard of a service, for Grafana.

`python -m tests.dashboard` writes template/ops/dashboard.json.jinja. Each panel is a line of it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from grafana_foundation_sdk.builders import common
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    GridPos,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from tests.rendering import ROOT

FILE = ROOT / "template" / "ops" / "dashboard.json.jinja"
DATASOURCE = DataSourceRef("prometheus", "${datasource}")
HEIGHT, WIDTH, COLUMNS = 8, 8, 3
CHOSEN = 'service="$service", instance=~"$instance"'
ROUTES = 'http_route!~"/health/.*|/metrics"'
REQUESTS = "http_server_request_duration_seconds"


@dataclass(frozen=True)
class Graph:
    """A panel; `queries` maps the legend of each to its expression, in which @ selects processes."""

    title: str
    unit: str
    queries: dict[str, str]


@dataclass(frozen=True)
class Section:
    """A row of panels, of one module or of every service."""

    title: str
    graphs: Sequence[Graph]
    module: str = ""


def rate(metric: str, by: str, matchers: str = "@") -> str:
    return f"sum by ({by}) (rate({metric}{{{matchers}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "", matchers: str = "@") -> str:
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels, matchers)})"


OF_ROUTES = f"@, {ROUTES}"
SECTIONS = [
    Section(
        "Requests",
        [
            Graph(
                "Requests",
                "reqps",
                {
                    "{{http_request_method}} {{http_route}}": rate(
                        f"{REQUESTS}_count", "http_request_method, http_route", OF_ROUTES
                    )
                },
            ),
            Graph(
                "Errors",
                "percentunit",
                {
                    "share of 5xx": (
                        f'sum(rate({REQUESTS}_count{{{OF_ROUTES}, http_response_status_code=~"5.."}}'
                        f"[$__rate_interval])) / sum(rate({REQUESTS}_count{{{OF_ROUTES}}}"
                        "[$__rate_interval]))"
                    ),
                },
            ),
            Graph(
                "Duration",
                "s",
                {
                    f"p{share * 100:.0f}": quantile(share, REQUESTS, matchers=OF_ROUTES)
                    for share in (0.5, 0.95, 0.99)
                },
            ),
            Graph(
                "Responses",
                "reqps",
                {
                    "{{http_response_status_code}}": rate(
                        f"{REQUESTS}_count", "http_response_status_code", OF_ROUTES
                    )
                },
            ),
            Graph(
                "Slowest routes, p95",
                "s",
                {"{{http_route}}": quantile(0.95, REQUESTS, "http_route", OF_ROUTES)},
            ),
            Graph(
                "Requests in progress",
                "short",
                {"{{instance}}": "sum by (instance) (http_server_active_requests{@})"},
            ),
        ],
    ),
    Section(
        "Consumers",
        [
            Graph(
                "Lag",
                "short",
                {
                    "{{consumer}}": "sum by (consumer) (max by (consumer, topic, partition)"
                    " (kafka_consumer_lag{@}))"
                },
            ),
            Graph(
                "Messages handled",
                "short",
                {"{{consumer}}": rate("kafka_messages_consumed_total", "consumer")},
            ),
            Graph(
                "Failures, retries and dead letters",
                "short",
                {
                    "{{consumer}} {{kind}}": rate("kafka_messages_failed_total", "consumer, kind"),
                    "{{consumer}} retried, {{place}}": rate(
                        "kafka_messages_retried_total", "consumer, place"
                    ),
                    "{{consumer}} dead letters": rate(
                        "kafka_messages_dead_lettered_total", "consumer"
                    ),
                },
            ),
            Graph(
                "Time of a handler, p95",
                "s",
                {
                    "{{consumer}} {{event_type}}": quantile(
                        0.95, "kafka_handler_seconds", "consumer, event_type"
                    )
                },
            ),
            Graph(
                "Paused",
                "short",
                {
                    "{{consumer}}, {{reason}}": "max by (consumer, reason)"
                    " (kafka_consumer_paused{@})"
                },
            ),
            Graph(
                "Duplicates, undecodable and expired",
                "short",
                {
                    f"{{{{consumer}}}} {name}": rate(metric, "consumer")
                    for name, metric in (
                        ("duplicates", "kafka_inbox_duplicates_total"),
                        ("undecodable", "kafka_messages_undecodable_total"),
                        ("expired", "kafka_messages_expired_total"),
                    )
                },
            ),
        ],
    ),
    Section(
        "Producer",
        [
            Graph("Sent", "short", {"{{topic}}": rate("kafka_messages_sent_total", "topic")}),
            Graph(
                "From send to acknowledgement, p95",
                "s",
                {"{{topic}}": quantile(0.95, "kafka_message_latency_seconds", "topic")},
            ),
            Graph(
                "Failures, refusals, lost events",
                "short",
                {
                    "{{topic}} {{error}}": rate("kafka_send_failures_total", "topic, error"),
                    "{{topic}} {{reason}}": rate("kafka_topic_refusals_total", "topic, reason"),
                    "{{topic}} lost": rate("kafka_events_lost_total", "topic"),
                },
            ),
        ],
    ),
    Section(
        "Outbox",
        [
            Graph(
                "Waiting events",
                "short",
                {
                    "pending": "max(outbox_pending{@})",
                    "parked": "max(outbox_parked{@})",
                    "held": "max(outbox_held{@})",
                },
            ),
            Graph("Oldest event", "s", {"age": "max(outbox_oldest_age_seconds{@})"}),
            Graph(
                "Relayed",
                "short",
                {
                    "{{topic}}": rate("outbox_relayed_total", "topic"),
                    "{{topic}} failures": rate("outbox_send_failures_total", "topic"),
                },
            ),
        ],
        "outbox",
    ),
    Section(
        "Projections",
        [
            Graph(
                "Lag",
                "s",
                {"{{projection}}": "max by (projection) (projection_lag_seconds{@})"},
            ),
            Graph(
                "Events not yet projected",
                "short",
                {"{{projection}}": "max by (projection) (projection_lag_events{@})"},
            ),
        ],
        "cqrs",
    ),
    Section(
        "Event store",
        [
            Graph(
                "Appended",
                "short",
                {"{{category}}": rate("event_store_appended_total", "category")},
            ),
            Graph(
                "Conflicts",
                "short",
                {"{{category}}": rate("event_store_append_conflicts_total", "category")},
            ),
        ],
        "event_sourcing",
    ),
    Section(
        "Database and processes",
        [
            Graph(
                "Connections of the pool",
                "short",
                {
                    f"{{{{instance}}}} {name}": f"database_pool_{name}{{@}}"
                    for name in ("in_use", "limit")
                },
            ),
            Graph(
                "Waiting for a connection",
                "short",
                {
                    "{{instance}} waiting": "database_pool_waiting{@}",
                    "{{instance}} overflow": "database_pool_overflow{@}",
                    "{{instance}} timeouts": rate("database_pool_timeouts_total", "instance"),
                },
            ),
            Graph(
                "Lag of the event loop, p99",
                "s",
                {"{{instance}}": quantile(0.99, "event_loop_lag_seconds", "instance")},
            ),
            Graph(
                "Ready",
                "bool_yes_no",
                {
                    "{{job}} {{instance}}": "min by (job, instance)"
                    ' (readiness_check_passed{@, required="true"})'
                },
            ),
            Graph("CPU", "short", {"{{instance}}": rate("process_cpu_seconds_total", "instance")}),
            Graph("Memory", "bytes", {"{{instance}}": "process_resident_memory_bytes{@}"}),
            Graph(
                "Versions",
                "short",
                {
                    "{{service_version}} ({{service_roles}})": (
                        "count by (service_version, service_roles) (target_info{@})"
                    )
                },
            ),
        ],
    ),
]


def render() -> str:
    """Return the text of the file: valid JSON in every service, with tags around its modules' rows."""
    frame = (
        Dashboard("{{ project_name }}")
        .uid("{{ project_slug[:40] }}")
        .tags(["fastapi", "kafka"])
        .time("now-1h", "now")
        .refresh("30s")
        .with_variable(DatasourceVariable("datasource").type("prometheus"))
        .with_variable(
            variable("service", "label_values(target_info, service)").current(
                VariableOption(text="{{ service_name }}", value="{{ service_name }}")
            )
        )
        .with_variable(
            variable("instance", 'label_values(up{service="$service"}, instance)')
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(VariableOption(text="All", value="$__all"))
        )
    )
    framed = {**frame.build().to_json(), "panels": []}
    head, tail = json.dumps(framed, cls=JSONEncoder, indent=2).split('"panels": []')
    return f'{head}"panels": [\n{"".join(panel_lines())}  ]{tail}\n'


def variable(name: str, query: str) -> QueryVariable:
    return (
        QueryVariable(name)
        .query(query)
        .datasource(DATASOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


def panel_lines() -> Iterator[str]:
    """Yield the lines of the panels: those of modules first, so that a comma follows each.

    Grafana places them by their positions, and closes the gaps of absent rows.
    """
    ids, y = count(1), 0
    optional, always = list[str](), list[str]()
    for section in SECTIONS:
        row = Row(section.title).id(next(ids)).grid_pos(GridPos(h=1, w=24, x=0, y=y))
        built: list[object] = [row.build()]
        for number, graph in enumerate(section.graphs):
            line, column = divmod(number, COLUMNS)
            place = GridPos(h=HEIGHT, w=WIDTH, x=column * WIDTH, y=y + 1 + line * HEIGHT)
            built.append(panel(graph, place).id(next(ids)).build())
        y += 1 + HEIGHT * -(-len(section.graphs) // COLUMNS)
        lines = [json.dumps(each, cls=JSONEncoder) for each in built]
        if section.module:
            tag = f'{{% if "{section.module}" in modules %}}\n{{% raw %}}\n'
            optional += [tag, *(f"    {each},\n" for each in lines), "{% endraw %}\n{% endif %}\n"]
        else:
            always += lines
    yield from optional
    yield "{% raw %}\n"
    yield ",\n".join(f"    {each}" for each in always)
    yield "\n{% endraw %}\n"


def panel(graph: Graph, place: GridPos) -> Panel:
    built = (
        Panel()
        .title(graph.title)
        .unit(graph.unit)
        .min(0)
        .datasource(DATASOURCE)
        .grid_pos(place)
        .fill_opacity(10)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    for letter, (legend, expression) in zip("ABCDEF", graph.queries.items(), strict=False):
        query = Dataquery().expr(expression.replace("@", CHOSEN)).legend_format(legend)
        built = built.with_target(query.ref_id(letter).range())
    return built


if __name__ == "__main__":
    FILE.write_text(render())
